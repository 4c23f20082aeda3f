//! What one of two sides has and the other one has not.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use regent_agent::engine::{Comparison, Driver, DriverError, conformance::World, redis::RedisFactory};
use regent_common::topology::Difference;

use crate::{
    faults::eventually,
    pair::{activate, both_have, churn, delete, difference, login, set, sides, stream, work},
    world::RealWorld,
};

on_flavor!(of_keydb, KEYDB: what_only_one_side_has_is_found_while_writes_go_on,
    values_that_differ_are_found_while_writes_go_on);

async fn what_only_one_side_has_is_found_while_writes_go_on(factory: &'static RedisFactory) {
    let (world, one, two) = sides(factory).await;
    let mut fill = redis::pipe();
    for number in 0..5000 {
        fill.cmd("SET").arg(format!("key:{number}")).arg("value").ignore();
    }
    fill.query_async::<()>(&mut login(&world, 1).await).await.unwrap();
    eventually("the other side has it", async || world.command(2, &redis::cmd("DBSIZE")).await == Ok(5000_u64)).await;
    // Alone, each gets something that the other does not have; then they go on with what is written from then on.
    activate(&world, &one, None, true).await;
    activate(&world, &two, None, true).await;
    for key in ["key:7", "key:4711"] {
        delete(&world, 1, key).await;
    }
    let mut elsewhere = login(&world, 2).await;
    redis::cmd("SELECT").arg(3).query_async::<()>(&mut elsewhere).await.unwrap();
    redis::cmd("SET").arg("aside").arg(1).query_async::<()>(&mut elsewhere).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (_, churning) = churn(&world, 1, &stop);
    let mut found = difference(&world, &two, 1).await;
    found.examples.sort();
    assert_eq!(found.examples, ["aside (database 3)", "key:4711", "key:7"]);
    assert_eq!((found.only_here, found.compared), (3, 5001));
    stop.store(true, Ordering::Relaxed);
    churning.await.unwrap();
    let cancelled = work();
    cancelled.cancel.cancel();
    let refused = two.compare(&world.peer(1), Comparison::Presence, &cancelled).await;
    assert!(matches!(refused, Err(DriverError::Cancelled { .. })), "{refused:?}");
    world.end().await;

    // While both stream and are written to, nothing is taken for missing.
    let (world, one, two) = sides(factory).await;
    let stop = Arc::new(AtomicBool::new(false));
    let churning = [churn(&world, 1, &stop), churn(&world, 2, &Arc::clone(&stop))];
    for _ in 0..20 {
        assert_eq!(difference(&world, &one, 2).await.examples, Vec::<String>::new());
        assert_eq!(difference(&world, &two, 1).await.examples, Vec::<String>::new());
    }
    stop.store(true, Ordering::Relaxed);
    for (_, churning) in churning {
        churning.await.unwrap();
    }
    world.end().await;
}

/// The other side's values too.
async fn values(world: &RealWorld, driver: &Arc<dyn Driver>, other: u32) -> Difference {
    driver.compare(&world.peer(other), Comparison::Values, &work()).await.unwrap()
}

async fn values_that_differ_are_found_while_writes_go_on(factory: &'static RedisFactory) {
    let (world, one, two) = sides(factory).await;
    let mut fill = redis::pipe();
    for number in 0..2000 {
        fill.cmd("SET").arg(format!("key:{number}")).arg("value").ignore();
    }
    // Larger than what is looked at, and of a kind of which KeyDB knows no size: it ends when it is asked for that.
    fill.cmd("SETRANGE").arg("large").arg(2 * 1024 * 1024).arg("x").ignore();
    fill.cmd("KEYDB.CRON").arg("cron").arg("repeat").arg(3_600_000).arg("return 1").arg(0).ignore();
    fill.query_async::<()>(&mut login(&world, 1).await).await.unwrap();
    eventually("the other side has it", async || world.command(2, &redis::cmd("DBSIZE")).await == Ok(2002_u64)).await;
    let nothing = Difference { compared: 2002, undecided: 2, values: true, ..Difference::default() };
    assert_eq!(values(&world, &one, 2).await, nothing);

    // Alone, both write the same keys. Then each hears what the other one has written, and carries it out after its own.
    activate(&world, &one, None, true).await;
    activate(&world, &two, None, true).await;
    for (member, own, order) in [(1, "of-one", ["a", "b", "c"]), (2, "of-two", ["c", "b", "a"])] {
        set(&world, member, "crossed", own).await;
        let same = redis::cmd("SADD").arg("same").arg(&order).to_owned();
        world.command::<()>(member, &same).await.unwrap();
        let list = redis::cmd("RPUSH").arg("list").arg(&order).to_owned();
        world.command::<()>(member, &list).await.unwrap();
    }
    activate(&world, &one, Some(2), true).await;
    activate(&world, &two, Some(1), true).await;
    stream(&one, &two).await;
    for member in [1, 2] {
        set(&world, member, &format!("end-of-{member}"), "1").await;
        both_have(&world, &format!("end-of-{member}"), Some("1")).await;
    }
    let stop = Arc::new(AtomicBool::new(false));
    // Each writes the same counter all the while.
    let churning = [churn(&world, 1, &stop), churn(&world, 2, &stop)];
    for (driver, other) in [(&one, 2), (&two, 1), (&one, 2), (&two, 1)] {
        let mut found = values(&world, driver, other).await;
        found.differing_examples.sort();
        assert_eq!(found.differing_examples, ["crossed", "list"], "{found:?}");
        assert_eq!((found.only_here, found.differing), (0, 2));
        assert!((2..=3).contains(&found.undecided), "the large one, the cron, and at most the counter: {found:?}");
    }
    stop.store(true, Ordering::Relaxed);
    for (_, churning) in churning {
        churning.await.unwrap();
    }
    assert_eq!(difference(&world, &one, 2).await.differing, 0, "nobody asked for values");

    // Written again, it is the same on both.
    set(&world, 1, "crossed", "again").await;
    both_have(&world, "crossed", Some("again")).await;
    delete(&world, 2, "list").await;
    both_have(&world, "list", None).await;
    set(&world, 2, "counter", "1").await;
    both_have(&world, "counter", Some("1")).await;
    let found = values(&world, &two, 1).await;
    assert_eq!((found.differing, found.undecided), (0, 2), "{found:?}");
    world.end().await;
}
