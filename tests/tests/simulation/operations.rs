//! What the store tells of operations: which run, which have ended, and whom a failover has prepared.

use std::collections::{BTreeMap, BTreeSet};

use regent_coordinator::{model::operation::OperationRecord, operation::log::Event};

/// All operations since the beginning.
#[derive(Debug, Clone, Default)]
pub(crate) struct Operations {
    /// By id; ids are shown as numbers, in the order in which they began.
    by_id: BTreeMap<String, Seen>,
    count: usize,
    /// Members that answered a prepare together: the candidate, then the others.
    pub(crate) prepared: Vec<Vec<String>>,
    /// Steps that have begun, as `KIND STEP`.
    pub(crate) begun: BTreeSet<String>,
}

/// One operation.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    number: usize,
    /// Its kind.
    pub(crate) kind: String,
    steps: Vec<String>,
    /// Whether it has ended.
    pub(crate) ended: bool,
}

// === impl Operations ===

impl Operations {
    /// An operation was stored; its number.
    pub(crate) fn begin(&mut self, record: &OperationRecord) -> usize {
        self.count += 1;
        let steps = record.steps.iter().map(|step| step.name.clone()).collect();
        let seen = Seen { number: self.count, kind: record.kind.clone(), steps, ended: false };
        self.by_id.insert(record.id.to_string(), seen);
        self.count
    }

    /// Something was written into an operation's log; what that is, for people.
    pub(crate) fn enter(&mut self, id: &str, event: &Event) -> Option<String> {
        let seen = self.by_id.get_mut(id)?;
        let step = |index: &usize| seen.steps.get(*index).cloned().unwrap_or_default();
        let what = match event {
            Event::Started { step: index, .. } => {
                self.begun.insert(format!("{} {}", seen.kind, step(index)));
                format!("{} begins", step(index))
            }
            Event::Succeeded { step: index, output, report } => {
                if seen.kind == "failover" && step(index) == "prepare" {
                    let names = |value: &serde_json::Value| value.as_str().map(str::to_owned);
                    let others = output["others"].as_array().map(Vec::as_slice).unwrap_or_default();
                    self.prepared
                        .push(names(&output["candidate"]).into_iter().chain(others.iter().filter_map(names)).collect());
                }
                format!("{} done: {}", step(index), report.join("; "))
            }
            Event::Failed { step: index, failure } => format!("{} failed: {}", step(index), failure.message),
            Event::Cancelled { failure } => format!("cancelled: {}", failure.message),
            Event::Undone { step: index } => format!("{} undone", step(index)),
            Event::Ended { outcome } => {
                seen.ended = true;
                format!("ended: {outcome:?}")
            }
        };
        Some(format!("operation {} ({}): {what}", seen.number, seen.kind))
    }

    /// An event as scripts wait for it.
    pub(crate) fn word(&self, id: &str, event: &Event) -> Option<String> {
        let seen = self.by_id.get(id)?;
        match event {
            Event::Started { step, .. } => Some(format!("{} {} begins", seen.kind, seen.steps.get(*step)?)),
            Event::Succeeded { step, .. } => Some(format!("{} {} done", seen.kind, seen.steps.get(*step)?)),
            Event::Failed { .. } | Event::Cancelled { .. } | Event::Undone { .. } | Event::Ended { .. } => None,
        }
    }

    /// Forgets what a store that went back in time does not have: operations, and that those left have ended.
    pub(crate) fn forget_all_but<'a>(&mut self, ids: impl Iterator<Item = &'a str>) {
        let kept: BTreeSet<&str> = ids.collect();
        self.by_id.retain(|id, _| kept.contains(id.as_str()));
        self.by_id.values_mut().for_each(|seen| seen.ended = false);
    }

    /// Takes note of an entry that was in the log before.
    pub(crate) fn remember(&mut self, id: &str, event: &Event) {
        if let (Some(seen), Event::Ended { .. }) = (self.by_id.get_mut(id), event) {
            seen.ended = true;
        }
    }

    /// The operations that have not ended.
    pub(crate) fn running(&self) -> Vec<String> {
        let running = self.by_id.values().filter(|seen| !seen.ended);
        running.map(|seen| format!("{} ({})", seen.number, seen.kind)).collect()
    }

    /// The kind of the newest operation that has not ended.
    pub(crate) fn present(&self) -> Option<&str> {
        let running = self.by_id.values().filter(|seen| !seen.ended);
        running.max_by_key(|seen| seen.number).map(|seen| seen.kind.as_str())
    }

    /// How many of a kind have ended.
    pub(crate) fn ended(&self, kind: &str) -> usize {
        self.by_id.values().filter(|seen| seen.ended && seen.kind == kind).count()
    }
}
