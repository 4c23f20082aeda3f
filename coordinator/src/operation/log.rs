//! The log of an operation: the only truth about how far it has come.
//!
//! ```text
//!              Started(0) … Succeeded(n-1)            Ended(Succeeded)
//!   Pending ─────────────────────────────▶ Running ───────────────────▶ Ended
//!                                            │ Failed(i) before the point of no return, or Cancelled
//!                                            ▼
//!                                        Unwinding(i) ── Undone(i) … Undone(0) ── Ended(Failed | Cancelled) ──▶ Ended
//! ```
//!
//! Status is derived from the persisted events alone, by [`Status::apply`], which refuses what does not fit. An event is
//! appended with its index as a precondition and under the store's term, so a deposed coordinator cannot write.
//! **Invariant:** nothing is sent to an agent before the `Started` event that names the token is durable (rule T3).

use jiff::Timestamp;
use regent_common::ids::OperationToken;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When it was written; for display.
    pub at: Timestamp,
    /// What happened.
    pub event: Event,
}

/// What can happen to an operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A step begins, or begins again after a crash of the coordinator.
    Started {
        /// Which step.
        step: usize,
        /// Token that its calls carry.
        token: OperationToken,
    },
    /// A step has done what it should.
    Succeeded {
        /// Which step.
        step: usize,
        /// What it brought, for later steps.
        output: Value,
        /// What it did, a sentence each, for people.
        report: Vec<String>,
    },
    /// A step cannot do what it should.
    Failed {
        /// Which step.
        step: usize,
        /// Why.
        failure: Failure,
    },
    /// A person wants it cancelled, or a failover takes precedence.
    Cancelled {
        /// Why.
        failure: Failure,
    },
    /// The effects of a step are gone.
    Undone {
        /// Which step.
        step: usize,
    },
    /// The operation is over.
    Ended {
        /// How.
        outcome: Outcome,
    },
}

/// Why a step or an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Reason from the table of reasons.
    pub reason: String,
    /// For people: what happened, to what, what is unchanged.
    pub message: String,
}

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It did what was asked.
    Succeeded,
    /// It did not; what it had done is undone, or stands in its error.
    Failed,
    /// A person cancelled it.
    Cancelled,
}

/// State of one step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepStatus {
    /// Not begun.
    Pending,
    /// Begun; what it did is not known before it has been run again.
    Running,
    /// Done.
    Succeeded,
    /// Failed.
    Failed(Failure),
    /// Undone.
    Undone,
}

/// One step as the log tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct StepLog {
    /// Where it is.
    pub status: StepStatus,
    /// Times it was begun.
    pub attempts: u32,
    /// When it was first begun.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// What it brought.
    pub output: Value,
    /// What it did, for people.
    pub report: Vec<String>,
}

/// Where an operation is.
#[derive(Debug, Clone, PartialEq)]
pub enum Stage {
    /// No step has begun.
    Pending,
    /// Steps run forward.
    Running,
    /// Steps are undone, because of the failure.
    Unwinding(Failure, Outcome),
    /// It is over; with the failure, if there was one.
    Ended(Outcome, Option<Failure>),
}

/// An operation as its log tells it.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// Where it is.
    pub stage: Stage,
    /// Its steps.
    pub steps: Vec<StepLog>,
    /// Index of the next entry.
    pub next_entry: u64,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

/// An event that does not fit the state: the log is damaged, or two writers were at work.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the operation's log holds {event}, which cannot follow in stage {stage}")]
pub struct Illegal {
    /// What was read.
    pub event: String,
    /// Where the operation was.
    pub stage: String,
}

// === impl Status ===

impl Status {
    /// An operation of `steps` steps of which nothing is logged.
    pub fn new(steps: usize) -> Self {
        let step = StepLog {
            status: StepStatus::Pending,
            attempts: 0,
            started_at: None,
            ended_at: None,
            output: Value::Null,
            report: Vec::new(),
        };
        Self { stage: Stage::Pending, steps: vec![step; steps], next_entry: 0, ended_at: None }
    }

    /// Reads a whole log.
    pub fn replay(steps: usize, entries: impl IntoIterator<Item = Entry>) -> Result<Self, Illegal> {
        entries.into_iter().try_fold(Self::new(steps), |status, entry| status.apply(&entry))
    }

    /// The status after one more entry.
    pub fn apply(mut self, entry: &Entry) -> Result<Self, Illegal> {
        let illegal =
            |status: &Self| Illegal { event: format!("{:?}", entry.event), stage: format!("{:?}", status.stage) };
        match (&entry.event, &self.stage) {
            (Event::Started { step, token: _ }, Stage::Pending | Stage::Running) if self.may_start(*step) => {
                let log = &mut self.steps[*step];
                log.status = StepStatus::Running;
                log.attempts += 1;
                log.started_at.get_or_insert(entry.at);
                self.stage = Stage::Running;
            }
            (Event::Succeeded { step, output, report }, Stage::Running) if self.is_running(*step) => {
                let log = &mut self.steps[*step];
                log.status = StepStatus::Succeeded;
                log.ended_at = Some(entry.at);
                log.output = output.clone();
                log.report = report.clone();
            }
            (Event::Failed { step, failure }, Stage::Running) if self.is_running(*step) => {
                let log = &mut self.steps[*step];
                log.status = StepStatus::Failed(failure.clone());
                log.ended_at = Some(entry.at);
                self.stage = Stage::Unwinding(failure.clone(), Outcome::Failed);
            }
            (Event::Cancelled { failure }, Stage::Pending | Stage::Running) => {
                self.stage = Stage::Unwinding(failure.clone(), Outcome::Cancelled);
            }
            (Event::Undone { step }, Stage::Unwinding(..)) if *step < self.steps.len() => {
                self.steps[*step].status = StepStatus::Undone;
                self.steps[*step].ended_at = Some(entry.at);
            }
            (Event::Ended { outcome: Outcome::Succeeded }, Stage::Running)
                if self.steps.iter().all(|s| s.status == StepStatus::Succeeded) =>
            {
                self.stage = Stage::Ended(Outcome::Succeeded, None);
                self.ended_at = Some(entry.at);
            }
            (
                Event::Ended { outcome: outcome @ (Outcome::Failed | Outcome::Cancelled) },
                Stage::Unwinding(failure, _),
            ) => {
                self.stage = Stage::Ended(*outcome, Some(failure.clone()));
                self.ended_at = Some(entry.at);
            }
            (
                Event::Started { .. }
                | Event::Succeeded { .. }
                | Event::Failed { .. }
                | Event::Cancelled { .. }
                | Event::Undone { .. }
                | Event::Ended { .. },
                Stage::Pending | Stage::Running | Stage::Unwinding(..) | Stage::Ended(..),
            ) => return Err(illegal(&self)),
        }
        self.next_entry += 1;
        Ok(self)
    }

    /// Whether it is over.
    pub fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended(..))
    }

    /// The first step that has not succeeded.
    pub fn next_step(&self) -> Option<usize> {
        self.steps.iter().position(|step| step.status != StepStatus::Succeeded)
    }

    fn may_start(&self, step: usize) -> bool {
        self.next_step() == Some(step)
    }

    fn is_running(&self, step: usize) -> bool {
        self.steps.get(step).is_some_and(|s| s.status == StepStatus::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(event: Event) -> Entry {
        Entry { at: Timestamp::UNIX_EPOCH, event }
    }
    fn started(step: usize) -> Entry {
        entry(Event::Started { step, token: OperationToken(1) })
    }
    fn succeeded(step: usize) -> Entry {
        entry(Event::Succeeded { step, output: Value::Null, report: Vec::new() })
    }
    fn failure() -> Failure {
        Failure { reason: "X".to_owned(), message: "x".to_owned() }
    }

    #[test]
    fn a_straight_run_ends_well() {
        let log =
            [started(0), succeeded(0), started(1), succeeded(1), entry(Event::Ended { outcome: Outcome::Succeeded })];
        let status = Status::replay(2, log).unwrap();
        assert_eq!(status.stage, Stage::Ended(Outcome::Succeeded, None));
        assert_eq!(status.next_entry, 5);
    }

    #[test]
    fn a_step_that_began_is_begun_again_after_a_crash() {
        let status = Status::replay(2, [started(0), succeeded(0), started(1), started(1)]).unwrap();
        assert_eq!(status.next_step(), Some(1));
        assert_eq!(status.steps[1].attempts, 2);
    }

    #[test]
    fn a_failure_unwinds_to_a_failed_end() {
        let log = [
            started(0),
            succeeded(0),
            started(1),
            entry(Event::Failed { step: 1, failure: failure() }),
            entry(Event::Undone { step: 1 }),
            entry(Event::Undone { step: 0 }),
            entry(Event::Ended { outcome: Outcome::Failed }),
        ];
        assert_eq!(Status::replay(2, log).unwrap().stage, Stage::Ended(Outcome::Failed, Some(failure())));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for log in [
            vec![started(1)],
            vec![succeeded(0)],
            vec![started(0), entry(Event::Ended { outcome: Outcome::Succeeded })],
            vec![started(0), entry(Event::Undone { step: 0 })],
            vec![started(0), succeeded(0), started(0)],
            vec![entry(Event::Cancelled { failure: failure() }), started(0)],
        ] {
            assert!(Status::replay(2, log.clone()).is_err(), "{log:?} was taken");
        }
    }
}
