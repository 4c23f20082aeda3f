//! What a step is to do, translated from the wire. The list of actions of this agent.

use std::{path::PathBuf, time::Duration};

use regent_common::{
    convert::ConvertError,
    ids::{MemberName, NameError},
    lease::Forced,
    topology::{ClusterSpec, Peer},
};
use regent_proto::agent::v1 as wire;

use crate::{
    engine::{Comparison, Flush},
    ledger::{Claim, DRAIN},
};

/// One action, checked.
#[derive(Debug, Clone)]
pub enum Action {
    /// Makes the node a member of a cluster.
    Assign {
        /// Of what.
        spec: ClusterSpec,
        /// Port for the engine; 0 for the node's own choice.
        port: u16,
    },
    /// Applies members, settings and access rules.
    Configure {
        /// What to apply.
        spec: ClusterSpec,
        /// Names it in observations.
        fingerprint: String,
    },
    /// Makes new data and starts the engine as the first primary.
    Initialize,
    /// Copies a member's data into the side directory.
    Clone {
        /// Whose.
        source: Peer,
        /// Most bytes per second; 0 for no limit.
        max_bytes_per_second: u64,
        /// The old data may go first when there is no space for both.
        wipe_first_if_needed: bool,
    },
    /// Puts the copy in place.
    Swap {
        /// Member to follow afterwards.
        upstream: Peer,
        /// Keep the old data aside.
        keep_old: bool,
    },
    /// Removes what a swap kept.
    DiscardKept,
    /// Ends every reign below the step's epoch.
    Fence,
    /// Persists the epoch, cuts the stream, reports the position.
    Prepare {
        /// The fence answers of all that may be writable are at hand: promises to them are released (rule E3).
        old_primary_fenced: bool,
    },
    /// Makes the replica the primary of the step's epoch.
    Promote,
    /// Follows an upstream.
    Follow {
        /// Whom.
        upstream: Peer,
    },
    /// Finds out where a copy stands.
    Examine,
    /// Brings a diverged copy back to the history of another.
    Rewind {
        /// Whose.
        source: Peer,
    },
    /// Takes the node out of the cluster.
    Release {
        /// Leave the data aside instead of removing it.
        keep_data: bool,
        /// Let an adopted instance go on as it was found; whatever `keep_data` says.
        give_back: bool,
    },
    /// Flushes the primary.
    Checkpoint {
        /// What for.
        flush: Flush,
    },
    /// Hands everything over to a successor (rule P6).
    Drain {
        /// Whom.
        successor: MemberName,
        /// How long it may take.
        within: Duration,
        /// How long applications are kept out after it, until a fence comes.
        hold: Duration,
    },
    /// Lets applications in again.
    UndoDrain,
    /// Takes a running instance over.
    Adopt {
        /// Folder of its data.
        data_directory: PathBuf,
        /// Whom it follows; `None` for the first primary.
        upstream: Option<Peer>,
    },
    /// Makes this member an active side of a multi-master cluster.
    Activate {
        /// The other side, which it follows from here on; `None` for nobody.
        other: Option<Peer>,
        /// Whether applications and the other side are let in.
        open: bool,
        /// Make the first data when there is none.
        first: bool,
    },
    /// Counts what only this side of a multi-master cluster has.
    Compare {
        /// The other side.
        other: Peer,
        /// What of both.
        what: Comparison,
    },
    /// Fills this side of a multi-master cluster anew from the other one.
    Refill {
        /// The side whose data survives.
        source: Peer,
        /// Keep the old data aside.
        keep_old: bool,
    },
    /// Makes this member the primary on the word of a person, without a coordinator (rule P9). Never comes over the wire.
    ForcePrimary {
        /// What the person said, and when.
        forced: Forced,
    },
}

/// Why an action from the wire was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// There is none, or one that this version does not know.
    #[error(
        "the step has no action that this agent (version {}) knows: upgrade the agent, then the operation goes on",
        env!("CARGO_PKG_VERSION")
    )]
    Unknown,
    /// A field of it is not valid.
    #[error("action {action}: {source}")]
    Field {
        /// Name of the action.
        action: &'static str,
        /// What is wrong.
        source: ConvertError,
    },
}

fn required<M, D>(action: &'static str, field: &'static str, message: Option<M>) -> Result<D, ActionError>
where
    D: TryFrom<M, Error = ConvertError>,
{
    message
        .ok_or(ConvertError::Missing { field })
        .and_then(D::try_from)
        .map_err(|source| ActionError::Field { action, source })
}

// === impl Action ===

impl Action {
    /// Name of the action, as it stands in the ledger and in job lists.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Assign { .. } => "assign",
            Self::Configure { .. } => "configure",
            Self::Initialize => "initialize",
            Self::Clone { .. } => "clone",
            Self::Swap { .. } => "swap",
            Self::DiscardKept => "discard_kept",
            Self::Fence => "fence",
            Self::Prepare { .. } => "prepare",
            Self::Promote => "promote",
            Self::Follow { .. } => "follow",
            Self::Examine => "examine",
            Self::Rewind { .. } => "rewind",
            Self::Release { .. } => "release",
            Self::Checkpoint { .. } => "checkpoint",
            Self::Drain { .. } => DRAIN,
            Self::UndoDrain => "undo_drain",
            Self::Adopt { .. } => "adopt",
            Self::Activate { .. } => "activate",
            Self::Compare { .. } => "compare",
            Self::Refill { .. } => "refill",
            Self::ForcePrimary { .. } => "force_primary",
        }
    }

    /// What it needs of the node's membership.
    pub fn claim(&self) -> Claim {
        match self {
            Self::Assign { .. } => Claim::Enter,
            Self::Release { .. } => Claim::Leave,
            Self::Configure { .. }
            | Self::Initialize
            | Self::Clone { .. }
            | Self::Swap { .. }
            | Self::DiscardKept
            | Self::Fence
            | Self::Prepare { .. }
            | Self::Promote
            | Self::Follow { .. }
            | Self::Examine
            | Self::Rewind { .. }
            | Self::Checkpoint { .. }
            | Self::Drain { .. }
            | Self::UndoDrain
            | Self::Adopt { .. }
            | Self::Activate { .. }
            | Self::Compare { .. }
            | Self::Refill { .. }
            | Self::ForcePrimary { .. } => Claim::Act,
        }
    }

    /// Whether an engine may be started by it, or becomes the member's: whoever is kept out has to be kept out before.
    pub fn may_start_engine(&self) -> bool {
        match self {
            Self::Initialize
            | Self::Swap { .. }
            | Self::Promote
            | Self::Follow { .. }
            | Self::Examine
            | Self::Rewind { .. }
            | Self::Adopt { .. }
            | Self::Activate { .. }
            | Self::Refill { .. }
            | Self::ForcePrimary { .. } => true,
            Self::Assign { .. }
            | Self::Configure { .. }
            | Self::Clone { .. }
            | Self::DiscardKept
            | Self::Fence
            | Self::Prepare { .. }
            | Self::Release { .. }
            | Self::Checkpoint { .. }
            | Self::Drain { .. }
            | Self::UndoDrain
            | Self::Compare { .. } => false,
        }
    }

    /// Whether it kills what is in its way instead of waiting for it.
    pub fn kills(&self) -> bool {
        matches!(self, Self::Fence)
    }
}

impl TryFrom<wire::Action> for Action {
    type Error = ActionError;
    fn try_from(message: wire::Action) -> Result<Self, ActionError> {
        use wire::action::Action as Wire;
        Ok(match message.action.ok_or(ActionError::Unknown)? {
            Wire::Assign(wire::Assign { spec, port }) => Self::Assign {
                spec: required("assign", "spec", spec)?,
                port: u16::try_from(port).map_err(|_| ActionError::Field {
                    action: "assign",
                    source: ConvertError::OutOfRange { field: "port", value: port.into() },
                })?,
            },
            Wire::Configure(wire::Configure { spec, fingerprint }) => {
                Self::Configure { spec: required("configure", "spec", spec)?, fingerprint }
            }
            Wire::Initialize(wire::Initialize {}) => Self::Initialize,
            Wire::Clone(wire::Clone { source, max_bytes_per_second, wipe_first_if_needed }) => {
                Self::Clone { source: required("clone", "source", source)?, max_bytes_per_second, wipe_first_if_needed }
            }
            Wire::Swap(wire::Swap { upstream, keep_old }) => {
                Self::Swap { upstream: required("swap", "upstream", upstream)?, keep_old }
            }
            Wire::DiscardKept(wire::DiscardKept {}) => Self::DiscardKept,
            Wire::Fence(wire::Fence {}) => Self::Fence,
            Wire::Prepare(wire::Prepare { old_primary_fenced }) => Self::Prepare { old_primary_fenced },
            Wire::Promote(wire::Promote {}) => Self::Promote,
            Wire::Follow(wire::Follow { upstream }) => {
                Self::Follow { upstream: required("follow", "upstream", upstream)? }
            }
            Wire::Examine(wire::Examine {}) => Self::Examine,
            Wire::Rewind(wire::Rewind { source }) => Self::Rewind { source: required("rewind", "source", source)? },
            Wire::Release(wire::Release { keep_data, give_back }) => Self::Release { keep_data, give_back },
            Wire::Checkpoint(wire::Checkpoint { for_copies }) => {
                Self::Checkpoint { flush: if for_copies { Flush::Copies } else { Flush::HandOver } }
            }
            Wire::Drain(wire::Drain { successor, within_millis, hold_millis }) => Self::Drain {
                successor: successor
                    .parse()
                    .map_err(|error: NameError| ActionError::Field { action: DRAIN, source: error.into() })?,
                within: Duration::from_millis(within_millis),
                hold: Duration::from_millis(hold_millis),
            },
            Wire::UndoDrain(wire::UndoDrain {}) => Self::UndoDrain,
            Wire::Adopt(wire::Adopt { data_directory, upstream }) => Self::Adopt {
                data_directory: data_directory.into(),
                upstream: upstream
                    .map(Peer::try_from)
                    .transpose()
                    .map_err(|source| ActionError::Field { action: "adopt", source })?,
            },
            Wire::Activate(wire::Activate { other, open, first }) => Self::Activate {
                other: other
                    .map(Peer::try_from)
                    .transpose()
                    .map_err(|source| ActionError::Field { action: "activate", source })?,
                open,
                first,
            },
            Wire::Compare(wire::Compare { other, values }) => Self::Compare {
                other: required("compare", "other", other)?,
                what: if values { Comparison::Values } else { Comparison::Presence },
            },
            Wire::Refill(wire::Refill { source, keep_old }) => {
                Self::Refill { source: required("refill", "source", source)?, keep_old }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_without_its_fields_is_refused() {
        assert!(matches!(Action::try_from(wire::Action { action: None }), Err(ActionError::Unknown)));
        let clone = wire::Clone { source: None, max_bytes_per_second: 0, wipe_first_if_needed: false };
        let refused = Action::try_from(wire::Action { action: Some(wire::action::Action::Clone(clone)) });
        assert_eq!(
            refused.map(|_| ()),
            Err(ActionError::Field { action: "clone", source: ConvertError::Missing { field: "source" } })
        );
    }
}
