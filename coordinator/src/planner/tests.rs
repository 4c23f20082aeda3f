//! The table: what is decided for each verdict on the primary and on a replica.

use regent_common::{
    ids::Epoch,
    topology::{AllowListState, Observation},
};

use super::{
    fixtures::{cluster, name},
    *,
};
use crate::model::reign::Reign;

fn heard_and_over() -> Succession {
    Succession {
        gated: true,
        promotable: [name(2)].into(),
        reachable: [name(2)].into(),
        free: [name(2)].into(),
        ..Succession::default()
    }
}

fn decide(cluster: &ClusterRecord, judgements: &BTreeMap<MemberName, Judgement>) -> Decision {
    super::decide(cluster, judgements, &heard_and_over())
}

fn decide_lost(change: impl FnOnce(&mut Succession)) -> Decision {
    let mut succession = heard_and_over();
    change(&mut succession);
    super::decide(&cluster(), &judged(Verdict::NodeLost, Verdict::Healthy), &succession)
}

fn judged(primary: Verdict, replica: Verdict) -> BTreeMap<MemberName, Judgement> {
    let judgement = |verdict| Judgement { verdict, reason: "because".to_owned() };
    BTreeMap::from([(name(1), judgement(primary)), (name(2), judgement(replica))])
}

#[test]
fn a_failover_needs_the_agents_word_or_a_lease_that_is_over() {
    use Verdict::*;
    for verdict in [Healthy, Starting, Suspect, Partitioned, WithoutLease, Astray, NotStreaming, Dirty, Lost] {
        let decision = decide(&cluster(), &judged(verdict.clone(), Healthy));
        assert!(!matches!(decision, Decision::Failover { .. }), "{verdict:?}: {decision:?}");
    }
    for (verdict, wanted) in [
        (EngineDown, Cause::EngineFailed),
        (EngineHung, Cause::EngineFailed),
        (StorageHung, Cause::EngineFailed),
        (NodeLost, Cause::LeaseOver),
        (Quarantined, Cause::LeaseOver),
    ] {
        let decision = decide(&cluster(), &judged(verdict.clone(), Healthy));
        assert!(matches!(decision, Decision::Failover { cause, .. } if cause == wanted), "{verdict:?}: {decision:?}");
    }
}

#[test]
fn a_lost_node_is_replaced_only_by_who_may_be_and_can_be() {
    let no = |change: fn(&mut Succession), word: &str| match decide_lost(change) {
        Decision::NoFailover { why } => assert!(why.contains(word), "{why}"),
        other => panic!("{word}: {other:?}"),
    };
    no(|succession| succession.promotable.clear(), "may be promoted");
    no(|succession| succession.gated = false, "no gate");
    no(|succession| succession.reachable.clear(), "is heard either");
    no(|succession| succession.known_loss = Some(u64::MAX), "lacks");
    let left = Duration::from_millis(700);
    assert!(matches!(decide_lost(|s| s.lease_left = left), Decision::AwaitLease { left: l, .. } if l == left));
    assert!(matches!(decide_lost(|s| s.free.clear()), Decision::AwaitLease { .. }));
    assert!(matches!(decide_lost(|_| ()), Decision::Failover { .. }));
}

#[test]
fn the_policy_can_forbid_a_failover() {
    let mut cluster = cluster();
    cluster.policy.automatic_failover = false;
    assert!(matches!(decide(&cluster, &judged(Verdict::EngineDown, Verdict::Healthy)), Decision::NoFailover { .. }));
}

#[test]
fn where_only_copies_are_left_that_may_lack_something_a_person_decides() {
    let mut cluster = cluster();
    cluster.primary = None;
    cluster.note_reign(name(1), None);
    cluster.set_state(&name(2), MemberState::NeedsRejoin);
    let nobody = Succession::default();
    let decided = |cluster: &ClusterRecord, verdict, succession: &Succession| {
        super::decide(cluster, &judged(verdict, Verdict::NotStreaming), succession)
    };
    let Decision::NoFailover { why } = decided(&cluster, Verdict::Lost, &nobody) else { panic!("it is not told") };
    assert!(why.contains("a person must decide") && why.contains("--accept-data-loss"), "{why}");
    let is_tried = |decision| matches!(decision, Decision::Failover { .. });
    assert!(is_tried(decided(&cluster, Verdict::EngineDown, &nobody)), "its own data may do");
    assert!(is_tried(decided(&cluster, Verdict::Lost, &heard_and_over())), "somebody may follow");
    cluster.may_be_writable.insert(name(1));
    assert!(is_tried(decided(&cluster, Verdict::Lost, &nobody)), "it has not answered a fence");
}

#[test]
fn a_cluster_without_a_primary_gets_one() {
    let mut cluster = cluster();
    cluster.primary = None;
    assert!(matches!(decide(&cluster, &judged(Verdict::Healthy, Verdict::Healthy)), Decision::Failover { .. }));
    cluster.phase = Phase::Deleting;
    assert_eq!(decide(&cluster, &judged(Verdict::EngineDown, Verdict::Healthy)), Decision::Nothing);
}

#[test]
fn where_nobody_has_data_a_person_is_told_instead_of_a_failover_tried_for_ever() {
    let mut cluster = cluster();
    cluster.primary = None;
    let decision = decide(&cluster, &judged(Verdict::Lost, Verdict::Lost));
    assert!(matches!(&decision, Decision::NoFailover { why } if why.contains("cluster delete")), "{decision:?}");
    assert!(matches!(decide(&cluster, &judged(Verdict::Lost, Verdict::EngineDown)), Decision::Failover { .. }));
}

#[test]
fn a_member_that_may_be_writable_and_is_not_heard_is_waited_for() {
    let mut cluster = cluster();
    (cluster.primary, cluster.may_be_writable) = (None, BTreeSet::from([name(1)]));
    let away = judged(Verdict::NodeUnreachable, Verdict::Healthy);
    let decided = |change: fn(&mut Succession)| {
        let mut succession = heard_and_over();
        change(&mut succession);
        super::decide(&cluster, &away, &succession)
    };
    let decision = decided(|succession| succession.gated = false);
    assert!(matches!(&decision, Decision::NoFailover { why } if why.contains("db1")), "{decision:?}");
    assert!(matches!(decided(|s| s.reported_by = Some(name(2))), Decision::NoFailover { .. }));
    assert!(matches!(decided(|s| s.lease_left = Duration::from_secs(1)), Decision::AwaitLease { .. }));
    assert!(matches!(decided(|_| ()), Decision::Failover { cause: Cause::LeaseOver, .. }));
    let decision = decided(|succession| succession.reachable.clear());
    assert!(matches!(&decision, Decision::NoFailover { why } if why.contains("is heard either")), "{decision:?}");
    assert!(matches!(decided(|succession| succession.free.clear()), Decision::AwaitLease { .. }));
    // The candidate of a failover that did not end is heard, others have endorsed it, and the old primary is away.
    let mut candidate = cluster.clone();
    candidate.reign = Some(Reign::new(Epoch(1), name(2), [name(3)].into(), true));
    let reported = Succession { reported_by: Some(name(3)), ..heard_and_over() };
    let decision = super::decide(&candidate, &away, &reported);
    assert!(matches!(decision, Decision::Failover { cause: Cause::LeaseOver, .. }), "{decision:?}");
    let decision = super::decide(&cluster, &judged(Verdict::EngineDown, Verdict::NodeUnreachable), &heard_and_over());
    assert!(matches!(decision, Decision::Failover { cause: Cause::EngineFailed, .. }), "{decision:?}");
}

#[test]
fn a_member_that_cannot_be_brought_back_does_not_keep_the_others_out() {
    let mut cluster = cluster();
    let third = cluster.members[&name(2)].clone();
    cluster.members.insert(name(3), third);
    let mut judgements = judged(Verdict::Healthy, Verdict::EngineDown);
    judgements.insert(name(3), judgements[&name(2)].clone());
    let resting = |members: &[u32]| Upkeep { resting: members.iter().map(|n| name(*n)).collect(), ..Upkeep::default() };
    let rejoined = |members: &[u32]| match decide_with(&cluster, &judgements, &heard_and_over(), &resting(members)) {
        Decision::Mend { member, how: Mend::Rejoin, .. } => Some(member),
        _ => None,
    };
    assert_eq!([rejoined(&[]), rejoined(&[2]), rejoined(&[2, 3])], [Some(name(2)), Some(name(3)), None]);
}

#[test]
fn who_has_applied_something_else_is_told_again_and_who_was_to_leave_leaves() {
    let mut cluster = cluster();
    let judged = |verdict: Verdict| judged(Verdict::Healthy, verdict);
    let drifted = Upkeep { drifted: [name(2)].into(), ..Upkeep::default() };
    let mend = |cluster: &ClusterRecord, verdict, upkeep: &Upkeep| match decide_with(
        cluster,
        &judged(verdict),
        &heard_and_over(),
        upkeep,
    ) {
        Decision::Mend { member, how, .. } => Some((member, how)),
        _ => None,
    };
    assert_eq!(mend(&cluster, Verdict::NotStreaming, &drifted), Some((name(2), Mend::Configure)));
    assert_eq!(mend(&cluster, Verdict::EngineDown, &drifted), Some((name(2), Mend::Rejoin)), "a rejoin tells it too");
    let resting = Upkeep { resting: [name(2)].into(), ..drifted.clone() };
    assert_eq!(mend(&cluster, Verdict::Healthy, &resting), None);
    cluster.set_state(&name(2), MemberState::Leaving { keep_data: true, allow_single: true });
    for verdict in [Verdict::Healthy, Verdict::NodeLost, Verdict::Quarantined] {
        let leaves = Some((name(2), Mend::Remove { keep_data: true, allow_single: true }));
        assert_eq!(mend(&cluster, verdict, &drifted), leaves, "also while it is away");
    }
}

#[test]
fn who_drifts_is_who_says_that_it_has_applied_something_else() {
    let cluster = cluster();
    let view = |configuration: &str| {
        let seen = Observation { configuration: configuration.to_owned(), ..fixtures::observation(name(2)) };
        NodeView { connected: true, observation: Some(seen), ..NodeView::default() }
    };
    let found = |view: NodeView| !drifted(&cluster, &[(name(2), view)].into(), "f1").is_empty();
    assert!(found(view("f0")));
    assert!(!found(view("f1")) && !found(view("")) && !found(NodeView::default()));
    assert!(!found(NodeView { connected: false, ..view("f0") }), "nothing can be told to it");
    let lets_in = |fingerprint: &str| {
        let mut view = view("f1");
        let state = AllowListState { fingerprint: fingerprint.to_owned(), problem: String::new() };
        view.observation.as_mut().unwrap().allow_list = Some(state);
        view
    };
    assert!(found(lets_in("another")), "its agent was too old for the list when it was told");
    assert!(!found(lets_in("")));
}

#[test]
fn a_replica_is_brought_back_when_it_can_be_and_not_before() {
    use Verdict::*;
    for (state, verdict, wanted) in [
        (MemberState::Ready, Healthy, false),
        (MemberState::Ready, EngineDown, true),
        (MemberState::Ready, Astray, true),
        (MemberState::Ready, Dirty, true),
        (MemberState::Ready, NodeUnreachable, false),
        (MemberState::NeedsRejoin, Healthy, true),
        (MemberState::NeedsRejoin, EngineDown, true),
        (MemberState::NeedsRejoin, NodeUnreachable, false),
        (MemberState::Resyncing, EngineDown, false),
        (MemberState::Creating, Lost, false),
        (MemberState::NeedsResync { why: String::new() }, EngineDown, false),
        (MemberState::NeedsResync { why: String::new() }, Stale, false),
        (MemberState::NeedsResync { why: String::new() }, Healthy, true),
    ] {
        let mut cluster = cluster();
        cluster.set_state(&name(2), state.clone());
        let decision = decide(&cluster, &judged(Healthy, verdict.clone()));
        assert_eq!(
            matches!(decision, Decision::Mend { how: Mend::Rejoin, .. }),
            wanted,
            "{state:?} {verdict:?}: {decision:?}"
        );
    }
}

#[test]
fn a_replica_that_can_never_catch_up_is_marked_and_nothing_of_it_is_erased_by_itself() {
    let decision = decide(&cluster(), &judged(Verdict::Healthy, Verdict::Stale));
    assert!(matches!(&decision, Decision::Mark { member, .. } if *member == name(2)), "{decision:?}");
}

#[test]
fn what_the_policy_says_of_a_failed_primary_is_done() {
    let decided = |change: fn(&mut crate::model::cluster::Policy), verdict: Verdict| {
        let mut cluster = cluster();
        change(&mut cluster.policy);
        decide(&cluster, &judged(verdict, Verdict::Healthy))
    };
    let waits =
        |decision: &Decision, wanted: &str| matches!(decision, Decision::NoFailover { why } if why.contains(wanted));
    for verdict in [Verdict::EngineDown, Verdict::NodeLost] {
        let paused = decided(|policy| policy.paused = true, verdict);
        assert!(waits(&paused, "regentctl cluster resume db"), "{paused:?}");
    }
    let in_place = decided(|policy| policy.healing = Healing::RestorePrimary, Verdict::EngineDown);
    assert!(matches!(in_place, Decision::Failover { cause: Cause::EngineFailed, .. }), "{in_place:?}");
    let lost = decided(|policy| policy.healing = Healing::RestorePrimary, Verdict::NodeLost);
    assert!(waits(&lost, "bring its node back"), "{lost:?}");
    let mut resting = cluster();
    resting.set_state(&name(2), MemberState::NeedsRejoin);
    resting.policy.paused = true;
    assert_eq!(decide(&resting, &judged(Verdict::Healthy, Verdict::Healthy)), Decision::Nothing);
}

#[test]
fn a_member_in_quarantine_waits_for_a_person_and_as_the_primary_is_replaced_when_its_lease_is_over() {
    let replica = decide(&cluster(), &judged(Verdict::Healthy, Verdict::Quarantined));
    assert_eq!(replica, Decision::Nothing, "no rejoin brings it back by itself");
    let mut away = cluster();
    away.set_state(&name(2), MemberState::NeedsRejoin);
    assert_eq!(decide(&away, &judged(Verdict::Healthy, Verdict::Quarantined)), Decision::Nothing);
    let mut succession = heard_and_over();
    succession.lease_left = Duration::from_secs(2);
    let waits = super::decide(&cluster(), &judged(Verdict::Quarantined, Verdict::Healthy), &succession);
    assert!(matches!(waits, Decision::AwaitLease { left, .. } if left == succession.lease_left), "{waits:?}");
    let mut manual = cluster();
    manual.policy.automatic_failover = false;
    let left = decide(&manual, &judged(Verdict::Quarantined, Verdict::Healthy));
    assert!(matches!(left, Decision::NoFailover { .. }), "{left:?}");
}
