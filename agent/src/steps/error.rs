//! Why a step was not carried out, and the one translation of that to the wire.

use std::time::Duration;

use regent_common::{
    error::{ErrorChain, Reason, refuse},
    ids::{Epoch, MemberName},
};
use tonic::Status;

use crate::{
    engine::DriverError,
    firewall::{FirewallError, keeper::KeepError},
    lease::LeaseError,
    ledger::{LedgerError, Refusal},
    member::OpenError,
};

/// Why a step was not carried out, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The ledger does not admit it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The ledger could not be written.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// There is no driver for the member.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The driver failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The node left its cluster while the step waited for its turn.
    #[error("this node is not a member of a cluster any more")]
    NoMember,
    /// What it was told about its cluster is about another one.
    #[error("the step speaks of {field} {given:?} and this member has {known:?}; nothing was changed")]
    OtherSpec {
        /// What differs.
        field: &'static str,
        /// In the step.
        given: String,
        /// In the ledger.
        known: String,
    },
    /// The data must not be started.
    #[error(
        "the data of {member} is not whole (a copy over it, a resync or a rewind has begun and not ended, or nobody \
         knows where it comes from): resync this member; the data is unchanged"
    )]
    DataNotWhole {
        /// The member.
        member: MemberName,
    },
    /// It is no primary whose lease stands.
    #[error(
        "{member} does not reign at epoch {epoch}: only a primary whose lease stands hands over; nothing was changed"
    )]
    NotReigning {
        /// The member.
        member: MemberName,
        /// The epoch.
        epoch: Epoch,
    },
    /// It is about to end, under a lease that outlives it.
    #[error("the agent of {member} is being restarted: ask again when it is back; nothing was changed")]
    Leaving {
        /// The member.
        member: MemberName,
    },
    /// It was to copy itself over itself.
    #[error("{member} cannot be its own source; nothing was changed")]
    OwnSource {
        /// The member.
        member: MemberName,
    },
    /// The copy that must survive did not give its word.
    #[error("{source_member} does not confirm that its copy is whole ({reason}); the data here is unchanged")]
    CopyNotWhole {
        /// Whose copy.
        source_member: MemberName,
        /// What its agent said.
        reason: String,
    },
    /// This member has promised the primary of a lower epoch not to be used meanwhile (rule E2).
    #[error(
        "this member has endorsed the primary of a lower epoch, or may have before it was started: it can be used in {} ms",
        left.as_millis()
    )]
    PromiseStands {
        /// How long.
        left: Duration,
    },
    /// Who is let in could not be put in force.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The gate or the lease is not as it has to be.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// It was told to stop, or dropped.
    #[error("the step {action} was stopped")]
    Killed {
        /// Name of its action.
        action: &'static str,
    },
    /// It was stopped for one with a higher epoch or token.
    #[error("the step {action} was stopped for one with a higher epoch or operation token")]
    Superseded {
        /// Name of its action.
        action: &'static str,
    },
}

// === impl StepError ===

impl From<KeepError> for StepError {
    fn from(error: KeepError) -> Self {
        match error {
            KeepError::Ledger(error) => error.into(),
            KeepError::Firewall(error) => error.into(),
        }
    }
}

impl StepError {
    /// The reason on the wire.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused(refusal) => refusal_reason(refusal),
            Self::Ledger(error) => ledger_reason(error),
            Self::Open(OpenError::UnknownEngine { .. }) => Reason::UnknownEngine,
            Self::Open(OpenError::Unusable { .. }) => Reason::EngineMissing,
            Self::Open(OpenError::Driver(error)) | Self::Driver(error) => driver_reason(error),
            Self::NoMember | Self::OtherSpec { .. } => Reason::WrongCluster,
            Self::DataNotWhole { .. } => Reason::DataDirty,
            Self::CopyNotWhole { .. } | Self::OwnSource { .. } => Reason::CopyNotWhole,
            Self::NotReigning { .. } | Self::Leaving { .. } => Reason::PrimaryUnhealthy,
            Self::PromiseStands { .. } => Reason::PromiseStands,
            Self::Firewall(FirewallError::Impossible { .. }) => Reason::AllowListImpossible,
            Self::Firewall(FirewallError::Kernel { .. }) => Reason::AllowListFailed,
            Self::Lease(LeaseError::NotHeld { .. }) => Reason::LeaseNotHeld,
            Self::Lease(LeaseError::Gate(_)) => Reason::GateFailed,
            Self::Lease(LeaseError::Ending) | Self::Killed { .. } => Reason::Cancelled,
            Self::Superseded { .. } => Reason::StepSuperseded,
        }
    }

    /// The status that the caller gets.
    pub fn status(&self) -> Status {
        refuse(self.reason(), ErrorChain(self).to_string())
    }
}

fn refusal_reason(refusal: &Refusal) -> Reason {
    match refusal {
        Refusal::StaleEpoch { .. } => Reason::StaleEpoch,
        Refusal::StaleToken { .. } => Reason::StaleToken,
        Refusal::ContentDiffers { .. } => Reason::StepContentDiffers,
        Refusal::NotAMember { .. } | Refusal::PastCluster { .. } => Reason::WrongCluster,
        Refusal::OtherCluster { entering: true, .. } => Reason::NodeInCluster,
        Refusal::OtherCluster { entering: false, .. } => Reason::WrongCluster,
        Refusal::OtherMember { .. } => Reason::WrongMember,
        Refusal::Quarantined { .. } => Reason::LedgerLost,
    }
}

fn ledger_reason(error: &LedgerError) -> Reason {
    match error {
        LedgerError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Reason::DiskFull,
        LedgerError::Io { .. } | LedgerError::WriterLost => Reason::Internal,
        LedgerError::Damaged { .. } | LedgerError::DamagedBeside { .. } | LedgerError::Newer { .. } => {
            Reason::LedgerLost
        }
    }
}

/// What a driver's error is on the wire. The one place that says so.
fn driver_reason(error: &DriverError) -> Reason {
    match error {
        DriverError::MissingProgram { .. } => Reason::EngineMissing,
        DriverError::ForeignData { .. } => Reason::ForeignData,
        DriverError::NotAdoptable { .. } => Reason::NotAdoptable,
        DriverError::PortInUse { .. } => Reason::PortInUse,
        DriverError::UnknownSetting { .. } => Reason::UnknownSetting,
        DriverError::InvalidSetting { .. } => Reason::InvalidField,
        DriverError::NoTls { .. } => Reason::NoTls,
        DriverError::DiskFull { .. } => Reason::DiskFull,
        DriverError::NoData { .. } | DriverError::Dirty { .. } => Reason::DataDirty,
        DriverError::Diverged { .. } => Reason::Diverged,
        DriverError::Forgotten { .. } => Reason::HistoryForgotten,
        DriverError::NoSuchMode { .. } => Reason::UnknownMode,
        DriverError::OtherMode { .. } => Reason::NotInThisMode,
        DriverError::CannotRewind { .. } => Reason::CannotRewind,
        DriverError::Cancelled { .. } => Reason::Cancelled,
        DriverError::Deadline { .. } => Reason::Deadline,
        DriverError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => Reason::DiskFull,
        DriverError::Program { .. } | DriverError::Refused { .. } | DriverError::Io { .. } => Reason::EngineFailed,
    }
}
