//! Two sides of KeyDB that both take writes: what each brings to the other, and what becomes of one that was away.

use std::{
    net::TcpListener,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::aio::MultiplexedConnection;
use regent_agent::engine::{
    Activation, CloneOptions, Comparison, Driver, DriverError, Flush, StartAs, Stop, Work, conformance::World,
    redis::RedisFactory,
};
use regent_common::{
    ids::MemberName,
    topology::{Difference, EngineState, Mode, Progress, Role, Ternary},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    faults::eventually,
    tls,
    world::{APPLICATION, APPLICATION_SECRET, REPLICATION_SECRET, RealWorld, ask, connect, processes_in, user_of},
};

on_flavor!(of_keydb, KEYDB: both_sides_take_writes_and_have_each_others,
    a_side_starts_closed_also_by_hand,
    one_that_was_killed_is_filled_again_and_brings_nothing_back,
    one_that_has_what_nobody_else_had_is_not_filled_by_itself,
    a_side_that_follows_nobody_gets_nothing_and_loses_nothing,
    a_refill_that_fails_puts_the_old_data_back,
    a_refill_keeps_the_old_data_aside,
    sides_that_speak_tls_are_filled_and_follow_each_other_as_well,
    a_refill_that_is_broken_off_anywhere_is_gone_on_with,
    an_agent_that_is_started_again_leaves_an_open_side_open,
    a_side_is_neither_a_primary_nor_a_replica,
    a_fenced_side_takes_no_writes);
on_flavor!(of_redis, REDIS: an_engine_without_the_mode_says_so);
on_flavor!(of_valkey, VALKEY: an_engine_without_the_mode_says_so);

pub(crate) type Sides = (RealWorld, Arc<dyn Driver>, Arc<dyn Driver>);

pub(crate) fn work() -> Work {
    Work { progress: watch::Sender::new(Progress::default()), cancel: CancellationToken::new() }
}

/// Makes a member a side that follows the other, or nobody.
pub(crate) async fn activate(world: &RealWorld, driver: &Arc<dyn Driver>, other: Option<u32>, open: bool) {
    let other = other.map(|other| world.peer(other));
    driver.activate(Activation { other: other.as_ref(), open, first: false }).await.unwrap();
}

pub(crate) async fn sides(factory: &'static RedisFactory) -> Sides {
    sides_in(RealWorld::new(factory)).await
}

pub(crate) async fn sides_in(mut world: RealWorld) -> Sides {
    world.mode = Mode::MultiMaster;
    let mut drivers = Vec::new();
    for member in [1, 2] {
        let driver = world.open(member).unwrap();
        driver.configure(&world.spec()).await.unwrap();
        driver.activate(Activation { other: None, open: false, first: true }).await.unwrap();
        drivers.push(driver);
    }
    let [one, two]: [Arc<dyn Driver>; 2] = drivers.try_into().ok().unwrap();
    activate(&world, &one, Some(2), true).await;
    activate(&world, &two, Some(1), true).await;
    stream(&one, &two).await;
    (world, one, two)
}

/// Waits until both sides stream from each other.
pub(crate) async fn stream(one: &Arc<dyn Driver>, two: &Arc<dyn Driver>) {
    eventually("both sides stream", async || {
        one.observe().await.streaming == Ternary::Yes && two.observe().await.streaming == Ternary::Yes
    })
    .await;
}

pub(crate) async fn set(world: &RealWorld, member: u32, key: &str, value: &str) {
    world.command::<()>(member, redis::cmd("SET").arg(key).arg(value)).await.unwrap();
}

pub(crate) async fn get(world: &RealWorld, member: u32, key: &str) -> Option<String> {
    world.command(member, redis::cmd("GET").arg(key)).await.unwrap()
}

pub(crate) async fn delete(world: &RealWorld, member: u32, key: &str) {
    world.command::<()>(member, redis::cmd("DEL").arg(key)).await.unwrap();
}

/// Waits until both sides have this value under a key.
pub(crate) async fn both_have(world: &RealWorld, key: &str, value: Option<&str>) {
    for member in [1, 2] {
        let what = format!("member {member} has {value:?} under {key}");
        eventually(&what, async || get(world, member, key).await.as_deref() == value).await;
    }
}

pub(crate) async fn login(world: &RealWorld, member: u32) -> MultiplexedConnection {
    connect(world.port(member), Some((APPLICATION, APPLICATION_SECRET))).await.unwrap()
}

pub(crate) async fn difference(world: &RealWorld, driver: &Arc<dyn Driver>, other: u32) -> Difference {
    driver.compare(&world.peer(other), Comparison::Presence, &work()).await.unwrap()
}

/// A number in what an engine says of itself, asked as the other side does.
pub(crate) async fn told(world: &RealWorld, member: u32, section: &str, name: &str) -> u64 {
    let text: String = world.command(member, redis::cmd("INFO").arg(section)).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).trim().parse().unwrap()
}

/// Waits until the other side has acknowledged all that a side has written until now.
pub(crate) async fn passed_on(world: &RealWorld, member: u32) {
    let written = told(world, member, "replication", "master_repl_offset").await;
    eventually("the other side has acknowledged it", async || {
        let info: String = world.command(member, redis::cmd("INFO").arg("replication")).await.unwrap();
        let offset = info.split_once(",offset=").and_then(|(_, rest)| rest.split(',').next()?.parse::<u64>().ok());
        offset >= Some(written)
    })
    .await;
}

/// Waits until the other side has acknowledged it, and is old enough to be told from another process.
async fn acknowledged(world: &RealWorld, member: u32, other: u32) {
    passed_on(world, member).await;
    eventually("the other side has an age", async || told(world, other, "server", "uptime_in_seconds").await > 3).await;
}

async fn crash(world: &RealWorld, member: u32, driver: &Arc<dyn Driver>) {
    world.crash(member).await.unwrap();
    eventually("the crash is seen", async || driver.observe().await.state == EngineState::Crashed).await;
}

async fn both_sides_take_writes_and_have_each_others(factory: &'static RedisFactory) {
    let (world, one, two) = sides(factory).await;
    for (driver, other) in [(&one, 2), (&two, 1)] {
        let seen = driver.observe().await;
        assert_eq!((seen.state, seen.role), (EngineState::Running, Some(Role::Active)), "{}", seen.reason);
        assert_eq!((&seen.upstream, seen.is_open()), (&Some(world.peer(other).member), true));
        assert!(seen.position.is_some());
    }
    set(&world, 1, "of-one", "1").await;
    set(&world, 2, "of-two", "2").await;
    both_have(&world, "of-one", Some("1")).await;
    both_have(&world, "of-two", Some("2")).await;
    delete(&world, 1, "of-two").await;
    both_have(&world, "of-two", None).await;
    // The same key at once: each side may end with the value of the other, and the streams go on.
    for round in 0..20 {
        let (first, second) = (format!("a{round}"), format!("b{round}"));
        tokio::join!(set(&world, 1, "contended", &first), set(&world, 2, "contended", &second));
    }
    set(&world, 1, "end-of-one", "1").await;
    set(&world, 2, "end-of-two", "1").await;
    both_have(&world, "end-of-one", Some("1")).await;
    both_have(&world, "end-of-two", Some("1")).await;
    // Told again it changes nothing.
    let process = one.observe().await.pid;
    activate(&world, &one, Some(2), true).await;
    assert_eq!(one.observe().await.pid, process);
    assert_eq!(difference(&world, &one, 2).await.only_here, 0);
    world.end().await;
}

/// A KeyDB of nobody's that wants to follow a member by the members' own password.
struct Follower {
    child: Child,
    port: u16,
    log: std::path::PathBuf,
}

impl Follower {
    fn of(world: &RealWorld, member: u32, user: &str) -> Self {
        let folder = world.folder.path().join(format!("follower-{user}"));
        std::fs::create_dir_all(&folder).unwrap();
        let (log, port) = (folder.join("log"), world.port(3));
        let conf = format!(
            "port {port}\nbind 127.0.0.1\nsave \"\"\nmasteruser {user}\nmasterauth {:?}\nactive-replica yes\n\
             replicaof 127.0.0.1 {}\nlogfile {}\n",
            REPLICATION_SECRET,
            world.port(member),
            log.display()
        );
        std::fs::write(folder.join("conf"), conf).unwrap();
        let mut command = Command::new(&world.server);
        command.arg(folder.join("conf")).current_dir(&folder).stdin(Stdio::null()).stdout(Stdio::null());
        Self { child: command.spawn().unwrap(), port, log }
    }

    /// Waits until it has been turned away several times, and has nothing.
    async fn gets_nothing(mut self) {
        eventually("it is turned away", async || {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            log.matches("Unable to AUTH to MASTER").count() + log.matches("MASTER aborted replication").count() >= 2
        })
        .await;
        let keys: u64 = ask(self.port, None, &redis::cmd("DBSIZE")).await.unwrap();
        assert_eq!(keys, 0, "it copied a closed side");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

async fn a_side_starts_closed_also_by_hand(factory: &'static RedisFactory) {
    let (world, one, two) = sides(factory).await;
    set(&world, 1, "old", "1").await;
    one.stop(Stop::Fast).await.unwrap();
    two.stop(Stop::Fast).await.unwrap();
    let mut command = Command::new(&world.server);
    command.arg(world.root(1).join("conf/server.conf")).current_dir(world.data(1));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    if let Some(user) = user_of(factory) {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    let mut child = command.spawn().unwrap();
    eventually("it is seen", async || one.observe().await.state == EngineState::Running).await;
    let seen = one.observe().await;
    assert_eq!((seen.role, seen.is_open(), seen.streaming), (Some(Role::Active), false, Ternary::No));
    let refused = world.command::<String>(1, redis::cmd("GET").arg("old")).await.unwrap_err();
    assert!(refused.contains("authentication failed"), "{refused}");
    for user in ["regent-side", "regent-replicator"] {
        Follower::of(&world, 1, user).gets_nothing().await;
    }
    activate(&world, &one, None, true).await;
    assert_eq!(one.observe().await.pid, Some(child.id()), "it was started anew");
    assert_eq!(get(&world, 1, "old").await.as_deref(), Some("1"));
    one.stop(Stop::Kill).await.unwrap();
    // Who has adopted it has waited for it.
    assert_eq!(child.wait().unwrap_err().raw_os_error(), Some(nix::libc::ECHILD));
    world.end().await;
}

/// Writes and deletes keys of one side until told to stop, each under a name that only this side uses; how many.
pub(crate) fn churn(
    world: &RealWorld,
    member: u32,
    stop: &Arc<AtomicBool>,
) -> (Arc<AtomicU64>, tokio::task::JoinHandle<()>) {
    let (port, stop, done) = (world.port(member), Arc::clone(stop), Arc::new(AtomicU64::new(0)));
    let count = Arc::clone(&done);
    let task = tokio::spawn(async move {
        let mut connection = connect(port, Some((APPLICATION, APPLICATION_SECRET))).await.unwrap();
        while !stop.load(Ordering::Relaxed) {
            let number = count.load(Ordering::Relaxed);
            // What is to be deleted a moment later is there while the other side may take a copy.
            let mut together = redis::pipe();
            together.cmd("SET").arg(format!("lock:{member}:{number}")).arg("held");
            together.cmd("SET").arg("counter").arg(number);
            if let Some(before) = number.checked_sub(20) {
                together.cmd("DEL").arg(format!("lock:{member}:{before}"));
            }
            together.query_async::<redis::Value>(&mut connection).await.unwrap();
            count.store(number + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let mut left = redis::cmd("DEL");
        let last = count.load(Ordering::Relaxed);
        left.arg((last.saturating_sub(21)..=last).map(|number| format!("lock:{member}:{number}")).collect::<Vec<_>>());
        left.query_async::<redis::Value>(&mut connection).await.unwrap();
    });
    (done, task)
}

async fn one_that_was_killed_is_filled_again_and_brings_nothing_back(factory: &'static RedisFactory) {
    let mut world = RealWorld::new(factory);
    world.settings.insert("maxmemory".to_owned(), "2gb".to_owned());
    let (world, one, two) = sides_in(world).await;
    for key in ["stays", "goes"] {
        set(&world, 1, key, "old").await;
        both_have(&world, key, Some("old")).await;
    }
    // What it has on the disk when it is killed, and the other side has acknowledged.
    two.checkpoint(Flush::HandOver).await.unwrap();
    acknowledged(&world, 2, 1).await;
    two.observe().await;
    let mut client = login(&world, 1).await;
    let process = one.observe().await.pid;
    crash(&world, 2, &two).await;
    delete(&world, 1, "goes").await;
    set(&world, 1, "stays", "new").await;
    let stop = Arc::new(AtomicBool::new(false));
    let (count, churning) = churn(&world, 1, &stop);

    // Back, with its old data, which reaches nobody and is merged with nothing.
    activate(&world, &one, None, true).await;
    activate(&world, &one, Some(2), true).await;
    activate(&world, &two, Some(1), false).await;
    let seen = two.observe().await;
    assert_eq!((seen.is_open(), seen.streaming, seen.state), (false, Ternary::No, EngineState::Running));
    let found = difference(&world, &two, 1).await;
    assert_eq!((found.only_here, &*found.examples), (1, ["goes".to_owned()].as_slice()));
    assert_eq!((found.compared, found.delivered), (2, true), "it was there before, and deleted");
    let began = tokio::time::Instant::now();
    two.refill(&world.peer(1), false).await.unwrap();
    println!("filled in {:?}", began.elapsed());
    assert!(!two.observe().await.is_open());
    assert_eq!(difference(&world, &two, 1).await.only_here, 0);
    activate(&world, &two, Some(1), true).await;
    activate(&world, &one, Some(2), true).await;
    stream(&one, &two).await;
    println!("open in {:?}", began.elapsed());
    set(&world, 2, "after", "2").await;
    stop.store(true, Ordering::Relaxed);
    churning.await.unwrap();
    println!("{} keys were made and deleted meanwhile", count.load(Ordering::Relaxed));

    both_have(&world, "after", Some("2")).await;
    both_have(&world, "stays", Some("new")).await;
    both_have(&world, "goes", None).await;
    for (driver, other) in [(&one, 2), (&two, 1)] {
        assert_eq!(difference(&world, driver, other).await.only_here, 0);
    }
    let left: Vec<String> = world.command(1, redis::cmd("KEYS").arg("lock:*")).await.unwrap();
    assert_eq!(left, Vec::<String>::new(), "deleted keys came back");
    // The survivor took a copy while there was nothing to take, and went on from there.
    assert_eq!(told(&world, 2, "stats", "sync_full").await, 1);
    assert_eq!(told(&world, 2, "stats", "sync_partial_ok").await, 1);
    redis::cmd("PING").query_async::<String>(&mut client).await.unwrap();
    assert_eq!(one.observe().await.pid, process, "the survivor was started anew");
    // And again, with a snapshot that has nothing which was deleted since: told to open it is filled by itself.
    two.checkpoint(Flush::HandOver).await.unwrap();
    crash(&world, 2, &two).await;
    activate(&world, &one, None, true).await;
    activate(&world, &one, Some(2), true).await;
    activate(&world, &two, Some(1), false).await;
    assert_eq!(difference(&world, &two, 1).await.only_here, 0);
    activate(&world, &two, Some(1), true).await;
    stream(&one, &two).await;
    set(&world, 2, "again", "2").await;
    both_have(&world, "again", Some("2")).await;
    redis::cmd("PING").query_async::<String>(&mut client).await.unwrap();
    // What comes in while it is filled is remembered for the other side, as far as there is room.
    assert!(told(&world, 2, "replication", "repl_backlog_size").await > 64 << 20);
    world.end().await;
}

/// What it wrote while nobody heard it is not thrown away by itself.
async fn one_that_has_what_nobody_else_had_is_not_filled_by_itself(factory: &'static RedisFactory) {
    let (world, one, two) = sides(factory).await;
    activate(&world, &one, None, true).await;
    set(&world, 2, "precious", "2").await;
    two.stop(Stop::Fast).await.unwrap();
    let other = world.peer(1);
    activate(&world, &two, Some(1), false).await;
    let found = difference(&world, &two, 1).await;
    assert_eq!((found.only_here, found.delivered), (1, false));
    let refused = two.activate(Activation { other: Some(&other), open: true, first: false }).await.unwrap_err();
    assert!(matches!(refused, DriverError::Diverged { .. }) && refused.to_string().contains("precious"), "{refused}");
    assert!(!two.observe().await.is_open());
    // On a person's word this side's data survives, or the other's.
    activate(&world, &two, None, true).await;
    assert_eq!(get(&world, 2, "precious").await.as_deref(), Some("2"));
    one.refill(&world.peer(2), false).await.unwrap();
    activate(&world, &two, Some(1), true).await;
    activate(&world, &one, Some(2), true).await;
    stream(&one, &two).await;
    both_have(&world, "precious", Some("2")).await;
    world.end().await;
}

async fn a_side_that_follows_nobody_gets_nothing_and_loses_nothing(factory: &'static RedisFactory) {
    let (world, one, _two) = sides(factory).await;
    set(&world, 1, "before", "1").await;
    both_have(&world, "before", Some("1")).await;
    let mut client = login(&world, 1).await;
    let process = one.observe().await.pid;
    activate(&world, &one, None, true).await;
    let seen = one.observe().await;
    assert_eq!((seen.role, &seen.upstream, seen.streaming), (Some(Role::Active), &None, Ternary::No));
    set(&world, 2, "unheard", "2").await;
    set(&world, 1, "heard", "1").await;
    eventually("the other side still follows", async || get(&world, 2, "heard").await.as_deref() == Some("1")).await;
    assert_eq!(get(&world, 1, "unheard").await, None);
    // It stays so, whatever is configured meanwhile.
    one.configure(&world.spec()).await.unwrap();
    assert_eq!((one.observe().await.streaming, get(&world, 1, "unheard").await), (Ternary::No, None));
    activate(&world, &one, Some(2), true).await;
    both_have(&world, "unheard", Some("2")).await;
    redis::cmd("PING").query_async::<String>(&mut client).await.unwrap();
    assert_eq!(one.observe().await.pid, process);
    assert_eq!(told(&world, 2, "stats", "sync_full").await, 1, "it took more than what it had missed");
    // As often as need be: each time with the same upstream of the engine's.
    for round in 0..5 {
        activate(&world, &one, None, true).await;
        let key = format!("round:{round}");
        set(&world, 2, &key, "2").await;
        activate(&world, &one, Some(2), true).await;
        both_have(&world, &key, Some("2")).await;
    }
    redis::cmd("PING").query_async::<String>(&mut client).await.unwrap();
    world.end().await;
}

async fn a_refill_that_fails_puts_the_old_data_back(factory: &'static RedisFactory) {
    let (world, one, two) = sides(factory).await;
    set(&world, 2, "kept", "2").await;
    both_have(&world, "kept", Some("2")).await;
    activate(&world, &one, Some(2), false).await;
    let refused = two.refill(&world.peer(1), false).await.unwrap_err();
    assert!(refused.to_string().contains("closed"), "{refused}");
    assert_eq!(get(&world, 2, "kept").await.as_deref(), Some("2"), "a refused refill changed something");
    activate(&world, &one, Some(2), true).await;

    // Its port is somebody else's when it is to start with nothing.
    let port = world.port(2);
    let taken = Arc::new(AtomicBool::new(false));
    let thief = std::thread::spawn({
        let taken = Arc::clone(&taken);
        move || {
            let listener = loop {
                if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
                    break listener;
                }
            };
            while !taken.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            drop(listener);
        }
    });
    let failed = two.refill(&world.peer(1), false).await.unwrap_err();
    taken.store(true, Ordering::Relaxed);
    thief.join().unwrap();
    assert!(matches!(failed, DriverError::PortInUse { .. }), "{failed}");
    assert!(two.has_data() && !two.is_dirty());
    activate(&world, &one, None, true).await;
    activate(&world, &two, None, true).await;
    assert_eq!(get(&world, 2, "kept").await.as_deref(), Some("2"));
    world.end().await;
}

async fn a_refill_keeps_the_old_data_aside(factory: &'static RedisFactory) {
    is_filled_and_keeps_the_old_data_aside(sides(factory).await).await;
}

async fn sides_that_speak_tls_are_filled_and_follow_each_other_as_well(factory: &'static RedisFactory) {
    if tls::is_known_to(factory) {
        is_filled_and_keeps_the_old_data_aside(sides_in(RealWorld::new(factory).with_tls()).await).await;
    }
}

async fn is_filled_and_keeps_the_old_data_aside((world, one, two): Sides) {
    activate(&world, &one, None, true).await;
    set(&world, 2, "only-of-two", "2").await;
    set(&world, 1, "only-of-one", "1").await;
    two.refill(&world.peer(1), true).await.unwrap();
    assert!(world.root(2).join("kept/data-1/dump.rdb").exists());
    activate(&world, &two, Some(1), true).await;
    activate(&world, &one, Some(2), true).await;
    both_have(&world, "only-of-one", Some("1")).await;
    both_have(&world, "only-of-two", None).await;
    two.discard_kept().await.unwrap();
    assert!(!world.root(2).join("kept/data-1").exists());
    // A side that was emptied is filled as well.
    two.stop(Stop::Kill).await.unwrap();
    std::fs::remove_file(world.data(2).join("dump.rdb")).unwrap();
    let other = world.peer(1);
    let refused = two.activate(Activation { other: Some(&other), open: true, first: false }).await;
    assert!(matches!(refused, Err(DriverError::NoData { .. })), "{refused:?}");
    two.refill(&other, false).await.unwrap();
    activate(&world, &two, Some(1), true).await;
    both_have(&world, "only-of-one", Some("1")).await;
    world.end().await;
}

/// As when the agent is killed: the next one does it again, and serves nothing before.
async fn a_refill_that_is_broken_off_anywhere_is_gone_on_with(factory: &'static RedisFactory) {
    let (world, one, mut two) = sides(factory).await;
    // As the first side's agent does all the while: it lets its engine follow the other one again while that is empty.
    let looking = tokio::spawn({
        let one = Arc::clone(&one);
        async move {
            loop {
                one.observe().await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    for round in 0..6_u64 {
        let (key, stale) = (format!("kept:{round}"), format!("stale:{round}"));
        set(&world, 2, &stale, "2").await;
        both_have(&world, &stale, Some("2")).await;
        activate(&world, &two, None, false).await;
        delete(&world, 1, &stale).await;
        set(&world, 1, &key, "1").await;
        let (driver, source) = (Arc::clone(&two), world.peer(1));
        let filling = tokio::spawn(async move { driver.refill(&source, false).await });
        tokio::time::sleep(Duration::from_millis(20 + round * 200)).await;
        filling.abort();
        drop(filling.await);
        drop(two);
        two = world.open(2).unwrap();
        two.configure(&world.spec()).await.unwrap();
        assert!(!two.observe().await.is_open(), "round {round}");
        two.refill(&world.peer(1), false).await.unwrap();
        activate(&world, &two, Some(1), true).await;
        stream(&one, &two).await;
        both_have(&world, &key, Some("1")).await;
        both_have(&world, &stale, None).await;
        assert_eq!(std::fs::read_dir(world.root(2).join("kept")).unwrap().count(), 0, "round {round}");
    }
    looking.abort();
    drop(looking.await);
    world.end().await;
}

async fn an_agent_that_is_started_again_leaves_an_open_side_open(factory: &'static RedisFactory) {
    let (world, one, two) = sides(factory).await;
    let mut client = login(&world, 1).await;
    let before = one.observe().await;
    drop(one);
    let one = world.open(1).unwrap();
    let seen = one.observe().await;
    assert_eq!((seen.pid, seen.is_open(), seen.streaming), (before.pid, true, Ternary::Yes));
    assert_eq!(seen.upstream, Some(world.peer(2).member));
    one.configure(&world.spec()).await.unwrap();
    one.undo_drain().await.unwrap();
    let seen = one.observe().await;
    assert_eq!((seen.pid, seen.is_open(), seen.streaming), (before.pid, true, Ternary::Yes));
    redis::cmd("SET").arg("on").arg(1).query_async::<()>(&mut client).await.unwrap();
    both_have(&world, "on", Some("1")).await;
    // A closed one stays closed, and cuts who is connected.
    activate(&world, &one, Some(2), false).await;
    assert!(redis::cmd("PING").query_async::<String>(&mut client).await.is_err(), "it was not cut");
    drop(one);
    let one = world.open(1).unwrap();
    one.configure(&world.spec()).await.unwrap();
    assert!(!one.observe().await.is_open());
    eventually("nobody follows it", async || two.observe().await.streaming == Ternary::No).await;
    world.end().await;
}

async fn a_side_is_neither_a_primary_nor_a_replica(factory: &'static RedisFactory) {
    let (world, one, _two) = sides(factory).await;
    let (peer, name) = (world.peer(2), MemberName::new("db-main2").unwrap());
    let refused = [
        one.initialize().await.map(drop),
        one.promote().await.map(drop),
        one.follow(&peer).await.map(drop),
        one.cut().await.map(drop),
        one.drain(&name).await.map(drop),
        one.start(StartAs::Primary).await,
        one.examine().await.map(drop),
        one.swap(&peer, false).await,
        one.as_ref().clone_from(&peer, CloneOptions::default(), &work()).await.map(drop),
    ];
    for (number, refused) in refused.into_iter().enumerate() {
        assert!(matches!(refused, Err(DriverError::OtherMode { .. })), "{number}: {refused:?}");
    }
    let mut spec = world.spec();
    spec.settings.insert("appendonly".to_owned(), "yes".to_owned());
    assert!(one.configure(&spec).await.is_err());
    one.checkpoint(Flush::HandOver).await.unwrap();
    set(&world, 1, "still", "1").await;
    both_have(&world, "still", Some("1")).await;
    one.release(false).await.unwrap();
    assert!(!world.has_traces(1));
    world.end().await;
}

async fn a_fenced_side_takes_no_writes(factory: &'static RedisFactory) {
    let (world, one, two) = sides(factory).await;
    one.fence().await.unwrap();
    assert_eq!(processes_in(&world.data(1)), Vec::<i32>::new());
    set(&world, 2, "goes-on", "2").await;
    activate(&world, &one, Some(2), false).await;
    activate(&world, &one, Some(2), true).await;
    activate(&world, &two, Some(1), true).await;
    both_have(&world, "goes-on", Some("2")).await;
    world.end().await;
}

async fn an_engine_without_the_mode_says_so(factory: &'static RedisFactory) {
    let mut world = RealWorld::new(factory);
    world.mode = Mode::MultiMaster;
    let driver = world.open(1).unwrap();
    let refused = driver.configure(&world.spec()).await;
    assert!(matches!(refused, Err(DriverError::NoSuchMode { mode: Mode::MultiMaster })), "{refused:?}");
    assert!(!world.root(1).join("conf/server.conf").exists());
    world.mode = Mode::PrimaryReplica;
    driver.configure(&world.spec()).await.unwrap();
    let peer = world.peer(2);
    let how = Activation { other: Some(&peer), open: true, first: true };
    assert!(matches!(driver.activate(how).await, Err(DriverError::OtherMode { .. })));
    assert!(matches!(driver.refill(&peer, false).await, Err(DriverError::OtherMode { .. })));
    assert!(matches!(driver.compare(&peer, Comparison::Presence, &work()).await, Err(DriverError::OtherMode { .. })));
    world.end().await;
}
