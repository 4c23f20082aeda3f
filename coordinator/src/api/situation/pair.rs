//! How a pair stands and what a person can do about it, in one sentence. Pure.

use regent_common::ids::MemberName;

use crate::{
    api::view::{ClusterFacts, serving},
    detector::Verdict,
    model::cluster::MemberState,
    planner::{Decision, pair::either_data},
};

/// The sentence. `running` says how to follow the operation that runs.
pub(super) fn sentence(facts: &ClusterFacts<'_>, decision: &Decision, running: Option<String>) -> String {
    let record = facts.record;
    let serving = serving(record, facts.judgements);
    match serving.as_slice() {
        [] => nobody(decision, running),
        [one] => match record.other_side(one) {
            Some(other) => format!("{one} takes writes alone; {}", away(facts, other, running)),
            None => format!("{one} takes writes alone, and there is no other side"),
        },
        [first, second, ..] => both(facts, first, second),
    }
}

fn nobody(decision: &Decision, running: Option<String>) -> String {
    match (decision, running) {
        (_, Some(follow)) => format!("no side takes writes, and one is being brought back: {follow}"),
        (Decision::NoFailover { why }, None) => why.clone(),
        (Decision::Mend { member, why, .. }, None) => {
            format!("no side takes writes: {why}; {member} is brought back by itself, and the other one after it")
        }
        (Decision::Mark { why, .. }, None) => format!("no side takes writes: {why}"),
        (Decision::Nothing | Decision::AwaitLease { .. } | Decision::Failover { .. }, None) => {
            "no side takes writes, as far as is known yet; it is too early to say more".to_owned()
        }
    }
}

fn both(facts: &ClusterFacts<'_>, first: &MemberName, second: &MemberName) -> String {
    let record = facts.record;
    let judged = |verdict: Verdict| {
        let is = move |member: &&MemberName| {
            facts.judgements.get(*member).is_some_and(|judgement| judgement.verdict == verdict)
        };
        [first, second].into_iter().filter(is).collect::<Vec<_>>()
    };
    if let [stale, ..] = judged(Verdict::Stale).as_slice() {
        let why = facts.judgements.get(*stale).map_or("", |judgement| &judgement.reason);
        return format!(
            "{first} and {second} both take writes, and {why}; `regentctl cluster compare {}` says \
             what differs, and one of them has to be filled from the other: {}",
            record.name,
            either_data(record, stale)
        );
    }
    let node =
        |member: &MemberName| record.members.get(member).map(|stored| stored.node.to_string()).unwrap_or_default();
    match judged(Verdict::NotStreaming).as_slice() {
        [] => format!("{first} and {second} both take writes; if one is lost, the other goes on"),
        [deaf] => {
            let other = if *deaf == first { second } else { first };
            format!(
                "{first} and {second} both take writes, and what is written to {other} does not reach {deaf} now; it catches up by \
                 itself when it can: check the connection between {} and {}",
                node(first),
                node(second)
            )
        }
        _ => format!(
            "{first} and {second} both take writes and do not hear each other: an entry that is written on both is not the same on both \
             afterwards; mend the connection between {} and {}, and they catch up by themselves",
            node(first),
            node(second)
        ),
    }
}

/// What becomes of the side that does not serve.
fn away(facts: &ClusterFacts<'_>, member: &MemberName, running: Option<String>) -> String {
    let record = facts.record;
    let Some(stored) = record.members.get(member) else { return String::new() };
    let judgement = facts.judgements.get(member);
    let unheard = judgement.is_none_or(|judgement| {
        matches!(judgement.verdict, Verdict::NodeUnreachable | Verdict::Quarantined | Verdict::Suspect)
    });
    let reason = judgement.map(|judgement| judgement.reason.clone()).filter(|reason| !reason.is_empty());
    let reason = reason.unwrap_or_else(|| format!("{member} does not yet"));
    match &stored.state {
        MemberState::NeedsResync { why } => why.clone(),
        MemberState::Resyncing => {
            let follow = running.map(|follow| format!(": {follow}")).unwrap_or_default();
            format!("{member} is emptied and takes everything from it{follow}")
        }
        MemberState::Creating | MemberState::Leaving { .. } => reason,
        MemberState::Ready | MemberState::NeedsRejoin => {
            let then = match (running, judgement.map(|judgement| &judgement.verdict)) {
                (Some(follow), _) => format!("it is being joined again: {follow}"),
                (None, Some(Verdict::Lost)) => format!(
                    "`regentctl cluster resync {} {member} --confirm {member}` fills it anew from the other side",
                    record.name
                ),
                (None, Some(Verdict::StorageHung)) => "it serves again when its disk does".to_owned(),
                (None, _) if record.policy.paused => {
                    format!(
                        "automatic decisions are paused: `regentctl cluster resume {}` lets it be joined again",
                        record.name
                    )
                }
                (None, _) if unheard => "it is joined again by itself when its agent is heard".to_owned(),
                (None, _) => "it is joined again by itself".to_owned(),
            };
            format!("{reason}; {then}")
        }
    }
}
