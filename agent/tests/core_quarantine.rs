//! A node that the coordinator says is not to be believed (rule T5): over a real loopback connection with mutual TLS.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use regent_common::{
    error::{Reason, reason_of},
    ids::{Epoch, OperationToken},
    topology::Role,
};
use regent_proto::{
    agent::v1::{
        self as wire, AgentHello, ConfirmWholeRequest, EndorseRequest, OpenRequest, Quarantine, open_request,
        open_response, peer_service_client::PeerServiceClient,
    },
    types::v1::EngineState,
};
use support::{
    session::{Session, execute, hello, peer_of, request, spec_of},
    wire::{Agent, Authority, Holder},
    *,
};
use tonic::transport::Channel;

async fn greeting(session: &mut Session) -> AgentHello {
    match session.next().await.unwrap() {
        open_response::Message::Hello(greeting) => greeting,
        open_response::Message::Heartbeat(_) => panic!("a heartbeat before the hello"),
    }
}

async fn tell(session: &Session, epoch: u64, token: u64, reason: &str) {
    let (cluster_id, member) = (cluster_id().to_string(), "db2".to_owned());
    let word = Quarantine { cluster_id, member, epoch, token, reason: reason.to_owned() };
    let message = Some(open_request::Message::Quarantine(word));
    session.out.send(OpenRequest { message }).await.unwrap();
}

/// db2 on n2, which has accepted epoch 3 and token 4 and whose engine runs; db1 on n1 may ask it.
async fn replica(authority: &Authority, coordinator: &Holder) -> (Agent, Channel, wire::ClusterSpec) {
    let (first, second) = (authority.agent("n1").await, authority.agent("n2").await);
    let (channel, spec) = (second.channel(coordinator).await, spec_of(&[&first, &second]));
    let assign = wire::action::Action::Assign(wire::Assign { spec: Some(spec.clone()), port: 0 });
    execute(&channel, request("db2", 3, 4, "assign", assign)).await.unwrap();
    second.machine.set_running(Role::Replica);
    (second, channel, spec)
}

fn question(epoch: u64) -> EndorseRequest {
    EndorseRequest {
        cluster_id: cluster_id().to_string(),
        member: "db1".to_owned(),
        epoch,
        nonce: 5,
        boot_id: "another".to_owned(),
        ttl_millis: 1500,
        lease: Some(regent_proto::types::v1::LeaseReport { epoch, ..Default::default() }),
        position: None,
    }
}

#[tokio::test]
async fn a_node_that_is_told_so_stops_its_engine_and_promises_and_does_nothing_until_it_is_assigned_anew() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let (agent, channel, spec) = replica(&authority, &coordinator).await;
    let mut session = Session::open(&channel, hello(7)).await;
    let greeted = greeting(&mut session).await;
    let mark = greeted.ledger.expect("a member shows its ledger");
    assert_eq!((mark.member.as_str(), mark.epoch, mark.token, mark.revision), ("db2", 3, 4, 3), "as it was before");
    assert_eq!(greeted.incarnation.len(), 32);
    let mut peer = PeerServiceClient::new(agent.channel(&authority.issue("node/n1")).await);
    assert!(within(peer.endorse(question(3))).await.unwrap().into_inner().endorsed);

    tell(&session, 3, 4, "it was put back").await;
    let told = session.until(|heartbeat| !heartbeat.quarantine.is_empty()).await;
    assert_eq!(told.quarantine, "it was put back");
    assert!(told.member.as_ref().is_some_and(|member| member.dirty), "its data is not to be started");
    let stopped = |told: &wire::Heartbeat| {
        told.member.as_ref().is_some_and(|member| member.engine_state() == EngineState::Stopped)
    };
    // One heartbeat may tell of both.
    if !stopped(&told) {
        session.until(stopped).await;
    }
    assert_eq!(agent.machine.count("kill"), 1);

    let refused = within(peer.endorse(question(3))).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::LedgerLost));
    let whole = ConfirmWholeRequest { cluster_id: cluster_id().to_string(), token: 4, nonce: 1 };
    assert_eq!(reason_of(&within(peer.confirm_whole(whole)).await.unwrap_err()), Some(Reason::LedgerLost));
    let fence = || wire::action::Action::Fence(wire::Fence {});
    let refused = execute(&channel, request("db2", 4, 5, "fence", fence())).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::LedgerLost));

    // It outlives the process, and an engine that somebody starts is stopped again.
    drop((session, channel, peer));
    let (machine, directory) = agent.end().await;
    let incarnation = greeted.incarnation;
    machine.set_running(Role::Replica);
    let agent = authority.agent_on("n2", machine, directory).await;
    let channel = agent.channel(&coordinator).await;
    let mut session = Session::open(&channel, hello(8)).await;
    assert_ne!(greeting(&mut session).await.incarnation, incarnation, "every process has a name of its own");
    assert_eq!(session.heartbeat().await.quarantine, "it was put back");
    within(async {
        while agent.machine.count("kill") < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;

    // A step makes it a member anew: with the numbers of now, and data that only a copy replaces.
    let assign = wire::action::Action::Assign(wire::Assign { spec: Some(spec), port: 0 });
    execute(&channel, request("db2", 6, 9, "assign-again", assign)).await.unwrap();
    session.until(|heartbeat| heartbeat.quarantine.is_empty()).await;
    let membership = agent.node.ledger().read().membership.clone().unwrap();
    assert_eq!((membership.epoch, membership.token), (Epoch(6), OperationToken(9)), "never lower, never zero");
    assert!(membership.distrusted && membership.role.is_none());
    let follow = wire::action::Action::Follow(wire::Follow { upstream: Some(peer_of(0, &agent)) });
    let refused = execute(&channel, request("db2", 6, 9, "follow", follow)).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::DataDirty));
}

#[tokio::test]
async fn a_word_about_another_ledger_is_not_taken() {
    let authority = Authority::new();
    let coordinator = authority.issue("coordinator/c1");
    let (agent, channel, _) = replica(&authority, &coordinator).await;
    let mut session = Session::open(&channel, hello(7)).await;
    greeting(&mut session).await;
    for (epoch, token) in [(3, 3), (2, 4), (3, 5), (4, 4)] {
        tell(&session, epoch, token, "late").await;
    }
    // What comes after them is read after them.
    tell(&session, 3, 4, "this one").await;
    let told = session.until(|heartbeat| !heartbeat.quarantine.is_empty()).await;
    assert_eq!(told.quarantine, "this one");
    assert_eq!(agent.node.ledger().read().membership.as_ref().unwrap().epoch, Epoch(3));
}
