//! Judges what clients could see. It knows nothing of leases, epochs or the protocol, and never stops a simulation: it writes down
//! what must not have happened.
//!
//! - Never are two nodes able to acknowledge writes at one time, and no acknowledgement of an older reign leaves after one of a
//!   newer.
//! - No step removes what is left of an acknowledged row that no other copy has.
//! - No acknowledged row is lost but what the policy allows at a change of primary, and none that a prepared member had.
//! - The stated limit: a machine that was stopped together with its clocks, which no guest can tell, may go on for the rest of
//!   one lease after it goes on; not longer.
//! - Every operation ends, and with the faults over a writable primary exists, or a person is told what to do. So it does under
//!   faults that last and of which a script says that they leave one.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use regent_agent::engine::fake::FakeWorld;

use super::{machine::Machine, trace::traced, writers::Acknowledged};

/// Rows that the policy lets a failover lose: `max_lag_on_failover` in rows of the weight that [`super::world`] gives them.
pub(crate) const MAX_LAG_ROWS: usize = 128;
/// Before the last acknowledgement of a reign: for so long it may have gone on acknowledging what nobody received (rule P4).
const LAST_LEASE: Duration = Duration::from_secs(6);

/// The same for a lease that was handed over for a restart of its agent: nobody sees meanwhile how far behind the others are.
const HANDED_OVER: Duration = Duration::from_secs(31);
/// How long an agent that is told to end may ask for it.
const WAITS: Duration = Duration::from_secs(12);

/// What must not have happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    /// Which sentence of the oracle.
    pub(crate) kind: Kind,
    /// What happened.
    pub(crate) detail: String,
}

/// The sentences of the oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Two nodes could acknowledge writes at one time.
    TwoPrimaries,
    /// A row of an older reign was acknowledged after one of a newer.
    OldReign,
    /// A prepared member had an acknowledged row that the candidate has not.
    PreparedLost,
    /// A failover lost more than the policy allows.
    LostBeyondPolicy,
    /// A step removed the last copy of acknowledged rows.
    LastCopyRemoved,
    /// An acknowledged row is gone, and no change of primary explains it.
    Vanished,
    /// An operation did not end.
    OperationNeverEnds,
    /// The faults were over, and nobody accepts writes.
    NoPrimary,
    /// The faults that stood left room for a writer, and there was none.
    NoWriter,
    /// The product panicked, or ended where it should not.
    Broken,
}

/// The judge of one simulation.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    acknowledged: Vec<Acknowledged>,
    /// Rows that a change of primary has lost.
    lost: BTreeSet<u64>,
    newest_reign: u64,
    highest_promoted: u64,
    able: Vec<usize>,
    /// When an agent was told last to hand its lease over.
    handed_over_at: Option<Duration>,
    /// The two of whom it was said already.
    two: Option<Vec<usize>>,
    violations: Vec<Violation>,
}

// === impl Violation ===

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.detail)
    }
}

// === impl Oracle ===

impl Oracle {
    /// What must not have happened and did.
    pub(crate) fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Number of acknowledged rows.
    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// When a row was acknowledged last.
    pub(crate) fn last_acknowledged(&self) -> Option<Duration> {
        self.acknowledged.last().map(|row| row.at)
    }

    /// Rows that were lost by changes of primary.
    pub(crate) fn lost(&self) -> usize {
        self.lost.len()
    }

    /// The nodes that were able to acknowledge writes when it looked last.
    pub(crate) fn able(&self) -> &[usize] {
        &self.able
    }

    /// An agent is told to hand its lease over.
    pub(crate) fn hands_over(&mut self, now: Duration) {
        self.handed_over_at = Some(now);
    }

    /// Whether a lease may stand that was handed over.
    pub(crate) fn may_be_handed_over(&self, now: Duration) -> bool {
        self.handed_over_at.is_some_and(|at| now <= at + HANDED_OVER + WAITS)
    }

    /// Adds a violation that somebody else has seen.
    pub(crate) fn complain(&mut self, kind: Kind, detail: impl Into<String>) {
        let violation = Violation { kind, detail: detail.into() };
        traced!("VIOLATION {violation}");
        self.violations.push(violation);
    }

    /// Looks at the engines and their machines.
    pub(crate) fn look(&mut self, engines: &FakeWorld, machines: &[Arc<Machine>]) {
        let is_able = |machine: &Machine| {
            machine.stalls.runs()
                && engines.accepts_writes(&machine.endpoint())
                && [false, true].iter().any(|peer| machine.passage.lets_in(*peer) && machine.passage.lets_out(*peer))
        };
        let able: Vec<usize> = (0..machines.len()).filter(|index| is_able(&machines[*index])).collect();
        let names: Vec<_> = able.iter().map(|index| machines[*index].name.as_str()).collect();
        if able != self.able {
            traced!(
                "able to acknowledge writes: {}",
                if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
            );
        }
        // Who has just been let go on may still be what it was; beside it there is one.
        let sure = able.iter().filter(|index| !machines[**index].may_not_know()).count();
        if sure > 1 && self.two.as_ref() != Some(&able) {
            self.complain(Kind::TwoPrimaries, format!("{} at one time", names.join(" and ")));
            self.two = Some(able.clone());
        }
        for index in &able {
            let endpoint = machines[*index].endpoint();
            let branch = engines.branch(&endpoint).unwrap_or_default();
            if branch > self.highest_promoted {
                self.highest_promoted = branch;
                self.promoted(&machines[*index].name, branch, &engines.stored_rows(&endpoint));
            }
        }
        self.able = able;
    }

    /// Rows were acknowledged.
    pub(crate) fn note(&mut self, rows: Vec<Acknowledged>, machines: &[Arc<Machine>]) {
        for row in rows {
            if row.branch < self.highest_promoted && machines[row.node].may_not_know() {
                // The stated limit; what it acknowledged then is lost when it learns better.
                traced!("{} acknowledged row {} without knowing better", machines[row.node].name, row.row);
                self.lost.insert(row.row);
            } else if row.branch < self.newest_reign {
                let detail = format!(
                    "{} acknowledged row {} of reign {} after reign {} had begun to",
                    machines[row.node].name, row.row, row.branch, self.newest_reign
                );
                self.complain(Kind::OldReign, detail);
            }
            self.newest_reign = self.newest_reign.max(row.branch);
            self.acknowledged.push(row);
        }
    }

    /// The cluster is gone, with all that was in it: its making failed, or it was deleted.
    pub(crate) fn forget_rows(&mut self) {
        traced!("the cluster is gone, and {} acknowledged rows with it", self.acknowledged.len());
        self.acknowledged.clear();
        self.lost.clear();
    }

    /// Members were prepared together; the first is the candidate.
    pub(crate) fn prepared(&mut self, names: &[String], rows: impl Fn(&str) -> Vec<u64>) {
        let Some((candidate, others)) = names.split_first() else { return };
        let has: BTreeSet<u64> = rows(candidate).into_iter().collect();
        let acknowledged: BTreeSet<u64> = self.acknowledged.iter().map(|row| row.row).collect();
        for other in others {
            let missing =
                rows(other).into_iter().filter(|row| !has.contains(row) && acknowledged.contains(row)).count();
            if missing > 0 {
                let detail =
                    format!("{other} was prepared and has {missing} acknowledged rows that {candidate} has not");
                self.complain(Kind::PreparedLost, detail);
            }
        }
    }

    /// A step has removed these rows of a node's copy, and `elsewhere` are those of all other copies.
    pub(crate) fn removed(&mut self, node: &str, rows: &[u64], elsewhere: &BTreeSet<u64>) {
        let last = rows.iter().filter(|row| !elsewhere.contains(row) && !self.lost.contains(row));
        let last: BTreeSet<u64> = last.copied().collect();
        let gone = self.acknowledged.iter().filter(|row| last.contains(&row.row)).count();
        if gone > 0 {
            let detail = format!("a step removed {gone} acknowledged rows of {node}, and nobody else had them");
            self.complain(Kind::LastCopyRemoved, detail);
        }
    }

    /// A node has begun a reign with these rows.
    fn promoted(&mut self, node: &str, branch: u64, rows: &[u64]) {
        let has: BTreeSet<u64> = rows.iter().copied().collect();
        let missing: BTreeSet<u64> = self
            .acknowledged
            .iter()
            .map(|row| row.row)
            .filter(|row| !has.contains(row) && !self.lost.contains(row))
            .collect();
        let end = self.last_acknowledged().unwrap_or_default();
        let handed_over = self.may_be_handed_over(end);
        let last_lease = if handed_over { HANDED_OVER } else { LAST_LEASE };
        let recent = self.acknowledged.iter().rev().take_while(|row| row.at + last_lease >= end).count();
        traced!("{node} begins reign {branch} with {} rows; {} acknowledged rows are lost", rows.len(), missing.len());
        if missing.len() > MAX_LAG_ROWS + recent {
            let detail = format!("{node} begins reign {branch} without {} acknowledged rows", missing.len());
            self.complain(Kind::LostBeyondPolicy, detail);
        }
        self.lost.extend(missing);
    }

    /// All is over: this is what the final primary has.
    pub(crate) fn account(&mut self, node: &str, rows: &[u64]) {
        let has: BTreeSet<u64> = rows.iter().copied().collect();
        let gone = self.acknowledged.iter().filter(|row| !has.contains(&row.row) && !self.lost.contains(&row.row));
        let gone: Vec<u64> = gone.map(|row| row.row).collect();
        if !gone.is_empty() {
            let detail = format!("{} acknowledged rows are not on {node}, the first {}", gone.len(), gone[0]);
            self.complain(Kind::Vanished, detail);
        }
        if has.len() != rows.len() {
            self.complain(Kind::Vanished, format!("{node} has rows twice"));
        }
    }
}
