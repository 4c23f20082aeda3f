//! A pair whose sides did not hear each other for longer than they remember: nothing is merged, and a person says whose data survives.

use ::redis::{cmd, pipe};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use regent_common::error::Reason;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{api, process, wait};

use super::{Pair, compared::compared};
use crate::support::{CLUSTER, SOON};

/// What a side remembers, and what it keeps for one that takes nothing.
const LITTLE: &[(&str, &str)] = &[("repl-backlog-size", "1mb"), ("client-output-buffer-limit", "replica 2mb 0 0")];

/// How many follow the first side by its own word.
async fn followers(pair: &Pair) -> Result<u64> {
    let info: String = cmd("INFO").arg("replication").query_async(&mut pair.side(1).await).await?;
    let line = info.lines().find_map(|line| line.strip_prefix("connected_slaves:"));
    Ok(line.unwrap_or_default().trim().parse()?)
}

/// Writes more to the first side than it remembers.
async fn write_much(pair: &Pair) -> Result<()> {
    let mut much = pipe();
    for _ in 0..8 {
        much.cmd("SET").arg("large").arg(vec![b'x'; 1 << 20]).ignore();
    }
    much.query_async::<()>(&mut pair.side(1).await).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sides_that_were_cut_for_too_long_are_not_merged_and_a_person_decides() {
    let Some(pair) = Pair::start_with(LITTLE).await else { return };
    pair.set(1, "gone", "1").await;
    pair.same().await;
    pair.pause(true).await;
    let second = pair.pids().await[1];
    process::signal(second, Signal::SIGSTOP).unwrap();
    wait::until("the other side is given up", SOON, || async {
        write_much(&pair).await?;
        let left = followers(&pair).await?;
        ensure!(left == 0, "{left} follow it");
        Ok(())
    })
    .await
    .unwrap();
    pair.delete(1, "gone").await;
    write_much(&pair).await.unwrap();
    pair.set(1, "large", "small").await;
    process::signal(second, Signal::SIGCONT).unwrap();
    let cluster = wait::until("a word on what is not remembered", SOON, || async {
        let cluster = pair.api().cluster(CLUSTER).await?;
        let second = api::member(&cluster, "db2")?;
        ensure!(second.reason.contains("db2 cannot catch up"), "{:?}: {}", second.verdict, second.reason);
        Ok(cluster)
    })
    .await
    .unwrap();
    assert_eq!(
        (cluster.health(), &*cluster.serving),
        (wire::Health::Degraded, &["db1".to_owned(), "db2".to_owned()][..])
    );
    for part in ["cannot catch up", "cluster compare db", "regentctl cluster resync db db2 --confirm db2"] {
        assert!(cluster.situation.contains(part), "{part:?} is not in {}", cluster.situation);
    }

    // Somebody is told, once, whatever number of bytes it lacks by now.
    wait::until("a decision that is written down", SOON, || async {
        let told = pair.written_down("NEEDS_RESYNC").await?;
        ensure!(told.iter().any(|detail| detail.contains("resync db db2 --confirm db2")), "{told:?}");
        Ok(())
    })
    .await
    .unwrap();
    write_much(&pair).await.unwrap();

    // Nothing comes back, however long they go on. The first side may lack something too, by now: what it had written comes back to it
    // by the other one, which keeps as little for it.
    pair.pause(false).await;
    let unlike = compared(&pair).await;
    assert_eq!(unlike.error_reason, Reason::Diverged.as_str(), "{}", unlike.error);
    assert!(unlike.error.contains("db2 has 1 entry (such as gone) that db1 has not"), "{}", unlike.error);
    assert!(!pair.all(1).await.unwrap().contains_key("gone"), "what was deleted is back");
    let cluster = pair.api().cluster(CLUSTER).await.unwrap();
    let engine = api::engine_pid(api::member(&cluster, "db2").unwrap()).unwrap();
    assert_eq!(engine, second, "it was started anew");

    let told = pair.written_down("NEEDS_RESYNC").await.unwrap();
    assert_eq!(told.iter().filter(|detail| detail.starts_with("clusters/db/members/db2:")).count(), 1, "{told:?}");

    pair.resync("db2").await;
    pair.healthy().await;
    let both = pair.same().await;
    assert!(!both.contains_key("gone"), "{:?}", both.keys());
}
