//! What goes wrong with real engines: hung, full, emptied, started by hand, badly configured, killed in the middle of something.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_agent::engine::{
    CloneOptions, Driver, DriverError, Factory, StartAs, Stop, Work, conformance::World, redis::RedisFactory,
};
use regent_common::topology::{ClusterSpec, EngineState, Progress, REFUSES_WRITES, Role, Ternary};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::world::{APPLICATION, APPLICATION_SECRET, REPLICATION_SECRET, RealWorld, ask, connect, user_of};

const LONG: Duration = Duration::from_secs(30);

/// Each test of this file once for each flavor.
macro_rules! on_every_flavor {
    ($($test:ident),+ $(,)?) => {
        on_flavor!(of_redis, REDIS: $($test),+);
        on_flavor!(of_valkey, VALKEY: $($test),+);
        on_flavor!(of_keydb, KEYDB: $($test),+);
    };
}
macro_rules! on_flavor {
    ($module:ident, $factory:ident: $($test:ident),+) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    let factory = &regent_agent::engine::redis::$factory;
                    if crate::world::is_there(factory) {
                        super::$test(factory).await;
                    }
                }
            )+
        }
    };
}

on_every_flavor!(
    a_hung_engine_is_told_from_a_full_one,
    an_engine_that_waits_in_a_command_is_seen_to_hang,
    a_busy_engine_and_one_whose_snapshots_fail_are_not_taken_for_hung,
    a_member_whose_agent_is_away_copies_nothing_from_a_former_primary,
    clients_that_were_held_or_kept_out_are_let_in_with_the_next_role,
    a_primary_is_made_a_replica_and_a_primary_again_and_again,
    bad_input_is_refused_and_changes_nothing,
    a_primary_whose_memory_is_full_says_that_it_refuses_writes,
    a_primary_that_may_not_write_without_replicas_says_so,
    secrets_are_in_no_log_no_arguments_and_no_readable_file,
    an_emptied_primary_is_not_started_and_one_that_somebody_starts_is_copied_by_nobody,
    a_kill_that_overtakes_a_start_leaves_nothing_running,
    an_agent_that_begins_while_the_engine_starts_waits_for_it,
    who_came_back_from_an_old_snapshot_and_who_was_never_away_know_themselves_as_equal,
);

pub(crate) async fn primary(world: &RealWorld) -> Arc<dyn Driver> {
    let driver = world.open(1).unwrap();
    driver.configure(&world.spec()).await.unwrap();
    driver.initialize().await.unwrap();
    driver
}

pub(crate) async fn replica(world: &RealWorld, member: u32) -> Arc<dyn Driver> {
    let driver = world.open(member).unwrap();
    driver.configure(&world.spec()).await.unwrap();
    driver.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await.unwrap();
    driver.swap(&world.peer(1), false).await.unwrap();
    driver
}

/// The agent, as the engine of member 1 knows it.
const AGENT: &str = "regent-agent";

fn agent_secret(world: &RealWorld) -> String {
    let stored = fs::read(world.root(1).join("conf/wanted.json")).unwrap();
    let stored: serde_json::Value = serde_json::from_slice(&stored).unwrap();
    stored["secrets"]["agent"].as_str().unwrap().to_owned()
}

/// Sends one command to member 1 as its agent.
async fn as_agent<T: redis::FromRedisValue>(world: &RealWorld, command: &redis::Cmd) -> Result<T, String> {
    ask(world.port(1), Some((AGENT, &agent_secret(world))), command).await
}

pub(crate) fn work() -> Work {
    Work { progress: watch::Sender::new(Progress::default()), cancel: CancellationToken::new() }
}

pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn a_hung_engine_is_told_from_a_full_one(factory: &'static RedisFactory) {
    let mut world = RealWorld::new(factory);
    world.settings.insert("maxclients".to_owned(), "30".to_owned());
    let driver = primary(&world).await;
    let server = Pid::from_raw(driver.observe().await.pid.unwrap().cast_signed());

    kill(server, Signal::SIGSTOP).unwrap();
    eventually("it is seen to hang", async || driver.observe().await.state == EngineState::Hung).await;
    kill(server, Signal::SIGCONT).unwrap();
    eventually("it is seen to run", async || {
        let seen = driver.observe().await;
        (seen.state, seen.role) == (EngineState::Running, Some(Role::Primary))
    })
    .await;

    let mut held = Vec::new();
    let full = loop {
        match connect(world.port(1), Some((APPLICATION, APPLICATION_SECRET))).await {
            Ok(connection) => held.push(connection),
            Err(full) => break full,
        }
    };
    assert!(held.len() >= 20, "{} connections, then {full}", held.len());
    drop(driver);
    let seen = world.open(1).unwrap().observe().await;
    assert_eq!(seen.state, EngineState::Running, "{}", seen.reason);
    drop(held);
    world.end().await;
}

/// It has processor time all the same where another thread keeps the time meanwhile.
async fn an_engine_that_waits_in_a_command_is_seen_to_hang(factory: &'static RedisFactory) {
    let mut world = RealWorld::new(factory);
    if factory.name() != "keydb" {
        // Since release 7, from which on it is off otherwise.
        world.settings.insert("enable-debug-command".to_owned(), "yes".to_owned());
    }
    let driver = primary(&world).await;
    let (agent, port) = (agent_secret(&world), world.port(1));
    let waiting = tokio::spawn(async move {
        let mut command = redis::cmd("DEBUG");
        command.arg("SLEEP").arg(8);
        ask::<String>(port, Some((AGENT, &agent)), &command).await
    });
    eventually("it is seen to hang", async || driver.observe().await.state == EngineState::Hung).await;
    assert!(!waiting.is_finished(), "it was seen to hang when it was over");
    waiting.await.unwrap().unwrap();
    eventually("it is seen to run", async || driver.observe().await.state == EngineState::Running).await;
    world.end().await;
}

/// Nothing but silence without any work is a hang: a failover would lose what is in the memory.
async fn a_busy_engine_and_one_whose_snapshots_fail_are_not_taken_for_hung(factory: &'static RedisFactory) {
    let mut world = RealWorld::new(factory);
    // A snapshot a second after each write.
    world.settings.insert("save".to_owned(), "1 1".to_owned());
    let driver = primary(&world).await;
    let port = world.port(1);
    let busy = tokio::spawn(async move {
        let script = "local now = function() return tonumber(redis.call('TIME')[1]) end \
                      local begin = now() while now() < begin + 5 do end";
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(0);
        ask::<redis::Value>(port, Some((APPLICATION, APPLICATION_SECRET)), &command).await
    });
    let mut reasons = BTreeSet::new();
    while !busy.is_finished() {
        let seen = driver.observe().await;
        assert_eq!(seen.state, EngineState::Running, "{}", seen.reason);
        reasons.insert(seen.reason);
    }
    busy.await.unwrap().unwrap();
    assert!(reasons.iter().any(|reason| reason.contains("busy")), "{reasons:?}");

    let mode = |mode| fs::set_permissions(world.data(1), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o500);
    world.write(1).await.unwrap();
    eventually("its trouble is seen", async || {
        let seen = driver.observe().await;
        assert_eq!(seen.state, EngineState::Running, "{}", seen.reason);
        seen.reason.contains("MISCONF")
    })
    .await;
    mode(0o700);
    world.end().await;
}

async fn a_primary_whose_memory_is_full_says_that_it_refuses_writes(factory: &'static RedisFactory) {
    let mut world = RealWorld::new(factory);
    world
        .settings
        .extend([("maxmemory", "20mb"), ("repl-backlog-size", "1mb")].map(|(n, v)| (n.to_owned(), v.to_owned())));
    let driver = primary(&world).await;
    let why = async || driver.observe().await.details.get(REFUSES_WRITES).cloned();
    assert_eq!(why().await, None);
    // Small ones: what a client is sending counts as well, until it is refused.
    let value = "x".repeat(16 << 10);
    let set = |number: u32| {
        let mut command = redis::cmd("SET");
        command.arg(format!("filler.{number}")).arg(&value);
        command
    };
    let mut filled = 0;
    let refused = loop {
        match world.command::<()>(1, &set(filled)).await {
            Ok(()) => filled += 1,
            Err(refused) => break refused,
        }
        assert!(filled < 2000, "it takes more than it may");
    };
    assert!(refused.contains("OOM"), "{refused}");
    // Clients that have gone away leave room for a few more.
    eventually("it is said", async || {
        filled += 1;
        drop(world.command::<()>(1, &set(filled)).await);
        why().await.is_some_and(|said| said.contains("maxmemory is 20971520"))
    })
    .await;
    let seen = driver.observe().await;
    assert_eq!((seen.state, seen.role), (EngineState::Running, Some(Role::Primary)), "{}", seen.reason);
    for number in 0..100 {
        world.command::<()>(1, redis::cmd("DEL").arg(format!("filler.{number}"))).await.unwrap();
    }
    world.command::<()>(1, &set(0)).await.unwrap();
    assert_eq!(why().await, None);
    world.end().await;
}

async fn a_primary_that_may_not_write_without_replicas_says_so(factory: &'static RedisFactory) {
    let mut world = RealWorld::new(factory);
    // By the name that it had before.
    world.settings.insert("min-slaves-to-write".to_owned(), "1".to_owned());
    let one = primary(&world).await;
    let why = async || one.observe().await.details.get(REFUSES_WRITES).cloned();
    let said = why().await.expect("it has no replica");
    assert!(said.contains("min-replicas-to-write is 1, and 0 replicas"), "{said}");
    let refused = world.write(1).await.unwrap_err();
    assert!(refused.contains("NOREPLICAS"), "{refused}");
    let two = replica(&world, 2).await;
    eventually("it takes writes", async || world.write(1).await.is_ok()).await;
    eventually("nothing is said any more", async || why().await.is_none()).await;
    assert_eq!(two.observe().await.details.get(REFUSES_WRITES), None, "a replica refuses them by its role");
    two.stop(Stop::Kill).await.unwrap();
    eventually("it is said again", async || why().await.is_some()).await;
    assert!(world.write(1).await.is_err());
    world.end().await;
}

/// Its engine goes on asking the former primary, which has become a replica and whatever history that brings.
async fn a_member_whose_agent_is_away_copies_nothing_from_a_former_primary(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let one = primary(&world).await;
    let (two, three) = (replica(&world, 2).await, replica(&world, 3).await);
    world.write(1).await.unwrap();
    for member in [2, 3] {
        eventually("the row is there", async || world.rows(member).await == Ok(1)).await;
    }
    one.stop(Stop::Kill).await.unwrap();
    two.cut().await.unwrap();
    two.promote().await.unwrap();
    one.start(StartAs::Replica(world.peer(2))).await.unwrap();
    // It asks about once a second.
    let refused = || fs::read_to_string(world.root(3).join("log/startup.log")).unwrap().matches("NOPERM").count();
    eventually("it is refused twice", async || refused() >= 2).await;
    let seen = three.observe().await;
    assert_eq!((seen.streaming, seen.role), (Ternary::No, Some(Role::Replica)));
    assert_eq!(world.rows(3).await, Ok(1));
    three.follow(&world.peer(2)).await.unwrap();
    world.write(2).await.unwrap();
    eventually("the next row is there", async || world.rows(3).await == Ok(2)).await;
    world.end().await;
}

async fn clients_that_were_held_or_kept_out_are_let_in_with_the_next_role(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let (one, two) = (primary(&world).await, replica(&world, 2).await);
    one.stop(Stop::Fast).await.unwrap();
    one.start(StartAs::Primary).await.unwrap();
    // Writes are held while an engine that was just started remembers nothing, for seconds if nobody ends that.
    tokio::time::timeout(Duration::from_secs(2), world.write(1)).await.expect("writes are still held").unwrap();
    two.follow(&world.peer(1)).await.unwrap();

    one.drain(&world.peer(2).member).await.unwrap();
    assert!(world.rows(1).await.is_err(), "a drained engine lets clients in");
    one.start(StartAs::Isolated).await.unwrap();
    assert_eq!(world.rows(1).await, Ok(1));
    assert!(world.write(1).await.is_err(), "an isolated engine took a write");
    world.end().await;
}

/// KeyDB closes a connection of somebody's, which may be the agent's, when it is told to from the second time on.
async fn a_primary_is_made_a_replica_and_a_primary_again_and_again(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let driver = primary(&world).await;
    for round in 1..=5 {
        world.write(1).await.unwrap();
        driver.start(StartAs::Isolated).await.unwrap();
        let place = driver.examine().await.unwrap();
        assert_eq!(driver.observe().await.role, Some(Role::Replica), "round {round}");
        assert!(world.write(1).await.is_err(), "round {round}: an isolated engine took a write");
        driver.start(StartAs::Primary).await.unwrap();
        assert!(driver.examine().await.unwrap().includes(&place), "round {round}");
        assert_eq!(world.rows(1).await, Ok(round), "round {round}");
    }
    world.end().await;
}

async fn bad_input_is_refused_and_changes_nothing(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    for (key, value) in [("server", "/nowhere/redis-server"), ("sever", "/usr/bin/redis-server")] {
        let mut context = world.context(1);
        context.section.as_mut().unwrap().insert(key.to_owned(), value.into());
        let opened = factory.open(context).map(drop);
        let refused = match &opened {
            Err(DriverError::MissingProgram { .. }) => key == "server",
            Err(DriverError::InvalidSetting { .. }) => key == "sever",
            Ok(()) | Err(_) => false,
        };
        assert!(refused, "{key}: {opened:?}");
    }

    let driver = world.open(1).unwrap();
    assert!(driver.initialize().await.is_err(), "it was initialized without being configured");
    driver.configure(&world.spec()).await.unwrap();
    let port = world.port(1);
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let result = driver.initialize().await;
    assert!(matches!(result, Err(DriverError::PortInUse { port: named }) if named == port), "{result:?}");
    assert!(!driver.has_data(), "a refused initialization left data");
    drop(listener);
    driver.initialize().await.unwrap();

    let conf = world.root(1).join("conf/server.conf");
    let before = fs::read_to_string(&conf).unwrap();
    let refused = [
        ("maxmemory", "lots"),
        ("maxmemory", "1gb\nrequirepass secret"),
        ("slaveof", "127.0.0.1 1"),
        ("rename-command", "GET \"\""),
        ("nonsense", "1"),
    ];
    for (name, value) in refused {
        let settings = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let result = driver.configure(&ClusterSpec { settings, ..world.spec() }).await;
        let refused = match &result {
            Err(DriverError::UnknownSetting { name: named, .. }) => named == name && name == "nonsense",
            Err(DriverError::InvalidSetting { name: named, .. }) => named == name && name != "nonsense",
            Ok(()) | Err(_) => false,
        };
        assert!(refused, "{name} = {value}: {result:?}");
    }
    assert_eq!(fs::read_to_string(&conf).unwrap(), before);
    let settings = BTreeMap::from([("maxmemory".to_owned(), "100mb".to_owned())]);
    driver.configure(&ClusterSpec { settings, ..world.spec() }).await.unwrap();
    eventually("the setting is in force", async || {
        let told: String = world.command(1, redis::cmd("INFO").arg("memory")).await.unwrap();
        told.lines().any(|line| line == "maxmemory:104857600")
    })
    .await;
    world.end().await;
}

async fn secrets_are_in_no_log_no_arguments_and_no_readable_file(factory: &'static RedisFactory) {
    let mut world = RealWorld::new(factory);
    world.settings.insert("loglevel".to_owned(), "debug".to_owned());
    let driver = primary(&world).await;
    let mut spec = world.spec();
    let changed = "another application's: \\ \"secret\" #2";
    spec.secrets.insert("application".to_owned(), changed.into());
    driver.configure(&spec).await.unwrap();
    assert!(world.write(1).await.is_err(), "the old password still works");
    driver.configure(&world.spec()).await.unwrap();
    world.write(1).await.unwrap();
    let (watching, stop) = (CancellationToken::new(), CancellationToken::new());
    let watcher = tokio::spawn({
        let (watching, stop) = (watching.clone(), stop.clone());
        async move {
            let mut looks = 0;
            while !stop.is_cancelled() {
                for process in procfs::process::all_processes().unwrap().filter_map(Result::ok) {
                    let arguments = process.cmdline().unwrap_or_default().join(" ");
                    for secret in [REPLICATION_SECRET, APPLICATION_SECRET, changed] {
                        assert!(!arguments.contains(secret), "{arguments}");
                    }
                }
                looks += 1;
                watching.cancel();
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            looks
        }
    });
    watching.cancelled().await;
    let _second = replica(&world, 2).await;
    stop.cancel();
    assert!(watcher.await.unwrap() > 3);

    let mut seen = 0;
    visit(world.folder.path(), &mut |path| {
        let Ok(content) = fs::read(path) else { return };
        let holds = |text: &str| content.windows(text.len()).any(|window| window == text.as_bytes());
        // As it is, and as files quote it.
        if holds("s: \\ \"secret\" #") || holds("s: \\\\ \\\"secret\\\" #") {
            let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{} is readable by others", path.display());
            assert!(!path.starts_with(world.root(1).join("log")), "{} has a secret", path.display());
            seen += 1;
        }
    });
    assert!(seen > 0, "the search finds no secret anywhere, so it proves nothing");
    world.end().await;
}

fn visit(folder: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok) {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => visit(&entry.path(), each),
            Ok(kind) if kind.is_file() => each(&entry.path()),
            Ok(_) | Err(_) => {}
        }
    }
}

/// The classic way to lose everything (redis#2087): a primary that comes back with nothing, and is copied.
async fn an_emptied_primary_is_not_started_and_one_that_somebody_starts_is_copied_by_nobody(
    factory: &'static RedisFactory,
) {
    let world = RealWorld::new(factory);
    let first = primary(&world).await;
    let _second = replica(&world, 2).await;
    world.write(1).await.unwrap();
    eventually("the replica has it", async || world.rows(2).await == Ok(1)).await;
    world.crash(1).await.unwrap();
    eventually("the primary is dead", async || world.processes(1) == 0).await;
    for entry in fs::read_dir(world.data(1)).unwrap().map(Result::unwrap) {
        fs::remove_file(entry.path()).unwrap();
    }
    drop(first);
    let first = world.open(1).unwrap();
    assert!(!first.has_data());
    for how in [StartAs::Primary, StartAs::Isolated, StartAs::Replica(world.peer(2))] {
        let started = first.start(how.clone()).await;
        assert!(matches!(started, Err(DriverError::NoData { .. })), "{how:?} was answered with {started:?}");
    }

    // By hand, with what stands there.
    let mut command = Command::new(env!("CARGO_BIN_EXE_regent-agent"));
    command.args(["helper", "detach", "--log"]).arg(world.root(1).join("log/by-hand.log"));
    if let Some(user) = user_of(factory) {
        command.args(["--user", &user.name]);
    }
    command.arg("--").arg(&world.server).arg(world.root(1).join("conf/server.conf"));
    let mut by_hand = command.current_dir("/").spawn().unwrap();
    eventually("it serves", async || world.rows(1).await == Ok(0)).await;
    let asked = world.root(2).join("log/startup.log");
    // Nobody may copy from who is no primary; nor would an engine let anybody that follows nobody.
    let is_refused = |text: String| ["NOPERM", "NOMASTERLINK"].iter().any(|word| text.contains(word));
    eventually("the replica asks it", async || is_refused(fs::read_to_string(&asked).unwrap())).await;
    assert_eq!(world.rows(2).await, Ok(1), "the replica was emptied");
    assert!(world.write(1).await.is_err(), "what is started by hand takes writes");
    world.end().await;
    // Whoever reaps it.
    drop(by_hand.wait());
}

async fn a_kill_that_overtakes_a_start_leaves_nothing_running(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let driver = primary(&world).await;
    for round in 0..12 {
        driver.stop(Stop::Kill).await.unwrap();
        let how = if round % 2 == 0 { StartAs::Primary } else { StartAs::Isolated };
        let mut starting = Box::pin({
            let driver = Arc::clone(&driver);
            async move { driver.start(how).await }
        });
        // On a busy machine the task might begin after the kill.
        assert!(futures::poll!(starting.as_mut()).is_pending(), "a start waits for the disk");
        let starting = tokio::spawn(starting);
        // Each time at another moment of the start.
        tokio::time::sleep(Duration::from_millis(round * 5)).await;
        driver.stop(Stop::Kill).await.unwrap();
        let started = starting.await.unwrap();
        assert_eq!(world.processes(1), 0, "round {round}, the start said {started:?}");
    }
    driver.start(StartAs::Primary).await.unwrap();
    world.write(1).await.unwrap();
    world.end().await;
}

/// The engine says who it is before anybody can reach it.
async fn an_agent_that_begins_while_the_engine_starts_waits_for_it(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let mut driver = primary(&world).await;
    let claimed = world.data(1).join("server.pid");
    for _ in 0..4 {
        driver.stop(Stop::Kill).await.unwrap();
        assert!(!claimed.exists());
        let starting = tokio::spawn(async move { driver.start(StartAs::Primary).await });
        let engine = loop {
            match fs::read_to_string(&claimed).ok().and_then(|pid| pid.strip_suffix('\n')?.parse().ok()) {
                Some(pid) => break Pid::from_raw(pid),
                None => tokio::task::yield_now().await,
            }
        };
        kill(engine, Signal::SIGSTOP).unwrap();
        starting.abort();
        drop(starting.await);
        driver = world.open(1).unwrap();
        let goes_on = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(500)).await;
            kill(engine, Signal::SIGCONT).unwrap();
        });
        driver.configure(&world.spec()).await.unwrap();
        goes_on.await.unwrap();
        assert_eq!(world.processes(1), 1);
    }
    driver.start(StartAs::Primary).await.unwrap();
    world.write(1).await.unwrap();
    world.end().await;
}

/// The former primary comes back from a snapshot that is older than the promotion, and gets the rest from the new one: it left the
/// history that all had before at the same place as they did, and not where its snapshot ended.
async fn who_came_back_from_an_old_snapshot_and_who_was_never_away_know_themselves_as_equal(
    factory: &'static RedisFactory,
) {
    let world = RealWorld::new(factory);
    let first = primary(&world).await;
    let (second, third) = (replica(&world, 2).await, replica(&world, 3).await);
    world.write(1).await.unwrap();
    // Refused while a replica is still being sent another one.
    eventually("a snapshot is written", async || as_agent::<()>(&world, &redis::cmd("SAVE")).await.is_ok()).await;
    world.write(1).await.unwrap();
    first.drain(&world.peer(2).member).await.unwrap();
    eventually("the other replica has it too", async || world.rows(3).await == Ok(2)).await;
    first.stop(Stop::Kill).await.unwrap();
    second.cut().await.unwrap();
    third.cut().await.unwrap();
    second.promote().await.unwrap();
    third.follow(&world.peer(2)).await.unwrap();
    first.follow(&world.peer(2)).await.unwrap();
    world.write(2).await.unwrap();
    for member in [1, 3] {
        eventually("it has everything", async || world.rows(member).await == Ok(3)).await;
    }
    second.drain(&world.peer(3).member).await.unwrap();
    second.stop(Stop::Kill).await.unwrap();
    let (one, three) = (first.cut().await.unwrap(), third.cut().await.unwrap());
    assert!(one.partial_cmp(&three).is_some(), "{one} and {three} are said to have diverged: {one:?}, {three:?}");
    world.end().await;
}
