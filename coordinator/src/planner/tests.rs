//! The table: what is decided for each verdict on the primary and on a replica.

use regent_common::ids::{ClusterId, ClusterName, Epoch, OperationToken};

use super::*;
use crate::model::cluster::{MemberRecord, Policy};

fn name(n: u32) -> MemberName {
    format!("db{n}").parse().unwrap()
}

fn cluster() -> ClusterRecord {
    ClusterRecord {
        id: ClusterId::from_parts(1, 1),
        name: ClusterName::new("db").unwrap(),
        engine: "fake".to_owned(),
        version: String::new(),
        mode: String::new(),
        epoch: Epoch(1),
        token: OperationToken(1),
        primary: Some(name(1)),
        candidate: None,
        established: true,
        may_be_writable: BTreeSet::new(),
        reigned: BTreeMap::new(),
        members: (1..=2)
            .map(|n| {
                let node = format!("n{n}").parse().unwrap();
                (name(n), MemberRecord { node, state: MemberState::Ready, endpoint: None })
            })
            .collect(),
        next_number: 3,
        phase: Phase::Active,
        labels: BTreeMap::new(),
        protected: false,
        settings: BTreeMap::new(),
        port: 0,
        connection: regent_common::topology::ConnectionFormat::default(),
        secrets: BTreeMap::new(),
        policy: Policy::default(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        created_by: String::new(),
        ready_at: None,
        keep_data_on_delete: false,
        operation: None,
        divergences: Vec::new(),
    }
}

fn judged(primary: Verdict, replica: Verdict) -> BTreeMap<MemberName, Judgement> {
    let judgement = |verdict| Judgement { verdict, reason: "because".to_owned() };
    BTreeMap::from([(name(1), judgement(primary)), (name(2), judgement(replica))])
}

#[test]
fn only_a_dead_engine_whose_agent_says_so_is_failed_over() {
    use Verdict::*;
    for verdict in
        [Healthy, Starting, Suspect, EngineHung, StorageHung, NodeUnreachable, Astray, NotStreaming, Dirty, Lost]
    {
        let decision = decide(&cluster(), &judged(verdict.clone(), Healthy));
        assert!(!matches!(decision, Decision::Failover { .. }), "{verdict:?}: {decision:?}");
    }
    let decision = decide(&cluster(), &judged(EngineDown, Healthy));
    assert!(matches!(decision, Decision::Failover { .. }), "{decision:?}");
}

#[test]
fn a_primary_that_is_merely_silent_is_left_alone_and_the_reason_is_given() {
    match decide(&cluster(), &judged(Verdict::NodeUnreachable, Verdict::Healthy)) {
        Decision::NoFailover { why } => assert!(why.contains("fence"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_policy_can_forbid_a_failover() {
    let mut cluster = cluster();
    cluster.policy.automatic_failover = false;
    assert!(matches!(decide(&cluster, &judged(Verdict::EngineDown, Verdict::Healthy)), Decision::NoFailover { .. }));
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
fn a_member_that_may_be_writable_and_is_not_heard_is_waited_for_with_a_reason() {
    let mut cluster = cluster();
    (cluster.primary, cluster.may_be_writable) = (None, BTreeSet::from([name(1)]));
    let decision = decide(&cluster, &judged(Verdict::NodeUnreachable, Verdict::Healthy));
    assert!(matches!(&decision, Decision::NoFailover { why } if why.contains("db1")), "{decision:?}");
    let decision = decide(&cluster, &judged(Verdict::EngineDown, Verdict::NodeUnreachable));
    assert!(matches!(decision, Decision::Failover { .. }), "{decision:?}");
}

#[test]
fn a_member_that_cannot_be_brought_back_does_not_keep_the_others_out() {
    let mut cluster = cluster();
    let third = cluster.members[&name(2)].clone();
    cluster.members.insert(name(3), third);
    let mut judgements = judged(Verdict::Healthy, Verdict::EngineDown);
    judgements.insert(name(3), judgements[&name(2)].clone());
    let rejoined =
        |resting: &[u32]| match decide_but(&cluster, &judgements, &resting.iter().map(|n| name(*n)).collect()) {
            Decision::Rejoin { member, .. } => Some(member),
            _ => None,
        };
    assert_eq!([rejoined(&[]), rejoined(&[2]), rejoined(&[2, 3])], [Some(name(2)), Some(name(3)), None]);
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
    ] {
        let mut cluster = cluster();
        cluster.set_state(&name(2), state.clone());
        let decision = decide(&cluster, &judged(Healthy, verdict.clone()));
        assert_eq!(matches!(decision, Decision::Rejoin { .. }), wanted, "{state:?} {verdict:?}: {decision:?}");
    }
}
