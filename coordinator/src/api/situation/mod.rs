//! How a cluster stands and what a person can do about it: the primary's lease as far as it is known, and one sentence. Pure.
//!
//! It decides nothing: the sentence follows from the judgements and from the planner's decision, and says of each state
//! whether it ends by itself, and if not, which hand it wants.

use std::time::Duration;

use regent_common::{
    convert::to_millis,
    ids::MemberName,
    lease::{LeaseReport, LeaseSource},
};
use regent_proto::{coordinator::v1 as wire, types::v1 as types};

use super::view::{ClusterFacts, view_of};
use crate::{
    detector::Verdict,
    model::{
        cluster::{Healing, MemberState, Phase, Priority},
        reign::Reign,
    },
    planner::Decision,
};

mod pair;

/// Why nothing is granted and nothing fails over (rule T4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frozen {
    /// Why.
    pub why: String,
    /// Members that have not reported yet.
    pub missing: Vec<MemberName>,
}

/// What was said of a lease.
struct Said<'a> {
    report: &'a LeaseReport,
    by: &'a MemberName,
    age: Duration,
}

/// What is known of the primary's lease; `None` while nothing is.
pub fn lease(facts: &ClusterFacts<'_>) -> Option<wire::PrimaryLease> {
    let reign = facts.record.reign.as_ref()?;
    let said = said(facts, reign);
    let left = said.as_ref().map_or(Duration::ZERO, |said| said.report.remaining.saturating_sub(said.age));
    let endless = said.as_ref().is_some_and(|said| said.report.remaining.is_zero());
    let stands = said.as_ref().is_some_and(|said| said.report.stands && (endless || !left.is_zero()));
    let source = said.as_ref().and_then(|said| said.report.source).filter(|_| stands);
    Some(wire::PrimaryLease {
        member: reign.primary.to_string(),
        epoch: reign.epoch.0,
        stands,
        source: source.map_or(types::LeaseSource::Unspecified, wire_source).into(),
        remaining_millis: if stands { to_millis(left) } else { 0 },
        reported_by: said.as_ref().map(|said| said.by.to_string()).unwrap_or_default(),
        age_millis: said.as_ref().map(|said| to_millis(said.age)).unwrap_or_default(),
        may_stand_millis: to_millis(facts.succession.lease_left),
        handed_over_millis: to_millis(facts.succession.handed_over),
    })
}

fn wire_source(source: LeaseSource) -> types::LeaseSource {
    match source {
        LeaseSource::Coordinator => types::LeaseSource::Coordinator,
        LeaseSource::Endorsement => types::LeaseSource::Endorsement,
        LeaseSource::Alone => types::LeaseSource::Alone,
    }
}

/// The newest word about the lease of this reign: the primary's own, or what it told a member that it asked.
fn said<'a>(facts: &'a ClusterFacts<'_>, reign: &'a Reign) -> Option<Said<'a>> {
    let mut newest: Option<Said<'a>> = None;
    for member in facts.record.members.keys() {
        let Some(view) = view_of(facts, member) else { continue };
        let (Some(seen), Some(last)) = (&view.observation, view.last_contact) else { continue };
        if seen.cluster_id != facts.record.id {
            continue;
        }
        let since = facts.now.saturating_sub(last);
        let word = if *member == reign.primary {
            seen.authority.lease.as_ref().map(|report| (report, since))
        } else {
            let heard = seen.authority.heard.as_ref().filter(|heard| heard.member == reign.primary);
            heard.map(|heard| (&heard.lease, heard.age + since))
        };
        let Some((report, age)) = word.filter(|(report, _)| report.epoch == reign.epoch) else { continue };
        if newest.as_ref().is_none_or(|known| age < known.age) {
            newest = Some(Said { report, by: member, age });
        }
    }
    newest
}

/// How the cluster stands and what a person can do about it. Empty only while it is being made or removed.
pub fn sentence(facts: &ClusterFacts<'_>, decision: &Decision) -> String {
    let record = facts.record;
    if let Some(frozen) = &facts.frozen {
        return of_frozen(frozen);
    }
    match record.phase {
        Phase::Creating | Phase::Deleting => return String::new(),
        Phase::Active => {}
    }
    let running = record.operation.map(|id| format!("`regentctl operation watch {id}` follows it"));
    if record.is_pair() {
        return pair::sentence(facts, decision, running);
    }
    if let (None, Some(follow)) = (&record.primary, &running) {
        return match &record.candidate {
            Some(candidate) => format!("failing over: {candidate} is being made the primary; {follow}"),
            None => format!("failing over: the other members are being prepared; {follow}"),
        };
    }
    if let Some(restarting) = restarting(facts, decision) {
        return restarting;
    }
    match decision {
        Decision::AwaitLease { why, .. } => {
            format!("failing over, and nothing is to be done: {why}; then another member takes over by itself")
        }
        Decision::Failover { why, .. } => match (&facts.paused, running) {
            (Some(paused), _) => format!("a failover is due: {why}; {}", paused.sentence(facts.wall)),
            (None, Some(follow)) => format!("failing over: {why}; {follow}"),
            (None, None) => format!(
                "a failover is due and begins by itself: {why}; if it does not within a minute, the last one failed: \
                 `regentctl audit` says why"
            ),
        },
        Decision::NoFailover { why } => cut_off(facts).unwrap_or_else(|| format!("no failover, because {why}")),
        Decision::Nothing | Decision::Mark { .. } | Decision::Mend { .. } => of_primary(facts),
    }
}

fn of_frozen(Frozen { why, missing }: &Frozen) -> String {
    if missing.is_empty() {
        return format!(
            "frozen: {why}; all that are waited for have reported, and what they say is being adopted by itself"
        );
    }
    format!(
        "frozen: {why}; nothing is granted and nobody is promoted, and a primary whom the others endorse goes on; put the newest \
         store of the coordinator back, or bring back the agent of {}, so that what all ledgers say is adopted",
        names(missing)
    )
}

/// The primary's agent has handed its lease over and is away: a planned restart, as far as anybody can know (rule L7).
fn restarting(facts: &ClusterFacts<'_>, decision: &Decision) -> Option<String> {
    let left = Some(facts.succession.handed_over).filter(|left| !left.is_zero())?;
    let primary = facts.record.primary.as_ref()?;
    let node = &facts.record.members.get(primary)?.node;
    let away = !view_of(facts, primary).is_some_and(|view| view.connected);
    let then = match decision {
        Decision::AwaitLease { .. } => "another member takes over by itself then",
        Decision::Nothing => "what then becomes of it is said when it is due",
        Decision::NoFailover { .. } | Decision::Failover { .. } | Decision::Mark { .. } | Decision::Mend { .. } => {
            return None;
        }
    };
    away.then(|| {
        format!(
            "{primary} serves, and the agent of {node} is being restarted: it handed its lease over, which stands for at most {} s \
             more; nothing is to be done if it is back by then, and {then}",
            left.as_secs()
        )
    })
}

/// The primary is not heard here, and others say that it serves.
fn cut_off(facts: &ClusterFacts<'_>) -> Option<String> {
    let primary = facts.record.primary.as_ref()?;
    facts.judgements.get(primary).filter(|judgement| judgement.verdict == Verdict::Partitioned)?;
    let (node, by) = (&facts.record.members.get(primary)?.node, facts.succession.reported_by.as_ref()?);
    Some(format!(
        "{primary} serves, cut off from here: {by} reports that its lease stands, so that nobody takes over; mend the \
         connection between this coordinator and {node}"
    ))
}

/// The primary is not lost: whether it serves, and what would happen if it were lost now.
fn of_primary(facts: &ClusterFacts<'_>) -> String {
    let record = facts.record;
    let Some((primary, stored)) = record.primary.as_ref().and_then(|name| Some((name, record.members.get(name)?)))
    else {
        return "nobody is the primary and nothing says who should be: `regentctl audit` has what happened".to_owned();
    };
    let node = &stored.node;
    let Some(judgement) = facts.judgements.get(primary) else { return String::new() };
    match judgement.verdict {
        Verdict::Healthy | Verdict::NotStreaming | Verdict::Stale => {}
        Verdict::WithoutLease => {
            return format!(
                "{primary} runs and nobody can write to it: it holds no lease and its gate is closed; it gets one as soon as \
                 this coordinator's answers reach {node}, and is replaced if they do not: check what is sent there"
            );
        }
        Verdict::Suspect => {
            return format!("{}; it is too early to say more, and nothing is to be done", judgement.reason);
        }
        Verdict::Starting => return format!("{}; nothing is to be done", judgement.reason),
        Verdict::EngineDown
        | Verdict::EngineHung
        | Verdict::StorageHung
        | Verdict::NodeUnreachable
        | Verdict::NodeLost
        | Verdict::Partitioned
        | Verdict::Astray
        | Verdict::Dirty
        | Verdict::Lost
        | Verdict::Quarantined => return judgement.reason.clone(),
    }
    format!("{primary} serves; {}", if_lost(facts, primary))
}

/// What would happen if the node of a primary that serves were lost now.
fn if_lost(facts: &ClusterFacts<'_>, primary: &MemberName) -> String {
    let (record, succession) = (facts.record, facts.succession);
    let node = &record.members[primary].node;
    if record.members.len() == 1 {
        return format!("it is the only member: if {node} is lost, so is the service until it is back");
    }
    if record.policy.paused {
        return "automatic decisions are paused: if it is lost, a person has to act".to_owned();
    }
    if record.policy.automatic_failover && record.policy.healing == Healing::RestorePrimary {
        return format!(
            "if its engine fails it is restarted on its own data; if {node} is lost it is waited for, and another member takes over \
             only on a person's word"
        );
    }
    if !record.policy.automatic_failover {
        return "automatic failover is off for this cluster: if it is lost, a person has to act".to_owned();
    }
    if succession.promotable.is_empty() {
        let why: Vec<String> = record.replicas().filter_map(|(member, _)| why_not(facts, member)).collect();
        let why = if why.is_empty() { "none was taken in yet".to_owned() } else { why.join("; ") };
        return format!("if it is lost nobody takes over by itself, because no replica is in its electorate: {why}");
    }
    if !succession.gated {
        return format!(
            "if {node} is lost nobody takes over by itself, because no gate closes there without its agent: `regentctl node \
             show {node}` says what to do"
        );
    }
    let unheard: Vec<&MemberName> =
        succession.promotable.iter().filter(|member| !succession.reachable.contains(*member)).collect();
    if succession.reachable.is_empty() {
        return format!("if it is lost nobody takes over before {} is heard again", names(unheard));
    }
    let may = names(&succession.reachable);
    let once = if facts.paused.is_some() { ", once automatic failover is no longer paused" } else { "" };
    let takes = format!("if it is lost, {may} takes over by itself{once}");
    if unheard.is_empty() {
        return takes;
    }
    format!("{takes}; {} is not heard: while that is so, losing this coordinator as well stops writes", names(unheard))
}

/// Why a replica is not in the electorate; `None` when it is.
fn why_not(facts: &ClusterFacts<'_>, member: &MemberName) -> Option<String> {
    if facts.succession.promotable.contains(member) {
        return None;
    }
    let record = facts.record;
    let stored = record.members.get(member)?;
    match stored.state {
        MemberState::Creating => return Some(format!("{member} is being made")),
        MemberState::Resyncing => return Some(format!("{member} is being resynced")),
        MemberState::NeedsRejoin => {
            return Some(format!(
                "{member} has to be brought back first, which happens by itself once its agent is heard"
            ));
        }
        MemberState::NeedsResync { .. } => return Some(format!("{member} needs a resync")),
        MemberState::Leaving { .. } => return Some(format!("{member} is being taken out of the cluster")),
        MemberState::Ready => {}
    }
    let judgement = facts.judgements.get(member).filter(|judgement| judgement.verdict != Verdict::Healthy);
    if let Some(judgement) = judgement {
        return Some(judgement.reason.clone());
    }
    let allowed = record.policy.max_lag_on_failover;
    let lag = record.primary.as_ref().and_then(|primary| view_of(facts, member)?.lag_behind(view_of(facts, primary)?));
    Some(match lag {
        None => format!("how far {member} is behind is not known yet"),
        Some(_) if stored.priority == Priority::NEVER => {
            format!("the priority of {member} is that it is never promoted")
        }
        Some(lag) if lag > allowed => {
            format!("{member} lacks {lag} of the primary's changes, and the policy allows {allowed}")
        }
        Some(_) if view_of(facts, member).is_some_and(|view| facts.own_machine.leaves_out(view)) => {
            format!("{member} runs on this coordinator's machine and \"promote_on_this_machine\" is off")
        }
        Some(_) => format!("{member} was not taken in yet"),
    })
}

/// "db2", "db2 or db3", "db2, db3 or db4".
fn names<'a>(members: impl IntoIterator<Item = &'a MemberName>) -> String {
    let mut names: Vec<&str> = members.into_iter().map(MemberName::as_str).collect();
    let Some(last) = names.pop() else { return "nobody".to_owned() };
    if names.is_empty() { last.to_owned() } else { format!("{} or {last}", names.join(", ")) }
}

#[cfg(test)]
mod tests;
