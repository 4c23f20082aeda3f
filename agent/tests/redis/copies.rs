//! Copies of other members: one that is cancelled, and what becomes of the copy that one replaces.

use std::{fs, io::Read};

use regent_agent::engine::{CloneOptions, DriverError, StartAs, conformance::World, redis::RedisFactory};

use crate::{
    faults::{eventually, primary, replica, work},
    world::RealWorld,
};

on_every_flavor!(
    a_clone_is_cancelled_in_the_middle_and_leaves_nothing,
    what_a_swap_keeps_was_written_beside_the_clone_or_is_written_at_its_end,
);

async fn a_clone_is_cancelled_in_the_middle_and_leaves_nothing(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let _first = primary(&world).await;
    // What repeats itself would be packed into nothing.
    let mut filler = vec![0; 1 << 20];
    for number in 0..20 {
        fs::File::open("/dev/urandom").unwrap().read_exact(&mut filler).unwrap();
        let key = format!("bulk:{number}");
        world.command::<()>(1, redis::cmd("SET").arg(key).arg(&filler)).await.unwrap();
    }
    let second = world.open(2).unwrap();
    second.configure(&world.spec()).await.unwrap();
    let work = work();
    let mut progress = work.progress.subscribe();
    let cancel = work.cancel.clone();
    let canceller = tokio::spawn(async move {
        let seen = progress.wait_for(|progress| progress.bytes_done > 1 << 20 && progress.entries_total > 0).await;
        let seen = seen.unwrap().clone();
        cancel.cancel();
        seen
    });
    let slow = CloneOptions { max_bytes_per_second: 2 << 20, ..CloneOptions::default() };
    let result = second.as_ref().clone_from(&world.peer(1), slow, &work).await;
    assert!(matches!(result, Err(DriverError::Cancelled { .. })), "{result:?}");
    let progress = canceller.await.unwrap();
    assert_eq!((progress.phase.as_str(), progress.entries_total), ("copying", 20), "{progress:?}");
    assert!(!world.root(2).join("incoming").exists());
    world.write(1).await.unwrap();
    world.end().await;
}

/// A replica has what its primary has: nobody waits for a snapshot of it. What only this copy has is never left unwritten.
async fn what_a_swap_keeps_was_written_beside_the_clone_or_is_written_at_its_end(factory: &'static RedisFactory) {
    let world = RealWorld::new(factory);
    let (one, two) = (primary(&world).await, replica(&world, 2).await);
    let set = async |member: u32, key: &str| {
        world.command::<()>(member, redis::cmd("SET").arg(key).arg("1")).await.unwrap();
    };
    let both_have = async |key: &str| {
        for member in [1, 2] {
            let what = format!("member {member} has {key}");
            let mut get = redis::cmd("GET");
            get.arg(key);
            eventually(&what, async || world.command(member, &get).await == Ok(Some(1))).await;
        }
    };
    let kept = |member: u32, key: &str| {
        let snapshot = fs::read(world.root(member).join("kept/data-1/dump.rdb")).unwrap();
        snapshot.windows(key.len()).any(|window| window == key.as_bytes())
    };

    set(1, "before-the-clone").await;
    both_have("before-the-clone").await;
    two.as_ref().clone_from(&world.peer(1), CloneOptions::default(), &work()).await.unwrap();
    set(1, "since-the-clone").await;
    both_have("since-the-clone").await;
    two.swap(&world.peer(1), true).await.unwrap();
    both_have("since-the-clone").await;
    assert!(kept(2, "before-the-clone"));
    assert!(!kept(2, "since-the-clone"), "the swap waited for a snapshot of what the primary has");

    two.cut().await.unwrap();
    set(1, "never-streamed").await;
    one.start(StartAs::Isolated).await.unwrap();
    two.promote().await.unwrap();
    one.as_ref().clone_from(&world.peer(2), CloneOptions::default(), &work()).await.unwrap();
    // As when it was a primary again since: what it has now is nowhere else.
    one.start(StartAs::Primary).await.unwrap();
    set(1, "written-at-the-end").await;
    one.swap(&world.peer(2), true).await.unwrap();
    assert!(kept(1, "never-streamed") && kept(1, "written-at-the-end"));
    set(2, "streamed").await;
    both_have("streamed").await;
    world.end().await;
}
