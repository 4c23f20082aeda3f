//! Whether a planned promotion can begin (rule P6), and what it would do: pure.

use std::collections::BTreeMap;

use regent_common::{error::Reason, ids::MemberName};

use super::pair::{Foreign, foreign};
use crate::{
    detector::{Judgement, Succession, Verdict},
    model::cluster::{ClusterRecord, MemberState, Phase, Priority},
    nodes::NodeView,
};

/// A transaction that runs so long, in seconds, is worth a word before it is ended.
const LONG_TRANSACTION: u64 = 10;
/// So many files of log that wait for the archiver are worth a word.
const BACKLOG: u64 = 8;
/// A machine that is so busy is worth a word. In percent of its processors.
const BUSY_PERCENT: f64 = 80.0;
/// A disk of which less than one part in so many is free is worth a word.
const LEAST_FREE: u64 = 10;

/// What keeps a member from being promoted now: a reason, and a sentence with what to do.
pub fn obstacle(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    succession: &Succession,
    member: &MemberName,
) -> Option<(Reason, String)> {
    if let Some(foreign) = foreign(cluster, Foreign::Promote) {
        return Some(foreign);
    }
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
    if !succession.handed_over.is_zero() {
        let why = format!(
            "the agent of {primary} is being restarted, and its lease outlives it by up to {} s: wait until it is back",
            succession.handed_over.as_secs() + 1
        );
        return Some((Reason::PrimaryUnhealthy, why));
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
        Some(MemberState::Leaving { .. }) => return unfit(format!("{member} is being taken out of the cluster")),
        None => return unfit(format!("{member} is no member of cluster {}", cluster.name)),
    }
    if cluster.members.get(member).is_some_and(|stored| stored.priority == Priority::NEVER) {
        let raise = format!("`regentctl cluster policy {} --priority {member}=100`", cluster.name);
        return unfit(format!("its priority says that it is never promoted: {raise} first"));
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
        let lag = || views.get(member)?.lag_behind(views.get(primary)?);
        if let Some(lag) = lag() {
            let rate = engine(primary).and_then(|engine| engine.details.get("log_bytes_per_second"));
            let rate = rate.map(|rate| format!(", which writes {rate} per second")).unwrap_or_default();
            report.push(format!("{member} lacks {lag} of the changes of {primary}{rate}"));
        }
    }
    report.extend(warnings(cluster, views, member));
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
    report.push(
        "expected: writes wait for some tenths of a second, and so much longer as the successor takes to receive what it lacks"
            .to_owned(),
    );
    report
}

/// What would make it slow, or leave the cluster worse off; nothing of it refuses the promotion.
fn warnings(cluster: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>, member: &MemberName) -> Vec<String> {
    let view = |member: &MemberName| views.get(member);
    let seen = |member: &MemberName| view(member)?.observation.as_ref().map(|seen| &seen.engine);
    let number = |member: &MemberName, fact: &str| seen(member)?.details.get(fact)?.parse::<u64>().ok();
    let mut warnings = Vec::new();
    let mut warn = |sentence: String| warnings.push(format!("warning: {sentence}"));
    if let Some(primary) = &cluster.primary {
        if let Some(sessions) = number(primary, "sessions").filter(|sessions| *sessions > 0) {
            let oldest = number(primary, "oldest_transaction_seconds").filter(|seconds| *seconds >= LONG_TRANSACTION);
            let oldest = oldest.map(|seconds| format!(", the oldest of their transactions has run for {seconds} s"));
            warn(format!("{sessions} sessions of applications on {primary} are ended{}", oldest.unwrap_or_default()));
        }
        if let Some(backlog) = number(primary, "log_files_to_archive").filter(|files| *files > BACKLOG) {
            warn(format!(
                "{backlog} files of the log of {primary} are not archived yet: the archiver may delay the end"
            ));
        }
        let versions = (seen(primary).map(|seen| &seen.version), seen(member).map(|seen| &seen.version));
        if let (Some(theirs), Some(own)) = versions
            && theirs != own
        {
            warn(format!("{member} runs version {own} and {primary} {theirs}"));
        }
    }
    let needed = u64::try_from(cluster.members.len()).unwrap_or(u64::MAX).saturating_sub(1);
    if let Some(free) = number(member, "streams_free").filter(|free| *free < needed) {
        warn(format!("{member} can feed {free} more streams, and {needed} members are to follow it"));
    }
    for member in cluster.primary.iter().chain([member]) {
        let host = view(member).and_then(|view| view.host.as_ref());
        if let Some(busy) = host.map(|host| host.cpu_percent).filter(|busy| *busy > BUSY_PERCENT) {
            warn(format!("{member} is busy ({busy:.0} % of its processors): handing over takes longer"));
        }
    }
    let disk = view(member).and_then(|view| view.host.as_ref()).map(|host| (host.disk_free_bytes, host.disk_bytes));
    if let Some((free, total)) = disk.filter(|(free, total)| *free < total / LEAST_FREE) {
        warn(format!("{member} has {free} of {total} bytes of its disk free"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use regent_common::topology::HostFacts;

    use super::*;
    use crate::planner::fixtures::{cluster, name, observation};

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
        let never = |record: &mut ClusterRecord| record.members.get_mut(&name(2)).unwrap().priority = Priority::NEVER;
        assert_eq!(refused(|record, _, _| never(record)), Some(Reason::NoReplica));
        for state in [MemberState::Creating, MemberState::Resyncing, MemberState::NeedsRejoin] {
            assert_eq!(refused(|record, _, _| record.set_state(&name(2), state)), Some(Reason::NoReplica));
        }
    }

    #[test]
    fn the_report_says_who_waits_for_what() {
        let report = report(&cluster(), &BTreeMap::new(), &name(2), 5000);
        assert!(report[0].contains("db1 ends the sessions") && report[0].contains("5000 ms"), "{report:?}");
        assert!(report.iter().any(|line| line.contains("db1 is brought back")), "{report:?}");
        assert!(!report.iter().any(|line| line.starts_with("warning")), "nothing is known: {report:?}");
    }

    #[test]
    fn what_would_make_it_slow_is_said_before() {
        let view = |member: u32, facts: &[(&str, &str)], version: &str| {
            let mut seen = observation(name(member));
            seen.engine.version = version.to_owned();
            seen.engine.details = facts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let host = HostFacts { cpu_percent: 95.0, disk_bytes: 100, disk_free_bytes: 5, ..HostFacts::default() };
            NodeView { connected: true, observation: Some(seen), host: Some(host), ..NodeView::default() }
        };
        let old = [("sessions", "7"), ("oldest_transaction_seconds", "600"), ("log_files_to_archive", "40")];
        let views =
            BTreeMap::from([(name(1), view(1, &old, "15.1")), (name(2), view(2, &[("streams_free", "0")], "15.2"))]);
        let report = report(&cluster(), &views, &name(2), 5000);
        for wanted in
            ["7 sessions", "600 s", "40 files", "version 15.2", "0 more streams", "db1 is busy", "5 of 100 bytes"]
        {
            assert!(
                report.iter().any(|line| line.starts_with("warning") && line.contains(wanted)),
                "{wanted}: {report:?}"
            );
        }
    }
}
