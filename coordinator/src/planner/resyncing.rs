//! Whether replicas can be wiped and restored from their primary, what that would erase, and what speaks against it: pure.

use std::collections::BTreeMap;

use regent_common::{error::Reason, ids::MemberName, topology::HostFacts};

use super::pair::{Foreign, foreign};
use crate::{
    detector::{Judgement, Verdict},
    model::cluster::ClusterRecord,
    nodes::NodeView,
};

/// A primary that is so busy is warned of: a copy takes disk and network from it. In percent of its processors.
const BUSY_PERCENT: f64 = 80.0;

/// What keeps replicas from being resynced now: a reason, and a sentence. `member` is one of them, or `None` for the cluster.
pub fn obstacle(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    member: Option<&MemberName>,
) -> Option<(Reason, String)> {
    if cluster.is_pair() {
        return obstacle_of_side(cluster, judgements, member);
    }
    let Some(primary) = &cluster.primary else {
        return Some((Reason::ClusterHasNoPrimary, "the cluster has no primary to restore from".to_owned()));
    };
    if cluster.members.len() < 2 {
        return Some((Reason::NoReplica, "the cluster has no replica".to_owned()));
    }
    if member == Some(primary) {
        let why = format!("{primary} is the primary: there is nothing to restore it from");
        return Some((Reason::MemberIsPrimary, why));
    }
    match judgements.get(primary) {
        Some(judgement) if judgement.verdict != Verdict::Healthy => {
            let why = format!("the primary {primary} is not healthy: {}", judgement.reason);
            Some((Reason::PrimaryUnhealthy, why))
        }
        Some(_) | None => None,
    }
}

/// What keeps a side of a pair from being filled from the other one: that one need not serve, but its data has to be there and whole.
fn obstacle_of_side(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    member: Option<&MemberName>,
) -> Option<(Reason, String)> {
    let Some(member) = member else { return foreign(cluster, Foreign::ResyncAll) };
    let survivor = cluster.other_side(member)?;
    let judgement = judgements.get(survivor)?;
    match judgement.verdict {
        Verdict::Healthy
        | Verdict::NotStreaming
        | Verdict::Astray
        | Verdict::Starting
        | Verdict::EngineDown
        | Verdict::WithoutLease
        | Verdict::Stale => None,
        Verdict::Suspect
        | Verdict::EngineHung
        | Verdict::StorageHung
        | Verdict::NodeUnreachable
        | Verdict::NodeLost
        | Verdict::Partitioned
        | Verdict::Dirty
        | Verdict::Lost
        | Verdict::Quarantined => {
            let why = format!("{survivor}, whose data would survive, is not there or not whole: {}", judgement.reason);
            Some((Reason::PrimaryUnhealthy, why))
        }
    }
}

/// What filling a side of a pair would do, a sentence each.
fn report_of_side(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    views: &BTreeMap<MemberName, NodeView>,
    member: &MemberName,
) -> Vec<String> {
    let Some(survivor) = cluster.other_side(member) else { return Vec::new() };
    let seen = |member: &MemberName| views.get(member)?.observation.as_ref();
    let held = seen(member).map(|seen| seen.engine.data_bytes).filter(|bytes| *bytes > 0);
    let amount = held.map(|bytes| format!(" ({bytes} bytes)")).unwrap_or_default();
    let mut report = vec![
        format!(
            "{survivor}'s data survives: it takes writes alone, and follows {member} no more, until {member} has taken it"
        ),
        format!(
            "{member}: its data{amount} is put aside and erased in the end; it starts with nothing and takes everything from {survivor}"
        ),
        format!("what {member} has and {survivor} has not is lost with it"),
    ];
    match judgements.get(survivor).map(|judgement| &judgement.verdict) {
        Some(Verdict::EngineDown) => {
            report.push(format!("{survivor} does not run: it is started on the data that it has"))
        }
        Some(Verdict::Astray) => report.push(format!("{survivor} lets nobody in now: it does from then on")),
        Some(_) | None => {}
    }
    if cluster.survivor.as_ref() == Some(member) {
        report.push(format!("warning: {member} took writes last, and {survivor} lacks what it took alone"));
    }
    if !views.get(member).is_some_and(|view| view.connected) {
        report
            .push(format!("{member}: its node is not heard, and it is waited for; {survivor} takes writes meanwhile"));
    }
    report
}

/// What it would do, a sentence each: what is erased, where the old data goes first, and what only these replicas have.
pub fn report(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    views: &BTreeMap<MemberName, NodeView>,
    members: &[MemberName],
    recent_failovers: &[String],
) -> Vec<String> {
    let seen = |member: &MemberName| views.get(member)?.observation.as_ref();
    if let Some(member) = members.first().filter(|_| cluster.is_pair()) {
        return report_of_side(cluster, judgements, views, member);
    }
    let mut report = Vec::new();
    let Some(primary) = &cluster.primary else { return report };
    let needed = seen(primary).map(|seen| seen.engine.data_bytes).filter(|bytes| *bytes > 0);
    for member in members {
        let held = seen(member).map(|seen| seen.engine.data_bytes).filter(|bytes| *bytes > 0);
        let amount = held.map(|bytes| format!(" ({bytes} bytes)")).unwrap_or_default();
        report.push(format!("{member}: its data{amount} is erased and replaced by a copy of {primary}'s"));
        let positions = |member: &MemberName| seen(member)?.engine.position.clone();
        if let (Some(own), Some(theirs)) = (positions(member), positions(primary)) {
            // The primary goes on between two looks: only what it cannot have any more counts while the replica streams.
            let only_here = own.minus(&theirs).amount();
            if only_here > 0 && judgements.get(member).is_some_and(|judgement| judgement.verdict != Verdict::Healthy) {
                report.push(format!(
                    "{member}: {only_here} positions of its log, which {primary} has not, are lost with it"
                ));
            }
        }
        let host = views.get(member).and_then(|view| view.host.as_ref());
        report.extend(space(member, host, needed));
        if !views.get(member).is_some_and(|view| view.connected) {
            report.push(format!("{member}: its node is not heard, and it is waited for"));
        }
    }
    report.extend(warnings(primary, views.get(primary), recent_failovers));
    report
}

/// Whether the replica serves its old data until the new copy is there.
fn space(member: &MemberName, host: Option<&HostFacts>, needed: Option<u64>) -> Option<String> {
    let (host, needed) = (host?, needed?);
    Some(if host.disk_free_bytes > needed {
        format!("{member}: it serves its old data until the new copy is there")
    } else {
        format!(
            "{member}: {} bytes are free and {needed} are needed, so that its old data is removed first and it serves nothing until \
             the copy is there",
            host.disk_free_bytes
        )
    })
}

/// What speaks against copying this primary now; nothing of it refuses the copy.
fn warnings(primary: &MemberName, view: Option<&NodeView>, recent_failovers: &[String]) -> Vec<String> {
    let mut warnings = Vec::new();
    if let Some(last) = recent_failovers.last() {
        warnings.push(format!(
            "warning: this cluster has failed over {} times within a day, last by {last}: make sure that {primary} is the copy to keep",
            recent_failovers.len()
        ));
    }
    let details = view.and_then(|view| view.observation.as_ref()).map(|seen| &seen.engine.details);
    let failures = details.and_then(|details| details.get("checksum_failures")).filter(|failures| *failures != "0");
    if let Some(failures) = failures {
        warnings.push(format!(
            "warning: {primary} has found {failures} pages with a wrong checksum in its own data: a copy of it has them too"
        ));
    }
    let busy =
        view.and_then(|view| view.host.as_ref()).map(|host| host.cpu_percent).filter(|busy| *busy > BUSY_PERCENT);
    if let Some(busy) = busy {
        warnings.push(format!(
            "warning: {primary} is busy ({busy:.0} % of its processors): --max-rate keeps the copy from making it slower"
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use regent_common::position::{IntervalSet, Position};

    use super::*;
    use crate::planner::fixtures::{cluster, name, observation};

    fn judged(primary: Verdict, replica: Verdict) -> BTreeMap<MemberName, Judgement> {
        let judgement = |verdict| Judgement { verdict, reason: "because".to_owned() };
        BTreeMap::from([(name(1), judgement(primary)), (name(2), judgement(replica))])
    }

    fn view(member: u32, end: u64, free: u64) -> NodeView {
        let mut seen = observation(name(member));
        seen.engine.position = Some(Position::new([("x".to_owned(), IntervalSet::from(vec![(0, end)]))], ""));
        seen.engine.data_bytes = 1000;
        let host = Some(HostFacts { disk_free_bytes: free, ..HostFacts::default() });
        NodeView { connected: true, observation: Some(seen), host, ..NodeView::default() }
    }

    #[test]
    fn only_replicas_of_a_healthy_primary_are_resynced() {
        let refused = |change: fn(&mut ClusterRecord), primary, member: u32| {
            let mut record = cluster();
            change(&mut record);
            obstacle(&record, &judged(primary, Verdict::Healthy), Some(&name(member))).map(|(reason, _)| reason)
        };
        assert_eq!(refused(|_| (), Verdict::Healthy, 2), None);
        assert_eq!(refused(|_| (), Verdict::Healthy, 1), Some(Reason::MemberIsPrimary));
        assert_eq!(refused(|_| (), Verdict::WithoutLease, 2), Some(Reason::PrimaryUnhealthy));
        assert_eq!(refused(|record| record.primary = None, Verdict::Healthy, 2), Some(Reason::ClusterHasNoPrimary));
        let alone = |record: &mut ClusterRecord| record.members.retain(|member, _| *member == name(1));
        assert_eq!(refused(alone, Verdict::Healthy, 2), Some(Reason::NoReplica));
    }

    #[test]
    fn the_report_says_what_is_erased_and_what_only_the_replica_has() {
        let views = BTreeMap::from([(name(1), view(1, 50, 0)), (name(2), view(2, 70, 5000))]);
        let told = |verdict| report(&cluster(), &judged(Verdict::Healthy, verdict), &views, &[name(2)], &[]);
        let lines = told(Verdict::NotStreaming);
        assert!(lines[0].starts_with("db2: its data (1000 bytes) is erased"), "{lines:?}");
        assert!(lines[1].contains("20 positions of its log, which db1 has not"), "{lines:?}");
        assert!(lines[2].contains("serves its old data until"), "{lines:?}");
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert_eq!(told(Verdict::Healthy).len(), 2, "one that streams has nothing that the primary has not");
        let tight = BTreeMap::from([(name(1), view(1, 50, 0)), (name(2), view(2, 50, 10))]);
        let lines = report(&cluster(), &judged(Verdict::Healthy, Verdict::Healthy), &tight, &[name(2)], &[]);
        assert!(lines[1].contains("removed first"), "{lines:?}");
    }

    #[test]
    fn what_speaks_against_copying_the_primary_is_said() {
        let mut views = BTreeMap::from([(name(1), view(1, 50, 0)), (name(2), view(2, 50, 5000))]);
        let primary = views.get_mut(&name(1)).unwrap();
        primary.host.as_mut().unwrap().cpu_percent = 95.0;
        let details = &mut primary.observation.as_mut().unwrap().engine.details;
        details.insert("checksum_failures".to_owned(), "3".to_owned());
        let healthy = judged(Verdict::Healthy, Verdict::Healthy);
        let lines = report(&cluster(), &healthy, &views, &[name(2)], &["operations/x".to_owned()]);
        for wanted in ["failed over 1 times within a day, last by operations/x", "3 pages", "95 %"] {
            assert!(
                lines.iter().any(|line| line.starts_with("warning: ") && line.contains(wanted)),
                "{wanted}: {lines:?}"
            );
        }
    }
}
