//! A person makes a member the primary (rule P9): real agents over TLS, an engine that does what a test says.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use std::sync::Arc;

use regent_agent::{
    force::{Answer, Force, Outcome, Words},
    lease::promises::Asker,
    ledger::{Header, Membership, StepOutcome},
    peer::PeerCalls,
    steps::{Action, Execution, StepError},
};
use regent_common::{
    ids::Epoch,
    lease::{Forced, LeaseReport, LeaseSource},
    topology::{ClusterSpec, Peer, Role},
    transport::TcpDialer,
};
use support::{
    wire::{Agent, Authority, INSTALLATION},
    *,
};

/// db1 on n1, a replica; and db2 on n2.
struct Pair {
    authority: Authority,
    first: Agent,
    second: Agent,
}

fn spec_of(agents: &[&Agent]) -> ClusterSpec {
    let peer_of = |(number, agent): (u32, &&Agent)| Peer { agent_address: agent.address.clone(), ..peer(number) };
    ClusterSpec { members: (1..).zip(agents).map(peer_of).collect(), ..spec() }
}

async fn carried_out(agent: &Agent, header: Header, action: Action) -> Result<StepOutcome, Arc<StepError>> {
    match agent.node.executor.execute(header, action).await {
        Ok(Execution::Answered(outcome)) => Ok(*outcome),
        Ok(Execution::Running(running)) => within(running.ended()).await,
        Err(error) => Err(Arc::new(error)),
    }
}

fn membership(agent: &Agent) -> Membership {
    agent.node.ledger().read().membership.clone().unwrap()
}

fn words() -> Words {
    Words { confirm: Some("db1".to_owned()), confirm_off: vec!["n2".to_owned()], dry_run: false }
}

fn reasons(answer: &Answer) -> Vec<&str> {
    answer.refusals.iter().map(|refused| refused.reason.as_str()).collect()
}

/// db2 asks db1 for its endorsement, as the primary of epoch 1.
fn asker() -> Asker {
    let ttl = std::time::Duration::from_secs(60);
    Asker {
        member: "db2".parse().unwrap(),
        boot_id: "boot".to_owned(),
        epoch: Epoch(1),
        ttl,
        lease: LeaseReport { epoch: Epoch(1), stands: true, source: None, remaining: ttl },
        position: None,
    }
}

// === impl Pair ===

impl Pair {
    async fn new() -> Self {
        let authority = Authority::new();
        let start =
            async |name| authority.agent_without_leases(name, Machine::new(), tempfile::tempdir().unwrap()).await;
        let (first, second) = (start("n1").await, start("n2").await);
        let assign = || Action::Assign { spec: spec_of(&[&first, &second]), port: 0 };
        carried_out(&first, header(1, 1, "assign", &assign()), assign()).await.unwrap();
        let of_second = Header { member: "db2".parse().unwrap(), ..header(1, 1, "assign", &assign()) };
        carried_out(&second, of_second, assign()).await.unwrap();
        let pair = Self { authority, first, second };
        pair.first.machine.set_running(Role::Replica);
        pair.second.machine.set_running(Role::Primary);
        pair
    }

    async fn force(&self, words: Words) -> Answer {
        force(&self.authority, &self.first, words).await
    }
}

async fn force(authority: &Authority, agent: &Agent, words: Words) -> Answer {
    let identity = authority.issue("node/n1").identity;
    let calls = PeerCalls::new(Arc::new(TcpDialer), identity.clone(), INSTALLATION.to_owned());
    let force = Force::new(agent.node.clone(), calls, Arc::new(TcpDialer), identity, Vec::new());
    within(Arc::new(force).run(words)).await
}

#[tokio::test]
async fn a_member_that_answers_is_not_off_and_nothing_is_changed() {
    let pair = Pair::new().await;
    let before = membership(&pair.first);
    let answer = pair.force(words()).await;
    assert_eq!((answer.outcome, reasons(&answer)), (Outcome::Refused, vec!["not_off"]), "{answer:?}");
    assert_eq!(answer.others.values().collect::<Vec<_>>(), ["answers and knows epoch 1"]);
    // It knows a higher epoch since: that is worse.
    let follow = || Action::Follow { upstream: peer(1) };
    let later = Header { member: "db2".parse().unwrap(), ..header(2, 2, "follow", &follow()) };
    carried_out(&pair.second, later, follow()).await.unwrap();
    assert_eq!(reasons(&pair.force(words()).await), ["higher_epoch"]);
    assert_eq!(membership(&pair.first), before);
    assert_eq!(pair.first.machine.count("promote"), 0);
}

#[tokio::test]
async fn who_is_silent_is_believed_to_be_off_and_the_member_goes_on_alone() {
    let Pair { authority, first, second } = Pair::new().await;
    second.end().await;
    let dry = force(&authority, &first, Words { dry_run: true, ..words() }).await;
    assert_eq!((dry.outcome, dry.epoch), (Outcome::WouldForce, Some(Epoch(1001))), "{dry:?}");
    assert_eq!((membership(&first).epoch, first.machine.count("promote")), (Epoch(1), 0), "it was only said");

    let done = force(&authority, &first, words()).await;
    assert_eq!((done.outcome, done.epoch), (Outcome::Forced, Some(Epoch(1001))), "{done:?}");
    let kept = membership(&first);
    assert_eq!((kept.epoch, kept.role, kept.writable_epoch), (Epoch(1001), Some(Role::Primary), Some(Epoch(1001))));
    assert!(kept.established && kept.electorate.is_some_and(|electorate| electorate.is_empty()));
    assert_eq!(kept.forced.unwrap().confirmed_off, ["db2".parse().unwrap()].into());
    let standing = first.node.lease.standing().unwrap();
    assert_eq!((standing.epoch, standing.source, standing.end), (Epoch(1001), LeaseSource::Alone, None));
    let told = first.node.observation().unwrap().authority;
    assert!(told.forced.is_some() && told.lease.is_some_and(|lease| lease.stands), "the coordinator will hear of it");
    assert_eq!(first.machine.count("promote"), 1);

    let again = force(&authority, &first, words()).await;
    assert_eq!((again.outcome, first.machine.count("promote")), (Outcome::AlreadyForced, 1), "{again:?}");
}

#[tokio::test]
async fn an_agent_that_dies_half_way_goes_on_at_the_same_epoch_when_it_is_said_again() {
    let Pair { authority, first, second } = Pair::new().await;
    second.end().await;
    first.machine.fail("promote", "not now");
    let failed = force(&authority, &first, words()).await;
    assert_eq!(failed.outcome, Outcome::Failed, "{failed:?}");
    assert!(failed.problem.contains("not now"), "{failed:?}");
    let kept = membership(&first);
    assert_eq!((kept.epoch, kept.forced.is_some()), (Epoch(1001), true), "the ledger comes first");
    let (machine, directory) = first.end().await;
    machine.mend("promote");
    let first = authority.agent_without_leases("n1", machine, directory).await;
    let done = force(&authority, &first, words()).await;
    assert_eq!((done.outcome, done.epoch), (Outcome::Forced, Some(Epoch(1001))), "{done:?}");
    assert_eq!(membership(&first).forced, kept.forced, "the first word stays");
}

#[tokio::test]
async fn a_promise_keeps_it_from_being_forced_and_is_not_broken_by_asking() {
    let Pair { authority, first, second } = Pair::new().await;
    second.end().await;
    let endorsed = || {
        let mut promises = first.node.lease.promises();
        promises.endorse(first.node.lease.clock().now(), asker(), membership(&first).epoch, true)
    };
    endorsed().unwrap();
    let refused = force(&authority, &first, words()).await;
    assert_eq!((refused.outcome, reasons(&refused)), (Outcome::Refused, vec!["promise_stands"]), "{refused:?}");
    // The promise may also be given while the others are asked: the step itself refuses then.
    let action =
        || Action::ForcePrimary { forced: Forced { at: first.node.wall(), confirmed_off: Default::default() } };
    let late = carried_out(&first, header(1001, 1, "force", &action()), action()).await.unwrap_err();
    assert!(matches!(&*late, StepError::PromiseStands { .. }), "{late:?}");
    assert_eq!((membership(&first).epoch, membership(&first).forced), (Epoch(1), None), "nothing was changed");
    endorsed().expect("the primary goes on living by it");
    assert_eq!(first.machine.count("promote"), 0);
}
