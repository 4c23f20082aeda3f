//! A primary with a lease behind a simulated gate, over a real connection, whose coordinator is the test.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module of test binaries, each of which uses a part of it"
)]

use std::{sync::Arc, time::Duration};

use regent_agent::{
    gate::fake::{FakeGate, FakeKernel},
    ledger::Ledger,
};
use regent_common::clock::{Moment, SystemClock};
use regent_proto::agent::v1::{self as wire, HeartbeatAnswer, open_response};

use crate::support::{
    session::{Session, execute, hello, peer_of, request, spec_of},
    wire::{Agent, Authority, Holder},
    *,
};

/// A primary with a lease of a minute, behind a simulated gate; db2, which is not there, is its electorate.
pub struct Reign {
    pub agent: Agent,
    pub gate: FakeGate,
    pub session: Session,
    /// The answer that brought the lease.
    pub granted: HeartbeatAnswer,
    /// Counts the answers by which it is seen that everything before was read.
    marks: u32,
}

impl Reign {
    pub async fn begin(authority: &Authority, coordinator: &Holder) -> Self {
        Self::begin_for(60_000, authority, coordinator).await
    }

    /// The same with a lease of this length.
    pub async fn begin_for(ttl_millis: u32, authority: &Authority, coordinator: &Holder) -> Self {
        let gate = FakeGate::new(FakeKernel::new(Arc::new(SystemClock)));
        let (machine, directory) = (Machine::new(), tempfile::tempdir().unwrap());
        let agent = authority.agent_behind(Arc::new(gate.clone()), "n1", machine, directory).await;
        let channel = agent.channel(coordinator).await;
        let mut spec = spec_of(&[&agent]);
        spec.members.push(wire::Peer {
            member: "db2".to_owned(),
            node: "n2".to_owned(),
            // Nobody listens there.
            agent_address: "127.0.0.1:1".to_owned(),
            ..peer_of(0, &agent)
        });
        let assign = wire::action::Action::Assign(wire::Assign { spec: Some(spec), port: 0 });
        execute(&channel, request("db1", 1, 1, "assign", assign)).await.unwrap();
        let mut session = Session::open(&channel, hello(7)).await;
        let open_response::Message::Hello(_) = session.next().await.unwrap() else { panic!("no hello") };
        let initialize = request("db1", 1, 1, "initialize", wire::action::Action::Initialize(wire::Initialize {}));
        let initializing = tokio::spawn(async move { execute(&channel, initialize).await.map(|_| ()) });
        // A grant that comes before the step has begun the reign confers nothing; the next one does.
        let mut granted = HeartbeatAnswer::default();
        while !initializing.is_finished() {
            let nonce = session.heartbeat().await.nonce;
            let grant = Some(wire::Grant { ttl_millis, ..Self::grant() });
            granted = HeartbeatAnswer { nonce, grant, ..Self::times(ttl_millis) };
            session.answer(granted.clone()).await;
        }
        within(initializing).await.unwrap().unwrap();
        let acknowledged = session.until(|heartbeat| {
            let authority = heartbeat.member.as_ref().and_then(|member| member.authority.as_ref());
            authority.is_some_and(|authority| authority.electorate.is_some())
        });
        acknowledged.await;
        Self { agent, gate, session, granted, marks: 0 }
    }

    pub fn grant() -> wire::Grant {
        wire::Grant {
            cluster_id: cluster_id().to_string(),
            member: "db1".to_owned(),
            epoch: 1,
            ttl_millis: 60_000,
            electorate: Some(regent_proto::types::v1::Electorate { version: 1, members: vec!["db2".to_owned()] }),
            established: true,
            handed_over: None,
        }
    }

    pub fn times(ttl_millis: u32) -> HeartbeatAnswer {
        HeartbeatAnswer { nonce: 0, grant: None, stored_epoch: 1, heartbeat_millis: 50, ttl_millis }
    }

    pub fn end(&self) -> Moment {
        self.agent.node.lease.standing().expect("the lease stands").end.expect("it has an end")
    }

    /// The ledger without the times, which the marks change.
    pub fn ledger(&self) -> Ledger {
        let mut ledger = Ledger::clone(&self.agent.node.ledger().read());
        let membership = ledger.membership.as_mut().unwrap();
        (membership.heartbeat_millis, membership.ttl_millis, membership.longest_ttl_millis) = (None, None, None);
        ledger
    }

    /// Returns when everything that was sent before was read: answers are read in order, and this one, which is no grant,
    /// can be seen in the times.
    pub async fn read(&mut self) {
        self.marks += 1;
        let ttl = 61_000 + self.marks;
        let lease = self.agent.node.lease.clone();
        self.answered(Self::times(ttl), || lease.timing().ttl == Duration::from_millis(ttl.into())).await;
    }

    /// Gives this answer, to a heartbeat that was not answered yet, until it shows: one that was buffered for seconds is
    /// forgotten by the agent.
    pub async fn answered(&mut self, answer: HeartbeatAnswer, shows: impl Fn() -> bool) {
        within(async {
            while !shows() {
                let nonce = self.session.heartbeat().await.nonce;
                self.session.answer(HeartbeatAnswer { nonce, ..answer.clone() }).await;
            }
        })
        .await;
    }
}
