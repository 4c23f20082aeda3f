//! The engines of the simulation: the fake engine, whose work takes time, and which an agent that stands still cannot reach.
//!
//! What an agent orders is done at one moment between its call and its answer: an agent that dies may have left it done or
//! undone.
//!
//! What is removed of a copy is written down together with when its step began: a step asks for the word of the copy that is to
//! survive after that, so that a copy which was lost earlier cannot have given it.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use regent_agent::engine::{
    CloneOptions, Cloned, Context, Driver, DriverError, Factory, Flush, FoundInstance, Ground, SettingsCheck, StartAs,
    Stop, Work, fake::FakeWorld,
};
use regent_common::{
    ids::MemberName,
    position::Position,
    topology::{ClusterSpec, Endpoint, EngineObservation, EngineOffer, EngineState, HeardPosition, Peer},
};
use tokio::sync::watch;

use super::{chance::Chance, machine::Stalls, trace::traced};

/// Makes the drivers of the simulation that runs on this thread.
#[derive(Debug)]
pub(crate) struct SimulatedEngine;

/// All engines of one simulation.
#[derive(Clone)]
struct Engines {
    world: FakeWorld,
    stalls: BTreeMap<String, Stalls>,
    seed: u64,
    /// What was removed since somebody asked.
    removed: Arc<Mutex<Vec<Removed>>>,
    /// How much longer work takes on which host.
    slow: Arc<Mutex<BTreeMap<String, Duration>>>,
}

/// Rows that a step has removed from a copy.
#[derive(Debug)]
pub(crate) struct Removed {
    /// Whose copy.
    pub(crate) host: String,
    pub(crate) rows: Vec<u64>,
    /// When the step began.
    pub(crate) begun: Duration,
}

thread_local! {
    static ENGINES: RefCell<Option<Engines>> = const { RefCell::new(None) };
}

/// How long a hung engine is waited for.
const HUNG: Duration = Duration::from_secs(5);

/// A driver whose work takes time.
struct SlowDriver {
    inner: Arc<dyn Driver>,
    member: String,
    host: String,
    engines: Engines,
    stalls: Stalls,
    chance: Mutex<Chance>,
    /// When a step that may remove data looked whether there is any: that is how each of them begins.
    begun: Mutex<Duration>,
}

/// Lets this thread's drivers work on these engines; nothing until the next.
pub(crate) fn use_on_this_thread(world: FakeWorld, stalls: BTreeMap<String, Stalls>, seed: u64) {
    let (removed, slow) = Default::default();
    ENGINES.set(Some(Engines { world, stalls, seed, removed, slow }));
}

/// Forgets this thread's engines.
pub(crate) fn forget() {
    ENGINES.set(None);
}

/// Takes what was removed since the last time.
pub(crate) fn take_removed() -> Vec<Removed> {
    std::mem::take(&mut *lock(&engines().removed))
}

/// Lets every start and promotion of a host's engine take so much longer.
pub(crate) fn slow(host: &str, by: Duration) {
    lock(&engines().slow).insert(host.to_owned(), by);
}

/// Lets no engine be slower than usual any more.
pub(crate) fn calm() {
    lock(&engines().slow).clear();
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn engines() -> Engines {
    ENGINES.with_borrow(|engines| engines.clone().expect("a simulation sets its engines before it starts its hosts"))
}

#[async_trait]
impl Factory for SimulatedEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn offer(&self, section: Option<&toml::Table>) -> EngineOffer {
        engines().world.offer(section)
    }

    async fn check_settings(&self, asked: &SettingsCheck<'_>) -> Result<(), DriverError> {
        let world = engines().world;
        world.check_settings(asked).await
    }

    async fn survey(&self, ground: &Ground<'_>) -> Result<Vec<FoundInstance>, DriverError> {
        let world = engines().world;
        world.survey(ground).await
    }

    fn open(&self, context: Context) -> Result<Arc<dyn Driver>, DriverError> {
        let engines = engines();
        let (member, host) = (context.member.to_string(), context.advertise_host.clone());
        let stalls = engines.stalls.get(&host).expect("an agent has the name of its machine").clone();
        let chance = Mutex::new(Chance::of(engines.seed, &format!("driver {member} {:?}", super::time::now())));
        let (inner, begun) = (engines.world.open(context)?, Mutex::default());
        Ok(Arc::new(SlowDriver { inner, member, host, engines, stalls, chance, begun }))
    }
}

// === impl SlowDriver ===

impl SlowDriver {
    /// Waits for a part of what the work takes, and for as long as the agent stands still.
    async fn pass(&self, takes: Range<u64>) {
        self.stalls.agent().await;
        let takes = lock(&self.chance).millis(takes);
        tokio::time::sleep(takes).await;
        self.stalls.agent().await;
    }

    /// How much longer it takes than usual.
    async fn dawdle(&self) {
        let by = lock(&self.engines.slow).get(&self.host).copied();
        if let Some(by) = by {
            tokio::time::sleep(by).await;
        }
    }

    /// Does what may remove rows of the copy, and writes down which it has.
    async fn removing<T>(&self, work: impl Future<Output = Result<T, DriverError>>) -> Result<T, DriverError> {
        let stored = || self.engines.world.stored_rows(&self.inner.endpoint());
        let mut rows = stored();
        let result = work.await;
        let left: std::collections::BTreeSet<u64> = stored().into_iter().collect();
        rows.retain(|row| !left.contains(row));
        if !rows.is_empty() {
            traced!("engine of {}: {} rows removed", self.member, rows.len());
            let removed = Removed { host: self.host.clone(), rows, begun: *lock(&self.begun) };
            lock(&self.engines.removed).push(removed);
        }
        result
    }

    /// Does something that takes so many milliseconds, before and after.
    async fn take<T>(
        &self,
        doing: &str,
        takes: Range<u64>,
        work: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        self.pass(takes.clone()).await;
        let result = work.await;
        match &result {
            Ok(_) => traced!("engine of {}: {doing}", self.member),
            Err(error) => traced!("engine of {}: {doing} failed: {error}", self.member),
        }
        self.pass(0..takes.end / 2 + 1).await;
        result
    }

    /// The same for what a hung engine does not do.
    async fn ask<T>(
        &self,
        doing: &str,
        takes: Range<u64>,
        work: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        if self.inner.observe().await.state == EngineState::Hung {
            tokio::time::sleep(HUNG).await;
            self.stalls.agent().await;
            if self.inner.observe().await.state == EngineState::Hung {
                traced!("engine of {}: {doing} was not answered", self.member);
                let last = "no answer".to_owned();
                return Err(DriverError::Deadline { doing: doing.to_owned(), seconds: HUNG.as_secs(), last });
            }
        }
        self.take(doing, takes, work).await
    }
}

#[async_trait]
impl Driver for SlowDriver {
    fn endpoint(&self) -> Endpoint {
        self.inner.endpoint()
    }

    fn version(&self) -> String {
        self.inner.version()
    }

    fn process_changes(&self) -> watch::Receiver<u64> {
        self.inner.process_changes()
    }

    async fn observe(&self) -> EngineObservation {
        self.pass(1..4).await;
        self.inner.observe().await
    }

    fn upstream_heard(&self) -> Option<HeardPosition> {
        self.inner.upstream_heard()
    }

    fn is_dirty(&self) -> bool {
        self.inner.is_dirty()
    }

    fn has_data(&self) -> bool {
        *lock(&self.begun) = super::time::now();
        self.inner.has_data()
    }

    async fn configure(&self, spec: &ClusterSpec) -> Result<(), DriverError> {
        self.take("configured", 2..20, self.inner.configure(spec)).await
    }

    async fn initialize(&self) -> Result<Position, DriverError> {
        self.take("initialized", 50..300, self.inner.initialize()).await
    }

    async fn clone_from(&self, source: &Peer, options: CloneOptions, work: &Work) -> Result<Cloned, DriverError> {
        self.take("cloned", 100..800, self.removing((*self.inner).clone_from(source, options, work))).await
    }

    async fn swap(&self, upstream: &Peer, keep_old: bool) -> Result<(), DriverError> {
        self.take("swapped", 50..200, self.removing(self.inner.swap(upstream, keep_old))).await
    }

    async fn discard_kept(&self) -> Result<(), DriverError> {
        self.take("discarded what was kept", 5..50, self.inner.discard_kept()).await
    }

    async fn start(&self, how: StartAs) -> Result<(), DriverError> {
        let doing = format!("started as {how:?}");
        self.dawdle().await;
        self.take(&doing, 50..250, self.inner.start(how)).await
    }

    async fn stop(&self, how: Stop) -> Result<(), DriverError> {
        match how {
            Stop::Fast => self.ask("stopped", 20..150, self.inner.stop(how)).await,
            Stop::Kill => self.take("killed", 2..20, self.inner.stop(how)).await,
        }
    }

    async fn cut(&self) -> Result<Position, DriverError> {
        self.ask("stream cut", 10..60, self.inner.cut()).await
    }

    async fn drain(&self, successor: &MemberName) -> Result<Position, DriverError> {
        self.ask("drained", 10..60, self.inner.drain(successor)).await
    }

    async fn undo_drain(&self) -> Result<(), DriverError> {
        self.ask("drain undone", 2..20, self.inner.undo_drain()).await
    }

    async fn promote(&self) -> Result<Position, DriverError> {
        self.dawdle().await;
        self.ask("promoted", 20..120, self.inner.promote()).await
    }

    async fn follow(&self, upstream: &Peer) -> Result<String, DriverError> {
        let doing = format!("follows {}", upstream.member);
        self.ask(&doing, 20..150, self.inner.follow(upstream)).await
    }

    async fn examine(&self) -> Result<Position, DriverError> {
        self.ask("examined", 10..150, self.inner.examine()).await
    }

    async fn rewind(&self, source: &Peer, work: &Work) -> Result<String, DriverError> {
        self.ask("rewound", 50..300, self.inner.rewind(source, work)).await
    }

    async fn checkpoint(&self, flush: Flush) -> Result<(), DriverError> {
        self.ask("flushed", 2..30, self.inner.checkpoint(flush)).await
    }

    async fn adopt(&self, data_directory: &Path, upstream: Option<&Peer>) -> Result<Position, DriverError> {
        self.ask("adopted", 20..300, self.inner.adopt(data_directory, upstream)).await
    }

    async fn give_back(&self) -> Result<bool, DriverError> {
        self.ask("given back", 10..100, self.inner.give_back()).await
    }

    async fn release(&self, keep_data: bool) -> Result<(), DriverError> {
        self.take("released", 10..50, self.inner.release(keep_data)).await
    }
}
