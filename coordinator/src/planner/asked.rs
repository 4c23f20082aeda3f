//! What a person may ask of a failover (rule P7): pure.
//!
//! A person can consent to the loss of data, and can vouch that a node is off. Neither makes two primaries possible: who may
//! still accept writes has to be heard and fenced, or its lease has to be over where a gate closes by itself, or its node is
//! one that the person has switched off.

use std::collections::{BTreeMap, BTreeSet};

use regent_common::ids::MemberName;
use serde::{Deserialize, Serialize};

use super::{
    Cause, nobody_is_heard,
    pair::{Foreign, foreign},
    unheard,
};
use crate::{
    detector::{Judgement, Succession, Verdict},
    model::cluster::{ClusterRecord, MemberState, Phase},
};

/// What a person takes upon himself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consent {
    /// What no reachable member has may be lost, however much it is.
    #[serde(default)]
    pub data_loss: bool,
    /// Members whose nodes are off, and stay off until they are told otherwise by an agent that is heard.
    #[serde(default)]
    pub off: BTreeSet<MemberName>,
}

impl Consent {
    /// Whether a member in this state is prepared. With consent to a loss any copy will do that the member itself calls whole: one
    /// that was to be brought back, or replaced, may be all that is left.
    pub fn covers(&self, state: &MemberState) -> bool {
        match state {
            MemberState::Ready => true,
            MemberState::Creating => false,
            MemberState::Resyncing
            | MemberState::NeedsRejoin
            | MemberState::NeedsResync { .. }
            | MemberState::Leaving { .. } => self.data_loss,
        }
    }
}

/// Whether a failover that a person asks for can begin: what makes sure that the old primary accepts no writes, or a sentence
/// that says why not and what to do.
pub fn asked(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
    consent: &Consent,
) -> Result<Cause, String> {
    if let Some((_, why)) = foreign(cluster, Foreign::Failover) {
        return Err(why);
    }
    if cluster.phase != Phase::Active {
        return Err("the cluster is being made or removed".to_owned());
    }
    if let Some(member) = consent.off.iter().find(|member| !is_away(judgements, member)) {
        return Err(format!("the agent of {member} is heard, so that its node is not off"));
    }
    let cause = match &cluster.primary {
        Some(primary) => over(primary, judgements, succession, consent)?,
        None => match cluster.may_reign().find(|member| is_away(judgements, member)) {
            Some(member) => over_silent(member, "it is not heard", succession, consent)?,
            None => Cause::EngineFailed,
        },
    };
    let promised = cause == Cause::LeaseOver && !cluster.may_reign().all(|member| consent.off.contains(member));
    if succession.reachable.is_empty() && (promised || !consent.data_loss) {
        let hint = if promised {
            "another member can be promoted only when the nodes of all who may accept writes are off: --confirm-off NODE"
        } else {
            "another member may lack acknowledged changes: --accept-data-loss"
        };
        return Err(format!("{}; {hint}", nobody_is_heard(succession)));
    }
    let ready = |(member, record): (&MemberName, &crate::model::cluster::MemberRecord)| {
        consent.covers(&record.state) && !is_away(judgements, member)
    };
    if !cluster.members.iter().any(ready) {
        return Err("no member that could be promoted is heard: bring one of the nodes back".to_owned());
    }
    let allowed = cluster.policy.max_lag_on_failover;
    match succession.known_loss.filter(|loss| *loss > allowed && !consent.data_loss) {
        Some(loss) => Err(format!(
            "the best of the reachable members lacks {loss} bytes of changes, and the policy allows {allowed}: bring the \
             primary's node back, or give them up with --accept-data-loss"
        )),
        None => Ok(cause),
    }
}

fn is_away(judgements: &BTreeMap<MemberName, Judgement>, member: &MemberName) -> bool {
    judgements.get(member).is_some_and(|judgement| unheard(&judgement.verdict))
}

/// What makes sure of a stored primary.
fn over(
    primary: &MemberName,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
    consent: &Consent,
) -> Result<Cause, String> {
    let Some(judgement) = judgements.get(primary) else { return Err(format!("nothing is known of {primary}")) };
    match judgement.verdict {
        Verdict::Healthy
        | Verdict::NotStreaming
        | Verdict::Stale
        | Verdict::Suspect
        | Verdict::Starting
        | Verdict::WithoutLease => {
            Err(format!("{primary} is the primary and serves, or is about to: there is nothing to fail over from"))
        }
        Verdict::Partitioned => {
            Err(format!("{}: its writes go on, and its members keep their promise", judgement.reason))
        }
        // Its agent is heard, and answers a fence.
        Verdict::EngineDown
        | Verdict::EngineHung
        | Verdict::StorageHung
        | Verdict::Astray
        | Verdict::Dirty
        | Verdict::Lost => Ok(Cause::EngineFailed),
        Verdict::NodeUnreachable | Verdict::NodeLost | Verdict::Quarantined => {
            over_silent(primary, &judgement.reason, succession, consent)
        }
    }
}

/// What makes sure of a member that is not heard and may accept writes.
fn over_silent(member: &MemberName, reason: &str, succession: &Succession, consent: &Consent) -> Result<Cause, String> {
    if let Some(reporter) = &succession.reported_by {
        return Err(format!("{reason}; {reporter} reports that a lease stands: its holder serves"));
    }
    if !succession.gated && !consent.off.contains(member) {
        return Err(format!(
            "{reason}, and its host has no gate that closes by itself: make sure that the node of {member} is off, then say so \
             with --confirm-off NODE"
        ));
    }
    Ok(Cause::LeaseOver)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::fixtures::{cluster, name};

    fn judged(primary: Verdict, replica: Verdict) -> BTreeMap<MemberName, Judgement> {
        let judgement = |verdict| Judgement { verdict, reason: "because".to_owned() };
        BTreeMap::from([(name(1), judgement(primary)), (name(2), judgement(replica))])
    }

    fn heard() -> Succession {
        Succession { gated: true, promotable: [name(2)].into(), reachable: [name(2)].into(), ..Succession::default() }
    }

    fn refused(primary: Verdict, succession: &Succession, consent: &Consent) -> String {
        asked(&cluster(), &judged(primary, Verdict::Healthy), succession, consent).unwrap_err()
    }

    #[test]
    fn a_primary_that_serves_is_not_failed_over_from() {
        for verdict in [Verdict::Healthy, Verdict::Suspect, Verdict::Starting, Verdict::WithoutLease] {
            assert!(refused(verdict, &heard(), &Consent::default()).contains("nothing to fail over"));
        }
        let everything = Consent { data_loss: true, off: BTreeSet::new() };
        assert!(refused(Verdict::Partitioned, &heard(), &everything).contains("promise"));
        let vouched = Succession { reported_by: Some(name(2)), ..heard() };
        assert!(refused(Verdict::NodeUnreachable, &vouched, &everything).contains("a lease stands"));
    }

    #[test]
    fn what_makes_sure_is_the_agents_answer_or_the_end_of_the_lease() {
        let cause = |verdict| asked(&cluster(), &judged(verdict, Verdict::Healthy), &heard(), &Consent::default());
        assert_eq!(cause(Verdict::EngineDown), Ok(Cause::EngineFailed));
        assert_eq!(cause(Verdict::Lost), Ok(Cause::EngineFailed));
        assert_eq!(cause(Verdict::NodeLost), Ok(Cause::LeaseOver));
    }

    #[test]
    fn a_host_without_a_gate_has_to_be_off_and_one_that_is_heard_is_not() {
        let ungated = Succession { gated: false, ..heard() };
        assert!(refused(Verdict::NodeUnreachable, &ungated, &Consent::default()).contains("--confirm-off"));
        let off = Consent { off: [name(1)].into(), ..Consent::default() };
        let decided = asked(&cluster(), &judged(Verdict::NodeUnreachable, Verdict::Healthy), &ungated, &off);
        assert_eq!(decided, Ok(Cause::LeaseOver));
        assert!(refused(Verdict::EngineDown, &ungated, &off).contains("is not off"));
    }

    #[test]
    fn loss_and_who_is_outside_the_electorate_want_their_own_consent() {
        let behind = Succession { known_loss: Some(u64::MAX), ..heard() };
        assert!(refused(Verdict::NodeLost, &behind, &Consent::default()).contains("--accept-data-loss"));
        let loss = Consent { data_loss: true, ..Consent::default() };
        let judgements = judged(Verdict::NodeLost, Verdict::Healthy);
        assert_eq!(asked(&cluster(), &judgements, &behind, &loss), Ok(Cause::LeaseOver));
        let nobody = Succession { reachable: BTreeSet::new(), ..heard() };
        assert!(refused(Verdict::NodeLost, &nobody, &loss).contains("--confirm-off"));
        assert!(refused(Verdict::EngineDown, &nobody, &Consent::default()).contains("--accept-data-loss"));
        assert_eq!(
            asked(&cluster(), &judged(Verdict::EngineDown, Verdict::Healthy), &nobody, &loss),
            Ok(Cause::EngineFailed)
        );
        let all = Consent { data_loss: true, off: [name(1)].into() };
        assert_eq!(asked(&cluster(), &judgements, &nobody, &all), Ok(Cause::LeaseOver));
        let alone = asked(&cluster(), &judged(Verdict::NodeLost, Verdict::NodeUnreachable), &nobody, &all);
        assert!(alone.unwrap_err().contains("bring one of the nodes back"));
    }

    #[test]
    fn a_copy_that_was_to_be_replaced_is_used_only_with_consent_to_a_loss() {
        let mut cluster = cluster();
        for member in [name(1), name(2)] {
            cluster.set_state(&member, MemberState::NeedsRejoin);
        }
        let judgements = judged(Verdict::Lost, Verdict::NotStreaming);
        let refused = asked(&cluster, &judgements, &heard(), &Consent::default());
        assert!(refused.unwrap_err().contains("bring one of the nodes back"));
        let loss = Consent { data_loss: true, ..Consent::default() };
        assert_eq!(asked(&cluster, &judgements, &heard(), &loss), Ok(Cause::EngineFailed));
    }
}
