//! The workload itself, on a plain PostgreSQL: what it says must be so before it may accuse Regent.

use std::time::Duration;

use regent_tests::{
    engines::PlainPostgres,
    folder::TestFolder,
    process::program,
    workload::{checker, now_nanos, postgres, writers::Writers},
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_engine_that_restarts_is_an_outage_and_loses_nothing() {
    program("regent-workload").unwrap();
    let folder = TestFolder::new().unwrap();
    let mut engine = PlainPostgres::start(&folder, "plain").await.unwrap();
    let members = [engine.member.clone(), "127.0.0.1:1".to_owned()];
    postgres::create_table(&engine.login, &engine.member).await.unwrap();
    let writers = Writers::start(&folder.join("writers"), &engine.login, &members, true).unwrap();
    writers.acknowledged(0, 200, SOON).await.unwrap();
    let killed = now_nanos();
    engine.kill().unwrap();
    engine.run().await.unwrap();
    let back = now_nanos();
    writers.acknowledged(back, 200, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&engine.login, &engine.member).await.unwrap();
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
    let folder = TestFolder::new().unwrap();
    let one = PlainPostgres::start(&folder, "one").await.unwrap();
    let other = PlainPostgres::start(&folder, "other").await.unwrap();
    let members = [one.member.clone(), other.member.clone()];
    for member in &members {
        postgres::create_table(&one.login, member).await.unwrap();
    }
    let writers = Writers::start(&folder.join("writers"), &one.login, &members, true).unwrap();
    writers.acknowledged(0, 200, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let overlaps = checker::overlaps(&histories, 0, u64::MAX);
    assert_eq!(overlaps.len(), 1, "two engines took writes at the same time: {overlaps:?}");

    let (client, _) = postgres::connect(&one.login, &one.member).await.unwrap();
    let mut stored = postgres::read_rows(&one.login, &one.member).await.unwrap();
    stored.extend(postgres::read_rows(&one.login, &other.member).await.unwrap());
    assert!(checker::account(&histories, &stored).lost.is_empty());
    let gone = stored.keys().find(|(writer, _)| writer == "node-1").unwrap().clone();
    let number = i64::try_from(gone.1).unwrap();
    let delete = format!("DELETE FROM {} WHERE writer = 'node-1' AND number = $1", postgres::TABLE);
    assert_eq!(client.execute(&delete, &[&number]).await.unwrap(), 1);
    let mut stored = postgres::read_rows(&one.login, &one.member).await.unwrap();
    stored.extend(postgres::read_rows(&one.login, &other.member).await.unwrap());
    assert_eq!(checker::account(&histories, &stored).lost, [gone]);
}
