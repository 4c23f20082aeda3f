//! A side that is passed more while it is filled than it remembers lets nobody in: the other one would take in everything anew, and
//! with it what is deleted there meanwhile. A person is told, and fills it again while less is written.

use std::time::Duration;

use ::redis::{cmd, pipe};
use anyhow::ensure;
use regent_common::error::Reason;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{api, wait, workload::redis};
use tokio::time;
use tokio_util::sync::CancellationToken;

use super::Pair;
use crate::support::{CLUSTER, SOON};

/// What a side remembers, and the microseconds that it takes for each key of a snapshot.
const LITTLE: &[(&str, &str)] = &[("repl-backlog-size", "1mb"), ("rdb-key-save-delay", "1000")];
/// Between two writes of 64 KiB: all that is remembered is overwritten within a tenth of a second.
const PAUSE: Duration = Duration::from_millis(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_is_filled_under_more_than_it_remembers_waits_until_a_person_fills_it_under_less() {
    let Some(pair) = Pair::start_with(LITTLE).await else { return };
    let mut keys = pipe();
    for number in 0..500 {
        keys.cmd("SET").arg(format!("key:{number}")).arg("x").ignore();
    }
    keys.query_async::<()>(&mut pair.side(1).await).await.unwrap();
    pair.same().await;

    let (mut side, stop) = (pair.side(1).await, CancellationToken::new());
    let stopped = stop.clone();
    let flood = tokio::spawn(async move {
        let large = vec![b'x'; 1 << 16];
        while !stopped.is_cancelled() {
            cmd("SET").arg("large").arg(&large).exec_async(&mut side).await.unwrap();
            // As fast as one can, KeyDB 6.3.4 itself has died of it.
            time::sleep(PAUSE).await;
        }
    });
    let resync = pair.begin_resync("db2").await;
    let resync = pair.api().finish(&resync.name, SOON).await.unwrap();
    assert_eq!(resync.error_reason, Reason::HistoryForgotten.as_str(), "{}", resync.error);
    let parted = wait::until("a word on what is to be done", SOON, || async {
        let cluster = pair.api().cluster(CLUSTER).await?;
        ensure!(cluster.serving == ["db1"] && cluster.health() == wire::Health::Degraded, "{:?}", cluster.serving);
        Ok(cluster)
    })
    .await
    .unwrap();
    for part in [
        "db1 takes writes alone; db2 lets nobody in",
        "db1 would take in everything anew",
        "write less for a while, and `regentctl cluster resync db db2 --confirm db2` fills it again",
    ] {
        assert!(parted.situation.contains(part), "{part:?} is not in {}", parted.situation);
    }
    assert_eq!(api::member(&parted, "db2").unwrap().state(), wire::MemberState::NeedsResync);
    assert!(redis::connect(pair.login(), &pair.sides()[1]).await.is_err(), "db2 lets applications in");

    pair.delete(1, "key:0").await;
    stop.cancel();
    flood.await.unwrap();
    pair.resync("db2").await;
    assert_eq!(pair.healthy().await.serving, ["db1", "db2"]);
    assert!(!pair.same().await.contains_key("key:0"), "what was deleted is back");
}
