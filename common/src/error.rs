//! Why a call is refused: one table of reasons, how a reason travels, and how a chain of causes is printed.
//!
//! It is not the error enums of the modules; those map to a [`Reason`] at the edge. A reason travels as
//! `google.rpc.ErrorInfo` (domain `regent`) in the details of the status, so that stock clients can read it.
//!
//! **Invariant:** every reason stands exactly once in the table; its text form never changes once released.

use std::{collections::HashMap, error::Error, fmt, str::FromStr};

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every `ErrorInfo` that we send.
pub const ERROR_DOMAIN: &str = "regent";

/// Whether the same thing can succeed when simply tried again.
pub trait Retryable {
    /// True when trying again, without changing anything, can succeed.
    fn retryable(&self) -> bool;
}

/// Text that is not the name of a reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a reason that this version knows")]
pub struct UnknownReason(pub String);

/// Prints an error and its causes as `a: b: c`, without saying again what an outer message already ended with.
#[derive(Debug, Clone, Copy)]
pub struct ErrorChain<'a>(pub &'a dyn Error);

/// One row of the table.
struct Row {
    reason: Reason,
    text: &'static str,
    code: Code,
    meaning: &'static str,
    what_to_do: &'static str,
    retryable: bool,
}

macro_rules! reasons {
    ($($variant:ident $text:literal $code:ident $retry:literal $meaning:literal $todo:literal;)+) => {
        /// Why a call was refused or an operation failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $(#[doc = $meaning] $variant,)+
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Reason] = &[$(Reason::$variant,)+];
        }

        const TABLE: &[Row] = &[$(Row {
            reason: Reason::$variant,
            text: $text,
            code: Code::$code,
            meaning: $meaning,
            what_to_do: $todo,
            retryable: $retry,
        },)+];
    };
}

reasons! {
    NoCertificate "NO_CERTIFICATE" Unauthenticated false
        "The caller presented no certificate." "Call with the certificate and key of an identity directory.";
    UnknownAuthority "UNKNOWN_AUTHORITY" Unauthenticated false
        "The caller's certificate was not issued by this coordinator's authority."
        "Use an identity that this coordinator issued.";
    CertificateExpired "CERTIFICATE_EXPIRED" Unauthenticated false
        "The caller's certificate is past its end, or not valid yet."
        "Check the clock; join again or ask for a new identity.";
    CertificateRevoked "CERTIFICATE_REVOKED" Unauthenticated false
        "The caller's certificate was revoked." "Ask an administrator for a new identity.";
    MalformedIdentity "MALFORMED_IDENTITY" Unauthenticated false
        "The caller's certificate does not carry exactly one identity of this installation."
        "Use an identity that this coordinator issued.";
    RoleTooLow "ROLE_TOO_LOW" PermissionDenied false
        "The caller's role does not permit this call." "Use an identity with a higher role.";
    WrongCaller "WRONG_CALLER" PermissionDenied false
        "The call is not meant for this kind of caller." "Call it with the kind of identity that the message names.";
    InvalidField "INVALID_FIELD" InvalidArgument false
        "A field of the request has no acceptable value." "Correct the field that the details name.";
    NameInvalid "NAME_INVALID" InvalidArgument false
        "A name is not a DNS label, or would clash by its form." "Choose a name of the form that the message gives.";
    NameTaken "NAME_TAKEN" AlreadyExists false
        "The name is in use." "Choose another name.";
    UnknownEngine "UNKNOWN_ENGINE" InvalidArgument false
        "No driver for this engine." "List the engines in the catalog.";
    UnknownSetting "UNKNOWN_SETTING" InvalidArgument false
        "The engine's driver does not know this setting." "Check the setting's name in the catalog.";
    UnknownMode "UNKNOWN_MODE" InvalidArgument false
        "The engine does not have this replication mode." "List the modes in the catalog.";
    NodeNotFound "NODE_NOT_FOUND" NotFound false
        "No node of this name has joined." "List the nodes; join it first.";
    ClusterNotFound "CLUSTER_NOT_FOUND" NotFound false
        "No cluster of this name." "List the clusters.";
    MemberNotFound "MEMBER_NOT_FOUND" NotFound false
        "The cluster has no member of this name." "Show the cluster.";
    OperationNotFound "OPERATION_NOT_FOUND" NotFound false
        "No operation of this id." "List the operations.";
    UserNotFound "USER_NOT_FOUND" NotFound false
        "No user of this name." "List the users.";
    NodeTwice "NODE_TWICE" InvalidArgument false
        "The same node is named twice." "Name each node once.";
    NodeInCluster "NODE_IN_CLUSTER" FailedPrecondition false
        "The node already belongs to a cluster." "Choose a spare node.";
    NodeUnreachable "NODE_UNREACHABLE" Unavailable true
        "The node's agent does not answer." "Check the agent and the network, then try again.";
    NodeRevoked "NODE_REVOKED" FailedPrecondition false
        "The node was revoked." "Let it join again with a new token.";
    NotEnoughSpares "NOT_ENOUGH_SPARES" FailedPrecondition false
        "There are fewer spare nodes than asked for." "Join more nodes or ask for fewer replicas.";
    NoNodes "NO_NODES" InvalidArgument false
        "No node was named and no number of replicas given." "Name nodes or give a number of replicas.";
    VersionsDiffer "VERSIONS_DIFFER" FailedPrecondition false
        "The nodes have different major versions of the engine." "Install the same major version on all of them.";
    EngineMissing "ENGINE_MISSING" FailedPrecondition false
        "The engine's programs are not installed on the node." "Install the engine on the node.";
    NoTls "NO_TLS" FailedPrecondition false
        "The ports of the cluster speak TLS, and the node does not offer that for the engine."
        "Write the lines that the message names into the node's agent.toml and restart its agent, or choose other nodes.";
    PortInUse "PORT_IN_USE" FailedPrecondition false
        "The port is taken by another program on the node." "Choose another port or stop that program.";
    ForeignData "FOREIGN_DATA" FailedPrecondition false
        "The data directory is not empty and not this cluster's." "Move the data away; it is never removed for you.";
    NotAdoptable "NOT_ADOPTABLE" FailedPrecondition false
        "The running instance is not as it has to be to become a cluster." "Mend what the message names, or accept it; the instance goes on as it was.";
    NoCredentials "NO_CREDENTIALS" FailedPrecondition false
        "The cluster was adopted, and its applications have logins of their own."
        "Use the logins that the instance had; Regent does not know them.";
    DiskFull "DISK_FULL" ResourceExhausted false
        "The node's disk is full or too small." "Free or add space, then try again.";
    TokenUsed "TOKEN_USED" FailedPrecondition false
        "The join token was used already." "Create a new token.";
    TokenExpired "TOKEN_EXPIRED" FailedPrecondition false
        "The join token is past its end." "Create a new token.";
    TokenUnknown "TOKEN_UNKNOWN" Unauthenticated false
        "This coordinator issued no such join token." "Create a token on the coordinator that the node is to join.";
    TokenWrongNode "TOKEN_WRONG_NODE" PermissionDenied false
        "The join token was issued for another node." "Create a token for this node.";
    ClockWrong "CLOCK_WRONG" FailedPrecondition false
        "The node's clock differs too much from the coordinator's." "Set the clock (NTP), then try again.";
    RequestIdReused "REQUEST_ID_REUSED" AlreadyExists false
        "The request id was used before with another body." "Use a new request id for a new request.";
    ConfirmNameWrong "CONFIRM_NAME_WRONG" InvalidArgument false
        "The name given as confirmation is not the name of what would be changed." "Give the exact name.";
    ClusterProtected "CLUSTER_PROTECTED" FailedPrecondition false
        "The cluster is protected against deletion and removal of members." "Remove the protection first.";
    ClusterBusy "CLUSTER_BUSY" Aborted true
        "Another operation of the cluster is running." "Wait until it ended, or cancel it, then try again.";
    ClusterHasNoPrimary "CLUSTER_HAS_NO_PRIMARY" FailedPrecondition true
        "The cluster has no primary now." "Show the cluster; wait for a failover.";
    PrimaryUnhealthy "PRIMARY_UNHEALTHY" FailedPrecondition true
        "The primary is not healthy enough for this." "Show the cluster for what it lacks, then try again.";
    FailoverRefused "FAILOVER_REFUSED" FailedPrecondition true
        "The failover that was asked for is not called for, or not safe yet."
        "Do as the message says: wait, switch a node off and confirm that, or accept the loss.";
    NoReplica "NO_REPLICA" FailedPrecondition false
        "No replica is fit for this." "Show the cluster; add or resync a replica.";
    SingleCopyLeft "SINGLE_COPY_LEFT" FailedPrecondition false
        "Fewer than two whole copies of the data would be left." "Add a member first, or allow it.";
    MemberIsPrimary "MEMBER_IS_PRIMARY" FailedPrecondition false
        "The member is the primary, and this is for replicas only." "Name a replica, or move the primary first.";
    NotInThisMode "NOT_IN_THIS_MODE" FailedPrecondition false
        "The cluster's mode has no such thing: a pair has no primary, no replicas and no failover, and only a pair has sides to compare."
        "Do as the message says; show the cluster for what can be done with it.";
    OperationPastReturn "OPERATION_PAST_RETURN" FailedPrecondition false
        "The operation is past its point of no return." "Let it finish.";
    OperationEnded "OPERATION_ENDED" FailedPrecondition false
        "The operation has ended." "Nothing; show it for its outcome.";
    EtagMismatch "ETAG_MISMATCH" Aborted false
        "What is to be changed was changed meanwhile." "Read it again and decide anew.";
    PromiseStands "PROMISE_STANDS" FailedPrecondition true
        "The member has endorsed the primary of a lower epoch, and is not used before that promise is over."
        "Wait: the promise ends by itself within the length of a lease.";
    LeaseNotHeld "LEASE_NOT_HELD" FailedPrecondition true
        "The engine was not made writable: no lease came for its epoch."
        "Check the connection between coordinator and node; it is tried again by itself.";
    GateFailed "GATE_FAILED" Internal true
        "The kernel did not take a change of the gate."
        "See what the node shows of its fence; check nftables on it.";
    AllowListImpossible "ALLOW_LIST_IMPOSSIBLE" FailedPrecondition false
        "An allow-list cannot be in force on a node of the cluster."
        "Do as the message says of that node: upgrade its agent, or set allow_table there; or keep the list empty.";
    AllowListFailed "ALLOW_LIST_FAILED" Internal true
        "The allow-list could not be put in force on a node, so that no engine is started there."
        "See what the member shows of its allow-list; check nftables on its node.";
    StaleEpoch "STALE_EPOCH" FailedPrecondition false
        "The request carries a lower epoch than the member has seen." "Nothing; a newer decision holds.";
    StaleToken "STALE_TOKEN" FailedPrecondition false
        "The request carries a lower operation token than the member has seen." "Nothing; a newer operation holds.";
    StepContentDiffers "STEP_CONTENT_DIFFERS" FailedPrecondition false
        "A step of this key was asked for before with other content." "Report it: a step is never changed.";
    StepSuperseded "STEP_SUPERSEDED" Aborted false
        "A later step took this one's place." "Nothing; the later step holds.";
    WrongCluster "WRONG_CLUSTER" FailedPrecondition false
        "The node belongs to another cluster than the request names." "Show the node and the cluster.";
    WrongMember "WRONG_MEMBER" FailedPrecondition false
        "The node is another member than the request names." "Show the cluster.";
    StaleStore "STALE_STORE" FailedPrecondition false
        "The coordinator's store is older than what the agents have seen." "Restore the newest store of the coordinator.";
    StoreCorrupt "STORE_CORRUPT" DataLoss false
        "The coordinator's store cannot be read." "Restore it from a backup; the databases keep running.";
    StoreLocked "STORE_LOCKED" FailedPrecondition false
        "Another process holds the coordinator's store." "Stop the other coordinator.";
    NotLeader "NOT_LEADER" Unavailable true
        "This coordinator does not lead." "Call the leader that the message names, or try again.";
    ForeignCoordinator "FOREIGN_COORDINATOR" PermissionDenied false
        "The node belongs to another coordinator." "Use its own coordinator, or let the node join this one.";
    LedgerLost "LEDGER_LOST" FailedPrecondition false
        "The agent's record of what it has done is lost or not to be believed." "Show the node; resync the member.";
    IdentityTwice "IDENTITY_TWICE" FailedPrecondition false
        "Two agents speak for one node at once." "Show the node; stop the agent that is refused.";
    DataDirty "DATA_DIRTY" FailedPrecondition false
        "The data was left in the middle of a change." "Resync the member.";
    Diverged "DIVERGED" FailedPrecondition false
        "The member has changes that the primary, or the other side, does not have." "Read what differs; rejoin or resync it.";
    HistoryForgotten "HISTORY_FORGOTTEN" FailedPrecondition false
        "Less of what was written is remembered than one member lacks of it." "Resync the member while less is written.";
    CannotRewind "CANNOT_REWIND" FailedPrecondition false
        "The member cannot be turned back to where the histories part." "Resync the member.";
    CopyNotWhole "COPY_NOT_WHOLE" DataLoss true
        "A copy of the data did not arrive whole." "Nothing is lost; try the copy again.";
    Cancelled "CANCELLED" Cancelled false
        "It was cancelled." "Start it again if it is still wanted.";
    Deadline "DEADLINE" DeadlineExceeded true
        "It did not finish in its time." "Show what it waited for, then try again.";
    EngineFailed "ENGINE_FAILED" Internal false
        "The engine refused or failed." "Read the engine's message and its log on the node.";
    Internal "INTERNAL" Internal false
        "A fault of this program." "Report it with the log around this time.";
}

/// Makes the status of a refusal; the reason travels in its details.
pub fn refuse(reason: Reason, message: impl Into<String>) -> Status {
    let details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(reason.code(), message, details)
}

/// Makes the status of a bad field (`INVALID_ARGUMENT`), with the field's path in the details.
pub fn bad_field(field: &str, problem: impl Into<String>) -> Status {
    let problem = problem.into();
    let message = format!("{field}: {problem}");
    let mut details = ErrorDetails::with_bad_request_violation(field, problem);
    details.set_error_info(Reason::InvalidField.as_str(), ERROR_DOMAIN, HashMap::new());
    Status::with_error_details(Reason::InvalidField.code(), message, details)
}

/// Reads the reason out of a status; `None` when it is not ours or of a later version.
pub fn reason_of(status: &Status) -> Option<Reason> {
    let info = status.get_details_error_info()?;
    (info.domain == ERROR_DOMAIN).then(|| info.reason.parse().ok())?
}

// === impl Reason ===

impl Reason {
    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The text on the wire.
    pub fn as_str(self) -> &'static str {
        self.row().text
    }

    /// The status code that goes with it.
    pub fn code(self) -> Code {
        self.row().code
    }

    /// What it means, as a sentence.
    pub fn meaning(self) -> &'static str {
        self.row().meaning
    }

    /// What a person does about it, as a sentence.
    pub fn what_to_do(self) -> &'static str {
        self.row().what_to_do
    }

    /// Whether the same call can succeed when simply tried again.
    pub fn retryable(self) -> bool {
        self.row().retryable
    }
}

impl Retryable for Reason {
    fn retryable(&self) -> bool {
        Reason::retryable(*self)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = UnknownReason;
    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        TABLE.iter().find(|row| row.text == text).map(|row| row.reason).ok_or_else(|| UnknownReason(text.to_owned()))
    }
}

// === impl ErrorChain ===

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // Foreign errors often print their source themselves.
            if !text.is_empty() && !said.ends_with(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        #[source]
        source: Option<Box<Link>>,
    }

    fn chain(texts: &[&'static str]) -> Link {
        let (first, rest) = texts.split_first().unwrap();
        Link { text: first, source: (!rest.is_empty()).then(|| Box::new(chain(rest))) }
    }

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_has_no_double() {
        assert_eq!(TABLE.len(), Reason::ALL.len());
        let mut texts = BTreeSet::new();
        for reason in Reason::ALL {
            assert_eq!(reason.row().reason, *reason);
            assert!(texts.insert(reason.as_str()), "{reason} stands twice");
            assert_eq!(reason.as_str().parse::<Reason>().unwrap(), *reason);
            assert!(reason.meaning().ends_with('.') && reason.what_to_do().ends_with('.'), "{reason}");
            assert_ne!(reason.code(), Code::Ok);
        }
        assert!("NO_SUCH_REASON".parse::<Reason>().is_err());
    }

    #[test]
    fn a_reason_survives_the_wire() {
        for reason in Reason::ALL {
            let sent = refuse(*reason, "because");
            let received = Status::from_header_map(&sent.clone().into_http::<()>().into_parts().0.headers).unwrap();
            assert_eq!(reason_of(&received), Some(*reason));
            assert_eq!((received.code(), received.message()), (reason.code(), "because"));
        }
        assert_eq!(reason_of(&Status::internal("foreign")), None);
    }

    #[test]
    fn a_bad_field_names_the_field() {
        let status = bad_field("cluster.replicas", "must be at least 0");
        assert_eq!(reason_of(&status), Some(Reason::InvalidField));
        let request = status.get_details_bad_request().unwrap();
        assert_eq!(request.field_violations[0].field, "cluster.replicas");
        assert_eq!(request.field_violations[0].description, "must be at least 0");
    }

    #[test]
    fn a_chain_is_printed_without_repetition() {
        assert_eq!(ErrorChain(&chain(&["a", "b", "c"])).to_string(), "a: b: c");
        assert_eq!(ErrorChain(&chain(&["open: no such file", "no such file"])).to_string(), "open: no such file");
        assert_eq!(ErrorChain(&chain(&["a", "a", "b: c", "c"])).to_string(), "a: b: c");
    }
}
