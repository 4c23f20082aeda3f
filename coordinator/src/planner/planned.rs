//! Whether a planned promotion can begin (rule P6), and what it would do: pure.

use std::collections::BTreeMap;

use regent_common::{error::Reason, ids::MemberName};

use crate::{
    detector::{Judgement, Succession, Verdict},
    model::cluster::{ClusterRecord, MemberState, Phase},
    nodes::NodeView,
};

/// What keeps a member from being promoted now: a reason, and a sentence with what to do.
pub fn obstacle(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
    member: &MemberName,
) -> Option<(Reason, String)> {
    let Some(primary) = cluster.primary.as_ref().filter(|_| cluster.phase == Phase::Active) else {
        let why = "nobody is the primary now; `regentctl cluster show` says what is waited for".to_owned();
        return Some((Reason::ClusterHasNoPrimary, why));
    };
    if primary == member {
        return Some((Reason::MemberIsPrimary, format!("{member} is the primary already")));
    }
    let verdict = |member| judgements.get(member).map(|judgement| (&judgement.verdict, judgement.reason.as_str()));
    match verdict(primary) {
        Some((Verdict::Healthy, _)) => {}
        other => {
            let reason = other.map_or("nothing is known of it", |(_, reason)| reason);
            let why = format!(
                "{primary} cannot hand over: {reason}; a primary that does not serve is failed over from, which happens by itself \
                 or with `regentctl cluster failover {}`",
                cluster.name
            );
            return Some((Reason::PrimaryUnhealthy, why));
        }
    }
    let unfit = |why: String| Some((Reason::NoReplica, why));
    match cluster.members.get(member).map(|stored| &stored.state) {
        Some(MemberState::Ready) => {}
        Some(MemberState::Creating) => return unfit(format!("{member} is being made: wait for its operation")),
        Some(MemberState::Resyncing) => return unfit(format!("{member} is being resynced: wait for its operation")),
        Some(MemberState::NeedsRejoin) => {
            return unfit(format!("{member} has to be brought back first, which happens by itself"));
        }
        Some(MemberState::NeedsResync { why }) => {
            return unfit(format!("{member} needs a resync ({why}): `regentctl cluster resync {}`", cluster.name));
        }
        None => return unfit(format!("{member} is no member of cluster {}", cluster.name)),
    }
    match verdict(member) {
        Some((Verdict::Healthy, _)) if succession.reachable.contains(member) => None,
        Some((Verdict::Healthy, _)) => unfit(format!(
            "{member} is not in the electorate yet: it lags too far, or runs beside the coordinator; `regentctl cluster show {}` \
             says which",
            cluster.name
        )),
        Some((_, reason)) => unfit(format!("{member} is not healthy: {reason}")),
        None => unfit(format!("nothing is known of {member}")),
    }
}

/// What it would do, a sentence each.
pub fn report(
    cluster: &ClusterRecord,
    views: &BTreeMap<MemberName, NodeView>,
    member: &MemberName,
    drain_within_millis: u64,
) -> Vec<String> {
    let engine = |member: &MemberName| Some(&views.get(member)?.observation.as_ref()?.engine);
    let primary = cluster.primary.clone();
    let mut report = Vec::new();
    if let Some(primary) = &primary {
        report.push(format!(
            "{primary} ends the sessions of applications and hands everything over to {member}; if that takes more than \
             {drain_within_millis} ms applications are let in again and nothing has changed"
        ));
        let position = |member: &MemberName| engine(member).and_then(|engine| engine.position.clone());
        if let (Some(theirs), Some(own)) = (position(primary), position(member)) {
            let rate = engine(primary).and_then(|engine| engine.details.get("log_bytes_per_second"));
            let rate = rate.map(|rate| format!(", which writes {rate} per second")).unwrap_or_default();
            report.push(format!("{member} lacks {} of the changes of {primary}{rate}", theirs.minus(&own).amount()));
        }
    }
    let others: Vec<_> =
        cluster.replicas().filter(|(name, _)| *name != member).map(|(name, _)| name.as_str()).collect();
    if !others.is_empty() {
        report.push(format!("{} is pointed at {member}", others.join(", ")));
    }
    if let Some(primary) = primary {
        report.push(format!(
            "{primary} is brought back as a replica by itself; nothing of it is copied unless it must be"
        ));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::fixtures::{cluster, name};

    fn refused(
        change: impl FnOnce(&mut ClusterRecord, &mut BTreeMap<MemberName, Judgement>, &mut Succession),
    ) -> Option<Reason> {
        let mut record = cluster();
        let healthy = Judgement { verdict: Verdict::Healthy, reason: String::new() };
        let mut judgements = BTreeMap::from([(name(1), healthy.clone()), (name(2), healthy)]);
        let mut succession = Succession { reachable: [name(2)].into(), ..Succession::default() };
        change(&mut record, &mut judgements, &mut succession);
        obstacle(&record, &judgements, &succession, &name(2)).map(|(reason, _)| reason)
    }

    #[test]
    fn a_healthy_member_of_the_electorate_takes_over_from_a_healthy_primary() {
        assert_eq!(refused(|_, _, _| ()), None);
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let unwell = || Judgement { verdict: Verdict::NotStreaming, reason: "it does not stream".to_owned() };
        assert_eq!(refused(|record, _, _| record.primary = None), Some(Reason::ClusterHasNoPrimary));
        assert_eq!(refused(|record, _, _| record.phase = Phase::Deleting), Some(Reason::ClusterHasNoPrimary));
        assert_eq!(refused(|record, _, _| record.primary = Some(name(2))), Some(Reason::MemberIsPrimary));
        assert_eq!(refused(|_, judged, _| drop(judged.insert(name(1), unwell()))), Some(Reason::PrimaryUnhealthy));
        assert_eq!(refused(|_, judged, _| drop(judged.insert(name(2), unwell()))), Some(Reason::NoReplica));
        assert_eq!(refused(|_, _, succession| succession.reachable.clear()), Some(Reason::NoReplica));
        for state in [MemberState::Creating, MemberState::Resyncing, MemberState::NeedsRejoin] {
            assert_eq!(refused(|record, _, _| record.set_state(&name(2), state)), Some(Reason::NoReplica));
        }
    }

    #[test]
    fn the_report_says_who_waits_for_what() {
        let report = report(&cluster(), &BTreeMap::new(), &name(2), 5000);
        assert!(report[0].contains("db1 ends the sessions") && report[0].contains("5000 ms"), "{report:?}");
        assert!(report.last().unwrap().contains("db1 is brought back"), "{report:?}");
    }
}
