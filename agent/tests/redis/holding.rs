//! A side takes up a stream that broke only where it goes on from there: what was deleted while the two were cut from each other is
//! brought back by nobody.

use std::sync::Arc;

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_agent::engine::{Activation, Driver, DriverError, conformance::World, redis::RedisFactory};
use regent_common::topology::Ternary;

use crate::{
    faults::eventually,
    pair::{activate, both_have, delete, difference, get, passed_on, set, sides_in, stream, told},
    world::RealWorld,
};

on_flavor!(of_keydb, KEYDB: a_stream_that_broke_goes_on_by_the_agents_leave,
    what_is_not_remembered_any_more_is_not_made_up_for_by_a_copy,
    one_that_was_passed_more_while_it_was_filled_than_it_remembers_is_not_opened);

/// How often the engine of a side was turned away by the other one.
fn turned_away(world: &RealWorld, member: u32) -> usize {
    let log = std::fs::read_to_string(world.root(member).join("log/startup.log")).unwrap();
    log.matches("Unable to AUTH to MASTER").count()
}

/// Looks until it streams, and the agent has taken the password away.
async fn streams(driver: &Arc<dyn Driver>) {
    eventually("it streams", async || driver.observe().await.streaming == Ternary::Yes).await;
    // The other side is asked once a second.
    let until = tokio::time::Instant::now() + std::time::Duration::from_millis(1500);
    while tokio::time::Instant::now() < until {
        driver.observe().await;
    }
}

/// Has the first side turn the other one away, and let it in again.
async fn interrupt(world: &RealWorld, one: &Arc<dyn Driver>, meanwhile: impl AsyncFnOnce()) {
    let before = turned_away(world, 2);
    activate(world, one, Some(2), false).await;
    eventually("it is turned away", async || turned_away(world, 2) > before).await;
    meanwhile().await;
    activate(world, one, Some(2), true).await;
}

fn pair_of_little_memory(factory: &'static RedisFactory) -> RealWorld {
    let mut world = RealWorld::new(factory);
    world.settings.insert("repl-backlog-size".to_owned(), "1mb".to_owned());
    world.settings.insert("client-output-buffer-limit".to_owned(), "replica 2mb 0 0".to_owned());
    world
}

async fn a_stream_that_broke_goes_on_by_the_agents_leave(factory: &'static RedisFactory) {
    let (world, one, two) = sides_in(pair_of_little_memory(factory)).await;
    let copies = told(&world, 1, "stats", "sync_full").await;
    streams(&two).await;
    interrupt(&world, &one, async || {}).await;
    // Nobody looks after it: it stays away.
    let before = turned_away(&world, 2);
    eventually("it is turned away again", async || turned_away(&world, 2) > before + 1).await;
    set(&world, 1, "meanwhile", "1").await;
    assert_eq!(get(&world, 2, "meanwhile").await, None);
    streams(&two).await;
    both_have(&world, "meanwhile", Some("1")).await;

    // Another process of the agent finds out by itself how things stand.
    drop(two);
    let two = world.open(2).unwrap();
    interrupt(&world, &one, async || {}).await;
    set(&world, 1, "afterwards", "1").await;
    streams(&two).await;
    both_have(&world, "afterwards", Some("1")).await;
    // What a side is configured with is no leave.
    interrupt(&world, &one, async || two.configure(&world.spec()).await.unwrap()).await;
    let before = turned_away(&world, 2);
    eventually("it is turned away again", async || turned_away(&world, 2) > before + 1).await;
    streams(&two).await;
    assert_eq!(told(&world, 1, "stats", "sync_full").await, copies, "it took a copy");
    world.end().await;
}

async fn what_is_not_remembered_any_more_is_not_made_up_for_by_a_copy(factory: &'static RedisFactory) {
    let (world, one, two) = sides_in(pair_of_little_memory(factory)).await;
    set(&world, 1, "gone", "1").await;
    both_have(&world, "gone", Some("1")).await;
    for driver in [&one, &two] {
        streams(driver).await;
    }
    let copies = told(&world, 1, "stats", "sync_full").await;
    let engine = Pid::from_raw(two.observe().await.pid.unwrap().cast_signed());
    kill(engine, Signal::SIGSTOP).unwrap();
    let large = "x".repeat(1 << 20);
    eventually("the other side is given up", async || {
        set(&world, 1, "large", &large).await;
        told(&world, 1, "replication", "connected_slaves").await == 0
    })
    .await;
    delete(&world, 1, "gone").await;
    for _ in 0..3 {
        set(&world, 1, "large", &large).await;
    }
    set(&world, 1, "large", "small").await;
    kill(engine, Signal::SIGCONT).unwrap();
    eventually("it is seen", async || !two.observe().await.stale.is_empty()).await;
    let seen = two.observe().await;
    assert!(seen.is_open() && seen.streaming == Ternary::No, "{seen:?}");
    assert!(seen.stale.contains("bytes that it has missed only"), "{}", seen.stale);
    let before = turned_away(&world, 2);
    eventually("it is turned away again", async || turned_away(&world, 2) > before + 1).await;
    // Nothing was merged, and what this side writes reaches the other one.
    set(&world, 2, "of-two", "2").await;
    both_have(&world, "of-two", Some("2")).await;
    assert_eq!((get(&world, 1, "gone").await, get(&world, 2, "gone").await.as_deref()), (None, Some("1")));
    assert_eq!(told(&world, 1, "stats", "sync_full").await, copies, "a copy was taken");
    let found = difference(&world, &two, 1).await;
    assert_eq!(found.examples, ["gone"], "{found:?}");

    // Nor is one merged that was closed meanwhile.
    activate(&world, &two, Some(1), false).await;
    let peer = world.peer(1);
    let opened = two.activate(Activation { other: Some(&peer), open: true, first: false }).await;
    assert!(matches!(&opened, Err(DriverError::Diverged { detail, .. }) if detail.contains("gone")), "{opened:?}");
    assert!(!two.observe().await.is_open());
    assert_eq!(told(&world, 1, "stats", "sync_full").await, copies, "a copy was taken");

    // A person has said that the first side's data survives.
    activate(&world, &one, None, true).await;
    two.refill(&world.peer(1), false).await.unwrap();
    activate(&world, &one, Some(2), true).await;
    activate(&world, &two, Some(1), true).await;
    stream(&one, &two).await;
    both_have(&world, "gone", None).await;
    both_have(&world, "of-two", Some("2")).await;
    for driver in [&one, &two] {
        streams(driver).await;
        assert_eq!(driver.observe().await.stale, "");
    }
    world.end().await;
}

async fn one_that_was_passed_more_while_it_was_filled_than_it_remembers_is_not_opened(factory: &'static RedisFactory) {
    let (world, one, two) = sides_in(pair_of_little_memory(factory)).await;
    set(&world, 1, "kept", "1").await;
    both_have(&world, "kept", Some("1")).await;
    let large = "x".repeat(1 << 18);
    let peer = world.peer(1);
    let fill = async |writes: usize| {
        activate(&world, &two, None, false).await;
        activate(&world, &one, None, true).await;
        activate(&world, &one, Some(2), true).await;
        two.refill(&peer, false).await.unwrap();
        for round in 0..writes {
            // One after the other: what is kept for it on its way is little, too.
            set(&world, 1, "large", &format!("{round}{large}")).await;
            passed_on(&world, 1).await;
        }
    };
    fill(8).await;
    let opened = two.activate(Activation { other: Some(&peer), open: true, first: false }).await;
    assert!(matches!(opened, Err(DriverError::Forgotten { .. })), "{opened:?}");
    assert!(!two.observe().await.is_open());
    assert_eq!(get(&world, 1, "kept").await.as_deref(), Some("1"));

    fill(1).await;
    activate(&world, &two, Some(1), true).await;
    stream(&one, &two).await;
    set(&world, 2, "of-two", "2").await;
    both_have(&world, "of-two", Some("2")).await;
    assert_eq!(told(&world, 2, "stats", "sync_full").await, 1, "the other side took a copy of more than nothing");
    world.end().await;
}
