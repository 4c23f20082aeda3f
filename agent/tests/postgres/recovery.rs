//! What is left half done, and what overtakes what: interrupted initializations, swaps that fail, kills in the middle of starts.

use std::{fs, sync::Arc, time::Duration};

use regent_agent::engine::{CloneOptions, Driver, DriverError, StartAs, Stop, conformance::World};
use regent_common::topology::{ClusterSpec, EngineState, Role, Ternary};

use crate::{
    faults::{eventually, primary, work},
    world::RealWorld,
};

async fn replica(world: &RealWorld, member: u32) -> Arc<dyn Driver> {
    let driver = world.open(member).unwrap();
    driver.configure(&world.spec()).await.unwrap();
    driver.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await.unwrap();
    driver.swap(&world.peer(1), false).await.unwrap();
    driver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_initialization_is_begun_anew() {
    let world = RealWorld::new();
    let driver = world.open(1).unwrap();
    driver.configure(&world.spec()).await.unwrap();
    fs::write(world.root(1).join("initializing"), "").unwrap();
    fs::create_dir(world.data(1)).unwrap();
    fs::write(world.data(1).join("PG_VERSION"), "15\n").unwrap();
    let driver = {
        drop(driver);
        world.open(1).unwrap()
    };
    assert!(driver.is_dirty() && !driver.has_data());
    assert!(matches!(driver.start(StartAs::Primary).await, Err(DriverError::Dirty { .. })));
    driver.initialize().await.unwrap();
    assert!(!driver.is_dirty() && driver.has_data());
    world.write(1).await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_whose_new_copy_does_not_start_puts_the_old_one_back() {
    let world = RealWorld::new();
    let _first = primary(&world).await;
    let second = replica(&world, 2).await;
    world.write(1).await.unwrap();
    second.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await.unwrap();
    fs::write(world.root(2).join("incoming/global/pg_control"), "broken").unwrap();
    let failed = second.swap(&world.peer(1), false).await;
    assert!(matches!(failed, Err(DriverError::Program { .. })), "{failed:?}");
    assert!(failed.unwrap_err().to_string().contains("pg_control"), "the engine's own words are missing");
    world.write(1).await.unwrap();
    eventually("the old copy follows", async || world.rows(2).await == Ok(2)).await;
    assert!(!world.root(2).join("incoming").exists() && !world.root(2).join("swap").exists());
    second.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await.unwrap();
    second.swap(&world.peer(1), false).await.unwrap();
    assert_eq!(second.observe().await.streaming, Ternary::Yes);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_cut_between_the_two_renames_is_repaired_by_the_next_agent() {
    let world = RealWorld::new();
    let _first = primary(&world).await;
    let second = replica(&world, 2).await;
    second.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await.unwrap();
    second.stop(Stop::Kill).await.unwrap();
    drop(second);
    let root = world.root(2);
    let journal = r#"{"undo":false,"kept":"data-1","had_data":true,"was_dirty":false}"#;
    fs::write(root.join("swap"), journal).unwrap();
    fs::rename(root.join("data"), root.join("kept/data-1")).unwrap();
    let second = world.open(2).unwrap();
    assert!(second.has_data() && !second.is_dirty());
    second.swap(&world.peer(1), false).await.unwrap();
    world.write(1).await.unwrap();
    eventually("it follows", async || world.rows(2).await == Ok(1)).await;
    assert!(!root.join("kept/data-1").exists() && !root.join("swap").exists());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_that_overtakes_a_start_leaves_nothing_running() {
    let world = RealWorld::new();
    let driver = primary(&world).await;
    for round in 0..12 {
        driver.stop(Stop::Kill).await.unwrap();
        // An isolated start followed by a promotion: two places at which a careless driver would start again.
        let how = if round % 2 == 0 { StartAs::Primary } else { StartAs::Isolated };
        let mut starting = Box::pin({
            let driver = Arc::clone(&driver);
            async move { driver.start(how).await }
        });
        // On a busy machine the task might begin after the kill.
        assert!(futures::poll!(starting.as_mut()).is_pending(), "a start waits for the disk");
        let starting = tokio::spawn(starting);
        tokio::time::sleep(Duration::from_millis(round * 15)).await;
        driver.stop(Stop::Kill).await.unwrap();
        let started = starting.await.unwrap();
        assert_eq!(world.processes(1), 0, "round {round}, the start said {started:?}");
    }
    driver.start(StartAs::Primary).await.unwrap();
    world.write(1).await.unwrap();
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slots_follow_the_membership() {
    let world = RealWorld::new();
    let first = primary(&world).await;
    let second = replica(&world, 2).await;
    let slots = |member| {
        let sql = "SELECT string_agg(slot_name, ' ' ORDER BY slot_name) FROM pg_replication_slots";
        let world = &world;
        async move { world.sql(member, sql).await.unwrap().unwrap_or_default() }
    };
    assert_eq!(slots(1).await, "db_main2 db_main3");
    first.stop(Stop::Kill).await.unwrap();
    second.cut().await.unwrap();
    second.promote().await.unwrap();
    eventually("a member that is away has a slot on the new primary", async || slots(2).await == "db_main1 db_main3")
        .await;
    first.follow(&world.peer(2)).await.unwrap();
    assert_eq!(slots(1).await, "", "a replica holds its log back for others");
    world.sql(2, "SELECT 1").await.unwrap();
    let mut spec: ClusterSpec = world.spec();
    spec.members.retain(|peer| peer.member != world.peer(3).member);
    second.configure(&spec).await.unwrap();
    assert_eq!(slots(2).await, "db_main1", "a former member still has a slot");
    let seen = second.observe().await;
    assert_eq!((seen.state, seen.role), (EngineState::Running, Some(Role::Primary)));
    world.end().await;
}
