//! Decides what a cluster needs next: a pure function of the stored record and the judgements.
//!
//! It is level-triggered (rule P8): however an operation ended, the next look finds what still differs from the stored
//! topology. It asks for one operation at a time; a failover comes before everything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use regent_common::{
    ids::MemberName,
    mutation::{self, Rule},
    topology::Role,
};
use serde::{Deserialize, Serialize};

use crate::{
    detector::{Judgement, Succession, Verdict},
    model::cluster::{ClusterRecord, MemberState, Phase},
};

pub mod asked;
pub mod candidate;
pub mod electorate;

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
    /// A failover is due when no lease can stand any more: grant none, and look again.
    AwaitLease {
        /// When to look again.
        left: Duration,
        /// A sentence for people.
        why: String,
    },
    /// Fail over, now.
    Failover {
        /// What makes sure that the old primary accepts no writes.
        cause: Cause,
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

/// What makes sure that the old primary accepts no writes (rule P1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its own agent reports its engine dead or hung: it is fenced.
    EngineFailed,
    /// Its lease is over.
    LeaseOver,
}

/// How soon a promise that stands is looked at again.
const PROMISE: Duration = Duration::from_millis(100);

/// Decides.
pub fn decide(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
) -> Decision {
    decide_but(cluster, judgements, succession, &BTreeSet::new())
}

/// Decides, passing over the members whose rejoin failed just now, so that one that cannot be brought back does not keep
/// the others out.
pub fn decide_but(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
    resting: &BTreeSet<MemberName>,
) -> Decision {
    match cluster.phase {
        Phase::Creating | Phase::Deleting => return Decision::Nothing,
        Phase::Active => {}
    }
    let Some(primary) = &cluster.primary else {
        return without_primary(cluster, judgements, succession);
    };
    let Some(judgement) = judgements.get(primary) else { return Decision::Nothing };
    let automatic = |cause| {
        if cluster.policy.automatic_failover {
            Decision::Failover { cause, why: judgement.reason.clone() }
        } else {
            let why = format!("{}, and automatic failover is off for this cluster", judgement.reason);
            Decision::NoFailover { why }
        }
    };
    match judgement.verdict {
        Verdict::EngineDown | Verdict::EngineHung | Verdict::StorageHung => return automatic(Cause::EngineFailed),
        Verdict::NodeUnreachable | Verdict::NodeLost if !cluster.policy.automatic_failover => {
            return automatic(Cause::LeaseOver);
        }
        Verdict::NodeUnreachable | Verdict::NodeLost => return succeed(&judgement.reason, cluster, succession),
        Verdict::Partitioned => {
            return Decision::NoFailover {
                why: format!("{}: bring back the connection between it and this coordinator", judgement.reason),
            };
        }
        Verdict::Lost | Verdict::Dirty => {
            return Decision::NoFailover {
                why: format!("{}; a person must decide whose data survives", judgement.reason),
            };
        }
        Verdict::Astray => return Decision::NoFailover { why: judgement.reason.clone() },
        // Its silence or start may end by itself; a replica can still be looked after.
        Verdict::Suspect | Verdict::Starting | Verdict::WithoutLease => return Decision::Nothing,
        Verdict::Healthy | Verdict::NotStreaming => {}
    }
    next_rejoin(cluster, judgements, resting)
}

/// A failover over a primary that is not heard: only when its lease is over, and somebody may and can follow (rule P1).
fn succeed(reason: &str, cluster: &ClusterRecord, succession: &Succession) -> Decision {
    let no = |why: String| Decision::NoFailover { why: format!("{reason}; {why}") };
    if succession.promotable.is_empty() {
        return no("no member may be promoted in its place: bring its node or its agent back".to_owned());
    }
    if !succession.gated {
        return no(format!(
            "its host has no gate that closes by itself, so it may still accept writes: bring its node or its agent back, or \
             switch it off and say so: `regentctl cluster failover {} --confirm-off NODE`",
            cluster.name
        ));
    }
    if succession.reachable.is_empty() {
        return no(nobody_is_heard(succession));
    }
    let allowed = cluster.policy.max_lag_on_failover;
    if let Some(loss) = succession.known_loss.filter(|loss| *loss > allowed) {
        return no(format!(
            "the best of the reachable members lacks {loss} bytes of its changes, and the policy allows {allowed}: bring its node \
             back, or give them up: `regentctl cluster failover {} --accept-data-loss`",
            cluster.name
        ));
    }
    if mutation::broken(Rule::P1Evidence) {
        return Decision::Failover { cause: Cause::LeaseOver, why: reason.to_owned() };
    }
    if !succession.lease_left.is_zero() {
        return Decision::AwaitLease {
            left: succession.lease_left,
            why: format!("{reason}; its lease may stand for {} ms yet", succession.lease_left.as_millis()),
        };
    }
    if succession.free.is_empty() {
        return Decision::AwaitLease {
            left: PROMISE,
            why: format!("{reason}; every member that may be promoted has endorsed it, and that promise still stands"),
        };
    }
    Decision::Failover { cause: Cause::LeaseOver, why: reason.to_owned() }
}

/// Whether nothing of a member is heard here.
fn unheard(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::NodeUnreachable | Verdict::NodeLost | Verdict::Partitioned)
}

fn nobody_is_heard(succession: &Succession) -> String {
    let names: Vec<_> = succession.promotable.iter().map(ToString::to_string).collect();
    format!("none of those who may be promoted ({}) is heard either", names.join(", "))
}

/// An earlier failover did not end. Whoever may be writable has to be heard and fenced, or his lease has to be over.
fn without_primary(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
) -> Decision {
    if cluster.members.keys().all(|member| judgements.get(member).is_some_and(|j| j.verdict == Verdict::Lost)) {
        let why = format!(
            "no member has any data of this cluster: there is nothing to promote; restore a backup of the data into a new cluster, \
             and remove this one: `regentctl cluster delete {}`",
            cluster.name
        );
        return Decision::NoFailover { why };
    }
    let why = "no member is the primary: an earlier failover did not end".to_owned();
    let away = |member: &&MemberName| judgements.get(*member).is_some_and(|judgement| unheard(&judgement.verdict));
    let Some(member) = cluster.may_reign().find(away) else {
        return Decision::Failover { cause: Cause::EngineFailed, why };
    };
    // One that is heard itself is fenced and prepared, whatever stands.
    let cut_off = cluster.reign.as_ref().is_none_or(|reign| away(&&reign.primary));
    if let Some(reporter) = succession.reported_by.as_ref().filter(|_| cut_off) {
        return Decision::NoFailover {
            why: format!(
                "no member is the stored primary, and {reporter} reports that a lease stands: it is waited for"
            ),
        };
    }
    if !succession.gated {
        return Decision::NoFailover {
            why: format!(
                "no member is the primary, and {member}, which may still accept writes, is not heard and has no gate that closes \
                 by itself: nobody is promoted before its agent has answered a fence: bring the node or its agent back"
            ),
        };
    }
    if !succession.lease_left.is_zero() {
        return Decision::AwaitLease {
            left: succession.lease_left,
            why: format!("{why}, and a lease of {member} may stand for {} ms yet", succession.lease_left.as_millis()),
        };
    }
    // Who reigned last is heard: once it is fenced its own data can be used.
    let own = cluster.reign.as_ref().is_some_and(|reign| !away(&&reign.primary));
    if !own && succession.reachable.is_empty() {
        return Decision::NoFailover {
            why: format!("{why}; {member} is not heard, and {}", nobody_is_heard(succession)),
        };
    }
    if !own && succession.free.is_empty() {
        let why =
            format!("{why}; every member that may be promoted has endorsed the last one, and that promise stands");
        return Decision::AwaitLease { left: PROMISE, why };
    }
    Decision::Failover { cause: Cause::LeaseOver, why }
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
            (_, Verdict::NodeUnreachable | Verdict::NodeLost | Verdict::Partitioned | Verdict::Suspect)
            | (MemberState::NeedsResync { .. }, _) => {}
            (MemberState::NeedsRejoin, _) => return rejoin("it has to be brought back to the stored topology"),
            (MemberState::Ready, Verdict::EngineDown | Verdict::Astray | Verdict::Dirty) => {
                return rejoin(&judgement.reason);
            }
            (
                MemberState::Ready,
                Verdict::Healthy
                | Verdict::Starting
                | Verdict::NotStreaming
                | Verdict::WithoutLease
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
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
