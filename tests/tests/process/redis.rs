//! Clusters of Redis, Valkey and KeyDB: what holds for every engine holds for them, and what only these could do wrong they do not.
//!
//! Their data is in memory, and a copy of the data is what a replica takes from its primary whatever that has: a primary that comes
//! back with nothing would empty the others.

#![allow(clippy::print_stdout, reason = "what a test does not run is said, and what readers have seen")]

use std::{fs, path::Path, time::Duration};

use anyhow::ensure;
use nix::sys::signal::Signal;
use regent_common::error::{Reason, reason_of};
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regent_tests::{
    api,
    cluster::{Fleet, create_request},
    engines::{find_server, server_of},
    folder::TestFolder,
    process,
    profile::Profile,
    wait,
    workload::{now_nanos, readers::Readers, redis},
};

use crate::{
    bad_input, failover,
    members::{self, add, data_of, remove},
    promote,
    support::{CLUSTER, SOON, Trio, how_it_was_started, owned, refused},
};

/// One of the engines of the family, whose server is there.
#[derive(Clone, Copy)]
struct Flavor {
    /// Name on the wire.
    engine: &'static str,
    /// What its clusters are made with.
    settings: &'static [(&'static str, &'static str)],
}

/// What its package's configuration has.
const KEYDB: &[(&str, &str)] = &[("server-threads", "2")];

// === impl Flavor ===

impl Flavor {
    /// Redis has to be there. Another may be in no package registry: without its server the test says so, and is not run.
    fn find(engine: &'static str, settings: &'static [(&'static str, &'static str)]) -> Option<Self> {
        if engine != "redis" && find_server(engine).is_none() {
            println!("not run: {:#}", server_of(engine).unwrap_err());
            return None;
        }
        server_of(engine).unwrap();
        Some(Self { engine, settings })
    }
}

/// Each test of this file once for each flavor.
macro_rules! on_every_flavor {
    ($($test:ident),+ $(,)?) => {
        on_flavor!(of_redis, "redis", &[]; $($test),+);
        on_flavor!(of_valkey, "valkey", &[]; $($test),+);
        on_flavor!(of_keydb, "keydb", super::KEYDB; $($test),+);
    };
}
macro_rules! on_flavor {
    ($module:ident, $engine:expr, $settings:expr; $($test:ident),+) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $test() {
                    if let Some(flavor) = super::Flavor::find($engine, $settings) {
                        super::$test(flavor).await;
                    }
                }
            )+
        }
    };
}

on_every_flavor!(
    a_cluster_survives_the_death_of_its_primary,
    every_member_is_the_primary_once_and_nothing_is_lost,
    a_cluster_grows_is_made_anew_and_shrinks_under_writers,
    a_primary_that_lost_its_engine_and_its_data_at_once_empties_nobody,
    a_replica_that_hangs_is_passed_over_and_comes_back,
    agents_come_and_go_and_leave_the_engines_alone,
    settings_that_an_engine_must_not_have_are_refused_and_others_hold,
    a_deleted_cluster_leaves_spares_and_no_data,
);

/// Mebibytes of other data, so that a copy takes a while.
const BALLAST_MIB: u32 = 32;

async fn a_cluster_survives_the_death_of_its_primary(flavor: Flavor) {
    let trio = Trio::of(flavor.engine, flavor.settings).await;
    failover::survives(&trio).await;
    trio.check_logs(&[]);
}

async fn every_member_is_the_primary_once_and_nothing_is_lost(flavor: Flavor) {
    let trio = Trio::of(flavor.engine, flavor.settings).await;
    promote::everybody_reigns_once(&trio).await;
    trio.check_logs(&[]);
}

async fn a_cluster_grows_is_made_anew_and_shrinks_under_writers(flavor: Flavor) {
    let mut trio = Trio::of(flavor.engine, flavor.settings).await;
    trio.client.add_ballast(&trio.members[0], BALLAST_MIB).await.unwrap();
    trio.fleet.add("n4").await.unwrap();
    trio.fleet.connected(&["n4"]).await.unwrap();
    trio.members.push(format!("127.0.0.1:{}", trio.fleet.agents["n4"].engine_port));
    let began = now_nanos();
    let writers = trio.write();
    writers.acknowledged(0, 200, SOON).await.unwrap();

    let growth = trio.api().clusters().add_member(add("n4")).await.unwrap().into_inner();
    trio.api().succeed(&growth.name, SOON).await.unwrap();
    let four = members::complete(&trio.fleet).await;
    let new = api::member(&four, "db4").unwrap();
    assert_eq!((four.members.len(), new.role()), (4, types::Role::Replica));
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();

    let compare = wire::ComparePairRequest { name: format!("clusters/{CLUSTER}"), ..Default::default() };
    refused(trio.api().clusters().compare_pair(compare).await, Reason::NotInThisMode);
    let before = trio.engine_pids().await;
    let resync = trio.resync(&[], 0).await;
    trio.api().succeed(&resync, SOON).await.unwrap();
    members::complete(&trio.fleet).await;
    assert_eq!(trio.engine_pids().await[0], before[0], "the primary was not touched");
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();

    for member in ["db2", "db4"] {
        let removal = trio.api().clusters().remove_member(remove(member)).await.unwrap().into_inner();
        trio.api().succeed(&removal.name, SOON).await.unwrap();
        members::complete(&trio.fleet).await;
        writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    }
    for node in ["n2", "n4"] {
        assert_eq!(data_of(&trio.fleet, node), Vec::<String>::new(), "{node}");
    }
    let two = trio.healthy().await;
    assert_eq!(two.primary, "db1");
    trio.members = api::endpoints(&two).unwrap();
    let (_, account) = trio.settle(writers, began).await;
    assert!(account.lost.is_empty(), "{account:?}");
    assert_eq!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().len(), 0, "nothing has failed");
    trio.check_logs(&[]);
}

/// Removes all that is in a folder.
fn empty(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
}

async fn a_primary_that_lost_its_engine_and_its_data_at_once_empties_nobody(flavor: Flavor) {
    let trio = Trio::of(flavor.engine, flavor.settings).await;
    trio.client.add_ballast(&trio.members[0], BALLAST_MIB).await.unwrap();
    let writers = trio.write();
    writers.acknowledged(0, 300, SOON).await.unwrap();
    // From here on no replica has less.
    let (mut replicas, mut least) = (Vec::new(), u64::MAX);
    for member in &trio.members[1..] {
        let rows = wait::until("rows on a replica", SOON, || async {
            let stored = trio.client.read_rows(member).await?;
            ensure!(stored.len() >= 300, "{member} has {}", stored.len());
            Ok(stored.len())
        });
        least = least.min(rows.await.unwrap() as u64);
        replicas.push(member.as_str());
    }
    let readers = Readers::start(&trio.client, &replicas).await.unwrap();

    let before = trio.healthy().await;
    assert_eq!(before.primary, "db1");
    let pid = api::engine_pid(api::member(&before, "db1").unwrap()).unwrap();
    let (_, data) = how_it_was_started(pid);
    assert!(data.ends_with("data") && data.starts_with(&trio.fleet.agents["n1"].home), "{}", data.display());
    let at = now_nanos();
    process::signal(pid, Signal::SIGKILL).unwrap();
    empty(&data);
    trio.api().other_primary(CLUSTER, "db1", SOON).await.unwrap();
    writers.acknowledged_except(&trio.members[0], at, 300, SOON).await.unwrap();

    // It comes back by itself, with everything.
    let whole = trio.healthy().await;
    let back = api::member(&whole, "db1").unwrap();
    assert_eq!((back.role(), back.state()), (types::Role::Replica, wire::MemberState::Ready));
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    let seen = readers.stop().await.unwrap();
    println!("{seen:?}");
    for reading in &seen {
        assert!(reading.reads > 20 && reading.fewest_rows >= least, "it once had less than {least} rows: {reading:?}");
    }
    let (_, account) = trio.settle(writers, at).await;
    assert!(account.lost.len() <= 5, "{:?}", account.lost);
    assert_eq!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().len(), 1, "one death, one failover");
}

async fn a_replica_that_hangs_is_passed_over_and_comes_back(flavor: Flavor) {
    let trio = Trio::of(flavor.engine, flavor.settings).await;
    let writers = trio.write();
    writers.acknowledged(0, 300, SOON).await.unwrap();
    let engines = trio.engine_pids().await;
    process::signal(engines[1], Signal::SIGSTOP).unwrap();
    let at = now_nanos();
    process::signal(engines[0], Signal::SIGKILL).unwrap();
    let after = trio.api().other_primary(CLUSTER, "db1", SOON).await.unwrap();
    assert_eq!(after.primary, "db3", "the other one does not answer");
    writers.acknowledged_except(&trio.members[0], at, 300, SOON).await.unwrap();
    // Somebody may have ended it meanwhile.
    drop(process::signal(engines[1], Signal::SIGCONT));
    let whole = trio.api().complete(CLUSTER, SOON).await.unwrap();
    assert_eq!(whole.primary, "db3");
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    let (_, account) = trio.settle(writers, at).await;
    assert!(account.lost.len() <= 5, "{:?}", account.lost);
}

async fn agents_come_and_go_and_leave_the_engines_alone(flavor: Flavor) {
    let mut trio = Trio::of(flavor.engine, flavor.settings).await;
    let before = trio.healthy().await;
    let engines = trio.engine_pids().await;
    let began = now_nanos();
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    // The primary's agent is told to end, a replica's has no time to do anything more.
    assert!(trio.fleet.agent("n1").daemon().unwrap().stop().await.unwrap().success());
    trio.fleet.agent("n2").daemon().unwrap().kill().unwrap();
    for node in ["n1", "n2"] {
        trio.fleet.agent(node).start().unwrap();
    }
    // What is shown of an engine is the new agent's word once that has the lease.
    wait::until("short leases again", SOON, || async {
        let lease = trio.api().healthy(CLUSTER, SOON).await?.lease.unwrap_or_default();
        ensure!(lease.handed_over_millis == 0, "{lease:?}");
        Ok(())
    })
    .await
    .unwrap();
    trio.fleet.all_connected().await.unwrap();
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    assert_eq!(trio.engine_pids().await, engines);
    for engine in engines {
        assert!(process::lives(engine));
    }
    let after = trio.healthy().await;
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    let (_, account) = trio.settle(writers, began).await;
    assert!(account.lost.is_empty(), "{account:?}");
}

async fn settings_that_an_engine_must_not_have_are_refused_and_others_hold(flavor: Flavor) {
    let folder = TestFolder::new().unwrap();
    let nodes = ["n1", "n2"];
    let fleet = Fleet::start(&folder, &nodes).await.unwrap();
    let request = |settings: &[(&str, &str)]| wire::CreateClusterRequest {
        settings: owned(settings),
        ..create_request(CLUSTER, flavor.engine, &nodes, Profile::Fast)
    };
    let before = bad_input::state(&fleet.api).await;
    let cases = [
        ("replicaof", "127.0.0.1 6379", Reason::InvalidField),
        ("port", "6379", Reason::InvalidField),
        ("requirepass", "secret", Reason::InvalidField),
        ("rename-command", "GET \"\"", Reason::InvalidField),
        ("cluster-enabled", "yes", Reason::InvalidField),
        ("appendonly", "yes", Reason::InvalidField),
        ("active-replica", "yes", Reason::InvalidField),
        ("multi-master", "yes", Reason::InvalidField),
        ("include", "/etc/passwd", Reason::InvalidField),
        ("loadmodule", "/tmp/module.so", Reason::InvalidField),
        ("maxmemory", "nonsense", Reason::InvalidField),
        // Another line of the configuration would come with it.
        ("maxmemory", "64mb\nrequirepass secret", Reason::InvalidField),
        ("maxmemori", "64mb", Reason::UnknownSetting),
    ];
    let mut wrong = Vec::new();
    for (name, value, reason) in cases {
        for validate_only in [true, false] {
            let asked = wire::CreateClusterRequest { validate_only, ..request(&[(name, value)]) };
            match fleet.api.clusters().create_cluster(asked).await {
                Ok(operation) => wrong.push(format!("{name} {value:?}: taken, {:?}", operation.into_inner().name)),
                Err(status) if reason_of(&status) != Some(reason) || !status.message().contains(name) => {
                    wrong.push(format!("{name} {value:?}: {:?} instead of {reason}: {status}", reason_of(&status)));
                }
                Err(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    if flavor.engine != "keydb" {
        let several = wire::CreateClusterRequest { mode: "multi-master".to_owned(), ..request(&[]) };
        refused(fleet.api.clusters().create_cluster(several).await, Reason::UnknownMode);
    }
    assert_eq!(bad_input::state(&fleet.api).await, before);

    let settings = [("maxmemory", "64mb"), ("maxmemory-policy", "allkeys-lru")];
    let cluster = fleet.api.create(request(&settings), SOON).await.unwrap();
    let client = fleet.api.client(CLUSTER).await.unwrap();
    for member in api::endpoints(&cluster).unwrap() {
        let told = redis::info(&client.login, &member, "memory").await.unwrap();
        for wanted in ["maxmemory:67108864", "maxmemory_policy:allkeys-lru"] {
            assert!(told.lines().any(|line| line == wanted), "{member}: {wanted} is not in {told}");
        }
    }
}

async fn a_deleted_cluster_leaves_spares_and_no_data(flavor: Flavor) {
    let trio = Trio::of(flavor.engine, flavor.settings).await;
    let engines = trio.engine_pids().await;
    failover::deleted(&trio).await;
    for engine in engines {
        process::ended(engine, Duration::from_secs(1)).await.unwrap();
    }
    trio.check_logs(&[]);
}
