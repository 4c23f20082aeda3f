//! The hand-over of a lease at a planned restart of the agent, over a real loopback connection with mutual TLS (rule L7).

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use std::{sync::Arc, time::Duration};

use regent_agent::{
    gate::{Gate, Open, fake::FakeGate},
    hand_over::{HandedOver, hand_over},
};
use regent_common::clock::{Clock, SystemClock};
use regent_proto::{
    agent::v1::{self as wire, HeartbeatAnswer, open_response},
    types::v1 as types,
};
use support::{
    reign::Reign,
    session::{Session, hello},
    wire::Authority,
    within,
};

/// How long the gate stands open from now.
async fn open_for(gate: &FakeGate) -> Duration {
    match gate.state().await.unwrap().open {
        Open::Closed => Duration::ZERO,
        Open::Untimed => Duration::MAX,
        Open::Until(end) => end.held_for(SystemClock.now()),
    }
}

fn authority_of(heartbeat: &wire::Heartbeat) -> types::Authority {
    heartbeat.member.as_ref().and_then(|member| member.authority.clone()).expect("it is a member")
}

fn grant(nonce: u64, ttl_millis: u32, handed_over: Option<u64>) -> HeartbeatAnswer {
    let grant = Some(wire::Grant { ttl_millis, handed_over, ..Reign::grant() });
    HeartbeatAnswer { nonce, grant, ..Reign::times(2000) }
}

/// The same reign by the times of a profile: leases of two seconds.
async fn short_leases(reign: &mut Reign) {
    let lease = reign.agent.node.lease.clone();
    reign.answered(Reign::times(2000), || lease.timing().ttl == Duration::from_secs(2)).await;
}

#[tokio::test]
async fn the_next_process_lives_on_what_was_handed_over_and_says_when_it_needs_it_no_more() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let mut reign = Reign::begin_for(2000, &authority, &coordinator).await;
    short_leases(&mut reign).await;
    let node = reign.agent.node.clone();
    let ending = tokio::spawn(async move { hand_over(&node).await });
    // As the coordinator does: the first question finds that the store does not have the length yet.
    let mut asked = 0;
    while !ending.is_finished() {
        let heartbeat = reign.session.heartbeat().await;
        let asks = authority_of(&heartbeat);
        assert_eq!(asks.replaced, None);
        asked += u32::from(asks.hand_over);
        let ttl = if asked > 1 { 30_000 } else { 2000 };
        reign.session.answer(grant(heartbeat.nonce, ttl, None)).await;
    }
    let HandedOver::For(time) = within(ending).await.unwrap() else { panic!("no longer lease") };
    assert!(asked > 1 && time > Duration::from_secs(20), "{asked} questions, {time:?}");
    let gate = reign.gate.clone();
    let (machine, directory) = reign.agent.end().await;
    let left = open_for(&gate).await;
    assert!(left > Duration::from_secs(20), "the kernel has it: {left:?}");

    let behind = Arc::new(FakeGate::new(gate.kernel().clone()));
    let agent = authority.agent_behind(behind, "n1", machine, directory).await;
    let channel = agent.channel(&coordinator).await;
    let mut session = Session::open(&channel, hello(7)).await;
    let open_response::Message::Hello(_) = session.next().await.unwrap() else { panic!("no hello") };
    let first = session.heartbeat().await;
    let said = authority_of(&first);
    assert_eq!((said.hand_over, said.replaced), (false, None), "it relies on what was left");
    let lease = said.lease.expect("it reigns");
    assert!(lease.stands && lease.remaining_millis > 20_000, "the gate stands open: {lease:?}");
    assert!(agent.node.lease.standing().is_none(), "and it holds no lease of its own");
    session.answer(grant(first.nonce, 2000, Some(77))).await;
    session.until(|heartbeat| authority_of(heartbeat).replaced == Some(77)).await;
    let left = open_for(&gate).await;
    assert!(left <= Duration::from_secs(2), "the gate ends with its own lease: {left:?}");
}

#[tokio::test]
async fn a_process_that_is_told_to_end_before_it_has_a_lease_of_its_own_hands_on_what_it_found() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let mut reign = Reign::begin(&authority, &coordinator).await;
    short_leases(&mut reign).await;
    let mut kept = reign.agent.node.ledger().watch();
    let of_two_seconds = |ledger: &Arc<regent_agent::ledger::Ledger>| {
        ledger.membership.as_ref().is_some_and(|membership| membership.timing().ttl == Duration::from_secs(2))
    };
    within(kept.wait_for(of_two_seconds)).await.unwrap();
    let gate = reign.gate.clone();
    let (machine, directory) = reign.agent.end().await;
    let behind = Arc::new(FakeGate::new(gate.kernel().clone()));
    let agent = authority.agent_behind(behind, "n1", machine, directory).await;
    let channel = agent.channel(&coordinator).await;
    let mut session = Session::open(&channel, hello(7)).await;
    let open_response::Message::Hello(_) = session.next().await.unwrap() else { panic!("no hello") };
    assert!(authority_of(&session.heartbeat().await).lease.is_some_and(|lease| lease.stands));
    let node = agent.node.clone();
    let ending = tokio::spawn(async move { hand_over(&node).await });
    while !ending.is_finished() {
        let heartbeat = session.heartbeat().await;
        assert_eq!(authority_of(&heartbeat).replaced, None, "it is the one that is being replaced");
        session.answer(grant(heartbeat.nonce, 30_000, Some(77))).await;
    }
    let HandedOver::For(time) = within(ending).await.unwrap() else { panic!("no longer lease") };
    assert!(time > Duration::from_secs(20), "{time:?}");
}

#[tokio::test]
async fn without_an_answer_the_agent_ends_all_the_same_and_shortens_nothing() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let mut reign = Reign::begin(&authority, &coordinator).await;
    reign.read().await;
    let (end, before) = (reign.end(), reign.gate.state().await.unwrap());
    let started = tokio::time::Instant::now();
    let outcome = within(hand_over(&reign.agent.node)).await;
    assert_eq!(outcome, HandedOver::NotGranted);
    assert!(started.elapsed() < regent_agent::hand_over::WITHIN * 2);
    assert_eq!(reign.end(), end);
    let gate = reign.gate.clone();
    reign.agent.end().await;
    assert_eq!(gate.state().await.unwrap(), before, "what was open stays open until its end");
}

#[tokio::test]
async fn a_fence_that_comes_meanwhile_ends_the_wait() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let reign = Reign::begin(&authority, &coordinator).await;
    let node = reign.agent.node.clone();
    let ending = tokio::spawn(async move { hand_over(&node).await });
    let channel = reign.agent.channel(&coordinator).await;
    let fence = support::session::request("db1", 2, 2, "fence", wire::action::Action::Fence(wire::Fence {}));
    support::session::execute(&channel, fence).await.unwrap();
    let HandedOver::Nothing(_) = within(ending).await.unwrap() else { panic!("the lease is over") };
    assert_eq!(open_for(&reign.gate).await, Duration::ZERO);
}

#[tokio::test]
async fn who_holds_no_lease_of_the_coordinator_asks_for_nothing() {
    let authority = Authority::new();
    let agent = authority.agent("n1").await;
    let HandedOver::Nothing(why) = hand_over(&agent.node).await else { panic!("there is no gate") };
    assert!(why.contains("no gate"), "{why}");
    let gate = FakeGate::new(regent_agent::gate::fake::FakeKernel::new(Arc::new(SystemClock)));
    let (machine, directory) = (support::Machine::new(), tempfile::tempdir().unwrap());
    let spare = authority.agent_behind(Arc::new(gate), "n2", machine, directory).await;
    let HandedOver::Nothing(why) = hand_over(&spare.node).await else { panic!("a spare") };
    assert!(why.contains("holds none"), "{why}");
}
