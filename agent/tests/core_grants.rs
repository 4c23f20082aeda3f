//! Bad answers to heartbeats, over a real loopback connection with mutual TLS: none confers or lengthens a lease, changes the
//! ledger, or moves the gate (rules L1, L5).

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use std::time::Duration;

use regent_agent::gate::{Gate, Open};
use regent_proto::agent::v1::{self as wire, HeartbeatAnswer};
use support::{
    cluster_id,
    reign::Reign,
    session::{execute, request},
    wire::Authority,
    within,
};

#[tokio::test]
async fn a_bad_answer_neither_lengthens_a_lease_nor_changes_what_is_kept() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let mut reign = Reign::begin(&authority, &coordinator).await;
    reign.read().await;
    let (end, ledger) = (reign.end(), reign.ledger());
    let other_cluster = regent_common::ids::ClusterId::from_parts(9, 9).to_string();
    let newer = regent_proto::types::v1::Electorate { version: 9, members: Vec::new() };
    let longer = wire::Grant { ttl_millis: 110_000, electorate: Some(newer), ..Reign::grant() };
    let (granted, times) = (reign.granted.clone(), Reign::times(60_000));
    let never_asked = granted.nonce + 1_000_000;
    // With a nonce of its own: none of these is refused for having been answered before.
    type Bad = (&'static str, Option<u64>, HeartbeatAnswer);
    let foreign = HeartbeatAnswer { stored_epoch: 99, heartbeat_millis: 30_000, ttl_millis: 90_000, ..times.clone() };
    let with = |grant: wire::Grant, answer: &HeartbeatAnswer| HeartbeatAnswer { grant: Some(grant), ..answer.clone() };
    let bad: Vec<Bad> = vec![
        ("a duplicate", Some(granted.nonce), granted.clone()),
        ("a replayed nonce with a longer lease", Some(granted.nonce), with(longer.clone(), &foreign)),
        ("a nonce of before the first", Some(1), with(longer.clone(), &foreign)),
        ("a nonce that will be", Some(never_asked), with(longer.clone(), &foreign)),
        ("another cluster's", None, with(wire::Grant { cluster_id: other_cluster, ..longer.clone() }, &foreign)),
        ("no cluster's", None, with(wire::Grant { cluster_id: String::new(), ..longer.clone() }, &foreign)),
        ("another member's", None, with(wire::Grant { member: "db2".to_owned(), ..longer.clone() }, &foreign)),
        ("of a future epoch", None, with(wire::Grant { epoch: 2, ..longer.clone() }, &times)),
        ("of a past epoch", None, with(wire::Grant { epoch: 0, ..longer.clone() }, &times)),
        ("of the last epoch of all", None, with(wire::Grant { epoch: u64::MAX, ..longer.clone() }, &times)),
        ("not established", None, with(wire::Grant { established: false, ..longer.clone() }, &times)),
        ("without an electorate", None, with(wire::Grant { electorate: None, ..longer.clone() }, &times)),
        ("below three heartbeats", None, with(wire::Grant { ttl_millis: 149, ..longer.clone() }, &times)),
        ("without an end in sight", None, with(wire::Grant { ttl_millis: u32::MAX, ..longer.clone() }, &times)),
    ];
    for (what, nonce, answer) in bad {
        let nonce = match nonce {
            Some(nonce) => nonce,
            None => reign.session.heartbeat().await.nonce,
        };
        // Twice: a duplicate of what is bad is bad.
        for _ in 0..2 {
            reign.session.answer(HeartbeatAnswer { nonce, ..answer.clone() }).await;
        }
        reign.read().await;
        assert_eq!(reign.end(), end, "{what}: the lease ends when it would have");
        assert_eq!(reign.ledger(), ledger, "{what}: the ledger is as it was");
        let gate = reign.gate.state().await.unwrap();
        assert!(!gate.gated.is_empty(), "{what}: {gate:?}");
        let Open::Until(closes) = gate.open else { panic!("{what}: {gate:?}") };
        assert!(closes.raw <= end.raw, "{what}: the gate closes with the lease: {gate:?}");
        assert_eq!(reign.agent.node.lease.timing().heartbeat, Duration::from_millis(50), "{what}");
    }
    let known = reign.agent.node.ledger().read().membership.as_ref().unwrap().longest_ttl();
    assert!(known < Some(Duration::from_secs(62)), "no bad answer's times are kept: {known:?}");
    // And the same answer, as it should be, does lengthen it.
    let lease = reign.agent.node.lease.clone();
    let renewed = || lease.standing().and_then(|standing| standing.end).is_some_and(|now| now.raw > end.raw);
    reign.answered(granted, renewed).await;
}

#[tokio::test]
async fn a_bad_answer_gives_no_lease_to_who_has_none() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let mut reign = Reign::begin(&authority, &coordinator).await;
    // A fence ends the reign: its gate is closed, and nothing that is said of epoch 1 opens it again.
    let channel = reign.agent.channel(&coordinator).await;
    execute(&channel, request("db1", 2, 2, "fence", wire::action::Action::Fence(wire::Fence {}))).await.unwrap();
    let ledger = reign.ledger();
    for (what, epoch) in [("of the epoch that was fenced", 1), ("of an epoch to come", 3), ("of the fence's epoch", 2)]
    {
        let nonce = reign.session.heartbeat().await.nonce;
        let grant = Some(wire::Grant { epoch, ..Reign::grant() });
        reign.session.answer(HeartbeatAnswer { nonce, grant, ..Reign::times(60_000) }).await;
        reign.read().await;
        assert!(reign.agent.node.lease.standing().is_none(), "{what}");
        let open = reign.gate.state().await.unwrap().open;
        assert_eq!(open, Open::Closed, "{what}");
        if epoch != 2 {
            assert_eq!(reign.ledger(), ledger, "{what}");
        }
    }
}

#[tokio::test]
async fn times_that_no_lease_can_be_kept_by_are_not_taken() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let mut reign = Reign::begin(&authority, &coordinator).await;
    reign.read().await;
    let before = reign.agent.node.lease.timing();
    for (heartbeat_millis, ttl_millis) in [(1000, 2999), (1000, 0), (0, 149), (50, 149), (60_000, 5000), (50, 120_001)]
    {
        let nonce = reign.session.heartbeat().await.nonce;
        let answer = HeartbeatAnswer { nonce, grant: None, stored_epoch: 1, heartbeat_millis, ttl_millis };
        reign.session.answer(answer).await;
        // The next heartbeats come in the rhythm of before; the times are those of before, too.
        for _ in 0..3 {
            reign.session.heartbeat().await;
        }
        let now = reign.agent.node.lease.timing();
        assert_eq!(now, before, "{heartbeat_millis} ms with a lease of {ttl_millis} ms");
    }
    reign.read().await;
    let membership = reign.agent.node.ledger().read().membership.clone().unwrap();
    assert_eq!(membership.timing().heartbeat, Duration::from_millis(50));
    assert!(membership.longest_ttl() < Some(Duration::from_secs(62)));
    // A lease that stood through all this is still renewed by a grant that comes with such times.
    let (end, lease) = (reign.end(), reign.agent.node.lease.clone());
    let renewed = || lease.standing().and_then(|standing| standing.end).is_some_and(|now| now.raw > end.raw);
    let answer = HeartbeatAnswer { heartbeat_millis: 60_000, ttl_millis: 5000, ..reign.granted.clone() };
    reign.answered(answer, renewed).await;
    assert_eq!(reign.agent.node.lease.timing().heartbeat, Duration::from_millis(50));
}

#[tokio::test]
async fn a_primary_in_quarantine_has_no_lease_and_its_gate_is_closed() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let mut reign = Reign::begin(&authority, &coordinator).await;
    assert!(matches!(reign.gate.state().await.unwrap().open, Open::Until(_)));
    let word = wire::Quarantine {
        cluster_id: cluster_id().to_string(),
        member: "db1".to_owned(),
        epoch: 1,
        token: 1,
        reason: "it was put back".to_owned(),
    };
    let message = Some(wire::open_request::Message::Quarantine(word));
    reign.session.out.send(wire::OpenRequest { message }).await.unwrap();
    let lapsed = |heartbeat: &wire::Heartbeat| {
        let authority = heartbeat.member.as_ref().and_then(|member| member.authority.as_ref());
        !heartbeat.quarantine.is_empty() && authority.is_some_and(|authority| authority.lease.is_none())
    };
    let told = reign.session.until(lapsed).await;
    within(async {
        while reign.gate.state().await.unwrap().open != Open::Closed {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // A grant that is on its way confers nothing any more.
    reign.session.answer(HeartbeatAnswer { nonce: told.nonce, ..reign.granted.clone() }).await;
    let nonce = reign.session.until(|heartbeat| heartbeat.nonce > told.nonce).await.nonce;
    assert!(nonce > told.nonce);
    assert_eq!(reign.agent.node.lease.standing(), None);
    assert_eq!(reign.gate.state().await.unwrap().open, Open::Closed);
}
