//! Decides what a cluster needs next: a pure function of the stored record and the judgements.
//!
//! It is level-triggered (rule P8): however an operation ended, the next look finds what still differs from the stored
//! topology. It asks for one operation at a time; a failover comes before everything else.

use std::collections::{BTreeMap, BTreeSet};

use regent_common::{ids::MemberName, topology::Role};

use crate::{
    detector::{Judgement, Verdict},
    model::cluster::{ClusterRecord, MemberState, Phase},
};

pub mod candidate;

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Nothing.
    Nothing,
    /// The primary does not serve, and nothing is done about it, because of the reason.
    NoFailover {
        /// A sentence for people and the audit.
        why: String,
    },
    /// Fail over, now.
    Failover {
        /// A sentence for people and the audit.
        why: String,
    },
    /// Bring a member back to the stored topology.
    Rejoin {
        /// The member.
        member: MemberName,
        /// A sentence for people and the audit.
        why: String,
    },
}

/// Decides.
pub fn decide(cluster: &ClusterRecord, judgements: &BTreeMap<MemberName, Judgement>) -> Decision {
    decide_but(cluster, judgements, &BTreeSet::new())
}

/// Decides, passing over the members whose rejoin failed just now, so that one that cannot be brought back does not keep
/// the others out.
pub fn decide_but(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    resting: &BTreeSet<MemberName>,
) -> Decision {
    match cluster.phase {
        Phase::Creating | Phase::Deleting => return Decision::Nothing,
        Phase::Active => {}
    }
    let Some(primary) = &cluster.primary else {
        let away =
            |member: &&MemberName| judgements.get(*member).is_some_and(|j| j.verdict == Verdict::NodeUnreachable);
        if let Some(member) = cluster.may_be_writable.iter().chain(&cluster.candidate).find(away) {
            return Decision::NoFailover {
                why: format!(
                    "no member is the primary, and {member}, which may still accept writes, is not heard: nobody is promoted \
                     before its agent has answered a fence: bring the node or its agent back"
                ),
            };
        }
        return Decision::Failover { why: "no member is the primary: an earlier failover did not end".to_owned() };
    };
    match judgements.get(primary) {
        None => return Decision::Nothing,
        Some(judgement) => match judgement.verdict {
            Verdict::EngineDown if cluster.policy.automatic_failover => {
                return Decision::Failover { why: judgement.reason.clone() };
            }
            Verdict::EngineDown => {
                return Decision::NoFailover {
                    why: format!("{}, and automatic failover is off for this cluster", judgement.reason),
                };
            }
            Verdict::NodeUnreachable => {
                return Decision::NoFailover {
                    why: format!(
                        "{}. It may still accept writes, so nobody else is promoted before its agent has answered a \
                         fence: bring the node or its agent back",
                        judgement.reason
                    ),
                };
            }
            Verdict::Lost | Verdict::Dirty => {
                return Decision::NoFailover {
                    why: format!("{}; a person must decide whose data survives", judgement.reason),
                };
            }
            Verdict::EngineHung | Verdict::StorageHung | Verdict::Astray => {
                return Decision::NoFailover { why: judgement.reason.clone() };
            }
            // Its silence or start may end by itself; a replica can still be looked after.
            Verdict::Suspect | Verdict::Starting => return Decision::Nothing,
            Verdict::Healthy | Verdict::NotStreaming => {}
        },
    }
    next_rejoin(cluster, judgements, resting)
}

/// The first replica that has to be brought back and can be.
fn next_rejoin(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    resting: &BTreeSet<MemberName>,
) -> Decision {
    for (member, record) in cluster.replicas().filter(|(member, _)| !resting.contains(*member)) {
        let Some(judgement) = judgements.get(member) else { continue };
        let rejoin = |why: &str| Decision::Rejoin { member: member.clone(), why: why.to_owned() };
        match (&record.state, &judgement.verdict) {
            (MemberState::Creating | MemberState::Resyncing, _) => {}
            // Not heard, or waiting for a person.
            (_, Verdict::NodeUnreachable | Verdict::Suspect) | (MemberState::NeedsResync { .. }, _) => {}
            (MemberState::NeedsRejoin, _) => return rejoin("it has to be brought back to the stored topology"),
            (MemberState::Ready, Verdict::EngineDown | Verdict::Astray | Verdict::Dirty) => {
                return rejoin(&judgement.reason);
            }
            (
                MemberState::Ready,
                Verdict::Healthy
                | Verdict::Starting
                | Verdict::NotStreaming
                | Verdict::EngineHung
                | Verdict::StorageHung
                | Verdict::Lost,
            ) => {}
        }
    }
    Decision::Nothing
}

/// Whether a member serves in its role by the evidence.
pub fn serves(cluster: &ClusterRecord, member: &MemberName, judgement: &Judgement) -> bool {
    judgement.verdict == Verdict::Healthy
        && match cluster.role_of(member) {
            Role::Primary => true,
            Role::Replica => cluster.members.get(member).is_some_and(|record| record.state == MemberState::Ready),
        }
}

#[cfg(test)]
mod tests;
