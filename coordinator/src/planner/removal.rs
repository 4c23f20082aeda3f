//! Whether a member can be taken out of its cluster, and what that would leave: pure.

use std::collections::BTreeMap;

use regent_common::{error::Reason, ids::MemberName};

use super::{
    pair::{Foreign, foreign},
    serves,
};
use crate::{
    detector::Judgement,
    model::cluster::{ClusterRecord, Phase},
    nodes::NodeView,
};

/// What keeps a member from being removed now: a reason, and a sentence with what to do. Fewer than two whole copies are left only
/// where `allow_single` says so.
pub fn obstacle(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    member: &MemberName,
    allow_single: bool,
) -> Option<(Reason, String)> {
    if let Some(foreign) = foreign(cluster, Foreign::Remove) {
        return Some(foreign);
    }
    if cluster.protected {
        let why = format!("the cluster is protected: `regentctl cluster unprotect {}` first", cluster.name);
        return Some((Reason::ClusterProtected, why));
    }
    if cluster.may_reign().any(|reigning| reigning == member) {
        let why = format!(
            "{member} is the primary: `regentctl cluster promote {} MEMBER` makes another one the primary first",
            cluster.name
        );
        return Some((Reason::MemberIsPrimary, why));
    }
    if cluster.primary.is_none() || cluster.phase != Phase::Active {
        let why = "nobody is the primary now, so that every copy may be needed; `regentctl cluster show` says what is waited for";
        return Some((Reason::ClusterHasNoPrimary, why.to_owned()));
    }
    let left = copies_left(cluster, judgements, member);
    if left.is_empty() {
        let why = "no other member is healthy: the copy that it has may be the last good one".to_owned();
        return Some((Reason::PrimaryUnhealthy, why));
    }
    if left.len() < 2 && !allow_single {
        let why = format!("only {} would be left with a whole copy: allow that with --allow-single", listed(&left));
        return Some((Reason::SingleCopyLeft, why));
    }
    None
}

/// What it would do, a sentence each.
pub fn report(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    views: &BTreeMap<MemberName, NodeView>,
    member: &MemberName,
    keep_data: bool,
) -> Vec<String> {
    let node = cluster.members.get(member).map(|record| record.node.to_string()).unwrap_or_default();
    let fate = if keep_data { "its data is kept there, aside" } else { "its data is erased" };
    let mut report = vec![format!("{member} leaves cluster {}, {fate}, and node {node} becomes a spare", cluster.name)];
    let view = views.get(member);
    if !view.is_some_and(|view| view.connected) {
        report.push(format!("{node} is not heard: that happens when it returns"));
    }
    let details = view.and_then(|view| view.observation.as_ref()).map(|seen| &seen.engine.details);
    if let Some(sessions) = details.and_then(|details| details.get("sessions")) {
        report.push(format!("{sessions} sessions of applications are open on {member}; they are ended"));
    }
    let left = copies_left(cluster, judgements, member);
    report.push(format!("{} whole copies are left: {}", left.len(), listed(&left)));
    for (other, judgement) in judgements.iter().filter(|(other, _)| *other != member && !left.contains(other)) {
        report.push(format!("{other} does not count as one: {}", judgement.reason));
    }
    if cluster.promotable().iter().all(|other| other == member) {
        report.push("after that nobody takes over by itself if the primary is lost".to_owned());
    }
    report
}

/// The members that serve with a whole copy, without one.
fn copies_left<'a>(
    cluster: &ClusterRecord,
    judgements: &'a BTreeMap<MemberName, Judgement>,
    without: &MemberName,
) -> Vec<&'a MemberName> {
    let others = judgements.iter().filter(|(member, _)| *member != without);
    others.filter(|(member, judgement)| serves(cluster, member, judgement)).map(|(member, _)| member).collect()
}

fn listed(members: &[&MemberName]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detector::Verdict,
        planner::fixtures::{cluster, name},
    };

    fn trio() -> (ClusterRecord, BTreeMap<MemberName, Judgement>) {
        let mut record = cluster();
        let third =
            crate::model::cluster::MemberRecord { node: "n3".parse().unwrap(), ..record.members[&name(2)].clone() };
        record.members.insert(name(3), third);
        let healthy = Judgement { verdict: Verdict::Healthy, reason: String::new() };
        let judgements = (1..=3).map(|n| (name(n), healthy.clone())).collect();
        (record, judgements)
    }

    fn refused(change: impl FnOnce(&mut ClusterRecord, &mut BTreeMap<MemberName, Judgement>)) -> Option<Reason> {
        let (mut record, mut judgements) = trio();
        change(&mut record, &mut judgements);
        obstacle(&record, &judgements, &name(3), false).map(|(reason, _)| reason)
    }

    #[test]
    fn a_replica_may_go_where_two_copies_stay() {
        assert_eq!(refused(|_, _| ()), None);
        let lost = Judgement { verdict: Verdict::NodeUnreachable, reason: "its node is silent".to_owned() };
        assert_eq!(refused(|_, judged| drop(judged.insert(name(3), lost))), None, "also one that is away");
    }

    #[test]
    fn everything_else_is_refused_with_its_reason() {
        let ill = || Judgement { verdict: Verdict::EngineDown, reason: "its engine is down".to_owned() };
        assert_eq!(refused(|record, _| record.protected = true), Some(Reason::ClusterProtected));
        assert_eq!(refused(|record, _| record.primary = Some(name(3))), Some(Reason::MemberIsPrimary));
        assert_eq!(refused(|record, _| record.may_be_writable = [name(3)].into()), Some(Reason::MemberIsPrimary));
        assert_eq!(refused(|record, _| record.primary = None), Some(Reason::ClusterHasNoPrimary));
        assert_eq!(refused(|_, judged| drop(judged.insert(name(2), ill()))), Some(Reason::SingleCopyLeft));
        assert_eq!(
            refused(|_, judged| {
                judged.insert(name(1), ill());
                judged.insert(name(2), ill());
            }),
            Some(Reason::PrimaryUnhealthy)
        );
    }

    #[test]
    fn a_single_copy_is_left_on_a_persons_word_but_never_none() {
        let (mut record, mut judgements) = trio();
        record.members.remove(&name(2));
        judgements.remove(&name(2));
        assert_eq!(obstacle(&record, &judgements, &name(3), true), None);
        judgements.get_mut(&name(1)).unwrap().verdict = Verdict::EngineDown;
        assert!(obstacle(&record, &judgements, &name(3), true).is_some());
    }

    #[test]
    fn the_report_says_what_goes_and_what_stays() {
        let (record, mut judgements) = trio();
        judgements.insert(name(2), Judgement { verdict: Verdict::EngineDown, reason: "its engine is down".to_owned() });
        let report = report(&record, &judgements, &BTreeMap::new(), &name(3), false);
        assert!(report[0].contains("its data is erased, and node n3 becomes a spare"), "{report:?}");
        assert!(report.contains(&"n3 is not heard: that happens when it returns".to_owned()), "{report:?}");
        assert!(report.contains(&"1 whole copies are left: db1".to_owned()), "{report:?}");
        assert!(report.contains(&"db2 does not count as one: its engine is down".to_owned()), "{report:?}");
    }
}
