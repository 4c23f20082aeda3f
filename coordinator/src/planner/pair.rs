//! Decides what a pair needs next, and what is not done to one: pure.
//!
//! A pair has no primary, so that there is no failover: when one side is lost the other one goes on. What is decided here is who is
//! brought back, and after whom. **Invariant:** a side that is known to lack what the other one took alone is never brought back
//! without that one, and never filled anew, but on a person's word.

use std::collections::{BTreeMap, BTreeSet};

use regent_common::{error::Reason, ids::MemberName};

use super::{Decision, Mend, Upkeep, paused, serves, tell_again, unheard};
use crate::{
    detector::{Judgement, Verdict},
    model::cluster::{ClusterRecord, MemberRecord, MemberState},
};

/// What a side needs, whatever becomes of the other one.
enum Need {
    Nothing,
    /// It has to be brought back.
    Return,
    /// It has to be ended and brought back, which costs what it has not passed on: only where the other one goes on meanwhile.
    ReturnIfServed,
    /// Only a person can say what becomes of its data.
    Person,
}

/// What is a primary's, or a replica's, and is not done to a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreign {
    /// A planned promotion.
    Promote,
    /// A failover.
    Failover,
    /// One more member.
    Add,
    /// One member less.
    Remove,
    /// A policy for failovers.
    Policy,
    /// A resync that does not name one side.
    ResyncAll,
}

/// Decides.
pub(super) fn decide(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    upkeep: &Upkeep,
) -> Decision {
    let serving = serving(cluster, judgements);
    if !cluster.policy.paused {
        if let Some(told) = tell_again(cluster, judgements, upkeep) {
            return told;
        }
        for (member, stored) in cluster.members.iter().filter(|(member, _)| !upkeep.resting.contains(*member)) {
            let Some(judgement) = judgements.get(member) else { continue };
            match need(stored, &judgement.verdict) {
                Need::Nothing => {}
                Need::Person => {
                    return Decision::Mark {
                        member: member.clone(),
                        why: by_a_person(cluster, member, &judgement.reason),
                    };
                }
                Need::Return | Need::ReturnIfServed => {
                    if returns(cluster, judgements, upkeep, &serving, member) {
                        let why = match stored.state {
                            MemberState::NeedsRejoin => "it has to be joined with the other side again",
                            _ => &judgement.reason,
                        };
                        return Decision::Mend { member: member.clone(), how: Mend::Rejoin, why: why.to_owned() };
                    }
                }
            }
        }
    }
    if serving.is_empty() && upkeep.resting.is_empty() { nobody_serves(cluster, judgements) } else { Decision::Nothing }
}

/// The sides that accept writes by the evidence.
pub fn serving<'a>(
    cluster: &ClusterRecord,
    judgements: &'a BTreeMap<MemberName, Judgement>,
) -> BTreeSet<&'a MemberName> {
    judgements
        .iter()
        .filter(|(member, judgement)| serves(cluster, member, judgement))
        .map(|(member, _)| member)
        .collect()
}

/// Who has accepted writes alone since both sides did, by what is seen now; what is stored where that says nothing new.
pub fn survivor(cluster: &ClusterRecord, judgements: &BTreeMap<MemberName, Judgement>) -> Option<MemberName> {
    let serving = serving(cluster, judgements);
    let mut sides = serving.iter().filter_map(|member| Some((*member, judgements.get(*member)?)));
    if serving.len() == 2 {
        // While they do not hear each other both take writes, and neither has all of them.
        let joined = sides.all(|(_, judgement)| judgement.verdict == Verdict::Healthy);
        return cluster.survivor.clone().filter(|_| !joined);
    }
    // Of one whose agent alone is away this says too much, which harms nobody: it goes on, and need not be brought back.
    let alone = sides.next().map(|(member, _)| member).filter(|member| {
        let other = cluster.other_side(member).and_then(|other| judgements.get(other));
        other.is_some_and(|other| other.verdict != Verdict::Suspect)
    });
    alone.cloned().or_else(|| cluster.survivor.clone())
}

fn need(stored: &MemberRecord, verdict: &Verdict) -> Need {
    match (&stored.state, verdict) {
        (
            MemberState::Creating
            | MemberState::Resyncing
            | MemberState::NeedsResync { .. }
            | MemberState::Leaving { .. },
            _,
        )
        // What a stale one lacks can only be given to it with all else, for which a person says whose data survives.
        | (MemberState::Ready, Verdict::Healthy | Verdict::NotStreaming | Verdict::Stale) => Need::Nothing,
        // Not heard, on its way, without a disk or without data: what is seen of it says what it waits for.
        (
            MemberState::Ready | MemberState::NeedsRejoin,
            Verdict::NodeUnreachable
            | Verdict::NodeLost
            | Verdict::Partitioned
            | Verdict::Suspect
            | Verdict::Quarantined
            | Verdict::Starting
            | Verdict::StorageHung
            | Verdict::WithoutLease
            | Verdict::Lost,
        ) => Need::Nothing,
        (MemberState::Ready | MemberState::NeedsRejoin, Verdict::Dirty) => Need::Person,
        (MemberState::Ready | MemberState::NeedsRejoin, Verdict::EngineHung) => Need::ReturnIfServed,
        (MemberState::Ready | MemberState::NeedsRejoin, Verdict::EngineDown | Verdict::Astray)
        | (MemberState::NeedsRejoin, Verdict::Healthy | Verdict::NotStreaming | Verdict::Stale) => Need::Return,
    }
}

/// Whether a side that has to be brought back is now. Beside one that serves it always is. When neither does, the one that served last
/// comes first, and else the first of those that can be brought back: it goes on, and the other one is compared with it.
fn returns(
    cluster: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    upkeep: &Upkeep,
    serving: &BTreeSet<&MemberName>,
    member: &MemberName,
) -> bool {
    let Some(other) = cluster.other_side(member) else { return false };
    if serving.contains(other) {
        return true;
    }
    let (Some(stored), Some(judgement)) = (cluster.members.get(member), judgements.get(member)) else { return false };
    if matches!(need(stored, &judgement.verdict), Need::ReturnIfServed) {
        return false;
    }
    if let Some(survivor) = &cluster.survivor {
        return survivor == member;
    }
    let (Some(others), Some(theirs)) = (cluster.members.get(other), judgements.get(other)) else { return true };
    match theirs.verdict {
        // A moment more tells whether it serves.
        Verdict::Suspect | Verdict::Starting => false,
        _ => {
            let can_return = matches!(need(others, &theirs.verdict), Need::Return) && !upkeep.resting.contains(other);
            let rank = |stored: &MemberRecord, name: &MemberName| (stored.state != MemberState::Ready, name.clone());
            !can_return || rank(stored, member) < rank(others, other)
        }
    }
}

/// Neither side serves and neither is brought back by itself: why, and what a person can do.
fn nobody_serves(cluster: &ClusterRecord, judgements: &BTreeMap<MemberName, Judgement>) -> Decision {
    let verdict = |member: &MemberName| judgements.get(member).map(|judgement| &judgement.verdict);
    let all = |is: fn(&Verdict) -> bool| cluster.members.keys().all(|member| verdict(member).is_some_and(is));
    if cluster.members.keys().any(|member| matches!(verdict(member), Some(Verdict::Suspect | Verdict::Starting))) {
        return Decision::Nothing;
    }
    if all(|verdict| *verdict == Verdict::Lost) {
        let why = format!(
            "no side has any data of this cluster: restore a backup of the data into a new cluster, and remove this one: `regentctl \
             cluster delete {}`",
            cluster.name
        );
        return Decision::NoFailover { why };
    }
    let reasons: Vec<&str> =
        cluster.members.keys().filter_map(|member| Some(judgements.get(member)?.reason.as_str())).collect();
    let why = format!("no side takes writes: {}", reasons.join("; "));
    if cluster.policy.paused {
        return Decision::NoFailover { why: format!("{why}; {}", paused(cluster)) };
    }
    let survivor = cluster.survivor.as_ref().and_then(|survivor| Some((survivor, cluster.other_side(survivor)?)));
    Decision::NoFailover {
        why: match survivor {
            Some((survivor, other)) if !verdict(other).is_none_or(unheard) => format!(
                "{why}; {survivor} took writes last, and {other} lacks what it took alone: bring {survivor} back, or go on with what \
                 {other} has and give the rest up: {}",
                resync_command(cluster, survivor)
            ),
            Some(_) | None => why,
        },
    }
}

/// What only a person can say of a side's data, with how.
fn by_a_person(cluster: &ClusterRecord, member: &MemberName, reason: &str) -> String {
    format!("{reason}; {}", either_data(cluster, member))
}

/// The two ways out of a difference between the sides.
pub fn either_data(cluster: &ClusterRecord, member: &MemberName) -> String {
    let Some(other) = cluster.other_side(member) else { return String::new() };
    format!(
        "{} takes all of {other}'s data for {member}, {} all of {member}'s for {other}",
        resync_command(cluster, member),
        resync_command(cluster, other)
    )
}

fn resync_command(cluster: &ClusterRecord, member: &MemberName) -> String {
    format!("`regentctl cluster resync {} {member} --confirm {member}`", cluster.name)
}

/// Why the two sides cannot be compared now: a reason, and a sentence. One that waits for a person's word on its data is looked at as well
/// as one that serves; one that is about to be brought back has to be first.
pub fn incomparable(cluster: &ClusterRecord, judgements: &BTreeMap<MemberName, Judgement>) -> Option<(Reason, String)> {
    if !cluster.is_pair() {
        let why = format!(
            "it is no pair: its replicas have what its primary has, and one that you doubt is made anew: `regentctl cluster resync \
             {name} MEMBER --confirm MEMBER`",
            name = cluster.name
        );
        return Some((Reason::NotInThisMode, why));
    }
    let waits = cluster.members.values().any(|stored| matches!(stored.state, MemberState::NeedsResync { .. }))
        || judgements.values().any(|judgement| judgement.verdict == Verdict::Stale);
    cluster.members.keys().find_map(|side| {
        let judgement = judgements.get(side)?;
        let why = match judgement.verdict {
            Verdict::Healthy | Verdict::Stale => return None,
            Verdict::NotStreaming | Verdict::Astray if waits => return None,
            Verdict::NotStreaming => {
                format!(
                    "{side} does not hear the other side, and catches up by itself when it does: {}",
                    judgement.reason
                )
            }
            Verdict::Starting
            | Verdict::Suspect
            | Verdict::EngineDown
            | Verdict::EngineHung
            | Verdict::StorageHung
            | Verdict::NodeUnreachable
            | Verdict::NodeLost
            | Verdict::Partitioned
            | Verdict::WithoutLease
            | Verdict::Astray
            | Verdict::Dirty
            | Verdict::Lost
            | Verdict::Quarantined => format!("{side} cannot be looked at: {}", judgement.reason),
        };
        Some((Reason::PrimaryUnhealthy, why))
    })
}

/// Why something that is a primary's or a replica's is not done to this cluster, with what to do; `None` where it is no pair.
pub fn foreign(cluster: &ClusterRecord, what: Foreign) -> Option<(Reason, String)> {
    let name = &cluster.name;
    let why = match what {
        Foreign::Promote => "it is a pair, whose sides both take writes: there is nobody to promote".to_owned(),
        Foreign::Failover => format!(
            "it is a pair, and has no failover: when one side is lost the other one goes on; `regentctl cluster resync {name} MEMBER` \
             goes on with what the other side has"
        ),
        Foreign::Add => "it is a pair, which has two sides and no replicas".to_owned(),
        Foreign::Remove => format!(
            "it is a pair, which has two sides: `regentctl cluster resync {name} MEMBER` fills one anew, `regentctl cluster delete \
             {name}` removes both"
        ),
        Foreign::Policy => {
            "it is a pair, which has no failover: of its policy only the profile, labels, protection and the pause \
                            can be changed"
                .to_owned()
        }
        Foreign::ResyncAll => format!(
            "it is a pair: name the one side whose data is replaced by the other's: `regentctl cluster resync {name} MEMBER`"
        ),
    };
    cluster.is_pair().then_some((Reason::NotInThisMode, why))
}

#[cfg(test)]
mod tests {
    use regent_common::topology::Mode;

    use super::*;
    use crate::planner::{
        decide_with,
        fixtures::{self, name},
    };

    fn pair() -> ClusterRecord {
        let mode = Mode::MultiMaster.label().to_owned();
        ClusterRecord { mode, primary: None, reign: None, established: false, ..fixtures::cluster() }
    }

    fn judged(verdicts: [Verdict; 2]) -> BTreeMap<MemberName, Judgement> {
        let judgement = |verdict| Judgement { verdict, reason: "because".to_owned() };
        (1..).map(name).zip(verdicts.map(judgement)).collect()
    }

    fn decided(cluster: &ClusterRecord, verdicts: [Verdict; 2], resting: &[u32]) -> Decision {
        let upkeep = Upkeep { resting: resting.iter().map(|n| name(*n)).collect(), ..Upkeep::default() };
        decide_with(cluster, &judged(verdicts), &Default::default(), &upkeep)
    }

    fn returning(cluster: &ClusterRecord, verdicts: [Verdict; 2], resting: &[u32]) -> Option<MemberName> {
        match decided(cluster, verdicts, resting) {
            Decision::Mend { member, how: Mend::Rejoin, .. } => Some(member),
            _ => None,
        }
    }

    fn all_verdicts() -> Vec<Verdict> {
        use Verdict::*;
        vec![
            Healthy,
            Starting,
            Suspect,
            EngineDown,
            EngineHung,
            StorageHung,
            NodeUnreachable,
            NodeLost,
            Partitioned,
            WithoutLease,
            Astray,
            NotStreaming,
            Stale,
            Dirty,
            Lost,
            Quarantined,
        ]
    }

    #[test]
    fn nothing_that_is_seen_of_a_pair_is_a_failover() {
        for first in all_verdicts() {
            for second in all_verdicts() {
                for state in [MemberState::Ready, MemberState::NeedsRejoin] {
                    let mut cluster = pair();
                    cluster.set_state(&name(2), state);
                    let decision = decided(&cluster, [first.clone(), second.clone()], &[]);
                    let of_a_primary = matches!(decision, Decision::Failover { .. } | Decision::AwaitLease { .. });
                    assert!(!of_a_primary, "{first:?} {second:?}: {decision:?}");
                }
            }
        }
    }

    #[test]
    fn a_side_is_brought_back_beside_one_that_serves_when_its_agent_is_heard() {
        use Verdict::*;
        let needs_resync = || MemberState::NeedsResync { why: String::new() };
        for (state, verdict, wanted) in [
            (MemberState::Ready, Healthy, false),
            (MemberState::Ready, NotStreaming, false),
            (MemberState::Ready, Stale, false),
            (MemberState::Ready, EngineDown, true),
            (MemberState::Ready, EngineHung, true),
            (MemberState::Ready, Astray, true),
            (MemberState::Ready, Starting, false),
            (MemberState::Ready, StorageHung, false),
            (MemberState::Ready, NodeUnreachable, false),
            (MemberState::Ready, Quarantined, false),
            (MemberState::Ready, Lost, false),
            (MemberState::NeedsRejoin, Healthy, true),
            (MemberState::NeedsRejoin, EngineDown, true),
            (MemberState::NeedsRejoin, NodeUnreachable, false),
            (MemberState::Resyncing, EngineDown, false),
            (needs_resync(), EngineDown, false),
            (needs_resync(), Healthy, false),
            (needs_resync(), Astray, false),
        ] {
            let mut cluster = pair();
            cluster.set_state(&name(2), state.clone());
            let found = returning(&cluster, [NotStreaming, verdict.clone()], &[]);
            assert_eq!(found, wanted.then(|| name(2)), "{state:?} {verdict:?}");
        }
        assert_eq!(returning(&pair(), [Healthy, EngineDown], &[2]), None, "its last return failed just now");
    }

    #[test]
    fn when_neither_serves_the_one_that_served_last_comes_first() {
        use Verdict::*;
        let both = [EngineDown, EngineDown];
        assert_eq!(returning(&pair(), both.clone(), &[]), Some(name(1)), "nothing says who was last");
        assert_eq!(returning(&pair(), both.clone(), &[1]), Some(name(2)), "the first one cannot be brought back");
        let mut away = pair();
        away.set_state(&name(1), MemberState::NeedsRejoin);
        assert_eq!(returning(&away, both.clone(), &[]), Some(name(2)), "the first one was away already");
        let last = ClusterRecord { survivor: Some(name(2)), ..pair() };
        assert_eq!(returning(&last, both, &[]), Some(name(2)));
        for verdict in [NodeUnreachable, Lost, StorageHung] {
            assert_eq!(returning(&last, [EngineDown, verdict.clone()], &[]), None, "db1 lacks what db2 took");
            let Decision::NoFailover { why } = decided(&last, [EngineDown, verdict], &[]) else {
                panic!("nobody is told")
            };
            assert!(why.contains("`regentctl cluster resync db db2 --confirm db2`"), "{why}");
        }
        assert_eq!(returning(&pair(), [EngineDown, NodeUnreachable], &[]), Some(name(1)), "both served until now");
        assert_eq!(returning(&pair(), [EngineDown, Suspect], &[]), None, "a moment more tells");
        assert_eq!(returning(&pair(), [EngineHung, EngineDown], &[]), Some(name(2)));
        assert_eq!(returning(&pair(), [EngineHung, EngineHung], &[]), None, "it would cost what neither has passed on");
    }

    #[test]
    fn half_made_data_waits_for_a_person_who_is_told_both_ways_out() {
        let decision = decided(&pair(), [Verdict::NotStreaming, Verdict::Dirty], &[]);
        let Decision::Mark { member, why } = decision else { panic!("{decision:?}") };
        assert_eq!(member, name(2));
        assert!(why.contains("resync db db2") && why.contains("resync db db1"), "{why}");
    }

    #[test]
    fn a_pause_leaves_a_pair_alone_and_says_so_when_nobody_serves() {
        let mut cluster = pair();
        cluster.policy.paused = true;
        assert_eq!(decided(&cluster, [Verdict::NotStreaming, Verdict::EngineDown], &[]), Decision::Nothing);
        let down = decided(&cluster, [Verdict::EngineDown, Verdict::EngineDown], &[]);
        assert!(
            matches!(&down, Decision::NoFailover { why } if why.contains("regentctl cluster resume db")),
            "{down:?}"
        );
    }

    #[test]
    fn who_goes_on_alone_is_known_until_both_are_joined_again() {
        use Verdict::*;
        let seen = |cluster: &ClusterRecord, verdicts| survivor(cluster, &judged(verdicts));
        assert_eq!(seen(&pair(), [Healthy, Healthy]), None);
        assert_eq!(seen(&pair(), [NotStreaming, EngineDown]), Some(name(1)));
        assert_eq!(seen(&pair(), [NodeUnreachable, NotStreaming]), Some(name(2)));
        assert_eq!(seen(&pair(), [Healthy, NodeUnreachable]), Some(name(1)), "its node may be lost just now");
        assert_eq!(seen(&pair(), [Healthy, Suspect]), None, "a moment more tells");
        assert_eq!(seen(&pair(), [NotStreaming, NotStreaming]), None, "cut from each other, both take writes");
        assert_eq!(seen(&pair(), [Stale, Healthy]), None, "so do they afterwards");
        let mut alone = ClusterRecord { survivor: Some(name(1)), ..pair() };
        for verdicts in [[EngineDown, EngineDown], [Suspect, Suspect], [NotStreaming, NotStreaming]] {
            assert_eq!(seen(&alone, verdicts), Some(name(1)), "nothing new");
        }
        assert_eq!(seen(&alone, [Healthy, Healthy]), None);
        alone.set_state(&name(2), MemberState::NeedsRejoin);
        assert_eq!(seen(&alone, [Healthy, Healthy]), Some(name(1)));
    }

    #[test]
    fn sides_are_compared_that_serve_or_wait_for_a_person() {
        use Verdict::*;
        let why = |cluster: &ClusterRecord, verdicts| incomparable(cluster, &judged(verdicts));
        let mut waits = pair();
        waits.set_state(&name(2), MemberState::NeedsResync { why: String::new() });
        assert_eq!(why(&pair(), [Healthy, Healthy]), None);
        for verdicts in [[Stale, Stale], [Stale, NotStreaming], [Healthy, Stale]] {
            assert_eq!(why(&pair(), verdicts.clone()), None, "{verdicts:?}");
        }
        for verdict in [NotStreaming, Astray] {
            assert_eq!(why(&waits, [NotStreaming, verdict.clone()]), None, "{verdict:?}");
            assert!(why(&pair(), [Healthy, verdict.clone()]).is_some(), "{verdict:?}");
        }
        for verdict in [EngineDown, NodeUnreachable, Starting, Suspect, Lost] {
            for cluster in [&pair(), &waits] {
                let (reason, sentence) = why(cluster, [Healthy, verdict.clone()]).unwrap();
                assert_eq!((reason, &*sentence), (Reason::PrimaryUnhealthy, "db2 cannot be looked at: because"));
            }
        }
        let (reason, _) = why(&fixtures::cluster(), [Healthy, Healthy]).unwrap();
        assert_eq!(reason, Reason::NotInThisMode);
    }

    #[test]
    fn what_is_a_primarys_is_refused_for_a_pair_alone() {
        use Foreign::*;
        for what in [Promote, Failover, Add, Remove, Policy, ResyncAll] {
            assert_eq!(foreign(&fixtures::cluster(), what), None);
            let (reason, why) = foreign(&pair(), what).unwrap();
            assert!(reason == Reason::NotInThisMode && why.starts_with("it is a pair"), "{why}");
        }
    }
}
