//! A driver for the tests of the agent's core: does what it is told at once, or waits where a test holds it.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module of test binaries, each of which uses a part of it"
)]

pub mod lease;
pub mod reign;
pub mod session;
pub mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use regent_agent::{
    engine::{
        Activation, CloneOptions, Cloned, Comparison, Context, Driver, DriverError, Factory, Flush, FoundInstance,
        Ground, SettingsCheck, StartAs, Stop, Work,
    },
    firewall::{Keeper, Means, fake::FakeMachine},
    lease::LeaseHandle,
    ledger::{Digest, Header, LedgerStore, RealDisk, StepKey, StepOutcome},
    member::{Member, Place},
    steps::{Action, Execution, Executor, Peers, StepError},
    supervisor::Backend,
};
use regent_common::{
    allow_list::AllowList,
    ids::{ClusterId, Epoch, MemberName, NodeName, OperationId, OperationToken, Revision},
    position::{IntervalSet, Position},
    topology::{
        ClusterSpec, Difference, Endpoint, EngineObservation, EngineOffer, EngineState, HeardPosition, Mode, Peer,
        Progress, Role, Ternary,
    },
};
use tokio::sync::watch;

/// What the test engine remembers; outlives drivers, as an engine outlives agents.
#[derive(Debug)]
pub struct Machine {
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    held: watch::Sender<BTreeSet<&'static str>>,
}

#[derive(Debug)]
struct Inner {
    calls: Vec<String>,
    data: bool,
    adopted: bool,
    open: bool,
    dirty: bool,
    state: EngineState,
    role: Option<Role>,
    position: u64,
    upstream_heard: Option<HeardPosition>,
    failing: BTreeMap<&'static str, String>,
}

/// An engine called "test" on one machine.
pub struct TestFactory(pub Arc<Machine>);

struct TestDriver {
    machine: Arc<Machine>,
    port: u16,
}

pub fn at(end: u64) -> Position {
    Position::new([("origin".to_owned(), IntervalSet::from(vec![(0, end)]))], end.to_string())
}

// === impl Machine ===

impl Machine {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                calls: Vec::new(),
                data: false,
                adopted: false,
                open: false,
                dirty: false,
                state: EngineState::Absent,
                role: None,
                position: 10,
                upstream_heard: None,
                failing: BTreeMap::new(),
            }),
            changes: watch::channel(0).0,
            held: watch::channel(BTreeSet::new()).0,
        })
    }

    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap())
    }

    /// Makes calls of this method wait until released.
    pub fn hold(&self, method: &'static str) {
        self.held.send_modify(|held| {
            held.insert(method);
        });
    }

    pub fn release(&self, method: &'static str) {
        self.held.send_modify(|held| {
            held.remove(method);
        });
    }

    /// Makes calls of this method fail.
    pub fn fail(&self, method: &'static str, detail: &str) {
        self.change(|inner| inner.failing.insert(method, detail.to_owned()));
    }

    pub fn mend(&self, method: &'static str) {
        self.change(|inner| inner.failing.remove(method));
    }

    pub fn set_dirty(&self, dirty: bool) {
        self.change(|inner| inner.dirty = dirty);
    }

    pub fn set_running(&self, role: Role) {
        self.change(|inner| {
            inner.data = true;
            inner.state = EngineState::Running;
            inner.role = Some(role);
        });
        self.changes.send_modify(|count| *count += 1);
    }

    /// What the stream told of its upstream.
    pub fn hear_upstream(&self, heard: HeardPosition) {
        self.change(|inner| inner.upstream_heard = Some(heard));
    }

    pub fn crash(&self) {
        self.change(|inner| {
            inner.state = EngineState::Crashed;
            inner.role = None;
        });
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn calls(&self) -> Vec<String> {
        self.change(|inner| inner.calls.clone())
    }

    pub fn count(&self, method: &str) -> usize {
        self.calls().iter().filter(|call| *call == method).count()
    }

    pub fn state(&self) -> EngineState {
        self.change(|inner| inner.state)
    }

    async fn enter(&self, method: &'static str) -> Result<(), DriverError> {
        self.change(|inner| inner.calls.push(method.to_owned()));
        let mut held = self.held.subscribe();
        held.wait_for(|held| !held.contains(method)).await.expect("the machine lives");
        match self.change(|inner| inner.failing.get(method).cloned()) {
            Some(detail) => Err(DriverError::Refused { doing: method.to_owned(), detail }),
            None => Ok(()),
        }
    }

    fn run_as(&self, role: Role) {
        self.set_running(role);
    }

    fn stop(&self) {
        self.change(|inner| {
            inner.state = if inner.data { EngineState::Stopped } else { EngineState::Absent };
            inner.role = None;
        });
        self.changes.send_modify(|count| *count += 1);
    }
}

// === impl TestFactory ===

#[async_trait]
impl Factory for TestFactory {
    fn name(&self) -> &'static str {
        "test"
    }

    fn offer(&self, section: Option<&toml::Table>) -> EngineOffer {
        EngineOffer {
            engine: "test".to_owned(),
            versions: vec!["1.0".to_owned()],
            modes: vec!["primary-replica".to_owned(), "multi-master".to_owned()],
            min_replicas: 0,
            default_replicas: 2,
            max_replicas: 5,
            can_rewind: true,
            forgets_on_crash: false,
            connection_with_tls: None,
            problem: section
                .and_then(|section| section.get("problem"))
                .and_then(|text| text.as_str())
                .unwrap_or_default()
                .to_owned(),
            connection: Default::default(),
        }
    }

    async fn check_settings(&self, _: &SettingsCheck<'_>) -> Result<(), DriverError> {
        Ok(())
    }

    async fn survey(&self, _: &Ground<'_>) -> Result<Vec<FoundInstance>, DriverError> {
        Ok(Vec::new())
    }

    fn open(&self, context: Context) -> Result<Arc<dyn Driver>, DriverError> {
        let port = if context.port == 0 { 7777 } else { context.port };
        Ok(Arc::new(TestDriver { machine: self.0.clone(), port }))
    }
}

// === impl TestDriver ===

#[async_trait]
impl Driver for TestDriver {
    fn endpoint(&self) -> Endpoint {
        Endpoint { host: "127.0.0.1".to_owned(), port: self.port }
    }
    fn version(&self) -> String {
        "1.0".to_owned()
    }
    fn process_changes(&self) -> watch::Receiver<u64> {
        self.machine.changes.subscribe()
    }
    async fn observe(&self) -> EngineObservation {
        // A hung probe ends with the process, as a real one does.
        if self.machine.state() == EngineState::Running {
            let mut held = self.machine.held.subscribe();
            held.wait_for(|held| !held.contains("observe")).await.expect("the machine lives");
        }
        let mut observation = self.machine.change(|inner| EngineObservation {
            state: inner.state,
            role: inner.role,
            storage_writable: Ternary::Yes,
            position: (inner.state == EngineState::Running).then(|| at(inner.position)),
            streaming: Ternary::Unknown,
            upstream: None,
            replay_lag_bytes: None,
            pid: None,
            version: "1.0".to_owned(),
            reason: String::new(),
            details: BTreeMap::new(),
            data_bytes: 0,
            stale: String::new(),
        });
        if observation.role == Some(Role::Active) {
            observation.set_open(self.machine.change(|inner| inner.open));
        }
        observation
    }
    fn upstream_heard(&self) -> Option<HeardPosition> {
        self.machine.change(|inner| inner.upstream_heard.clone())
    }
    fn is_dirty(&self) -> bool {
        self.machine.change(|inner| inner.dirty)
    }
    fn has_data(&self) -> bool {
        self.machine.change(|inner| inner.data)
    }
    async fn configure(&self, _spec: &ClusterSpec) -> Result<(), DriverError> {
        self.machine.enter("configure").await
    }
    async fn initialize(&self) -> Result<Position, DriverError> {
        self.machine.enter("initialize").await?;
        self.machine.run_as(Role::Primary);
        Ok(at(10))
    }
    async fn clone_from(&self, _: &Peer, _: CloneOptions, work: &Work) -> Result<Cloned, DriverError> {
        work.progress.send_replace(Progress { phase: "copying".to_owned(), bytes_done: 1, ..Progress::default() });
        tokio::select! {
            entered = self.machine.enter("clone") => entered?,
            () = work.cancel.cancelled() => return Err(DriverError::Cancelled { doing: "copying" }),
        }
        Ok(Cloned { bytes: 100, old_data_kept: true })
    }
    async fn swap(&self, _: &Peer, _: bool) -> Result<(), DriverError> {
        self.machine.enter("swap").await?;
        self.machine.run_as(Role::Replica);
        Ok(())
    }
    async fn discard_kept(&self) -> Result<(), DriverError> {
        self.machine.enter("discard_kept").await
    }
    async fn start(&self, how: StartAs) -> Result<(), DriverError> {
        self.machine.enter("start").await?;
        self.machine.run_as(if how == StartAs::Primary { Role::Primary } else { Role::Replica });
        Ok(())
    }
    async fn stop(&self, how: Stop) -> Result<(), DriverError> {
        self.machine.enter(if how == Stop::Kill { "kill" } else { "stop" }).await?;
        self.machine.stop();
        Ok(())
    }
    async fn cut(&self) -> Result<Position, DriverError> {
        self.machine.enter("cut").await?;
        Ok(at(12))
    }
    async fn drain(&self, _: &MemberName) -> Result<Position, DriverError> {
        self.machine.enter("drain").await?;
        Ok(at(11))
    }
    async fn undo_drain(&self) -> Result<(), DriverError> {
        self.machine.enter("undo_drain").await
    }
    async fn promote(&self) -> Result<Position, DriverError> {
        self.machine.enter("promote").await?;
        self.machine.run_as(Role::Primary);
        Ok(at(13))
    }
    async fn follow(&self, _: &Peer) -> Result<String, DriverError> {
        self.machine.enter("follow").await?;
        self.machine.run_as(Role::Replica);
        Ok(String::new())
    }
    async fn examine(&self) -> Result<Position, DriverError> {
        self.machine.enter("examine").await?;
        Ok(at(14))
    }
    async fn rewind(&self, _: &Peer, _: &Work) -> Result<String, DriverError> {
        self.machine.enter("rewind").await?;
        self.machine.run_as(Role::Replica);
        Ok("rewound".to_owned())
    }
    async fn checkpoint(&self, _: Flush) -> Result<(), DriverError> {
        self.machine.enter("checkpoint").await
    }
    async fn adopt(&self, _: &std::path::Path, upstream: Option<&Peer>) -> Result<Position, DriverError> {
        self.machine.enter("adopt").await?;
        self.machine.run_as(if upstream.is_some() { Role::Replica } else { Role::Primary });
        self.machine.change(|inner| inner.adopted = true);
        Ok(at(15))
    }
    async fn give_back(&self) -> Result<bool, DriverError> {
        self.machine.enter("give_back").await?;
        let adopted = self.machine.change(|inner| {
            inner.data &= !inner.adopted;
            std::mem::take(&mut inner.adopted)
        });
        Ok(adopted)
    }
    async fn activate(&self, how: Activation<'_>) -> Result<(), DriverError> {
        self.machine.enter("activate").await?;
        self.machine.change(|inner| inner.open = how.open);
        self.machine.run_as(Role::Active);
        Ok(())
    }
    async fn compare(&self, _: &Peer, _: Comparison, _: &Work) -> Result<Difference, DriverError> {
        self.machine.enter("compare").await?;
        let examples = vec!["key".to_owned()];
        Ok(Difference { compared: 3, only_here: 1, examples, ..Difference::default() })
    }
    async fn refill(&self, _: &Peer, _: bool) -> Result<(), DriverError> {
        self.machine.enter("refill").await?;
        self.machine.change(|inner| inner.open = false);
        self.machine.run_as(Role::Active);
        Ok(())
    }
    async fn release(&self, _: bool) -> Result<(), DriverError> {
        self.machine.enter("release").await?;
        self.machine.change(|inner| inner.data = false);
        self.machine.stop();
        Ok(())
    }
}

/// Peers that answer as a test says.
#[derive(Debug)]
pub struct SaidByTest(pub Mutex<Result<u64, String>>);

#[async_trait]
impl Peers for SaidByTest {
    async fn confirm_whole(&self, _: &Peer, _: ClusterId, _: OperationToken) -> Result<Position, String> {
        self.0.lock().unwrap().clone().map(at)
    }
}

/// An agent's core without its services: ledger, member, executor.
pub struct Bench {
    pub machine: Arc<Machine>,
    pub executor: Arc<Executor>,
    pub member: Arc<Member>,
    pub peers: Arc<SaidByTest>,
    pub lease: LeaseHandle,
    pub firewall: Arc<Keeper>,
    /// What the machine keeps of its allow-list when the agent ends.
    pub packets: Arc<FakeMachine>,
    pub directory: tempfile::TempDir,
}

pub fn place(directory: &std::path::Path) -> Place {
    Place {
        data_root: directory.join("engines"),
        run_directory: directory.join("run"),
        advertise_host: "127.0.0.1".to_owned(),
        ports: None,
        sections: BTreeMap::new(),
        agent_program: "/proc/self/exe".into(),
        supervisor: Backend::Process,
    }
}

pub fn member_of(machine: &Arc<Machine>, directory: &std::path::Path) -> Arc<Member> {
    let factory: &'static dyn Factory = Box::leak(Box::new(TestFactory(machine.clone())));
    Arc::new(Member::new(Box::leak(Box::new([factory])), place(directory)))
}

impl Bench {
    pub fn new() -> Self {
        Self::on(Machine::new(), FakeMachine::new(), tempfile::tempdir().unwrap())
    }

    /// The agent of a machine and a state directory, as it is after a start.
    pub fn on(machine: Arc<Machine>, packets: Arc<FakeMachine>, directory: tempfile::TempDir) -> Self {
        let data = regent_agent::member::data_in(&directory.path().join("engines"));
        let ledger = LedgerStore::open(Arc::new(RealDisk), directory.path().to_owned(), data.as_deref()).unwrap();
        let member = member_of(&machine, directory.path());
        if let Some(membership) = &ledger.read().membership {
            member.reopen(membership).unwrap();
        }
        let peers = Arc::new(SaidByTest(Mutex::new(Err("nobody was asked".to_owned()))));
        let lease = lease::granted(&ledger);
        let firewall = Arc::new(Keeper::new(Means::fake(packets.clone()), &[], ledger.clone()));
        let (members, keeper) = (member.clone(), firewall.clone());
        let executor = Executor::new(ledger, members, peers.clone(), lease.clone(), keeper, lease::BOOT);
        Self { machine, executor: Arc::new(executor), member, peers, lease, firewall, packets, directory }
    }

    /// The agent's process is killed and started again.
    pub fn restart(self) -> Self {
        for running in self.executor.table().all() {
            running.kill();
        }
        Self::on(self.machine, self.packets, self.directory)
    }

    pub async fn run(&self, header: Header, action: Action) -> Result<StepOutcome, Arc<StepError>> {
        match self.executor.execute(header, action).await {
            Ok(Execution::Answered(outcome)) => Ok(*outcome),
            Ok(Execution::Running(running)) => within(running.ended()).await,
            Err(error) => Err(Arc::new(error)),
        }
    }

    /// Begins a step that runs on.
    pub async fn begin(&self, header: Header, action: Action) -> Arc<regent_agent::steps::running::Running> {
        match self.executor.execute(header, action).await {
            Ok(Execution::Running(running)) => running,
            other => panic!("it does not run: {other:?}"),
        }
    }

    pub async fn assigned() -> Self {
        let bench = Self::new();
        bench.run(header(1, 1, "assign", &assign()), assign()).await.unwrap();
        bench
    }

    pub fn membership(&self) -> regent_agent::ledger::Membership {
        self.executor.ledger().read().membership.clone().unwrap()
    }

    pub fn executions(&self, step: &str) -> u32 {
        let key = StepKey { operation: operation(), step: step.to_owned() };
        self.executor.ledger().read().step(&key).map_or(0, |record| record.executions)
    }
}

pub fn operation() -> OperationId {
    OperationId::from_parts(1, 1)
}

pub fn cluster_id() -> ClusterId {
    ClusterId::from_parts(1, 1)
}

pub fn peer(number: u32) -> Peer {
    Peer {
        member: format!("db{number}").parse().unwrap(),
        node: NodeName::new(format!("n{number}")).unwrap(),
        engine: Endpoint { host: "127.0.0.1".to_owned(), port: 5000 + u16::try_from(number).unwrap() },
        agent_address: format!("127.0.0.1:{}", 6000 + number),
    }
}

pub fn spec() -> ClusterSpec {
    ClusterSpec {
        cluster: "db".parse().unwrap(),
        engine: "test".to_owned(),
        version: String::new(),
        members: vec![peer(1), peer(2)],
        settings: BTreeMap::new(),
        secrets: [("replication".to_owned(), "hush".into())].into(),
        allow_list: AllowList::default(),
        access_rules: String::new(),
        mode: Mode::default(),
        tls: false,
    }
}

pub fn assign() -> Action {
    Action::Assign { spec: spec(), port: 0 }
}

/// A header for member db1; the content stands for the digest.
pub fn header(epoch: u64, token: u64, step: &str, action: &Action) -> Header {
    Header {
        cluster_id: cluster_id(),
        member: "db1".parse().unwrap(),
        epoch: Epoch(epoch),
        token: OperationToken(token),
        key: StepKey { operation: operation(), step: step.to_owned() },
        digest: Digest::of(format!("{action:?}").as_bytes()),
        revision: Revision(0),
    }
}

/// Waits for something with the deadline of a test.
pub async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it took too long")
}

/// Waits until the driver has been called that often.
pub async fn called(machine: &Machine, method: &str, times: usize) {
    within(async {
        while machine.count(method) < times {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
