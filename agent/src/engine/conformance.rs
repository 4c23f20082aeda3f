//! What every driver must do, as cases that run over real engines and over the fake one.
//!
//! A case gets a [`World`] of its own: a cluster of up to three members, with means to write and read as a client does and
//! to do harm. Cases say nothing about how an engine does it. A case that fails returns a sentence.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use futures::future::BoxFuture;
use regent_common::topology::{ClusterSpec, EngineState, Peer, Progress, Role, Ternary};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{CloneOptions, Driver, DriverError, Flush, FoundInstance, StartAs, Stop, Work};

/// Makes worlds.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A new cluster without data.
    async fn world(&self) -> Box<dyn World>;
}

/// A cluster of members 1, 2 and 3.
#[async_trait]
pub trait World: Send + Sync {
    /// What the members are configured with.
    fn spec(&self) -> ClusterSpec;
    /// A member as the others see it.
    fn peer(&self, member: u32) -> Peer;
    /// A new driver of the member, as after a restart of the agent.
    fn open(&self, member: u32) -> Result<Arc<dyn Driver>, DriverError>;
    /// Writes one more row as a client; an error when it is not acknowledged.
    async fn write(&self, member: u32) -> Result<(), String>;
    /// Number of rows that a client reads.
    async fn rows(&self, member: u32) -> Result<u64, String>;
    /// Kills the engine behind the driver's back.
    async fn crash(&self, member: u32) -> Result<(), String>;
    /// Number of processes of the member's engine.
    fn processes(&self, member: u32) -> usize;
    /// Puts something into the member's data directory that is nobody's.
    fn put_foreign_data(&self, member: u32);
    /// Whether that is still there.
    fn has_foreign_data(&self, member: u32) -> bool;
    /// Whether the node has anything on its disk for the member, be it an empty folder.
    fn has_traces(&self, member: u32) -> bool;
    /// Starts an engine of nobody's on the member's node and port, as a primary into which [`Self::write`] can write, or as a replica
    /// of the unmanaged one of another member; the folder of its data.
    async fn start_unmanaged(&self, member: u32, upstream: Option<u32>) -> Result<PathBuf, String>;
    /// What can be adopted on the member's node.
    async fn survey(&self, member: u32) -> Result<Vec<FoundInstance>, DriverError>;
    /// Whether a write that was acknowledged survives a crash of the engine's process. Where it does not, it survives a clean stop.
    fn keeps_acknowledged_writes(&self) -> bool;
    /// Whether instances that run already can be adopted.
    fn adopts(&self) -> bool;
    /// Leaves the member as an interrupted rewind leaves it.
    fn interrupt_rewind(&self, member: u32);
    /// Waits until the condition holds, with a deadline; how to wait is the world's.
    async fn pause(&self);
    /// Stops everything and removes all files.
    async fn end(&self);
}

type Outcome = Result<(), String>;
type Case = for<'a> fn(&'a dyn World) -> BoxFuture<'a, Outcome>;

/// The cases by name.
pub const CASES: &[(&str, Case)] = &[
    ("a new primary takes writes, and initializing again changes nothing", |w| Box::pin(initialize_twice(w))),
    ("foreign data is refused and stays", |w| Box::pin(foreign_data(w))),
    ("a clone swapped in streams and follows", |w| Box::pin(clone_and_stream(w))),
    ("a swap keeps the old data until it is discarded", |w| Box::pin(swap_keeps(w))),
    ("a cancelled clone leaves nothing and can be made again", |w| Box::pin(cancelled_clone(w))),
    ("a stopped engine starts again as it was told", |w| Box::pin(stop_and_start(w))),
    ("a cut is final and stays over a restart", |w| Box::pin(cut_stays(w))),
    ("a drained primary takes no writes and its successor has all of them", |w| Box::pin(drain_and_undo(w))),
    ("a promoted replica takes writes and the others follow it", |w| Box::pin(promote_and_follow(w))),
    ("a killed engine leaves no process", |w| Box::pin(kill_leaves_nothing(w))),
    ("a fenced primary takes no writes and follows its successor", |w| Box::pin(fence_and_follow(w))),
    ("a crash is told from a stop, and an examined copy tells its exact position", |w| Box::pin(crash_and_examine(w))),
    ("a diverged copy is refused, and comes back by a rewind where there is one", |w| {
        Box::pin(diverged_and_rewound(w))
    }),
    ("a diverged copy comes back by a clone", |w| Box::pin(diverged_and_cloned(w))),
    ("two promotions of equal copies are told apart", |w| Box::pin(promoted_twice(w))),
    ("dirty data is not started", |w| Box::pin(dirty_is_not_started(w))),
    ("a new driver takes the running engine over", |w| Box::pin(adopted(w))),
    ("an unknown or owned setting is refused", |w| Box::pin(settings(w))),
    ("a released member leaves nothing", |w| Box::pin(release(w))),
    ("a running instance is adopted and given back without a break", |w| Box::pin(adopted_and_given_back(w))),
    ("an adopted pair is like any other", |w| Box::pin(adopted_pair(w))),
    ("what does not run is not adopted", |w| Box::pin(nothing_to_adopt(w))),
];

/// Runs every case whose name contains `filter`, each in a world of its own, and panics with the list of those that failed.
///
/// # Panics
/// When a case fails, or none has such a name: it is a test.
pub async fn run_all(harness: &dyn Harness, filter: &str) {
    let mut failures = Vec::new();
    let mut ran = 0;
    for (name, case) in CASES.iter().filter(|(name, _)| name.contains(filter)) {
        ran += 1;
        let world = harness.world().await;
        if let Err(failure) = case(&*world).await {
            failures.push(format!("{name}: {failure}"));
        }
        world.end().await;
    }
    assert!(ran > 0, "no case has {filter:?} in its name");
    assert!(failures.is_empty(), "{} of {ran} cases failed:\n{}", failures.len(), failures.join("\n"));
}

// === steps that many cases share ===

fn work() -> Work {
    Work { progress: watch::Sender::new(Progress::default()), cancel: CancellationToken::new() }
}

fn told<T>(doing: &str, result: Result<T, DriverError>) -> Result<T, String> {
    result.map_err(|error| format!("{doing}: {error}"))
}

fn check(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(otherwise()) }
}

fn equal<T: PartialEq + Debug>(what: &str, seen: &T, wanted: &T) -> Outcome {
    check(seen == wanted, || format!("{what} is {seen:?}, not {wanted:?}"))
}

async fn primary(world: &dyn World, member: u32) -> Result<Arc<dyn Driver>, String> {
    let driver = told("open", world.open(member))?;
    told("configure", driver.configure(&world.spec()).await)?;
    told("initialize", driver.initialize().await)?;
    Ok(driver)
}

async fn replica(world: &dyn World, member: u32, source: u32) -> Result<Arc<dyn Driver>, String> {
    let driver = told("open", world.open(member))?;
    told("configure", driver.configure(&world.spec()).await)?;
    told("clone", driver.as_ref().clone_from(&world.peer(source), CloneOptions::default(), &work()).await)?;
    told("swap", driver.swap(&world.peer(source), false).await)?;
    Ok(driver)
}

/// Before a crash that everything is to survive: what a clean stop has left is on the disk, whatever the engine.
async fn flush_if_needed(world: &dyn World, driver: &dyn Driver, how: StartAs) -> Outcome {
    if world.keeps_acknowledged_writes() {
        return Ok(());
    }
    told("stop", driver.stop(Stop::Fast).await)?;
    told("start", driver.start(how).await)
}

/// Waits until the member shows so many rows.
async fn shows(world: &dyn World, member: u32, rows: u64) -> Outcome {
    let mut last = Ok(0);
    for _ in 0..1000 {
        last = world.rows(member).await;
        if last == Ok(rows) {
            return Ok(());
        }
        world.pause().await;
    }
    Err(format!("member {member} shows {last:?} rows, not {rows}"))
}

/// Makes member 1 diverge from member 2: both had `rows` rows, then 2 was promoted, and each wrote on its own.
async fn diverge(world: &dyn World) -> Result<(Arc<dyn Driver>, Arc<dyn Driver>), String> {
    let (one, two) = (primary(world, 1).await?, replica(world, 2, 1).await?);
    world.write(1).await?;
    shows(world, 2, 1).await?;
    told("cut", two.cut().await)?;
    world.write(1).await?;
    told("promote", two.promote().await)?;
    world.write(2).await?;
    world.write(2).await?;
    told("checkpoint", two.checkpoint(Flush::Copies).await)?;
    flush_if_needed(world, &*one, StartAs::Primary).await?;
    Ok((one, two))
}

// === the cases ===

async fn initialize_twice(world: &dyn World) -> Outcome {
    let driver = primary(world, 1).await?;
    check(driver.has_data() && !driver.is_dirty(), || "there is no clean data".to_owned())?;
    world.write(1).await?;
    let position = told("initialize again", driver.initialize().await)?;
    check(!position.is_empty(), || "the position is empty".to_owned())?;
    equal("the number of rows", &world.rows(1).await?, &1)?;
    told("configure again", driver.configure(&world.spec()).await)?;
    let seen = driver.observe().await;
    equal("the state", &seen.state, &EngineState::Running)?;
    equal("the role", &seen.role, &Some(Role::Primary))?;
    equal("the storage", &seen.storage_writable, &Ternary::Yes)?;
    check(seen.position.is_some_and(|seen| seen >= position), || "the position went back".to_owned())?;
    check(seen.data_bytes > 0 && seen.pid.is_some(), || "size or process are missing".to_owned())
}

async fn foreign_data(world: &dyn World) -> Outcome {
    world.put_foreign_data(1);
    let driver = told("open", world.open(1))?;
    for attempt in 0..2 {
        let refused = match driver.configure(&world.spec()).await {
            Ok(()) => driver.initialize().await.map(drop),
            Err(error) => Err(error),
        };
        let refused_well = matches!(refused, Err(DriverError::ForeignData { .. }));
        check(refused_well, || format!("attempt {attempt} was answered with {refused:?}"))?;
    }
    check(driver.release(false).await.is_err() || world.has_foreign_data(1), || "release removed it".to_owned())?;
    check(world.has_foreign_data(1), || "the foreign data is gone".to_owned())
}

async fn clone_and_stream(world: &dyn World) -> Outcome {
    let one = primary(world, 1).await?;
    world.write(1).await?;
    let two = told("open", world.open(2))?;
    told("configure", two.configure(&world.spec()).await)?;
    let work = work();
    let cloned = told("clone", two.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work).await)?;
    check(cloned.bytes > 0, || "nothing was copied".to_owned())?;
    check(!work.progress.borrow().phase.is_empty(), || "no progress was reported".to_owned())?;
    told("swap", two.swap(&world.peer(1), false).await)?;
    told("swap again", two.swap(&world.peer(1), false).await)?;
    world.write(1).await?;
    shows(world, 2, 2).await?;
    check(world.write(2).await.is_err(), || "a replica took a write".to_owned())?;
    let (first, second) = (one.observe().await, two.observe().await);
    equal("the role", &second.role, &Some(Role::Replica))?;
    equal("the stream", &second.streaming, &Ternary::Yes)?;
    equal("the upstream", &second.upstream, &Some(world.peer(1).member))?;
    let (Some(ahead), Some(behind)) = (first.position, second.position) else {
        return Err("a position is missing".to_owned());
    };
    check(ahead.partial_cmp(&behind).is_some(), || format!("{ahead} and {behind} have diverged"))
}

async fn swap_keeps(world: &dyn World) -> Outcome {
    let (_one, two) = (primary(world, 1).await?, replica(world, 2, 1).await?);
    world.write(1).await?;
    let cloned = told("clone", two.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await)?;
    check(cloned.old_data_kept, || "the old data is gone".to_owned())?;
    equal("the role during it", &two.observe().await.role, &Some(Role::Replica))?;
    told("swap", two.swap(&world.peer(1), true).await)?;
    world.write(1).await?;
    shows(world, 2, 2).await?;
    told("discard", two.discard_kept().await)?;
    told("discard again", two.discard_kept().await)?;
    shows(world, 2, 2).await
}

async fn cancelled_clone(world: &dyn World) -> Outcome {
    let _one = primary(world, 1).await?;
    let two = told("open", world.open(2))?;
    told("configure", two.configure(&world.spec()).await)?;
    let cancelled = work();
    cancelled.cancel.cancel();
    let result = two.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &cancelled).await;
    check(matches!(result, Err(DriverError::Cancelled { .. })), || format!("it was answered with {result:?}"))?;
    let swapped = two.swap(&world.peer(1), false).await;
    check(swapped.is_err(), || "a cancelled clone was swapped in".to_owned())?;
    told("clone", two.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await)?;
    told("swap", two.swap(&world.peer(1), false).await)
}

async fn stop_and_start(world: &dyn World) -> Outcome {
    let (one, two) = (primary(world, 1).await?, replica(world, 2, 1).await?);
    world.write(1).await?;
    let mut changes = one.process_changes();
    changes.mark_unchanged();
    told("stop", one.stop(Stop::Fast).await)?;
    told("stop again", one.stop(Stop::Fast).await)?;
    check(changes.has_changed().unwrap_or(false), || "the end of the process was not told".to_owned())?;
    equal("the state", &one.observe().await.state, &EngineState::Stopped)?;
    equal("the number of processes", &world.processes(1), &0)?;
    told("start", one.start(StartAs::Primary).await)?;
    told("start again", one.start(StartAs::Primary).await)?;
    world.write(1).await?;
    told("stop", two.stop(Stop::Fast).await)?;
    told("start", two.start(StartAs::Replica(world.peer(1))).await)?;
    told("start again", two.start(StartAs::Replica(world.peer(1))).await)?;
    shows(world, 2, 2).await?;
    told("start isolated", one.start(StartAs::Isolated).await)?;
    equal("the role", &one.observe().await.role, &Some(Role::Replica))?;
    check(world.write(1).await.is_err(), || "an isolated engine took a write".to_owned())
}

async fn cut_stays(world: &dyn World) -> Outcome {
    let (_one, two) = (primary(world, 1).await?, replica(world, 2, 1).await?);
    world.write(1).await?;
    shows(world, 2, 1).await?;
    let seen = two.observe().await.position.ok_or("a running replica does not know where it stands")?;
    let heard = two.upstream_heard().ok_or("the stream told nothing of its upstream")?;
    equal("who was heard", &heard.member, &world.peer(1).member)?;
    let position = told("cut", two.cut().await)?;
    check(heard.position >= seen, || format!("the stream told of {}, and brought {seen}", heard.position))?;
    check(heard.position.partial_cmp(&position).is_some(), || format!("{} diverged from {position}", heard.position))?;
    equal("what was heard, after the cut", &two.upstream_heard(), &Some(heard))?;
    world.write(1).await?;
    equal("the position of a second cut", &told("cut again", two.cut().await)?, &position)?;
    flush_if_needed(world, &*two, StartAs::Isolated).await?;
    told("stop", two.stop(Stop::Kill).await)?;
    equal("the position after a restart", &told("examine", two.examine().await)?, &position)?;
    let seen = two.observe().await;
    equal("the stream", &seen.streaming, &Ternary::No)?;
    equal("the upstream", &seen.upstream, &None)?;
    equal("the number of rows", &world.rows(2).await?, &1)?;
    told("follow", two.follow(&world.peer(1)).await)?;
    shows(world, 2, 2).await
}

async fn drain_and_undo(world: &dyn World) -> Outcome {
    let (one, two) = (primary(world, 1).await?, replica(world, 2, 1).await?);
    world.write(1).await?;
    let position = told("drain", one.drain(&world.peer(2).member).await)?;
    check(world.write(1).await.is_err(), || "a drained primary took a write".to_owned())?;
    check(told("drain again", one.drain(&world.peer(2).member).await)? >= position, || "it went back".to_owned())?;
    equal("the role", &one.observe().await.role, &Some(Role::Primary))?;
    told("undo", one.undo_drain().await)?;
    told("undo again", one.undo_drain().await)?;
    world.write(1).await?;
    shows(world, 2, 2).await?;
    let position = told("drain", one.drain(&world.peer(2).member).await)?;
    told("kill", one.stop(Stop::Kill).await)?;
    let cut = told("cut", two.cut().await)?;
    check(cut >= position, || format!("{cut} does not include {position}"))?;
    told("promote", two.promote().await)?;
    world.write(2).await?;
    // A start ends a drain: as a replica it lets its readers in.
    told("follow", one.follow(&world.peer(2)).await)?;
    shows(world, 1, 3).await
}

async fn promote_and_follow(world: &dyn World) -> Outcome {
    let one = primary(world, 1).await?;
    let (two, three) = (replica(world, 2, 1).await?, replica(world, 3, 1).await?);
    world.write(1).await?;
    shows(world, 2, 1).await?;
    shows(world, 3, 1).await?;
    told("kill", one.stop(Stop::Kill).await)?;
    let (second, third) = (told("cut", two.cut().await)?, told("cut", three.cut().await)?);
    check(second >= third, || format!("{second} does not include {third}"))?;
    let position = told("promote", two.promote().await)?;
    equal("the position of a second promotion", &(told("promote again", two.promote().await)? >= position), &true)?;
    check(position >= second, || format!("{position} does not include {second}"))?;
    world.write(2).await?;
    told("follow", three.follow(&world.peer(2)).await)?;
    told("follow again", three.follow(&world.peer(2)).await)?;
    shows(world, 3, 2).await?;
    check(two.cut().await.is_err(), || "a primary was cut from nobody".to_owned())?;
    let examined = told("examine", one.examine().await)?;
    check(position >= examined, || format!("{examined} diverged from {position}"))?;
    told("follow", one.follow(&world.peer(2)).await)?;
    shows(world, 1, 2).await
}

async fn kill_leaves_nothing(world: &dyn World) -> Outcome {
    let one = primary(world, 1).await?;
    check(world.processes(1) > 0, || "no process is seen".to_owned())?;
    told("kill", one.stop(Stop::Kill).await)?;
    equal("the number of processes", &world.processes(1), &0)?;
    told("kill again", one.stop(Stop::Kill).await)?;
    equal("the state", &one.observe().await.state, &EngineState::Stopped)?;
    check(world.write(1).await.is_err(), || "a killed engine took a write".to_owned())
}

async fn fence_and_follow(world: &dyn World) -> Outcome {
    let (one, two) = (primary(world, 1).await?, replica(world, 2, 1).await?);
    world.write(1).await?;
    let position = told("drain", one.drain(&world.peer(2).member).await)?;
    told("fence", one.fence().await)?;
    check(world.write(1).await.is_err(), || "a fenced primary took a write".to_owned())?;
    told("fence again", one.fence().await)?;
    let seen = one.observe().await;
    if seen.state == EngineState::Running {
        equal("the role", &seen.role, &Some(Role::Replica))?;
        equal("the position", &told("examine", one.examine().await)?, &position)?;
    } else {
        equal("the state", &seen.state, &EngineState::Stopped)?;
        equal("the number of processes", &world.processes(1), &0)?;
    }
    let cut = told("cut", two.cut().await)?;
    check(cut >= position, || format!("{cut} does not include {position}"))?;
    told("promote", two.promote().await)?;
    world.write(2).await?;
    told("follow", one.follow(&world.peer(2)).await)?;
    shows(world, 1, 2).await
}

async fn crash_and_examine(world: &dyn World) -> Outcome {
    let one = primary(world, 1).await?;
    world.write(1).await?;
    flush_if_needed(world, &*one, StartAs::Primary).await?;
    let mut changes = one.process_changes();
    changes.mark_unchanged();
    world.crash(1).await?;
    changes.changed().await.map_err(|error| error.to_string())?;
    let seen = one.observe().await;
    equal("the state", &seen.state, &EngineState::Crashed)?;
    check(!seen.reason.is_empty(), || "no reason is given".to_owned())?;
    let position = told("examine", one.examine().await)?;
    equal("the position of a second look", &told("examine again", one.examine().await)?, &position)?;
    equal("the number of rows", &world.rows(1).await?, &1)?;
    check(world.write(1).await.is_err(), || "an examined engine took a write".to_owned())?;
    told("start", one.start(StartAs::Primary).await)?;
    world.write(1).await
}

async fn diverged_and_rewound(world: &dyn World) -> Outcome {
    let (one, _two) = diverge(world).await?;
    told("kill", one.stop(Stop::Kill).await)?;
    let followed = one.follow(&world.peer(2)).await;
    check(matches!(followed, Err(DriverError::Diverged { .. })), || format!("follow was answered with {followed:?}"))?;
    match one.rewind(&world.peer(2), &work()).await {
        Err(DriverError::CannotRewind { reason }) => {
            check(!reason.is_empty() && !one.is_dirty(), || "no reason, or dirty".to_owned())?;
            told("clone", one.as_ref().clone_from(&world.peer(2), CloneOptions::default(), &work()).await)?;
            told("swap", one.swap(&world.peer(2), false).await)?;
        }
        rewound => {
            let detail = told("rewind", rewound)?;
            check(!detail.is_empty() && !one.is_dirty(), || "no detail, or still dirty".to_owned())?;
        }
    }
    // Row 1 was common, row 2 of member 1 is gone, rows 2 and 3 are those of member 2.
    shows(world, 1, 3).await?;
    world.write(2).await?;
    shows(world, 1, 4).await
}

async fn diverged_and_cloned(world: &dyn World) -> Outcome {
    let (one, two) = diverge(world).await?;
    let position = told("examine", two.examine().await)?;
    let lost = told("examine", one.examine().await)?.minus(&position);
    check(lost.amount() > 0, || "nothing is said to be lost".to_owned())?;
    told("clone", one.as_ref().clone_from(&world.peer(2), CloneOptions::default(), &work()).await)?;
    told("swap", one.swap(&world.peer(2), true).await)?;
    shows(world, 1, 3).await
}

async fn promoted_twice(world: &dyn World) -> Outcome {
    let one = primary(world, 1).await?;
    let (two, three) = (replica(world, 2, 1).await?, replica(world, 3, 1).await?);
    world.write(1).await?;
    shows(world, 2, 1).await?;
    shows(world, 3, 1).await?;
    told("kill", one.stop(Stop::Kill).await)?;
    told("cut", two.cut().await)?;
    told("cut", three.cut().await)?;
    told("promote", two.promote().await)?;
    told("promote", three.promote().await)?;
    // More on one side, so that only the origin tells that the other is not simply behind.
    world.write(2).await?;
    for _ in 0..3 {
        world.write(3).await?;
    }
    let (second, third) = (told("examine", two.examine().await)?, told("examine", three.examine().await)?);
    check(second.partial_cmp(&third).is_none(), || format!("{second} and {third} are not said to have diverged"))?;
    told("checkpoint", three.checkpoint(Flush::Copies).await)?;
    let followed = two.follow(&world.peer(3)).await;
    check(matches!(followed, Err(DriverError::Diverged { .. })), || format!("follow was answered with {followed:?}"))?;
    match two.rewind(&world.peer(3), &work()).await {
        Ok(_) => {}
        Err(DriverError::CannotRewind { .. }) => {
            told("clone", two.as_ref().clone_from(&world.peer(3), CloneOptions::default(), &work()).await)?;
            told("swap", two.swap(&world.peer(3), false).await)?;
        }
        Err(error) => return Err(format!("rewind: {error}")),
    }
    shows(world, 2, 4).await?;
    told("follow", one.follow(&world.peer(3)).await)?;
    shows(world, 1, 4).await
}

async fn dirty_is_not_started(world: &dyn World) -> Outcome {
    let (_one, two) = (primary(world, 1).await?, replica(world, 2, 1).await?);
    told("stop", two.stop(Stop::Fast).await)?;
    world.interrupt_rewind(2);
    let two = told("open", world.open(2))?;
    check(two.is_dirty(), || "it is not said to be dirty".to_owned())?;
    for how in [StartAs::Primary, StartAs::Isolated, StartAs::Replica(world.peer(1))] {
        let started = two.start(how.clone()).await;
        check(matches!(started, Err(DriverError::Dirty { .. })), || format!("{how:?} was answered with {started:?}"))?;
    }
    for result in
        [two.promote().await.map(drop), two.examine().await.map(drop), two.follow(&world.peer(1)).await.map(drop)]
    {
        check(matches!(result, Err(DriverError::Dirty { .. })), || format!("it was answered with {result:?}"))?;
    }
    equal("the number of processes", &world.processes(2), &0)?;
    told("clone", two.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await)?;
    told("swap", two.swap(&world.peer(1), false).await)?;
    check(!two.is_dirty(), || "it is still dirty".to_owned())
}

async fn adopted(world: &dyn World) -> Outcome {
    let one = primary(world, 1).await?;
    world.write(1).await?;
    let before = one.observe().await;
    drop(one);
    let one = told("open", world.open(1))?;
    let mut changes = one.process_changes();
    changes.mark_unchanged();
    let after = one.observe().await;
    equal("the process", &after.pid, &before.pid)?;
    equal("the state", &after.state, &EngineState::Running)?;
    world.write(1).await?;
    world.crash(1).await?;
    changes.changed().await.map_err(|error| error.to_string())?;
    equal("the state", &one.observe().await.state, &EngineState::Crashed)
}

async fn settings(world: &dyn World) -> Outcome {
    let one = primary(world, 1).await?;
    let refused = ["no_such_setting_anywhere", "port"];
    for name in refused {
        let settings = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
        let result = one.configure(&ClusterSpec { settings, ..world.spec() }).await;
        let refused_well = matches!(
            &result,
            Err(DriverError::InvalidSetting { name: named, .. } | DriverError::UnknownSetting { name: named, .. })
                if named == name
        );
        check(refused_well, || format!("{name} was answered with {result:?}"))?;
    }
    told("configure", one.configure(&world.spec()).await)?;
    world.write(1).await
}

async fn release(world: &dyn World) -> Outcome {
    let one = primary(world, 1).await?;
    told("release", one.release(false).await)?;
    told("release again", one.release(false).await)?;
    equal("the number of processes", &world.processes(1), &0)?;
    check(!one.has_data(), || "there is still data".to_owned())?;
    equal("the state", &one.observe().await.state, &EngineState::Absent)?;
    // As when the power went, or the disk was full, before the ledger had the first one's end.
    let again = told("open", world.open(1))?;
    told("release by a driver opened again", again.release(false).await)?;
    check(!world.has_traces(1), || "something is left on the disk".to_owned())?;
    let one = primary(world, 1).await?;
    world.write(1).await?;
    told("release", one.release(true).await)?;
    check(world.has_traces(1), || "the data was not kept".to_owned())?;
    check(!one.has_data(), || "there is still data".to_owned())
}

/// A member that is configured for the instance which runs on its node; where that instance's data is.
async fn about_to_adopt(world: &dyn World, member: u32, data: &Path) -> Result<Arc<dyn Driver>, String> {
    let found = told("survey", world.survey(member).await)?;
    let found = found.into_iter().find(|found| found.data_directory == data).ok_or("the instance was not found")?;
    check(found.problems.is_empty(), || format!("it cannot be adopted: {:?}", found.problems))?;
    equal("the port", &found.port, &world.peer(member).engine.port)?;
    let mut spec = ClusterSpec { access_rules: found.access_rules, settings: found.settings, ..world.spec() };
    // Its applications have logins of their own.
    spec.secrets.remove("application");
    let driver = told("open", world.open(member))?;
    told("configure", driver.configure(&spec).await)?;
    equal("the state before", &driver.observe().await.state, &EngineState::Absent)?;
    Ok(driver)
}

async fn adopted_and_given_back(world: &dyn World) -> Outcome {
    if !world.adopts() {
        return Ok(());
    }
    let data = world.start_unmanaged(1, None).await?;
    world.write(1).await?;
    for _ in 0..2 {
        let one = about_to_adopt(world, 1, &data).await?;
        told("adopt", one.adopt(&data, None).await)?;
        let seen = one.observe().await;
        equal("the state", &seen.state, &EngineState::Running)?;
        equal("the role", &seen.role, &Some(Role::Primary))?;
        world.write(1).await?;
        // As when the agent was killed before it had noted the end.
        let again = told("open", world.open(1))?;
        told("adopt again", again.adopt(&data, None).await)?;
        equal("the process", &again.observe().await.pid, &seen.pid)?;
        equal("what can be adopted", &told("survey", world.survey(1).await)?.len(), &0)?;
        equal("whether it was given back", &told("give back", again.give_back().await)?, &true)?;
        world.write(1).await?;
        check(!world.has_traces(1), || "something of the member is left".to_owned())?;
        equal("whether it was given back again", &told("give back again", again.give_back().await)?, &false)?;
    }
    equal("the number of rows", &world.rows(1).await?, &5)
}

async fn adopted_pair(world: &dyn World) -> Outcome {
    if !world.adopts() {
        return Ok(());
    }
    let data = world.start_unmanaged(1, None).await?;
    world.write(1).await?;
    let copy = world.start_unmanaged(2, Some(1)).await?;
    let (one, two) = (about_to_adopt(world, 1, &data).await?, about_to_adopt(world, 2, &copy).await?);
    check(two.adopt(&copy, None).await.is_err(), || "a replica was adopted as a primary".to_owned())?;
    told("give back", two.give_back().await)?;
    let two = {
        drop(two);
        about_to_adopt(world, 2, &copy).await?
    };
    told("adopt", one.adopt(&data, None).await)?;
    told("adopt the replica", two.adopt(&copy, Some(&world.peer(1))).await)?;
    world.write(1).await?;
    shows(world, 2, 2).await?;
    let seen = two.observe().await;
    equal("the stream", &seen.streaming, &Ternary::Yes)?;
    // From here on it is a cluster as every other.
    told("kill", one.stop(Stop::Kill).await)?;
    told("cut", two.cut().await)?;
    told("promote", two.promote().await)?;
    world.write(2).await?;
    told("start", one.start(StartAs::Replica(world.peer(2))).await)?;
    shows(world, 1, 3).await?;
    told("release", two.release(false).await)?;
    check(!world.has_traces(2), || "something of the member is left".to_owned())
}

async fn nothing_to_adopt(world: &dyn World) -> Outcome {
    let one = told("open", world.open(1))?;
    told("configure", one.configure(&world.spec()).await)?;
    check(one.adopt(Path::new("/nowhere/main"), None).await.is_err(), || "nothing was adopted".to_owned())?;
    equal("whether it was given back", &told("give back", one.give_back().await)?, &false)?;
    told("initialize", one.initialize().await)?;
    world.write(1).await
}
