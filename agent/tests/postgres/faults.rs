//! What goes wrong with real engines: hung, full, killed in part, started by hand, badly configured, out of space.

use std::{
    collections::BTreeMap, fs, os::unix::fs::PermissionsExt, path::Path, process::Command, sync::Arc, time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_agent::engine::{
    CloneOptions, Driver, DriverError, Factory, StartAs, Work, conformance::World, postgres::PostgresFactory,
};
use regent_common::topology::{ClusterSpec, EngineState, Progress, Role};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::world::{APPLICATION_SECRET, REPLICATION_SECRET, RealWorld, processes_in};

const LONG: Duration = Duration::from_secs(30);

pub(crate) async fn primary(world: &RealWorld) -> Arc<dyn Driver> {
    let driver = world.open(1).unwrap();
    driver.configure(&world.spec()).await.unwrap();
    driver.initialize().await.unwrap();
    driver
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hung_engine_is_told_from_a_full_and_from_a_dead_one() {
    let mut world = RealWorld::new();
    world.settings.insert("max_connections".to_owned(), "30".to_owned());
    let driver = primary(&world).await;
    let pid = driver.observe().await.pid.unwrap();
    let postmaster = Pid::from_raw(pid.cast_signed());

    kill(postmaster, Signal::SIGSTOP).unwrap();
    // The kept session goes on answering: only a new connection shows it.
    eventually("it is seen to hang", async || driver.observe().await.state == EngineState::Hung).await;
    assert_eq!(driver.observe().await.role, Some(Role::Primary));
    kill(postmaster, Signal::SIGCONT).unwrap();
    eventually("it is seen to run", async || driver.observe().await.state == EngineState::Running).await;

    let mut held = Vec::new();
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(world.peer(1).engine.port).user("app").password(APPLICATION_SECRET).dbname("app");
    while let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await {
        held.push((client, tokio::spawn(connection)));
    }
    assert!(held.len() >= 20, "only {} connections", held.len());
    drop(driver);
    let driver = world.open(1).unwrap();
    let seen = driver.observe().await;
    assert_eq!((seen.state, seen.role), (EngineState::Running, Some(Role::Primary)), "{}", seen.reason);
    assert!(driver.cut().await.unwrap_err().to_string().contains("is a primary"));
    drop(held);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_dead_backend_is_no_end_of_the_engine() {
    let world = RealWorld::new();
    let driver = primary(&world).await;
    let before = driver.observe().await;
    let mut changes = driver.process_changes();
    changes.mark_unchanged();
    let kill_own_backend = "DO $$ BEGIN PERFORM pg_sleep(60); END $$";
    let killed = tokio::spawn({
        let (port, sql) = (world.peer(1).engine.port, kill_own_backend.to_owned());
        async move {
            let mut config = tokio_postgres::Config::new();
            config.host("127.0.0.1").port(port).user("app").password(APPLICATION_SECRET).dbname("app");
            let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute(&sql).await
        }
    });
    let backend = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DO%pg_sleep%' AND state = 'active'";
    let mut pid = None;
    eventually("the backend runs", async || {
        pid = world.sql(1, backend).await.unwrap().and_then(|pid| pid.parse::<i32>().ok());
        pid.is_some()
    })
    .await;
    kill(Pid::from_raw(pid.unwrap()), Signal::SIGKILL).unwrap();
    assert!(killed.await.unwrap().is_err());
    eventually("it takes writes again", async || world.write(1).await.is_ok()).await;
    let after = driver.observe().await;
    assert_eq!((after.pid, after.state), (before.pid, EngineState::Running), "{}", after.reason);
    assert!(!changes.has_changed().unwrap(), "the end of a backend was told as the end of the engine");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_a_person_started_is_taken_over() {
    let world = RealWorld::new();
    let driver = primary(&world).await;
    driver.stop(regent_agent::engine::Stop::Fast).await.unwrap();
    let bin = regent_bin();
    let config = format!("config_file={}", world.root(1).join("conf/postgresql.conf").display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_regent-agent"));
    command.args(["helper", "detach", "--log"]).arg(world.root(1).join("log/by-hand.log"));
    if nix::unistd::geteuid().is_root() {
        command.args(["--user", "postgres"]);
    }
    let mut child =
        command.arg("--").arg(bin.join("postgres")).arg("-D").arg(world.data(1)).args(["-c", &config]).spawn().unwrap();
    eventually("it is taken over", async || {
        let seen = driver.observe().await;
        seen.pid == Some(child.id()) && seen.role == Some(Role::Primary)
    })
    .await;
    driver.start(StartAs::Isolated).await.unwrap();
    // The driver has reaped it already, as it is a child of this process.
    assert!(child.wait().is_err());
    assert_eq!(driver.observe().await.role, Some(Role::Replica));
    world.end().await;
}

fn regent_bin() -> std::path::PathBuf {
    if let Ok(folder) = std::env::var("REGENT_POSTGRES_BIN") {
        return folder.into();
    }
    let mut found: Vec<_> = fs::read_dir("/usr/lib/postgresql").unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    found.pop().unwrap().join("bin")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_input_is_refused_and_changes_nothing() {
    let world = RealWorld::new();
    let mut missing = world.context(1);
    missing.section.as_mut().unwrap().insert("bin_dir".to_owned(), "/nowhere".into());
    assert!(matches!(PostgresFactory.open(missing).map(drop), Err(DriverError::MissingProgram { .. })));
    let mut unknown = world.context(1);
    unknown.section.as_mut().unwrap().insert("bindir".to_owned(), "/nowhere".into());
    assert!(matches!(PostgresFactory.open(unknown).map(drop), Err(DriverError::InvalidSetting { .. })));

    let driver = world.open(1).unwrap();
    assert!(driver.initialize().await.is_err(), "it was initialized without being configured");
    let refused = driver.configure(&ClusterSpec { tls: true, ..world.spec() }).await;
    assert!(matches!(refused, Err(DriverError::NoTls { .. })), "{refused:?}");
    driver.configure(&world.spec()).await.unwrap();
    let port = world.peer(1).engine.port;
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let result = driver.initialize().await;
    assert!(matches!(result, Err(DriverError::PortInUse { port: named }) if named == port), "{result:?}");
    assert!(!world.data(1).exists(), "a refused initialization left data");
    drop(listener);
    driver.initialize().await.unwrap();

    let conf = world.root(1).join("conf/postgresql.conf");
    let before = fs::read_to_string(&conf).unwrap();
    for (name, value) in [("work_mem", "lots"), ("work_mem", "1"), ("wal_level", "minimal"), ("nonsense", "1")] {
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
    let settings = BTreeMap::from([("work_mem".to_owned(), "7MB".to_owned())]);
    driver.configure(&ClusterSpec { settings, ..world.spec() }).await.unwrap();
    eventually("the setting is in force", async || {
        world.sql(1, "SHOW work_mem").await.unwrap().as_deref() == Some("7MB")
    })
    .await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_in_no_log_no_arguments_and_no_readable_file() {
    let mut world = RealWorld::new();
    for (name, value) in [("log_statement", "all"), ("log_min_duration_statement", "0"), ("log_connections", "on")] {
        world.settings.insert(name.to_owned(), value.to_owned());
    }
    let driver = primary(&world).await;
    let mut spec = world.spec();
    let changed = "another application's: \\ secret";
    spec.secrets.insert("application".to_owned(), changed.into());
    driver.configure(&spec).await.unwrap();
    assert!(world.write(1).await.is_err(), "the old password still works");
    driver.configure(&world.spec()).await.unwrap();
    world.write(1).await.unwrap();
    let second = world.open(2).unwrap();
    second.configure(&world.spec()).await.unwrap();
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
    second.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await.unwrap();
    second.swap(&world.peer(1), false).await.unwrap();
    stop.cancel();
    assert!(watcher.await.unwrap() > 3);

    let mut seen = 0;
    visit(world.folder.path(), &mut |path| {
        let Ok(content) = fs::read(path) else { return };
        let holds = |text: &str| content.windows(text.len()).any(|window| window == text.as_bytes());
        if holds("s: \\ secret") || holds("s\\: \\\\ secret") || holds("SCRAM-SHA-256$4096") {
            let mode = fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{} is readable by others", path.display());
            assert!(!path.starts_with(world.root(1).join("log")), "{} has a secret", path.display());
            seen += 1;
        }
    });
    assert!(seen > 0, "the search finds no secret anywhere, so it proves nothing");
    assert!(![REPLICATION_SECRET, APPLICATION_SECRET].contains(&""));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_is_cancelled_in_the_middle_and_leaves_nothing() {
    let world = RealWorld::new();
    let _first = primary(&world).await;
    world.sql(1, "CREATE TABLE bulk AS SELECT repeat('x', 1000) FROM generate_series(1, 20000)").await.unwrap();
    let second = world.open(2).unwrap();
    second.configure(&world.spec()).await.unwrap();
    let work = work();
    let mut progress = work.progress.subscribe();
    let cancel = work.cancel.clone();
    let canceller = tokio::spawn(async move {
        progress.wait_for(|progress| progress.bytes_done > 1 << 20).await.unwrap();
        cancel.cancel();
        progress.borrow().clone()
    });
    let slow = CloneOptions { max_bytes_per_second: 2 << 20, ..CloneOptions::default() };
    let result = second.as_ref().clone_from(&world.peer(1), slow, &work).await;
    assert!(matches!(result, Err(DriverError::Cancelled { .. })), "{result:?}");
    let progress = canceller.await.unwrap();
    assert!(progress.bytes_total > 20 << 20 && progress.phase == "copying", "{progress:?}");
    assert!(!world.root(2).join("incoming").exists());
    let folder = world.root(2).display().to_string();
    eventually("its tools have ended", async || {
        let mut processes = procfs::process::all_processes().unwrap().filter_map(Result::ok);
        !processes.any(|process| process.cmdline().unwrap_or_default().join(" ").contains(&folder))
    })
    .await;
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE '%clone'";
    assert_eq!(world.sql(1, slots).await.unwrap().as_deref(), Some("0"), "the clone's slot stayed behind");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clone_without_space_is_refused_before_it_begins_or_wipes_when_told() {
    assert!(nix::unistd::geteuid().is_root(), "this test mounts a small file system: run it as root");
    let world = RealWorld::new();
    let _first = primary(&world).await;
    world.sql(1, "CREATE TABLE bulk AS SELECT repeat('x', 1000) FROM generate_series(1, 150000)").await.unwrap();
    fs::create_dir(world.root(2)).unwrap();
    let small = SmallDisk::mount(world.root(2));
    let second = world.open(2).unwrap();
    second.configure(&world.spec()).await.unwrap();
    second.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await.unwrap();
    second.swap(&world.peer(1), false).await.unwrap();
    let filler = world.root(2).join("filler");
    fs::write(&filler, vec![0; 120 << 20]).unwrap();
    let refused = second.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await;
    assert!(matches!(refused, Err(DriverError::DiskFull { .. })), "{refused:?}");
    assert_eq!(second.observe().await.role, Some(Role::Replica), "a refused clone stopped the engine");
    let wipe = CloneOptions { wipe_first_if_needed: true, ..CloneOptions::default() };
    let cloned = second.as_ref().clone_from(&world.peer(1), wipe, &work()).await.unwrap();
    assert!(!cloned.old_data_kept && second.is_dirty());
    second.swap(&world.peer(1), false).await.unwrap();
    assert!(!second.is_dirty());
    world.write(1).await.unwrap();
    eventually("it follows", async || world.rows(2).await == Ok(1)).await;
    world.end().await;
    assert!(processes_in(&world.data(2)).is_empty());
    drop(small);
}

/// A file system of its own size, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(path: std::path::PathBuf) -> Self {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=760m", "tmpfs"]).arg(&path).status();
        assert!(mount.unwrap().success());
        Self(path)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: on the way out of a failed test the engine may still be there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
