//! What went wrong: what was tried, what happened, what is unchanged, what to do next, and the exit code.
//!
//! **Invariant:** a change whose fate is not known is never called "nothing has been changed".

use std::error::Error;

use regent_common::error::{ErrorChain, reason_of};
use regent_proto::coordinator::v1 as wire;
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::output::{Format, operation, words::short};

/// Exit code of a wrong command line.
pub const USAGE: u8 = 2;

/// One call to the coordinator, for what is said when it does not go well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// What is tried, such as "create cluster db".
    pub action: String,
    /// Where the coordinator is.
    pub coordinator: String,
    /// The id of a change; nothing for a call that only reads.
    pub request_id: Option<String>,
}

/// Why a verb did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The arguments do not go together.
    #[error("{0}")]
    Usage(String),
    /// There is no usable identity to show to the coordinator.
    #[error("no usable client identity: {0}")]
    Identity(String),
    /// Nobody answered as the coordinator.
    #[error("cannot {}: the coordinator at {} cannot be reached: {cause}", call.action, call.coordinator)]
    Unreachable {
        /// What was tried.
        call: Call,
        /// What the connection says.
        cause: String,
        /// Whether the request may have been received.
        sent: bool,
    },
    /// The coordinator answered with an error.
    #[error("cannot {}: {}", call.action, status.message())]
    Answer {
        /// What was tried.
        call: Call,
        /// Its answer.
        status: Box<Status>,
    },
    /// The chain of the audit is broken.
    #[error("the audit is not as it was written: record {id}: {what}")]
    Audit {
        /// The record at which it is noticed.
        id: String,
        /// What is amiss.
        what: String,
    },
    /// The operation ended without its aim.
    #[error("operation {} ({}) {}", short(&operation.name), operation.kind, ending(operation))]
    Operation {
        /// As it ended.
        operation: Box<wire::Operation>,
    },
    /// Nobody waits any longer; the operation goes on.
    #[error("stopped waiting for {operation}: the operation goes on")]
    Interrupted {
        /// Its name.
        operation: String,
    },
    /// The connection was lost for too long while waiting; the operation goes on.
    #[error("lost the coordinator at {coordinator} while waiting for {operation}: the operation goes on")]
    Lost {
        /// Its name.
        operation: String,
        /// Where the coordinator was.
        coordinator: String,
    },
    /// Something on this machine.
    #[error("cannot {action}: {cause}")]
    Local {
        /// What was tried.
        action: String,
        /// Why it did not work.
        cause: String,
    },
}

// === impl Call ===

impl Call {
    /// What the status of this call means.
    pub fn failed(&self, status: Status) -> Failure {
        if unreachable(&status) {
            let cause = match status.source() {
                Some(source) => ErrorChain(source).to_string(),
                None => status.message().to_owned(),
            };
            return Failure::Unreachable { call: self.clone(), cause, sent: true };
        }
        Failure::Answer { call: self.clone(), status: Box::new(status) }
    }

    /// There was no connection to send it over.
    pub fn unconnected(&self, error: &dyn Error) -> Failure {
        Failure::Unreachable { call: self.clone(), cause: ErrorChain(error).to_string(), sent: false }
    }
}

/// Whether the status was made on this side for want of an answer. A coordinator that answers says its reason.
pub fn unreachable(status: &Status) -> bool {
    let codes = [Code::Unavailable, Code::DeadlineExceeded, Code::Cancelled];
    let of_connection = status.source().is_some_and(|source| source.is::<tonic::transport::Error>());
    reason_of(status).is_none() && (codes.contains(&status.code()) || of_connection)
}

// === impl Failure ===

impl Failure {
    /// Something on this machine.
    pub fn local(action: &str, error: &dyn Error) -> Self {
        Self::Local { action: action.to_owned(), cause: ErrorChain(error).to_string() }
    }

    /// The exit code, as documented in the help.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Operation { .. } | Self::Audit { .. } | Self::Local { .. } => 1,
            Self::Usage(_) => USAGE,
            Self::Identity(_) => 5,
            Self::Unreachable { .. } | Self::Lost { .. } => 6,
            Self::Interrupted { .. } => 130,
            Self::Answer { status, .. } => match status.code() {
                Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::AlreadyExists
                | Code::Aborted
                | Code::OutOfRange
                | Code::ResourceExhausted
                | Code::Unimplemented => 3,
                Code::NotFound => 4,
                Code::Unauthenticated | Code::PermissionDenied => 5,
                Code::Unavailable | Code::DeadlineExceeded => 6,
                Code::Ok | Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => 1,
            },
        }
    }

    /// For stderr.
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Table => self.text(),
            Format::Json => self.json().to_string(),
        }
    }

    fn text(&self) -> String {
        let mut lines = vec![format!("error: {self}")];
        let mut fact = |name: &str, text: String| lines.push(format!("  {name:<12}{text}"));
        if let Self::Operation { operation } = self {
            for (name, text) in operation::aftermath(operation) {
                fact(name, text);
            }
        }
        if let Some(reason) = self.reason() {
            fact("reason:", reason);
        }
        for (field, problem) in self.fields() {
            fact("field:", format!("{field}: {problem}"));
        }
        if let Some(unchanged) = self.unchanged() {
            fact("unchanged:", unchanged);
        }
        if let Some(next) = self.next() {
            fact(if matches!(self, Self::Operation { .. }) { "more:" } else { "what to do:" }, next);
        }
        lines.join("\n")
    }

    fn json(&self) -> serde_json::Value {
        let fields: Vec<_> =
            self.fields().into_iter().map(|(field, problem)| json!({"field": field, "problem": problem})).collect();
        json!({"error": {
            "message": self.to_string(),
            "exit_code": self.exit_code(),
            "reason": self.reason(),
            "field_violations": fields,
            "unchanged": self.unchanged(),
            "what_to_do": self.next(),
        }})
    }

    fn reason(&self) -> Option<String> {
        match self {
            // By its own spelling, so that a reason of a newer coordinator is shown too.
            Self::Answer { status, .. } => status.get_details_error_info().map(|info| info.reason),
            Self::Operation { .. }
            | Self::Audit { .. }
            | Self::Usage(_)
            | Self::Identity(_)
            | Self::Unreachable { .. }
            | Self::Interrupted { .. }
            | Self::Lost { .. }
            | Self::Local { .. } => None,
        }
    }

    fn fields(&self) -> Vec<(String, String)> {
        let Self::Answer { status, .. } = self else { return Vec::new() };
        status
            .get_details_bad_request()
            .map(|bad| bad.field_violations.into_iter().map(|field| (field.field, field.description)).collect())
            .unwrap_or_default()
    }

    fn unchanged(&self) -> Option<String> {
        match self {
            Self::Answer { call, .. } if call.request_id.is_some() => {
                matches!(self.exit_code(), 3..=5).then(|| "nothing has been changed".to_owned())
            }
            Self::Unreachable { call, sent: true, .. } if call.request_id.is_some() => {
                Some("not known: the coordinator may have received the request before the connection failed".to_owned())
            }
            Self::Unreachable { call, sent: false, .. } if call.request_id.is_some() => {
                Some("nothing was sent".to_owned())
            }
            Self::Usage(_) | Self::Identity(_) => Some("nothing was sent".to_owned()),
            Self::Answer { .. }
            | Self::Unreachable { .. }
            | Self::Operation { .. }
            | Self::Audit { .. }
            | Self::Interrupted { .. }
            | Self::Lost { .. }
            | Self::Local { .. } => None,
        }
    }

    fn next(&self) -> Option<String> {
        match self {
            Self::Usage(_) => Some("run the verb with --help".to_owned()),
            Self::Identity(_) => Some(
                "give --identity DIR or REGENT_IDENTITY: a directory that `regentctl user create` or `regent-coordinator \
                 init` wrote"
                    .to_owned(),
            ),
            Self::Unreachable { call, sent, .. } => {
                let check = "check --coordinator HOST:PORT and that regent-coordinator runs there";
                Some(match &call.request_id {
                    Some(id) if *sent => format!("{check}; the same command with --request-id {id} is safe to repeat"),
                    Some(_) | None => check.to_owned(),
                })
            }
            Self::Answer { call, status } => match (reason_of(status), status.code(), &call.request_id) {
                (Some(reason), _, _) => Some(reason.what_to_do().to_owned()),
                (None, Code::NotFound, _) => Some("check the name with the `list` verb".to_owned()),
                (None, Code::Unauthenticated | Code::PermissionDenied, _) => {
                    Some("use an identity that may do this: --identity DIR".to_owned())
                }
                (None, Code::Internal | Code::Unknown | Code::DataLoss, Some(id)) => Some(format!(
                    "look at the coordinator's log; the same command with --request-id {id} is safe to repeat"
                )),
                (None, Code::Internal | Code::Unknown | Code::DataLoss, None) => {
                    Some("look at the coordinator's log".to_owned())
                }
                (None, _, _) => None,
            },
            Self::Operation { operation } => Some(format!("`regentctl operation show {}`", short(&operation.name))),
            Self::Audit { .. } => Some(
                "compare this record and those around it with a backup of the coordinator's store from before; somebody had the store \
                 in his hands"
                    .to_owned(),
            ),
            Self::Interrupted { operation } | Self::Lost { operation, .. } => {
                let id = short(operation);
                Some(format!("watch it with `regentctl operation watch {id}`, end it with `regentctl operation cancel {id}`"))
            }
            Self::Local { .. } => None,
        }
    }
}

/// How an operation ended, in words.
fn ending(operation: &wire::Operation) -> String {
    match (operation.state(), operation.error.as_str()) {
        (wire::OperationState::Cancelled, _) => "was cancelled".to_owned(),
        (_, "") => "failed".to_owned(),
        (_, error) => format!("failed: {error}"),
    }
}
