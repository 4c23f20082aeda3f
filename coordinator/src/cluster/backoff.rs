//! What Regent has begun by itself and could not do: when it is tried again, and what people are told of that meanwhile.
//!
//! **Invariant:** the pause doubles with every failure in a row, up to [`LONGEST`], and is over with a success. A coordinator that
//! has just started knows of none, and tries at once.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use regent_common::ids::OperationId;
use serde_json::Value;

use crate::{
    model::{
        cluster::{ClusterRecord, MemberState},
        operation::OperationRecord,
    },
    operation::kind,
};

/// Pause after the first failure.
const SHORTEST: Duration = Duration::from_secs(2);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// Failures in a row from which on people are told: one is mended by the next attempt more often than not.
const TOLD_FROM: u32 = 2;
/// The kind that brings a member back.
const REJOIN: &str = "rejoin";

/// What an operation is for, so that repeated failures of the same thing are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    kind: String,
    member: Option<String>,
}

/// Failures of one cluster's operations. Kept by its actor, shown by the API.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<BTreeMap<Subject, Failures>>);

#[derive(Debug, Default)]
struct Failures {
    in_a_row: u32,
    /// By this coordinator's CLOCK_BOOTTIME.
    not_before: Duration,
    /// Whether it is being tried again.
    runs: bool,
    /// The last one.
    operation: Option<OperationId>,
    /// Why it failed, if it is tried again by itself; `None` while that is not known, or when it was cancelled.
    why: Option<String>,
}

// === impl Subject ===

impl Subject {
    /// Of a kind of operation with what was asked of it.
    pub fn new(kind: &str, parameters: &Value) -> Self {
        let member = parameters.get("member").and_then(Value::as_str).map(ToOwned::to_owned);
        Self { kind: kind.to_owned(), member }
    }

    fn of(operation: &OperationRecord) -> Self {
        Self::new(&operation.kind, &operation.parameters)
    }

    /// Whether it was for a member that needs it no more.
    fn is_returned_to(&self, cluster: &ClusterRecord) -> bool {
        let Some(member) = self.member.as_ref().filter(|_| self.kind == REJOIN) else { return false };
        let stored = cluster.members.iter().find(|(name, _)| name.as_str() == member);
        stored.is_none_or(|(_, stored)| stored.state == MemberState::Ready)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.kind.as_str(), &self.member) {
            (REJOIN, Some(member)) => write!(f, "bringing {member} back"),
            ("configure", Some(member)) => write!(f, "configuring {member}"),
            ("remove_member", Some(member)) => write!(f, "removing {member}"),
            (kind, _) => write!(f, "the {}", kind.replace('_', " ")),
        }
    }
}

// === impl Backoff ===

impl Backoff {
    /// Says that one runs now.
    pub fn begins(&self, operation: &OperationRecord) {
        if let Some(failures) = self.counted().get_mut(&Subject::of(operation)) {
            failures.runs = true;
        }
    }

    /// Counts one that did not do what it should, or was cancelled.
    pub fn failed(&self, operation: &OperationRecord, now: Duration) {
        let mut counted = self.counted();
        let failures = counted.entry(Subject::of(operation)).or_default();
        let pause = SHORTEST.saturating_mul(1 << failures.in_a_row.min(10)).min(LONGEST);
        (failures.in_a_row, failures.not_before) = (failures.in_a_row.saturating_add(1), now + pause);
        (failures.runs, failures.operation, failures.why) = (false, Some(operation.id), None);
    }

    /// Says why the last one failed. The word on one before it comes too late, and is not of this one.
    pub fn explain(&self, operation: &OperationRecord, why: &str) {
        let is_tried_again =
            operation.is_automatic() && kind(&operation.kind).is_some_and(|kind| kind.is_tried_again());
        let mut counted = self.counted();
        let last = counted.get_mut(&Subject::of(operation)).filter(|last| last.operation == Some(operation.id));
        if let Some(failures) = last.filter(|_| is_tried_again) {
            failures.why = Some(why.to_owned());
        }
    }

    /// Forgets all failures of what has been done now.
    pub fn succeeded(&self, operation: &OperationRecord) {
        self.counted().remove(&Subject::of(operation));
    }

    /// Forgets the failures to bring those back who are back by now, or gone.
    pub fn forget_returned(&self, cluster: &ClusterRecord) {
        self.counted().retain(|subject, failures| failures.runs || !subject.is_returned_to(cluster));
    }

    /// Until when nothing more is tried, by CLOCK_BOOTTIME; `None` when it may be.
    pub fn rests_until(&self, subject: &Subject, now: Duration) -> Option<Duration> {
        self.counted().get(subject).map(|failures| failures.not_before).filter(|not_before| now < *not_before)
    }

    /// What has failed again and again and is tried again, a sentence each. What is no longer needed is not tried again, and not
    /// told of any more.
    pub fn sentences(&self, now: Duration) -> Vec<String> {
        let sentence = |(subject, failures): (&Subject, &Failures)| {
            let (operation, why) = failures.operation.zip(failures.why.as_ref())?;
            if failures.in_a_row < TOLD_FROM {
                return None;
            }
            let next = match failures.not_before.checked_sub(now).filter(|left| !left.is_zero()) {
                _ if failures.runs => "is being tried again".to_owned(),
                Some(left) => format!("is tried again in {} s", left.as_secs_f64().ceil()),
                None => return None,
            };
            let times = failures.in_a_row;
            Some(format!(
                "{subject} has failed {times} times in a row, and {next}: {why}; `regentctl operation show {operation}` has the steps"
            ))
        };
        self.counted().iter().filter_map(sentence).collect()
    }

    fn counted(&self) -> std::sync::MutexGuard<'_, BTreeMap<Subject, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::fixtures::{cluster, name};

    fn operation(kind: &str, member: &str, created_by: &str) -> OperationRecord {
        OperationRecord {
            id: OperationId::generate(),
            kind: kind.to_owned(),
            cluster: "db".parse().unwrap(),
            cluster_id: regent_common::ids::ClusterId::generate(),
            parameters: serde_json::json!({ "member": member }),
            steps: Vec::new(),
            created_by: created_by.to_owned(),
            reason: String::new(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn fail(backoff: &Backoff, operation: &OperationRecord, now: u64, why: &str) {
        backoff.failed(operation, second(now));
        backoff.explain(operation, why);
    }

    #[test]
    fn the_pause_doubles_and_ends_with_a_success() {
        let (backoff, rejoin) = (Backoff::default(), operation("rejoin", "db2", "regent"));
        let subject = Subject::of(&rejoin);
        assert_eq!(backoff.rests_until(&subject, second(0)), None);
        for pause in [2, 4, 8, 16, 32, 60, 60] {
            backoff.failed(&rejoin, second(100));
            assert_eq!(backoff.rests_until(&subject, second(100)), Some(second(100 + pause)));
        }
        assert_eq!(backoff.rests_until(&subject, second(160)), None);
        let other = Subject::of(&operation("rejoin", "db1", "regent"));
        assert_eq!(backoff.rests_until(&other, second(100)), None, "another member's");
        backoff.succeeded(&rejoin);
        backoff.failed(&rejoin, second(200));
        assert_eq!(backoff.rests_until(&subject, second(200)), Some(second(202)));
    }

    #[test]
    fn what_fails_again_and_again_is_told_while_it_is_tried_again() {
        let (backoff, rejoin) = (Backoff::default(), operation("rejoin", "db2", "regent"));
        let none = Vec::<String>::new();
        fail(&backoff, &rejoin, 0, "the port is taken");
        assert_eq!(backoff.sentences(second(0)), none, "once is no news");
        let again = OperationRecord { id: OperationId::generate(), ..rejoin.clone() };
        backoff.failed(&again, second(10));
        backoff.explain(&rejoin, "of the one before, and late");
        assert_eq!(backoff.sentences(second(10)), none, "nobody knows why yet");
        backoff.explain(&again, "the port is taken still");
        let told = |next: &str| {
            let id = again.id;
            format!(
                "bringing db2 back has failed 2 times in a row, and {next}: the port is taken still; `regentctl operation show {id}` has \
                 the steps"
            )
        };
        assert_eq!(backoff.sentences(second(11)), [told("is tried again in 3 s")]);
        assert_eq!(backoff.sentences(second(14)), none, "nobody tries it any more");
        backoff.begins(&again);
        assert_eq!(backoff.sentences(second(15)), [told("is being tried again")]);
        backoff.failed(&rejoin, second(20));
        assert_eq!(backoff.sentences(second(20)), none, "it was cancelled");
        fail(&backoff, &rejoin, 30, "the disk is full");
        assert!(backoff.sentences(second(31))[0].contains("has failed 4 times in a row, and is tried again in 15 s"));

        let mut record = cluster();
        record.set_state(&name(2), MemberState::NeedsRejoin);
        backoff.forget_returned(&record);
        assert_eq!(backoff.sentences(second(31)).len(), 1);
        record.set_state(&name(2), MemberState::Ready);
        backoff.forget_returned(&record);
        assert_eq!(backoff.sentences(second(31)), none, "something else brought it back");
        assert_eq!(backoff.rests_until(&Subject::of(&rejoin), second(31)), None);
    }

    #[test]
    fn what_nobody_tries_again_by_itself_is_not_told() {
        let backoff = Backoff::default();
        let others = [("remove_member", "ada"), ("resync", "regent"), ("add_member", "regent")];
        for (kind, created_by) in others {
            let asked = operation(kind, "db3", created_by);
            for _ in 0..3 {
                fail(&backoff, &asked, 20, "it cannot be");
            }
        }
        assert_eq!(backoff.sentences(second(20)), Vec::<String>::new());
        let left = operation("remove_member", "db3", "regent");
        fail(&backoff, &left, 30, "it cannot be");
        assert!(backoff.sentences(second(30))[0].starts_with("removing db3 has failed 4 times in a row"));
    }
}
