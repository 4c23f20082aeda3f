//! The three tests that every kind of operation has to pass: each step run twice, failure at each step, crash at each step.
//!
//! They run the real executor over the memory store and a small [`world`] of agents.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use regent_common::{
    clock::ManualClock,
    error::Reason,
    ids::{ClusterId, ClusterName, Epoch, MemberName, NodeName, OperationId, OperationToken},
    lease::Electorate,
    topology::Progress,
};
use serde_json::json;
use tokio::sync::watch;
use world::{Found, Node, World, changes};

use super::{
    KINDS, Kind,
    executor::{self, NewOperation, Runner},
    log::{Failure, Outcome},
};
use crate::{
    audit::AuditLog,
    authority::Authorities,
    cluster::{ClusterHandle, brake::Limits},
    environment::Environment,
    events::EventLog,
    model::{
        cluster::{ClusterRecord, MemberRecord, MemberState, Phase, Policy},
        reign::Reign,
    },
    secrets::Secrets,
    store::{Store, Transaction, memory::MemoryStore},
};

mod pair;
mod tls;
mod world;

/// A cluster, its world, and an operation of one kind about to begin.
struct Bench {
    environment: Environment,
    cluster: Arc<ClusterHandle>,
    world: Arc<World>,
    kind: &'static dyn Kind,
    parameters: serde_json::Value,
}

fn node(n: u32) -> NodeName {
    format!("n{n}").parse().unwrap()
}

fn member(n: u32) -> MemberName {
    format!("db{n}").parse().unwrap()
}

fn record(creating: bool) -> ClusterRecord {
    let state = if creating { MemberState::Creating } else { MemberState::Ready };
    let endpoint = |n: u32| (!creating).then(|| regent_common::topology::Endpoint { host: format!("n{n}"), port: 1 });
    ClusterRecord {
        id: ClusterId::from_parts(1, 1),
        name: ClusterName::new("db").unwrap(),
        engine: "fake".to_owned(),
        version: "1".to_owned(),
        mode: "primary-replica".to_owned(),
        tls: false,
        epoch: Epoch(u64::from(!creating)),
        token: OperationToken(0),
        primary: (!creating).then(|| member(1)),
        candidate: None,
        established: !creating,
        reign: (!creating).then(|| Reign::new(Epoch(1), member(1), [member(2), member(3)].into(), false)),
        base: None,
        longest_ttl_millis: 0,
        hand_over_millis: 0,
        may_be_writable: BTreeSet::new(),
        reigned: BTreeMap::new(),
        members: (1..=3)
            .map(|n| {
                (member(n), MemberRecord { state: state.clone(), endpoint: endpoint(n), ..MemberRecord::new(node(n)) })
            })
            .collect(),
        next_number: 4,
        phase: if creating { Phase::Creating } else { Phase::Active },
        labels: BTreeMap::new(),
        protected: false,
        settings: BTreeMap::new(),
        port: 0,
        connection: regent_common::topology::ConnectionFormat::default(),
        secrets: BTreeMap::new(),
        policy: Policy::default(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
        created_by: "test".to_owned(),
        ready_at: None,
        keep_data_on_delete: false,
        operation: None,
        divergences: Vec::new(),
        allow_list: Default::default(),
        access_rules: String::new(),
        adopting: false,
        survivor: None,
    }
}

/// A kind of operation, and what it runs on.
#[derive(Clone, Copy)]
struct Play {
    kind: &'static dyn Kind,
    scene: Scene,
}

/// What an operation runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// A primary with two replicas.
    Trio,
    /// A pair, one side of which is down where that is what the operation is for.
    Pair,
    /// A pair, both sides of which are down.
    Down,
}

/// Every kind on a primary with its replicas, and those that a pair knows on a pair.
fn plays() -> Vec<Play> {
    let all = KINDS.iter().filter(|kind| !kind.is_of_pairs_only()).map(|kind| Play::of(*kind));
    all.chain(pair::plays()).collect()
}

impl Play {
    fn of(kind: &'static dyn Kind) -> Self {
        Self { kind, scene: Scene::Trio }
    }

    fn name(self) -> String {
        format!("{} of {:?}", self.kind.name(), self.scene)
    }

    async fn bench(self) -> Bench {
        match self.scene {
            Scene::Trio => bench(self.kind).await,
            Scene::Pair | Scene::Down => pair::bench(self.kind, self.scene).await,
        }
    }
}

async fn bench(kind: &'static dyn Kind) -> Bench {
    let adopting = kind.name() == "adopt_cluster";
    let creating = adopting || kind.name() == "create_cluster";
    let world = Arc::new(World::default());
    for n in 1..=4 {
        let mut state = Node { epoch: u64::from(!creating), ..Node::default() };
        if !creating && n <= 3 {
            state.member = Some(member(n).to_string());
            (state.has_data, state.running, state.position) = (true, true, 100);
            state.writable = n == 1;
            state.writable_epoch = (n == 1).then_some(1);
            state.upstream = (n > 1).then(|| member(1).to_string());
        }
        state.found = (adopting && n <= 3).then_some(Found { primary: n == 1, adopted: false });
        world.nodes.lock().unwrap().insert(node(n), state);
    }
    let parameters = match kind.name() {
        "adopt_cluster" => {
            let instance = |n| (member(n), json!({ "port": 5000 + n, "data_directory": format!("/data/{}", node(n)) }));
            json!({ "instances": (1..=3).map(instance).collect::<BTreeMap<_, _>>() })
        }
        "add_member" => json!({ "node": node(4) }),
        "remove_member" => json!({ "member": member(3), "keep_data": false }),
        "set_allow_list" => json!({ "change": "set", "ranges": ["192.0.2.0/24"], "open_to_all": false }),
        "configure" => json!({ "member": member(2) }),
        "delete_cluster" => json!({ "keep_data": false }),
        "resync" => json!({ "members": [member(2), member(3)], "parallel": 1, "max_bytes_per_second": 0 }),
        "rejoin" => {
            let mut nodes = world.nodes.lock().unwrap();
            let returning = nodes.get_mut(&node(3)).unwrap();
            (returning.running, returning.diverged, returning.upstream) = (false, 5, None);
            json!({ "member": member(3) })
        }
        "failover" => {
            let mut nodes = world.nodes.lock().unwrap();
            let dead = nodes.get_mut(&node(1)).unwrap();
            dead.running = false;
            json!({ "known": {} })
        }
        "promote" => {
            json!({ "cause": "planned", "successor": member(3), "member": member(3), "drain_within_millis": 1000 })
        }
        _ => json!({}),
    };
    assemble(kind, record(creating), world, parameters).await
}

/// The operation about to begin on this cluster.
async fn assemble(
    kind: &'static dyn Kind,
    record: ClusterRecord,
    world: Arc<World>,
    parameters: serde_json::Value,
) -> Bench {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let clock = Arc::new(ManualClock::default());
    let environment = Environment {
        clock: clock.clone(),
        started_at: Duration::ZERO,
        store: Arc::clone(&store),
        agents: world.clone(),
        secrets: Arc::new(Secrets::ephemeral()),
        audit: AuditLog::new(Arc::clone(&store), clock.clone()),
        events: EventLog::new(Arc::clone(&store), clock.clone()),
        addresses: Arc::new(|node| Some(format!("{node}:1"))),
        authorities: Arc::new(Authorities::new(clock)),
        default_profile: regent_common::lease::Profile::default(),
        limits: Limits::default(),
        brake: Arc::default(),
        own_machine: Default::default(),
    };
    let key = crate::store::keys::cluster(&record.name);
    let version = store.commit(Transaction::default().put_json(key, &record)).await.unwrap();
    let cluster = Arc::new(ClusterHandle::new(store, record, version.0));
    assert!(world.cluster.set(Arc::clone(&cluster)).is_ok(), "set once");
    Bench { environment, cluster, world, kind, parameters }
}

impl Bench {
    async fn begin(&self) -> crate::model::operation::OperationRecord {
        let new = NewOperation {
            id: OperationId::generate(),
            kind: self.kind,
            parameters: self.parameters.clone(),
            created_by: "test".to_owned(),
            reason: "test".to_owned(),
        };
        executor::create(&self.environment, &self.cluster, new, Transaction::default()).await.unwrap()
    }

    async fn run(&self, operation: &crate::model::operation::OperationRecord, resumed: bool) -> Outcome {
        let (_interrupt, interrupted) = watch::channel(None);
        let (progress, _) = watch::channel(Progress::default());
        let run = executor::run_to_end(&self.environment, &self.cluster, operation, resumed, interrupted, progress);
        tokio::time::timeout(Duration::from_secs(20), run).await.expect("the operation ends").unwrap()
    }

    fn executed_twice(&self) -> Vec<(String, String)> {
        let nodes = self.world.nodes.lock().unwrap();
        nodes.values().flat_map(|node| &node.executions).filter(|(_, n)| **n > 1).map(|(key, _)| key.clone()).collect()
    }

    /// What must hold however an operation ended.
    fn check(&self, outcome: Outcome, place: &str) {
        let nodes = self.world.nodes.lock().unwrap();
        let writable: Vec<_> = nodes.iter().filter(|(_, node)| node.writable).map(|(name, _)| name.clone()).collect();
        assert!(writable.len() <= 1, "{place}: {writable:?} are writable");
        let Some(record) = self.cluster.record() else {
            assert!(nodes.values().all(|node| node.member.is_none() && !node.has_data), "{place}: {nodes:?}");
            let given_back = |node: &Node| node.found.is_none_or(|found| !found.adopted);
            assert!(nodes.values().all(given_back), "{place}: {nodes:?}");
            return;
        };
        if record.is_pair() {
            assert_eq!(record.operation, None, "{place}");
            return pair::check(&record, &nodes, outcome, place);
        }
        if self.kind.name() == "adopt_cluster" {
            assert_eq!(outcome, Outcome::Succeeded, "{place}: what is not adopted is given back");
            assert!(!record.adopting, "{place}");
            for (n, stored) in (1..).zip(record.members.values()) {
                let endpoint = stored.endpoint.as_ref().expect("it was assigned");
                assert_eq!(u32::from(endpoint.port), 5000 + n, "{place}");
                assert!(nodes[&stored.node].found.is_some_and(|found| found.adopted), "{place}");
            }
        }
        assert_eq!(record.operation, None, "{place}");
        if outcome == Outcome::Succeeded {
            assert!(
                record.members.values().all(|m| m.state == MemberState::Ready)
                    || ["failover", "promote"].contains(&self.kind.name()),
                "{place}"
            );
            let primary = record.primary.as_ref().unwrap_or_else(|| panic!("{place}: no primary"));
            assert_eq!(writable, [record.members[primary].node.clone()], "{place}");
        }
        if self.kind.name() == "remove_member" {
            let (gone, node) = (!record.members.contains_key(&member(3)), &nodes[&node(3)]);
            assert!(!gone || (node.member.is_none() && !node.has_data), "{place}: {node:?}");
            assert!(gone || !record.promotable().contains(&member(3)), "{place}: {record:?}");
            assert!(gone || outcome != Outcome::Succeeded, "{place}");
        }
        assert!(record.members.values().all(|m| m.state != MemberState::Resyncing), "{place}");
    }
}

/// How many calls a whole run makes.
async fn calls_of(play: Play) -> usize {
    let bench = play.bench().await;
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded, "{}", play.name());
    bench.check(Outcome::Succeeded, &play.name());
    assert_eq!(bench.executed_twice(), [], "{}", play.name());
    *bench.world.calls.lock().unwrap()
}

#[tokio::test]
async fn every_kind_succeeds_without_trouble() {
    for play in plays() {
        assert!(calls_of(play).await > 0, "{} did nothing", play.name());
    }
}

#[tokio::test]
async fn every_step_can_be_run_twice() {
    for play in plays() {
        let bench = play.bench().await;
        let operation = bench.begin().await;
        let (progress, _) = watch::channel(Progress::default());
        let mut runner = Runner::load(&bench.environment, &bench.cluster, &operation, progress).await.unwrap();
        while let Some(step) = runner.next_step() {
            // The first run is forgotten, as it is when the coordinator dies before it can write.
            runner.run_step(step).await.unwrap();
            let again = runner.run_step(step).await;
            runner.step_ended(step, again).await.unwrap();
        }
        bench.check(Outcome::Succeeded, &play.name());
        assert_eq!(bench.executed_twice(), [], "{}", play.name());
    }
}

#[tokio::test]
async fn a_crash_at_every_call_is_resumed_and_nothing_is_executed_twice() {
    for play in plays() {
        for call in 1..=calls_of(play).await {
            for done in [false, true] {
                let place = format!("{} call {call} done {done}", play.name());
                let bench = play.bench().await;
                *bench.world.hang_call.lock().unwrap() = Some((call, done));
                let operation = bench.begin().await;
                let (_interrupt, interrupted) = watch::channel(None);
                let (progress, _) = watch::channel(Progress::default());
                let run =
                    executor::run_to_end(&bench.environment, &bench.cluster, &operation, false, interrupted, progress);
                // Dropping the run where it hangs is the crash; everything durable stays.
                let crashed = tokio::select! {
                    biased;
                    _ = run => false,
                    () = quiet(&bench.world) => true,
                };
                assert!(crashed, "{place}: the call was not reached");
                *bench.world.hang_call.lock().unwrap() = None;
                assert_eq!(bench.run(&operation, true).await, Outcome::Succeeded, "{place}");
                bench.check(Outcome::Succeeded, &place);
                assert_eq!(bench.executed_twice(), [], "{place}");
            }
        }
    }
}

#[tokio::test]
async fn a_failure_at_every_call_ends_in_a_correct_state() {
    for play in plays() {
        for call in 1..=calls_of(play).await {
            let place = format!("{} call {call}", play.name());
            let bench = play.bench().await;
            *bench.world.fail_call.lock().unwrap() = Some(call);
            let operation = bench.begin().await;
            let outcome = bench.run(&operation, false).await;
            bench.check(outcome, &place);
        }
    }
}

#[tokio::test]
async fn a_cancelled_operation_ends_in_a_correct_state() {
    for play in plays().into_iter().filter(|play| play.kind.cancellable()) {
        let bench = play.bench().await;
        *bench.world.hang_call.lock().unwrap() = Some((1, false));
        let operation = bench.begin().await;
        let (interrupt, interrupted) = watch::channel(None);
        let (progress, _) = watch::channel(Progress::default());
        let run = executor::run_to_end(&bench.environment, &bench.cluster, &operation, false, interrupted, progress);
        let cancel = async {
            quiet(&bench.world).await;
            let failure = Failure { reason: "CANCELLED".to_owned(), message: "cancelled".to_owned() };
            interrupt.send_replace(Some(failure));
        };
        let (outcome, ()) = tokio::join!(run, cancel);
        assert_eq!(outcome.unwrap(), Outcome::Cancelled, "{}", play.name());
        bench.check(Outcome::Cancelled, &play.name());
    }
}

/// A failover in which db2 and db3 stand at these places, db1 had come to 100, and the policy allows to lose 10.
async fn failover_with_lag(second: u64, third: u64) -> Bench {
    let mut bench = bench(&super::kinds::failover::Failover).await;
    for (n, position) in [(2, second), (3, third)] {
        bench.world.nodes.lock().unwrap().get_mut(&node(n)).unwrap().position = position;
    }
    bench.parameters = json!({ "known": { "db1": changes(100) } });
    let change = |record: &mut ClusterRecord| {
        record.policy.max_lag_on_failover = 10;
        Ok(Transaction::default())
    };
    bench.cluster.change(change).await.unwrap();
    bench
}

#[tokio::test]
async fn a_failover_after_one_that_did_not_end_knows_what_would_be_lost() {
    let mut bench = failover_with_lag(50, 50).await;
    // Fence, two prepares, and the former primary's data cannot be read.
    *bench.world.fail_call.lock().unwrap() = Some(4);
    let first = bench.begin().await;
    assert_eq!(bench.run(&first, false).await, Outcome::Failed);
    // Meanwhile the coordinator was started again and has heard of nobody's position.
    bench.parameters = json!({ "known": {} });
    *bench.world.fail_call.lock().unwrap() = Some(*bench.world.calls.lock().unwrap() + 3);
    let second = bench.begin().await;
    assert_eq!(bench.run(&second, false).await, Outcome::Failed, "a copy that lacks 50 was promoted");
    let third = bench.begin().await;
    assert_eq!(bench.run(&third, false).await, Outcome::Succeeded);
    bench.check(Outcome::Succeeded, "third");
    let record = bench.cluster.record().unwrap();
    assert_eq!((&record.primary, record.reigned.len()), (&Some(member(1)), 0));
}

#[tokio::test]
async fn a_restart_in_place_is_one_of_the_last_primary_and_of_no_stale_replica() {
    let mut bench = failover_with_lag(50, 50).await;
    let change = |record: &mut ClusterRecord| {
        record.primary = Some(member(3));
        record.set_state(&member(1), MemberState::NeedsRejoin);
        record.set_state(&member(2), MemberState::NeedsRejoin);
        Ok(Transaction::default())
    };
    bench.cluster.change(change).await.unwrap();
    {
        let mut nodes = bench.world.nodes.lock().unwrap();
        let stale = nodes.get_mut(&node(1)).unwrap();
        (stale.position, stale.writable) = (7, false);
        nodes.get_mut(&node(3)).unwrap().position = 100;
    }
    bench.parameters = json!({ "known": {} });
    *bench.world.fail_call.lock().unwrap() = Some(2);
    let first = bench.begin().await;
    assert_eq!(bench.run(&first, false).await, Outcome::Failed);
    let second = bench.begin().await;
    assert_eq!(bench.run(&second, false).await, Outcome::Succeeded);
    assert_eq!(bench.cluster.record().unwrap().primary, Some(member(3)));
}

#[tokio::test]
async fn an_unknown_loss_counts_as_too_much() {
    let mut bench = failover_with_lag(50, 50).await;
    bench.parameters = json!({ "known": {} });
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded);
    assert_eq!(bench.cluster.record().unwrap().primary, Some(member(1)), "a copy that lacks 50 was promoted");
}

#[tokio::test]
async fn the_data_of_an_engine_that_forgets_is_not_the_last_word_on_what_it_had() {
    for (forgets, outcome) in [(false, Outcome::Succeeded), (true, Outcome::Failed)] {
        let bench = failover_with_lag(50, 50).await;
        {
            let mut nodes = bench.world.nodes.lock().unwrap();
            let primary = nodes.get_mut(&node(1)).unwrap();
            (primary.position, primary.forgets) = (70, forgets);
        }
        let operation = bench.begin().await;
        assert_eq!(bench.run(&operation, false).await, outcome, "it had 100, and 10 may be lost");
    }
}

/// What a coordinator that has just started decides by: what members heard of a primary that is gone for good.
async fn failover_by_hearsay(heard: [Option<(&str, u64)>; 2]) -> (Bench, Outcome) {
    let mut bench = failover_with_lag(95, 50).await;
    bench.parameters = json!({ "known": {} });
    {
        let mut nodes = bench.world.nodes.lock().unwrap();
        for (n, heard) in [2, 3].into_iter().zip(heard) {
            nodes.get_mut(&node(n)).unwrap().heard = heard.map(|(member, end)| (member.to_owned(), end));
        }
        nodes.get_mut(&node(1)).unwrap().has_data = false;
    }
    let operation = bench.begin().await;
    let outcome = bench.run(&operation, false).await;
    (bench, outcome)
}

#[tokio::test]
async fn what_members_heard_of_the_primary_bounds_the_loss() {
    let (bench, outcome) = failover_by_hearsay([Some(("db1", 98)), Some(("db1", 100))]).await;
    assert_eq!((outcome, bench.cluster.record().unwrap().primary.clone()), (Outcome::Succeeded, Some(member(2))));
    let (_, outcome) = failover_by_hearsay([Some(("db1", 98)), Some(("db1", 106))]).await;
    assert_eq!(outcome, Outcome::Failed, "a copy that lacks 11 was promoted where 10 are allowed");
    let (_, outcome) = failover_by_hearsay([Some(("db3", 95)), None]).await;
    assert_eq!(outcome, Outcome::Failed, "what another had written says nothing of the last primary");
}

#[tokio::test]
async fn what_was_heard_outside_the_electorate_bounds_nothing() {
    let mut bench = failover_with_lag(95, 95).await;
    bench.parameters = json!({ "known": {} });
    {
        let mut nodes = bench.world.nodes.lock().unwrap();
        nodes.get_mut(&node(3)).unwrap().heard = Some(("db1".to_owned(), 96));
        nodes.get_mut(&node(1)).unwrap().has_data = false;
    }
    let change = |record: &mut ClusterRecord| {
        record.reign.as_mut().expect("it reigns").electorates =
            vec![Electorate { version: 1, members: [member(2)].into() }];
        Ok(Transaction::default())
    };
    bench.cluster.change(change).await.unwrap();
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Failed);
}

/// A planned promotion whose drain was broken before the fence came: what was written since only the old primary has.
#[tokio::test]
async fn a_drain_that_was_broken_is_no_final_word() {
    let bench = bench(&super::kinds::promote::Promote).await;
    let operation = bench.begin().await;
    let (progress, _) = watch::channel(Progress::default());
    let mut runner = Runner::load(&bench.environment, &bench.cluster, &operation, progress).await.unwrap();
    while let Some(step) = runner.next_step().filter(|step| operation.steps[*step].name != "fence") {
        let done = runner.run_step(step).await;
        runner.step_ended(step, done).await.unwrap();
    }
    {
        let mut nodes = bench.world.nodes.lock().unwrap();
        let old = nodes.get_mut(&node(1)).unwrap();
        (old.drained, old.position) = (false, 105);
        for n in [2, 3] {
            nodes.get_mut(&node(n)).unwrap().heard = Some(("db1".to_owned(), 100));
        }
    }
    assert_eq!(bench.run(&operation, true).await, Outcome::Failed, "the one that was asked for is not the primary");
    assert_eq!(bench.cluster.record().unwrap().primary, Some(member(1)), "what it had acknowledged was given up");
}

#[tokio::test]
async fn a_coordinator_that_has_just_started_waits_for_the_most_advanced_replica() {
    let bench = failover_with_lag(100, 95).await;
    bench.world.unheard.lock().unwrap().insert(node(2));
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded);
    assert_eq!(bench.cluster.record().unwrap().primary, Some(member(2)));
}

#[tokio::test]
async fn a_replica_that_was_not_prepared_is_no_candidate_before_it_is_back() {
    let bench = failover_with_lag(100, 100).await;
    *bench.world.fail_call.lock().unwrap() = Some(3);
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded);
    assert_eq!(bench.cluster.record().unwrap().members[&member(3)].state, MemberState::NeedsRejoin);
}

#[tokio::test]
async fn a_replica_that_has_become_the_primary_is_not_resynced_from_itself() {
    let mut bench = bench(&super::kinds::resync::Resync).await;
    bench.parameters = json!({ "members": [member(2), member(1)], "parallel": 2, "max_bytes_per_second": 0 });
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Failed);
    bench.check(Outcome::Failed, "resync of the primary");
    assert_eq!(*bench.world.calls.lock().unwrap(), 0);
    assert!(bench.cluster.record().unwrap().members.values().all(|m| m.state == MemberState::Ready));
}

#[tokio::test]
async fn a_failover_never_waits_for_a_node_that_is_being_added() {
    let calls = calls_of(Play::of(&super::kinds::add_member::AddMember)).await;
    for call in 1..=calls {
        let bench = bench(&super::kinds::add_member::AddMember).await;
        *bench.world.hang_call.lock().unwrap() = Some((call, true));
        let operation = bench.begin().await;
        let (interrupt, interrupted) = watch::channel(None);
        let (progress, _) = watch::channel(Progress::default());
        let run = executor::run_to_end(&bench.environment, &bench.cluster, &operation, false, interrupted, progress);
        let preempt = async {
            quiet(&bench.world).await;
            let reason = Reason::StepSuperseded.as_str().to_owned();
            interrupt.send_replace(Some(Failure { reason, message: "a failover takes precedence".to_owned() }));
            *bench.world.calls.lock().unwrap()
        };
        let (outcome, before) = tokio::join!(run, preempt);
        assert_eq!(outcome.unwrap(), Outcome::Cancelled);
        assert_eq!(*bench.world.calls.lock().unwrap(), before, "the failover would have waited for another call");
        let record = bench.cluster.record().unwrap();
        match record.members.get(&member(4)) {
            Some(added) => assert!(added.state == MemberState::NeedsRejoin && added.endpoint.is_some(), "{added:?}"),
            None => assert_eq!(call, 1),
        }
    }
}

#[tokio::test]
async fn a_copy_is_erased_only_for_what_is_wrong_with_it_and_that_is_written_down() {
    // Configure, fence, examine.
    for (reason, outcome) in [(Reason::PortInUse, Outcome::Failed), (Reason::EngineFailed, Outcome::Succeeded)] {
        let bench = bench(&super::kinds::rejoin::Rejoin).await;
        *bench.world.fail_call.lock().unwrap() = Some(3);
        *bench.world.fail_reason.lock().unwrap() = Some(reason);
        let operation = bench.begin().await;
        assert_eq!(bench.run(&operation, false).await, outcome, "{reason:?}");
        let copied = bench.world.nodes.lock().unwrap()[&node(3)].copied;
        let reports = bench.cluster.record().unwrap().divergences.clone();
        assert_eq!((copied, reports.len()), (outcome == Outcome::Succeeded, usize::from(copied)), "{reason:?}");
    }
}

/// Returns when the run makes no call for a while: it hangs where it was made to.
async fn quiet(world: &World) {
    let mut seen = usize::MAX;
    let mut same = 0;
    while same < 200 {
        tokio::task::yield_now().await;
        let calls = *world.calls.lock().unwrap();
        same = if calls == seen && calls > 0 { same + 1 } else { 0 };
        seen = calls;
    }
}

#[tokio::test]
async fn a_primary_that_hangs_is_asked_to_fence_and_for_nothing_more() {
    let bench = failover_with_lag(100, 100).await;
    let change = |record: &mut ClusterRecord| {
        record.reign = Some(Reign::new(record.epoch, member(1), [member(2), member(3)].into(), true));
        Ok(Transaction::default())
    };
    bench.cluster.change(change).await.unwrap();
    // Its lease is over from the beginning, and its gate closed.
    bench.world.nodes.lock().unwrap().get_mut(&node(1)).unwrap().writable = false;
    bench.environment.authorities.register(&bench.cluster, false);
    bench.world.hung.lock().unwrap().insert(node(1));
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded);
    assert_eq!(bench.cluster.record().unwrap().primary, Some(member(2)));
    // Its fence, two prepares, promote, follow. Regression: it was asked to prepare as well, and waited for.
    assert_eq!(*bench.world.calls.lock().unwrap(), 5);
}

#[tokio::test]
async fn a_reign_that_wrote_is_the_base_also_when_it_is_fenced_a_second_time() {
    // db2 reigned at epoch 1 after db1, and nobody noted that its promotion had come through; both lack nothing of it but db3.
    let bench = failover_with_lag(100, 50).await;
    let change = |record: &mut ClusterRecord| {
        let base = Reign::new(Epoch(0), member(1), [member(2), member(3)].into(), true);
        record.base = Some(base);
        record.reign = Some(Reign::new(record.epoch, member(2), BTreeSet::new(), true));
        (record.primary, record.candidate) = (None, Some(member(2)));
        record.may_be_writable = [member(2)].into();
        record.policy.max_lag_on_failover = u64::MAX;
        Ok(Transaction::default())
    };
    bench.cluster.change(change).await.unwrap();
    {
        let mut nodes = bench.world.nodes.lock().unwrap();
        (nodes.get_mut(&node(1)).unwrap().writable, nodes.get_mut(&node(1)).unwrap().writable_epoch) = (false, None);
        let reigned = nodes.get_mut(&node(2)).unwrap();
        // It was fenced at epoch 2 already, and that answer was lost.
        (reigned.writable_epoch, reigned.epoch) = (Some(1), 2);
    }
    bench
        .cluster
        .change(|record| {
            record.epoch = Epoch(2);
            Ok(Transaction::default())
        })
        .await
        .unwrap();
    let operation = bench.begin().await;
    let outcome = bench.run(&operation, false).await;
    let record = bench.cluster.record().unwrap();
    assert_ne!(record.primary, Some(member(3)), "{outcome:?}: it lacks what db2 acknowledged");
}

#[tokio::test]
async fn a_candidate_that_failed_is_restarted_in_place_although_the_primary_before_it_hangs() {
    let bench = failover_with_lag(100, 50).await;
    let change = |record: &mut ClusterRecord| {
        // db2 was promoted alone, and its engine failed before that was stored.
        record.epoch = record.epoch.next();
        record.reign = Some(Reign::new(record.epoch, member(2), BTreeSet::new(), true));
        record.primary = None;
        record.may_be_writable = [member(1), member(2)].into();
        record.reigned = [(member(1), None), (member(2), None)].into();
        (1..=3).for_each(|n| record.set_state(&member(n), MemberState::NeedsRejoin));
        Ok(Transaction::default())
    };
    bench.cluster.change(change).await.unwrap();
    // The lease of db1 is over, and its disk answers nothing any more.
    bench.world.nodes.lock().unwrap().get_mut(&node(1)).unwrap().writable = false;
    bench.environment.authorities.register(&bench.cluster, false);
    bench.world.hung.lock().unwrap().insert(node(1));
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded, "nobody was promoted");
    assert_eq!(bench.cluster.record().unwrap().primary, Some(member(2)));
}
