//! How much a member remembers for others that were away.

use regent_agent::engine::{
    StartAs,
    conformance::World,
    redis::{REDIS, RedisFactory},
};

use crate::{
    faults::{eventually, primary, replica},
    world::RealWorld,
};

on_flavor!(of_redis, REDIS: a_replica_whose_place_was_forgotten_is_given_everything_and_the_reason_is_told);
on_flavor!(of_valkey, VALKEY: a_replica_whose_place_was_forgotten_is_given_everything_and_the_reason_is_told);
on_flavor!(of_keydb, KEYDB: a_replica_whose_place_was_forgotten_is_given_everything_and_the_reason_is_told);

const MIB: u64 = 1 << 20;

async fn size(world: &RealWorld) -> u64 {
    let text: String = world.command(1, redis::cmd("INFO").arg("replication")).await.unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("repl_backlog_size:"));
    line.unwrap().parse().unwrap()
}

/// Writes so many bytes.
async fn write(world: &RealWorld, bytes: u64) {
    let value = vec![b'x'; usize::try_from(MIB).unwrap()];
    for _ in 0..bytes / MIB {
        world.command::<()>(1, redis::cmd("SET").arg("large").arg(&value)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_grows_with_what_is_written_and_stays() {
    let mut world = RealWorld::new(&REDIS);
    world.settings.insert("maxmemory".to_owned(), "2gb".to_owned());
    let driver = primary(&world).await;
    driver.observe().await;
    assert_eq!(size(&world).await, 64 * MIB);
    eventually("it has grown", async || {
        write(&world, 20 * MIB).await;
        driver.observe().await;
        size(&world).await > 64 * MIB
    })
    .await;
    let grown = size(&world).await;
    assert!(grown <= 2048 * MIB / 10, "{grown} bytes are more than a tenth of the memory");
    driver.configure(&world.spec()).await.unwrap();
    driver.observe().await;
    assert!(size(&world).await >= grown, "it shrank when the member was configured");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_takes_a_share_of_the_memory_unless_the_cluster_names_its_size() {
    let mut world = RealWorld::new(&REDIS);
    world.settings.insert("maxmemory".to_owned(), "100mb".to_owned());
    let driver = primary(&world).await;
    eventually("it has shrunk", async || {
        driver.observe().await;
        size(&world).await == 10 * MIB
    })
    .await;

    world.settings.insert("repl-backlog-size".to_owned(), "40mb".to_owned());
    driver.configure(&world.spec()).await.unwrap();
    driver.observe().await;
    assert_eq!(size(&world).await, 40 * MIB);
    write(&world, 40 * MIB).await;
    driver.observe().await;
    assert_eq!(size(&world).await, 40 * MIB);
    world.end().await;
}

async fn a_replica_whose_place_was_forgotten_is_given_everything_and_the_reason_is_told(
    factory: &'static RedisFactory,
) {
    let mut world = RealWorld::new(factory);
    world.settings.insert("repl-backlog-size".to_owned(), "1mb".to_owned());
    let _one = primary(&world).await;
    let two = replica(&world, 2).await;
    two.start(StartAs::Isolated).await.unwrap();
    world.write(1).await.unwrap();
    let how = two.follow(&world.peer(1)).await.unwrap();
    assert_eq!(how, "it went on from where it was");

    two.start(StartAs::Isolated).await.unwrap();
    world.write(1).await.unwrap();
    write(&world, 3 * MIB).await;
    let how = two.follow(&world.peer(1)).await.unwrap();
    assert!(how.starts_with("everything was copied to it: it had come to "), "{how}");
    assert!(how.contains(", and its upstream remembered "), "{how}");
    assert_eq!(world.rows(2).await, Ok(2));
    world.end().await;
}
