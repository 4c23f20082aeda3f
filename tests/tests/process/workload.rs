//! The workload itself, on plain engines: what it says must be so before it may accuse Regent.

use std::time::Duration;

use anyhow::ensure;
use regent_tests::{
    engines::Plain,
    folder::TestFolder,
    process::program,
    wait,
    workload::{
        Dialect, checker,
        history::{Attempt, Outcome},
        now_nanos, redis,
        writers::Writers,
    },
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_engine_that_restarts_is_an_outage_and_loses_nothing() {
    restarts(Dialect::Postgres).await;
}

#[tokio::test]
async fn a_redis_that_restarts_is_an_outage_and_loses_nothing() {
    restarts(Dialect::Redis).await;
}

async fn restarts(dialect: Dialect) {
    program("regent-workload").unwrap();
    let folder = TestFolder::new().unwrap();
    let mut engine = Plain::start(dialect, &folder, "plain").await.unwrap();
    let members = [engine.member.clone(), "127.0.0.1:1".to_owned()];
    engine.client.make_room(&engine.member).await.unwrap();
    let writers = Writers::start(&folder.join("writers"), &engine.client, &members, true).unwrap();
    writers.acknowledged(0, 200, SOON).await.unwrap();
    let killed = now_nanos();
    engine.kill().unwrap();
    engine.run().await.unwrap();
    let back = now_nanos();
    writers.acknowledged(back, 200, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let stored = engine.client.read_rows(&engine.member).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.acknowledged > 400, "{account:?}");
    assert!(account.lost.is_empty() && account.is_consistent(), "{account:?}");
    assert!(account.unknown >= 1, "the row under way has no certain end: {account:?}");
    let gap = checker::longest_gap(&histories, killed, now_nanos());
    assert!(gap.until <= back + 1_000_000_000 && gap.nanos() < back - killed + 1_000_000_000, "{gap:?}");
    assert_eq!(checker::overlaps(&histories, 0, u64::MAX), [], "only one member was ever there");
}

#[tokio::test]
async fn a_row_that_is_taken_away_is_missed_and_two_writable_engines_are_seen() {
    is_missed(Dialect::Postgres).await;
}

#[tokio::test]
async fn a_row_that_is_taken_away_from_redis_is_missed_and_two_writable_ones_are_seen() {
    is_missed(Dialect::Redis).await;
}

async fn is_missed(dialect: Dialect) {
    let folder = TestFolder::new().unwrap();
    let one = Plain::start(dialect, &folder, "one").await.unwrap();
    let other = Plain::start(dialect, &folder, "other").await.unwrap();
    let (client, members) = (&one.client, [one.member.clone(), other.member.clone()]);
    for member in &members {
        client.make_room(member).await.unwrap();
    }
    let writers = Writers::start(&folder.join("writers"), client, &members, true).unwrap();
    writers.acknowledged(0, 200, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let overlaps = checker::overlaps(&histories, 0, u64::MAX);
    assert_eq!(overlaps.len(), 1, "two engines took writes at the same time: {overlaps:?}");

    let all = || async {
        let mut stored = client.read_rows(&one.member).await.unwrap();
        stored.extend(client.read_rows(&other.member).await.unwrap());
        stored
    };
    let stored = all().await;
    assert!(checker::account(&histories, &stored).lost.is_empty());
    let gone = stored.keys().find(|(writer, _)| writer == "node-1").unwrap().clone();
    assert_eq!(client.remove_row(&one.member, &gone).await.unwrap(), 1);
    assert_eq!(checker::account(&histories, &all().await).lost, [gone]);
}

/// A replica refuses, which is certain, and one that is promoted has another word for its reign.
#[tokio::test]
async fn a_redis_that_is_a_replica_for_a_while_refuses_meanwhile_and_reigns_twice() {
    let folder = TestFolder::new().unwrap();
    let engine = Plain::start(Dialect::Redis, &folder, "plain").await.unwrap();
    let members = [engine.member.clone()];
    let writers = Writers::start(&folder.join("writers"), &engine.client, &members, true).unwrap();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    assert!(engine.client.takes_writes(&engine.member).await.unwrap());
    let mut connection = redis::connect(&engine.client.login, &engine.member).await.unwrap();
    let told = now_nanos();
    // Nobody is there: it keeps what it has.
    ::redis::cmd("REPLICAOF").arg("127.0.0.1").arg(1).exec_async(&mut connection).await.unwrap();
    assert!(!engine.client.takes_writes(&engine.member).await.unwrap());
    let refused = || async {
        let history = writers.of("node-1")?;
        let refused = |attempt: &&Attempt| attempt.sent > told && matches!(attempt.outcome, Outcome::Refused(_));
        ensure!(history.attempts.iter().filter(refused).count() > 3, "nothing is refused");
        Ok(())
    };
    wait::until("refusals", SOON, refused).await.unwrap();
    ::redis::cmd("REPLICAOF").arg("NO").arg("ONE").exec_async(&mut connection).await.unwrap();
    let back = now_nanos();
    writers.acknowledged(back, 100, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let account = checker::account(&histories, &engine.client.read_rows(&engine.member).await.unwrap());
    assert!(account.lost.is_empty() && account.is_consistent() && account.refused > 3, "{account:?}");
    assert_eq!(account.unknown, 0, "a refusal is certain: {account:?}");
    assert_eq!(checker::reigns(&histories, 0, u64::MAX).len(), 2);
}
