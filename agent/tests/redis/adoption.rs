//! What an adoption of a running instance is hindered by, what it would lose, and that it changes nothing when it does not come about.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_agent::engine::{
    Driver, DriverError, FoundInstance,
    conformance::World,
    redis::{REDIS, RedisFactory},
};
use regent_common::topology::{ClusterSpec, EngineState, Role};

use crate::{
    unmanaged::Unmanaged,
    world::{APPLICATION, APPLICATION_SECRET, RealWorld, ask, processes_in},
};

static ENGINE: &RedisFactory = &REDIS;
/// How long a Sentinel may take to find what it watches.
const WATCHES_WITHIN: Duration = Duration::from_secs(30);

/// The one instance on the first member's node.
async fn surveyed(world: &RealWorld) -> FoundInstance {
    let mut found = world.survey(1).await.unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

/// A member that is configured for this instance.
async fn member_for(world: &RealWorld, member: u32, found: &FoundInstance) -> Arc<dyn Driver> {
    let mut spec =
        ClusterSpec { access_rules: found.access_rules.clone(), settings: found.settings.clone(), ..world.spec() };
    spec.secrets.remove("application");
    let driver = world.open(member).unwrap();
    driver.configure(&spec).await.unwrap();
    driver
}

/// It is refused with these words, by who looks and by who would do it, and is then as it was.
async fn is_refused(world: &RealWorld, words: &str) {
    let unmanaged = Unmanaged::of(world, 1);
    let before = unmanaged.state().await;
    let found = surveyed(world).await;
    assert!(found.problems.iter().any(|problem| problem.contains(words)), "{words:?}: {:?}", found.problems);
    let driver = member_for(world, 1, &found).await;
    let upstream = found.replica.then(|| world.peer(2));
    match driver.adopt(&unmanaged.data(), upstream.as_ref()).await {
        Err(DriverError::NotAdoptable { path, problem }) => {
            assert_eq!(path, unmanaged.data());
            assert!(problem.contains(words), "{words:?}: {problem}");
        }
        other => panic!("{words:?}: {other:?}"),
    }
    assert!(!driver.give_back().await.unwrap(), "nothing was adopted");
    is_as_it_was(&unmanaged.state().await, &before);
    driver.release(false).await.unwrap();
}

fn is_as_it_was(now: &BTreeMap<String, String>, before: &BTreeMap<String, String>) {
    let names = before.keys().chain(now.keys()).filter(|name| before.get(*name) != now.get(*name));
    let changed: Vec<_> =
        names.map(|name| format!("{name} was {:?}, now {:?}", before.get(name), now.get(name))).collect();
    assert!(changed.is_empty(), "{}", changed.join("\n"));
}

fn end_all_in(folder: &Path) {
    for pid in processes_in(folder) {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_a_sentinel_watches_is_refused_until_nobody_does() {
    let world = RealWorld::new(ENGINE);
    let unmanaged = Unmanaged::of(&world, 1);
    unmanaged.start(None).await.unwrap();
    let sentinel = unmanaged.watch(world.port(3));
    let watched = async {
        while surveyed(&world).await.problems.is_empty() {
            world.pause().await;
        }
    };
    tokio::time::timeout(WATCHES_WITHIN, watched).await.expect("a Sentinel is seen");
    is_refused(&world, "managed by Sentinel").await;
    end_all_in(&sentinel);
    let alone = async {
        while !surveyed(&world).await.problems.is_empty() {
            world.pause().await;
        }
    };
    tokio::time::timeout(WATCHES_WITHIN, alone).await.expect("it is alone again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_member_cannot_be_is_refused() {
    let socket = |world: &RealWorld| format!("unixsocket {}/unmanaged1/socket\n", world.folder.path().display());
    let cases = [
        ("cluster-enabled yes\n", "cluster mode"),
        ("dbfilename other.rdb\n", "set dbfilename dump.rdb"),
        ("rename-command REPLICAOF \"\"\n", "commands replicaof are renamed"),
        ("user regent-line on nopass\n", "names are those of the agent"),
    ];
    for (line, words) in cases {
        let world = RealWorld::new(ENGINE);
        Unmanaged::of(&world, 1).start_with(None, &(socket(&world) + line)).await.unwrap();
        is_refused(&world, words).await;
    }
    let world = RealWorld::new(ENGINE);
    Unmanaged::of(&world, 1).start_with(None, "").await.unwrap();
    is_refused(&world, "set unixsocket").await;
    // A replica that takes writes of its own.
    let world = RealWorld::new(ENGINE);
    Unmanaged::of(&world, 2).start(None).await.unwrap();
    let writable = socket(&world) + "replica-read-only no\n";
    Unmanaged::of(&world, 1).start_with(Some(world.port(2)), &writable).await.unwrap();
    is_refused(&world, "replica-read-only").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_upstream_is_away_is_refused() {
    let world = RealWorld::new(ENGINE);
    let upstream = Unmanaged::of(&world, 2);
    upstream.start(None).await.unwrap();
    Unmanaged::of(&world, 1).start(Some(world.port(2))).await.unwrap();
    let found = surveyed(&world).await;
    assert_eq!((found.problems.len(), found.replica), (0, true), "{:?}", found.problems);
    assert_eq!(found.upstream, Some(world.peer(2).engine));
    end_all_in(&upstream.data());
    let problems = async {
        loop {
            let found = surveyed(&world).await;
            if !found.problems.is_empty() {
                return found.problems;
            }
            world.pause().await;
        }
    };
    let problems = tokio::time::timeout(WATCHES_WITHIN, problems).await.expect("its stream ends");
    assert!(problems[0].contains("its stream from its upstream"), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_be_lost_and_what_changes_is_told() {
    let world = RealWorld::new(ENGINE);
    let lines = format!(
        "unixsocket {}/unmanaged1/socket\nappendonly yes\nrename-command FLUSHALL \"\"\nhash-max-listpack-entries 77\n\
         user reader on #{} ~a &b -@all +get\n",
        world.folder.path().display(),
        "ab".repeat(32),
    );
    Unmanaged::of(&world, 1).start_with(None, &lines).await.unwrap();
    let found = surveyed(&world).await;
    assert_eq!(found.problems, Vec::<String>::new());
    for (place, words) in ["appendonly is on", "default needs no password", "FLUSHALL"].into_iter().enumerate() {
        assert!(found.losses[place].contains(words), "{:?}", found.losses);
    }
    // What it has of its own, and nothing besides.
    let settings: Vec<_> = found.settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(settings, [("hash-max-listpack-entries", "77"), ("maxmemory", "209715200")]);
    let users: Vec<&str> = found.access_rules.lines().collect();
    assert!(users.contains(&"user default off"), "{users:?}");
    assert!(
        users.iter().any(|user| user.starts_with("user reader on #abab") && user.ends_with(" -@admin")),
        "{users:?}"
    );
    let change =
        |name: &str| found.changes.iter().find(|change| change.name == name).unwrap_or_else(|| panic!("{name}"));
    assert!(change("unixsocket").needs_restart && change("appendonly").needs_restart);
    assert_eq!((change("repl-backlog-size").then.as_str(), change("repl-backlog-size").needs_restart), ("64mb", false));
    assert!(!change("user reader").then.contains("abab"), "no word of a password");
    assert!(!found.changes.iter().any(|change| change.name == "dbfilename"), "what is so already is no change");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_starts_an_adopted_instance_by_itself_starts_nothing() {
    let world = RealWorld::new(ENGINE);
    let unmanaged = Unmanaged::of(&world, 1);
    let data = unmanaged.start(None).await.unwrap();
    world.write(1).await.unwrap();
    let before = unmanaged.state().await;
    let found = surveyed(&world).await;
    let driver = member_for(&world, 1, &found).await;
    driver.adopt(&data, None).await.unwrap();
    // Who says no name is let in no more; who had a password is, and administers nothing.
    assert!(ask::<String>(world.port(1), None, &redis::cmd("PING")).await.unwrap_err().contains("NOAUTH"));
    let login = Some((APPLICATION, APPLICATION_SECRET));
    let refused = ask::<String>(world.port(1), login, redis::cmd("REPLICAOF").arg("NO").arg("ONE")).await.unwrap_err();
    assert!(refused.contains("no permissions"), "{refused}");
    // Its unit does this when it ends, and at a boot.
    world.crash(1).await.unwrap();
    let configuration = unmanaged.configuration().display().to_string();
    let said = unmanaged.run(&[&configuration, "--daemonize", "no"]).unwrap_err();
    assert!(said.contains("only-regent-agent-starts-this-instance"), "{said}");
    assert_eq!(driver.observe().await.state, EngineState::Crashed);
    // The agent starts it, with the snapshot that was made of it, as a replica of nobody.
    driver.start(regent_agent::engine::StartAs::Isolated).await.unwrap();
    let seen = driver.observe().await;
    assert_eq!((seen.state, seen.role), (EngineState::Running, Some(Role::Replica)));
    assert_eq!(world.rows(1).await, Ok(1));
    driver.release(false).await.unwrap();
    assert!(!world.has_traces(1));
    assert!(fs::symlink_metadata(&data).is_err(), "nothing leads to data that is no more");
    let left = fs::read_to_string(unmanaged.configuration()).unwrap();
    assert!(before["file"].ends_with(&left), "its configuration is its own again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_is_given_back_is_as_it_was() {
    let world = RealWorld::new(ENGINE);
    let (one, two) = (Unmanaged::of(&world, 1), Unmanaged::of(&world, 2));
    let data = one.start(None).await.unwrap();
    let copy = two.start(Some(world.port(1))).await.unwrap();
    world.write(1).await.unwrap();
    let before = (one.state().await, two.state().await);
    let found = surveyed(&world).await;
    let (first, second) = (member_for(&world, 1, &found).await, member_for(&world, 2, &found).await);
    first.adopt(&data, None).await.unwrap();
    second.adopt(&copy, Some(&world.peer(1))).await.unwrap();
    // As a coordinator does it: replicas first.
    assert!(second.give_back().await.unwrap());
    assert!(first.give_back().await.unwrap());
    is_as_it_was(&one.state().await, &before.0);
    is_as_it_was(&two.state().await, &before.1);
    let streams = async {
        loop {
            let info: String = ask(world.port(2), None, redis::cmd("INFO").arg("replication")).await.unwrap();
            if info.contains("master_link_status:up") {
                break;
            }
            world.pause().await;
        }
    };
    tokio::time::timeout(WATCHES_WITHIN, streams).await.expect("the replica streams as it did");
    world.write(1).await.unwrap();
    assert!(surveyed(&world).await.problems.is_empty(), "it can be adopted again");
}
