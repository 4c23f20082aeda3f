//! Every process of a cluster of Redis, its coordinator too, is killed at once and comes back, in whatever order: what the snapshots have is
//! there, one member is the primary, and nobody is needed.
//!
//! The data is in memory: what is newer than the last snapshot is gone with all of them.

use std::{collections::BTreeSet, ops::Range};

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use regent_common::clock::wall_now;
use regent_tests::{
    process,
    scenario::Engine,
    wait,
    workload::{
        checker::Row,
        history::{History, Outcome},
        now_nanos, redis,
    },
};

use crate::support::{CLUSTER, SOON, Trio};

/// A snapshot as soon as it has one change to write, and the last one began a second ago.
const SETTINGS: [(&str, &str); 1] = [("save", "1 1")];
/// A snapshot that ended so many seconds after a moment was begun after it.
const CERTAINLY_LATER: i64 = 3;
/// Rows before the power goes.
const ROWS: usize = 300;

/// Who comes back in which order; the coordinator has no name of a node.
const COORDINATOR: &str = "";
const ORDERS: [[&str; 4]; 3] =
    [[COORDINATOR, "n1", "n2", "n3"], ["n3", "n2", COORDINATOR, "n1"], ["n1", "n2", "n3", COORDINATOR]];

/// Waits until every member has begun a snapshot from now on, and ended it.
async fn new_snapshots(trio: &Trio) {
    let wanted = wall_now().as_second() + CERTAINLY_LATER;
    for member in &trio.members {
        wait::until("a new snapshot", SOON, || async {
            let told = redis::info(&trio.client.login, member, "persistence").await?;
            let last = told.lines().find_map(|line| line.strip_prefix("rdb_last_save_time:")).context("no time")?;
            ensure!(last.trim().parse::<i64>()? > wanted, "{member}: the last one is of {last}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

/// Rows that were acknowledged at no time between a snapshot and the death after it.
fn in_snapshots(histories: &[History], unsaved: &[Range<u64>]) -> BTreeSet<Row> {
    let all = histories.iter().flat_map(|history| history.attempts.iter().map(move |attempt| (history, attempt)));
    let is_saved = |at: &u64| !unsaved.iter().any(|unsaved| unsaved.contains(at));
    let saved = all.filter(|(_, attempt)| matches!(&attempt.outcome, Outcome::Acknowledged(at, _) if is_saved(at)));
    saved.map(|(history, attempt)| (history.writer.clone(), attempt.row)).collect()
}

/// Kills everything at once and starts it in this order.
async fn black_out(trio: &mut Trio, order: [&str; 4]) {
    let engines = trio.engine_pids().await;
    trio.fleet.coordinator.daemon().unwrap().kill().unwrap();
    for agent in trio.fleet.agents.values_mut() {
        agent.daemon().unwrap().kill().unwrap();
    }
    for engine in engines {
        process::signal(engine, Signal::SIGKILL).unwrap();
        process::ended(engine, SOON).await.unwrap();
    }
    for name in order {
        match name {
            COORDINATOR => trio.fleet.coordinator.start().unwrap(),
            node => trio.fleet.agent(node).start().unwrap(),
        }
    }
    trio.fleet.reconnect().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_death_of_everything_there_is_one_primary_with_what_the_snapshots_have() {
    let mut trio = Trio::of(Engine::Redis.name(), &SETTINGS).await;
    let began = now_nanos();
    let writers = trio.write();
    let mut unsaved = Vec::new();
    for order in ORDERS {
        writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
        let saved = now_nanos();
        new_snapshots(&trio).await;
        black_out(&mut trio, order).await;
        unsaved.push(saved..now_nanos());
        trio.api().complete(CLUSTER, SOON).await.unwrap();
        writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    }
    let (histories, account) = trio.settle(writers, began).await;
    let saved = in_snapshots(&histories, &unsaved);
    let lost: Vec<_> = account.lost.iter().filter(|row| saved.contains(row)).collect();
    assert!(saved.len() >= ROWS && lost.is_empty(), "the snapshots had them: {lost:?}");
}
