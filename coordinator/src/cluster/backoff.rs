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

use crate::model::operation::OperationRecord;

/// Pause after the first failure.
pub const SHORTEST: Duration = Duration::from_secs(2);
/// Longest pause.
pub const LONGEST: Duration = Duration::from_secs(60);
/// Failures in a row from which on people are told: one is mended by the next attempt more often than not.
const TOLD_FROM: u32 = 2;

/// What an operation is for, so that repeated failures of the same thing are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    kind: String,
    member: Option<String>,
}

/// Failures of one cluster's operations. Kept by its actor, shown by the API.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<BTreeMap<Subject, Failures>>);

#[derive(Debug)]
struct Failures {
    in_a_row: u32,
    /// By this coordinator's CLOCK_BOOTTIME.
    not_before: Duration,
    /// The last one.
    operation: OperationId,
    /// Why it failed; empty while that is not known yet.
    why: String,
    /// Whether it is tried again by itself.
    automatic: bool,
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
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.replace('_', " ");
        match &self.member {
            Some(member) => write!(f, "the {kind} of {member}"),
            None => write!(f, "the {kind}"),
        }
    }
}

// === impl Backoff ===

impl Backoff {
    /// Counts one that did not do what it should.
    pub fn failed(&self, operation: &OperationRecord, now: Duration) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let subject = Subject::of(operation);
        let before = counted.get(&subject).map_or(0, |failures| failures.in_a_row);
        let pause = SHORTEST.saturating_mul(1 << before.min(10)).min(LONGEST);
        let failures = Failures {
            in_a_row: before.saturating_add(1),
            not_before: now + pause,
            operation: operation.id,
            why: String::new(),
            automatic: operation.is_automatic(),
        };
        counted.insert(subject, failures);
    }

    /// Says why.
    pub fn explain(&self, operation: &OperationRecord, why: &str) {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failures) = counted.get_mut(&Subject::of(operation)).filter(|last| last.operation == operation.id) {
            why.clone_into(&mut failures.why);
        }
    }

    /// Forgets all failures of what has been done now.
    pub fn succeeded(&self, operation: &OperationRecord) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&Subject::of(operation));
    }

    /// Until when nothing more is tried, by CLOCK_BOOTTIME; `None` when it may be.
    pub fn rests_until(&self, subject: &Subject, now: Duration) -> Option<Duration> {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counted.get(subject).map(|failures| failures.not_before).filter(|not_before| now < *not_before)
    }

    /// What has failed again and again and is about to be tried again, a sentence each. What is no longer needed is not tried again, and
    /// not told of any more.
    pub fn sentences(&self, now: Duration) -> Vec<String> {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_told = |failures: &Failures| {
            failures.automatic
                && failures.in_a_row >= TOLD_FROM
                && now < failures.not_before
                && !failures.why.is_empty()
        };
        counted
            .iter()
            .filter(|(_, failures)| is_told(failures))
            .map(|(subject, failures)| {
                format!(
                    "{subject} has failed {} times in a row, and is tried again in {} s: {}; `regentctl operation show {}` has its steps",
                    failures.in_a_row,
                    failures.not_before.saturating_sub(now).as_secs_f64().ceil(),
                    failures.why,
                    failures.operation
                )
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn what_fails_again_and_again_is_told_while_it_is_to_be_tried_again() {
        let (backoff, rejoin) = (Backoff::default(), operation("rejoin", "db2", "regent"));
        backoff.failed(&rejoin, second(0));
        backoff.explain(&rejoin, "the port is taken");
        assert_eq!(backoff.sentences(second(0)), Vec::<String>::new(), "once is no news");
        let again = OperationRecord { id: OperationId::generate(), ..rejoin.clone() };
        backoff.failed(&again, second(10));
        backoff.explain(&rejoin, "of the one before");
        assert_eq!(backoff.sentences(second(10)), Vec::<String>::new(), "nobody knows why yet");
        backoff.explain(&again, "the port is taken still");
        assert_eq!(
            backoff.sentences(second(11)),
            [format!(
                "the rejoin of db2 has failed 2 times in a row, and is tried again in 3 s: the port is taken still; \
                 `regentctl operation show {}` has its steps",
                again.id
            )]
        );
        assert_eq!(backoff.sentences(second(14)), Vec::<String>::new(), "nothing is tried any more");

        let asked = operation("remove_member", "db3", "ada");
        for _ in 0..3 {
            backoff.failed(&asked, second(20));
            backoff.explain(&asked, "it is the primary");
        }
        assert_eq!(backoff.sentences(second(20)), Vec::<String>::new(), "a person knows, and nobody tries it again");
    }
}
