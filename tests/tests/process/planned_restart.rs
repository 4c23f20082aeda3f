//! A planned restart of the primary's agent: the engine serves on while no agent runs, for longer than a lease of the profile
//! lasts, and nobody takes over (rule L7). An agent that does not come back costs the length of what it handed over.

use std::time::Duration;

use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api, process, wait,
    workload::{checker, now_nanos, postgres},
};

use crate::support::{CLUSTER, SOON, Trio};

/// How long the agent is away: longer than a lease of the profile that most clusters have.
const AWAY: Duration = Duration::from_secs(7);
/// Length of the lease that is handed over, and what the coordinator waits beyond it.
const HANDED_OVER: Duration = Duration::from_millis(30_600);
/// For a failover to be done, on a busy machine.
const FAILOVER: Duration = Duration::from_secs(15);

fn handed_over(cluster: &wire::Cluster) -> Duration {
    Duration::from_millis(cluster.lease.as_ref().map_or(0, |lease| lease.handed_over_millis))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_primarys_agent_stops_no_writes_and_changes_nothing() {
    let mut trio = Trio::start().await;
    let before = trio.healthy().await;
    let engine = api::engine_pid(api::member(&before, "db1").unwrap()).unwrap();
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();

    let at = now_nanos();
    assert!(trio.fleet.agent("n1").daemon().unwrap().stop().await.unwrap().success());
    let told = wait::until("a word of the restart", SOON, || async {
        let cluster = trio.api().cluster(CLUSTER).await?;
        anyhow::ensure!(cluster.situation.contains("is being restarted"), "{}", cluster.situation);
        Ok(cluster)
    })
    .await
    .unwrap();
    assert!(told.situation.starts_with("db1 serves") && told.situation.contains("n1"), "{}", told.situation);
    assert!(handed_over(&told) > AWAY, "{:?}", told.lease);
    let node = trio.api().all_nodes().await.unwrap().into_iter().find(|node| api::plain(&node.name) == "n1").unwrap();
    assert!(node.reason.contains("is being restarted"), "{}", node.reason);
    // The time for which it is away is what is tried here.
    tokio::time::sleep(AWAY).await;
    trio.fleet.agent("n1").start().unwrap();
    let after = wait::until("short leases again", SOON, || async {
        let cluster = trio.api().healthy(CLUSTER, SOON).await?;
        anyhow::ensure!(handed_over(&cluster).is_zero(), "{:?}", cluster.lease);
        Ok(cluster)
    })
    .await
    .unwrap();
    let back = now_nanos();
    writers.acknowledged(back, 100, SOON).await.unwrap();

    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch));
    assert_eq!(api::engine_pid(api::member(&after, "db1").unwrap()).unwrap(), engine, "the engine was left alone");
    assert!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().is_empty());
    let histories = writers.stop().await.unwrap();
    let gap = checker::longest_gap(&histories, at, back);
    assert!(gap.millis() < 1000.0, "writes stopped for {} ms", gap.millis());
    let stored = postgres::read_rows(&trio.login, &trio.members[0]).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.lost.is_empty() && account.is_consistent(), "{account:?}");
    trio.check_logs(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_does_not_come_back_is_waited_for_and_then_another_member_takes_over() {
    let mut trio = Trio::start().await;
    let before = trio.healthy().await;
    let engine = api::engine_pid(api::member(&before, "db1").unwrap()).unwrap();
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    assert!(trio.fleet.agent("n1").daemon().unwrap().stop().await.unwrap().success());
    let at = now_nanos();
    let after = trio.api().other_primary(CLUSTER, "db1", HANDED_OVER + FAILOVER).await.unwrap();
    writers.acknowledged_except(&trio.members[0], at, 100, SOON).await.unwrap();
    assert_eq!(after.epoch, before.epoch + 1);
    assert!(process::lives(engine), "it is the gate that keeps clients away");
    let histories = writers.stop().await.unwrap();
    assert_eq!(checker::overlaps(&histories, 0, u64::MAX), [], "two primaries");
    let last = |member: &str| {
        let reigns = checker::reigns(&histories, at, u64::MAX);
        let of_it = reigns.iter().filter(|reign| reign.member == member).map(|reign| reign.until).max();
        of_it.map(|until| Duration::from_nanos(until - at))
    };
    let served = last(&trio.members[0]).expect("it served on");
    assert!(served > AWAY && served < HANDED_OVER, "for {served:?}");
}
