//! The end of a reign: with the engine's process where it answers at once, without it where it does not.

use std::{sync::Arc, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_agent::engine::{Driver, Flush, StartAs, conformance::World, redis::RedisFactory};
use regent_common::topology::{EngineState, Role, Ternary};

use crate::{
    faults::{eventually, primary, replica},
    world::{APPLICATION, APPLICATION_SECRET, RealWorld, ask, connect, processes_in},
};

on_flavor!(of_redis, REDIS: a_former_primary_keeps_its_memory_and_goes_on_from_where_it_was,
    an_engine_that_hangs_or_runs_a_script_is_killed, no_command_of_a_promotion_that_was_ended_comes_after_the_fence,
    planned_promotions_with_no_write_between_copy_nothing_in_full);
on_flavor!(of_valkey, VALKEY: a_former_primary_keeps_its_memory_and_goes_on_from_where_it_was,
    an_engine_that_hangs_or_runs_a_script_is_killed, no_command_of_a_promotion_that_was_ended_comes_after_the_fence,
    planned_promotions_with_no_write_between_copy_nothing_in_full);
// A primary of KeyDB is demoted by a start alone, so that a fence kills it.
on_flavor!(of_keydb, KEYDB: an_engine_that_hangs_or_runs_a_script_is_killed,
    planned_promotions_with_no_write_between_copy_nothing_in_full);

/// A number in the section `stats` of what the engine says of itself.
async fn counted(world: &RealWorld, member: u32, name: &str) -> u64 {
    let text: String = world.command(member, redis::cmd("INFO").arg("stats")).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).parse().unwrap()
}

async fn expect_read_only(world: &RealWorld, member: u32) {
    let refused = world.write(member).await.unwrap_err();
    assert!(refused.contains("read only replica"), "{refused}");
}

async fn a_former_primary_keeps_its_memory_and_goes_on_from_where_it_was(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let one = primary(&world).await;
    let (two, three) = (replica(&world, 2).await, replica(&world, 3).await);
    for _ in 0..100 {
        world.write(1).await.unwrap();
    }
    let login = Some((APPLICATION, APPLICATION_SECRET));
    let mut transaction = connect(world.port(1), login).await.unwrap();
    for words in [&["MULTI"][..], &["RPUSH", "rows", "row"]] {
        redis::cmd(words[0]).arg(&words[1..]).query_async::<redis::Value>(&mut transaction).await.unwrap();
    }
    let process = one.observe().await.pid;

    let position = one.drain(&world.peer(2).member).await.unwrap();
    one.fence().await.unwrap();
    expect_read_only(&world, 1).await;
    let late = redis::cmd("EXEC").query_async::<redis::Value>(&mut transaction).await;
    assert!(late.is_err(), "what a client had sent was carried out: {late:?}");
    let seen = one.observe().await;
    assert_eq!((seen.state, seen.role, seen.streaming), (EngineState::Running, Some(Role::Replica), Ternary::No));
    assert_eq!((seen.pid, &seen.upstream), (process, &None));
    assert_eq!(one.examine().await.unwrap(), position, "nothing is forgotten");

    two.cut().await.unwrap();
    two.promote().await.unwrap();
    world.write(2).await.unwrap();
    for former in [&one, &three] {
        let how = former.follow(&world.peer(2)).await.unwrap();
        assert_eq!(how, "it went on from where it was");
    }
    for member in [1, 3] {
        eventually("it has every row", async || world.rows(member).await == Ok(101)).await;
    }
    assert_eq!(counted(&world, 2, "sync_full").await, 0, "a copy was synchronized in full");
    assert_eq!(one.observe().await.pid, process);
    world.end().await;
}

async fn an_engine_that_hangs_or_runs_a_script_is_killed(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let one = primary(&world).await;
    kill(Pid::from_raw(one.observe().await.pid.unwrap().cast_signed()), Signal::SIGSTOP).unwrap();
    one.fence().await.unwrap();
    assert_eq!(processes_in(&world.data(1)), Vec::<i32>::new());
    assert_eq!(one.observe().await.state, EngineState::Stopped);

    one.start(StartAs::Primary).await.unwrap();
    let port = world.port(1);
    let script = tokio::spawn(async move {
        let mut command = redis::cmd("EVAL");
        command.arg("redis.call('SET', 'begun', 1) while true do redis.call('INCR', 'writes') end").arg(0);
        ask::<redis::Value>(port, Some((APPLICATION, APPLICATION_SECRET)), &command).await
    });
    eventually("the script keeps everybody waiting", async || {
        let ping = redis::cmd("PING");
        let answer = world.command::<String>(1, &ping);
        tokio::time::timeout(Duration::from_millis(200), answer).await.is_err()
    })
    .await;
    one.fence().await.unwrap();
    assert_eq!(processes_in(&world.data(1)), Vec::<i32>::new());
    assert!(script.await.unwrap().is_err(), "the script was answered");
    world.end().await;
}

/// A promotion that was ended half-way may have sent the command that makes a primary, and the engine not have read it.
async fn no_command_of_a_promotion_that_was_ended_comes_after_the_fence(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let one: Arc<dyn Driver> = primary(&world).await;
    let mut survived = 0;
    for pause in 0..40 {
        one.start(StartAs::Isolated).await.unwrap();
        let driver = Arc::clone(&one);
        let promotion = tokio::spawn(async move { driver.promote().await });
        tokio::time::sleep(Duration::from_micros(pause * 100)).await;
        promotion.abort();
        drop(promotion.await);
        one.fence().await.unwrap();
        if one.observe().await.state == EngineState::Running {
            survived += 1;
            for _ in 0..20 {
                expect_read_only(&world, 1).await;
            }
        }
    }
    assert!(survived > 20, "the engine was killed in {} of 40 cases", 40 - survived);
    world.end().await;
}

/// What one that has to be killed comes back from is of the history that it wrote last, also when it wrote nothing in it.
async fn planned_promotions_with_no_write_between_copy_nothing_in_full(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let drivers = [primary(&world).await, replica(&world, 2).await, replica(&world, 3).await];
    for _ in 0..100 {
        world.write(1).await.unwrap();
    }
    for (former, next) in [(1, 2), (2, 3), (3, 1)] {
        let [one, two] = [former, next].map(|member| &drivers[member - 1]);
        let number = u32::try_from(next).unwrap();
        let (successor, before) = (world.peer(number), counted(&world, number, "sync_full").await);
        one.checkpoint(Flush::HandOver).await.unwrap();
        one.drain(&successor.member).await.unwrap();
        one.fence().await.unwrap();
        two.cut().await.unwrap();
        two.promote().await.unwrap();
        for (place, driver) in drivers.iter().enumerate() {
            if place + 1 != next {
                let how = driver.follow(&successor).await.unwrap();
                assert_eq!(how, "it went on from where it was", "{} to {next}", place + 1);
            }
        }
        assert_eq!(counted(&world, number, "sync_full").await, before, "{former} to {next}");
    }
    world.write(1).await.unwrap();
    for member in 1..=3 {
        eventually("it has every row", async || world.rows(member).await == Ok(101)).await;
    }
    world.end().await;
}
