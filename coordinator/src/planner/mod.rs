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
    topology::{AllowListState, Role},
};
use serde::{Deserialize, Serialize};

use crate::{
    detector::{Judgement, Succession, Verdict},
    model::cluster::{ClusterRecord, Healing, MemberState, Phase},
    nodes::NodeView,
};

pub mod asked;
pub mod candidate;
pub mod electorate;
pub mod pair;
pub mod planned;
pub mod removal;
pub mod resyncing;

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
    /// A member can only be brought back by a resync, which erases its data and wants a person's word: say so.
    Mark {
        /// The member.
        member: MemberName,
        /// A sentence for people and the audit.
        why: String,
    },
    /// Bring a member to what the stored topology says of it.
    Mend {
        /// The member.
        member: MemberName,
        /// What has to be done.
        how: Mend,
        /// A sentence for people and the audit.
        why: String,
    },
}

/// What brings a member to what the stored topology says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mend {
    /// It is brought back as a replica.
    Rejoin,
    /// It is told again what it applies: it was away when that changed.
    Configure,
    /// Its removal is gone on with.
    Remove {
        /// Whether its data stays on its node.
        keep_data: bool,
        /// Whether fewer than two whole copies may be left.
        allow_single: bool,
    },
}

/// What is known besides of members that may have to be mended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// Whose last mending failed just now: it is passed over, so that it does not keep the others out.
    pub resting: BTreeSet<MemberName>,
    /// Who has applied something else than what is stored (see [`drifted`]).
    pub drifted: BTreeSet<MemberName>,
}

/// Who has applied another configuration than the one of this fingerprint. One that has not said what it has applied is not counted.
pub fn drifted(
    cluster: &ClusterRecord,
    views: &BTreeMap<MemberName, NodeView>,
    fingerprint: &str,
) -> BTreeSet<MemberName> {
    // An agent of before there were allow-lists says that it has applied what it did not understand.
    let allow_list = cluster.allow_list.fingerprint();
    let other = |view: &NodeView| {
        view.observation.as_ref().is_some_and(|seen| {
            let told_another = |state: &AllowListState| state.fingerprint != allow_list;
            seen.cluster_id == cluster.id
                && !seen.configuration.is_empty()
                && (seen.configuration != fingerprint || seen.allow_list.as_ref().is_some_and(told_another))
        })
    };
    views.iter().filter(|(_, view)| view.connected && other(view)).map(|(member, _)| member.clone()).collect()
}

/// What makes sure that the old primary accepts no writes (rule P1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// Its own agent reports its engine dead or hung: it is fenced.
    EngineFailed,
    /// Its lease is over.
    LeaseOver,
    /// It is drained and then fenced: a planned promotion (rule P6).
    Planned,
}

/// How soon a promise that stands is looked at again.
const PROMISE: Duration = Duration::from_millis(100);

/// Decides.
pub fn decide(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
) -> Decision {
    decide_with(cluster, judgements, succession, &Upkeep::default())
}

/// Decides, with what is known of members that may have to be mended.
pub fn decide_with(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
    upkeep: &Upkeep,
) -> Decision {
    match cluster.phase {
        Phase::Creating | Phase::Deleting => return Decision::Nothing,
        Phase::Active => {}
    }
    if cluster.is_pair() {
        return pair::decide(cluster, judgements, upkeep);
    }
    let Some(primary) = &cluster.primary else {
        return without_primary(cluster, judgements, succession);
    };
    let Some(judgement) = judgements.get(primary) else { return Decision::Nothing };
    let reason = &judgement.reason;
    match judgement.verdict {
        Verdict::EngineDown
        | Verdict::EngineHung
        | Verdict::StorageHung
        | Verdict::NodeUnreachable
        | Verdict::NodeLost
        | Verdict::Quarantined
            if cluster.policy.paused =>
        {
            return Decision::NoFailover { why: format!("{reason}, and {}", paused(cluster)) };
        }
        Verdict::EngineDown
        | Verdict::EngineHung
        | Verdict::StorageHung
        | Verdict::NodeUnreachable
        | Verdict::NodeLost
        | Verdict::Quarantined
            if !cluster.policy.automatic_failover =>
        {
            return Decision::NoFailover { why: format!("{reason}, and automatic failover is off for this cluster") };
        }
        Verdict::EngineDown | Verdict::EngineHung | Verdict::StorageHung => {
            return Decision::Failover { cause: Cause::EngineFailed, why: reason.clone() };
        }
        Verdict::NodeUnreachable | Verdict::NodeLost | Verdict::Quarantined
            if cluster.policy.healing == Healing::RestorePrimary =>
        {
            return Decision::NoFailover { why: format!("{reason}; {}", waits_for_primary(cluster)) };
        }
        // One in quarantine is heard and not believed: it is replaced like one that is not heard, when its lease is over.
        Verdict::NodeUnreachable | Verdict::NodeLost | Verdict::Quarantined => {
            return succeed(reason, cluster, succession);
        }
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
        // This may end by itself; who looks again and again knows when it does not.
        Verdict::Suspect | Verdict::Starting | Verdict::WithoutLease | Verdict::Astray => return Decision::Nothing,
        Verdict::Healthy | Verdict::NotStreaming | Verdict::Stale => {}
    }
    if cluster.policy.paused { Decision::Nothing } else { next_mend(cluster, judgements, upkeep) }
}

fn paused(cluster: &ClusterRecord) -> String {
    format!("automatic decisions are paused: `regentctl cluster resume {}` ends that", cluster.name)
}

fn waits_for_primary(cluster: &ClusterRecord) -> String {
    format!(
        "the policy is to restore the primary on its own data: bring its node back, or have another member take its place: \
         `regentctl cluster failover {}`",
        cluster.name
    )
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

/// Whether nothing of a member is heard here that counts.
fn unheard(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::NodeUnreachable | Verdict::NodeLost | Verdict::Partitioned | Verdict::Quarantined)
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
    if let Some(why) = only_by_a_person(cluster, judgements, succession) {
        return Decision::NoFailover { why };
    }
    let why = "no member is the primary: an earlier failover did not end".to_owned();
    if cluster.policy.paused {
        return Decision::NoFailover { why: format!("{why}, and {}", paused(cluster)) };
    }
    let away = |member: &&MemberName| judgements.get(*member).is_some_and(|judgement| unheard(&judgement.verdict));
    let Some(member) = cluster.may_reign().find(away) else {
        return Decision::Failover { cause: Cause::EngineFailed, why };
    };
    if cluster.policy.healing == Healing::RestorePrimary {
        return Decision::NoFailover {
            why: format!("{why}, and {member} is not heard; {}", waits_for_primary(cluster)),
        };
    }
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

/// Who reigned has answered a fence and has no data any more, and nobody may take its place by the electorate: what copies are left
/// may lack acknowledged changes, and nobody but a person can give those up (rule P7).
fn only_by_a_person(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
) -> Option<String> {
    let gone = |member: &MemberName| {
        judgements.get(member).is_some_and(|judgement| matches!(judgement.verdict, Verdict::Lost | Verdict::Dirty))
    };
    let last = &cluster.reign.as_ref()?.primary;
    let nobody = cluster.may_be_writable.is_empty() && succession.promotable.is_empty();
    if !(nobody && gone(last) && cluster.reigned.keys().all(gone)) {
        return None;
    }
    Some(format!(
        "no member is the primary, the data of {last}, which was the last, is gone, and no other copy is known to have all of it: a \
         person must decide: put that data back, or go on with the best copy that is left and give up what it lacks: `regentctl \
         cluster failover {} --accept-data-loss`",
        cluster.name
    ))
}

/// A member that serves and has applied something else than what is stored: it is told again.
fn tell_again(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    upkeep: &Upkeep,
) -> Option<Decision> {
    let told = |member: &&MemberName| {
        let ready = cluster.members.get(*member).is_some_and(|record| record.state == MemberState::Ready);
        let serves = |judgement: &Judgement| {
            matches!(judgement.verdict, Verdict::Healthy | Verdict::NotStreaming | Verdict::Stale)
        };
        ready && !upkeep.resting.contains(*member) && judgements.get(*member).is_some_and(serves)
    };
    let member = upkeep.drifted.iter().find(told)?;
    let why = format!("{member} has not applied what was changed while it was away");
    Some(Decision::Mend { member: member.clone(), how: Mend::Configure, why })
}

/// The first member that has to be mended and can be: what is told first, as it may be what keeps others from coming back.
fn next_mend(cluster: &ClusterRecord, judgements: &BTreeMap<MemberName, Judgement>, upkeep: &Upkeep) -> Decision {
    let rests = |member: &MemberName| upkeep.resting.contains(member);
    if let Some(told) = tell_again(cluster, judgements, upkeep) {
        return told;
    }
    for (member, record) in cluster.replicas().filter(|(member, _)| !rests(member)) {
        let Some(judgement) = judgements.get(member) else { continue };
        let mend = |how, why: &str| Decision::Mend { member: member.clone(), how, why: why.to_owned() };
        let rejoin = |why: &str| mend(Mend::Rejoin, why);
        match (&record.state, &judgement.verdict) {
            (MemberState::Creating | MemberState::Resyncing, _) => {}
            (MemberState::Leaving { keep_data, allow_single }, _) => {
                let how = Mend::Remove { keep_data: *keep_data, allow_single: *allow_single };
                return mend(how, "its removal was cut short");
            }
            (MemberState::NeedsResync { .. }, Verdict::Healthy) => return rejoin("it follows again"),
            // Not heard, or waiting for a person.
            (
                _,
                Verdict::NodeUnreachable
                | Verdict::NodeLost
                | Verdict::Partitioned
                | Verdict::Suspect
                | Verdict::Quarantined,
            )
            | (MemberState::NeedsResync { .. }, _) => {}
            (MemberState::Ready, Verdict::Stale) => {
                return Decision::Mark { member: member.clone(), why: judgement.reason.clone() };
            }
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
    let ready = || cluster.members.get(member).is_some_and(|record| record.state == MemberState::Ready);
    match (cluster.role_of(member), &judgement.verdict) {
        (Role::Primary, Verdict::Healthy) => true,
        // A side of a pair accepts writes also while it hears nothing of the other one.
        (Role::Replica | Role::Active, Verdict::Healthy) | (Role::Active, Verdict::NotStreaming | Verdict::Stale) => {
            ready()
        }
        (Role::Primary | Role::Replica | Role::Active, _) => false,
    }
}

#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod tests;
