//! The agent dies, the database does not.

use std::time::Duration;

use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api, process, wait,
    workload::{checker, now_nanos, postgres},
};

use crate::support::{CLUSTER, SOON, Trio};

const TIMES: u32 = 20;

/// Moments to strike at are within this.
const WITHIN: Duration = Duration::from_millis(500);

/// Where the moments begin, which is printed: the environment's seed, or another one each time.
#[expect(clippy::print_stdout, reason = "a run that failed is repeated by it")]
pub(crate) fn first_seed() -> u64 {
    let seed = std::env::var("REGENT_TEST_SEED").map_or_else(|_| now_nanos(), |seed| seed.parse().unwrap());
    println!("REGENT_TEST_SEED={seed}");
    seed
}

/// The next moment to strike: any within a time, from a seed that is printed.
pub(crate) fn moment(seed: &mut u64, within: Duration) -> Duration {
    // A linear congruential step; good enough to not always strike at the same place.
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    Duration::from_micros((*seed >> 33) % u64::try_from(within.as_micros()).unwrap())
}

/// Kills an agent, starts it again, and waits until the coordinator hears it.
async fn kill_and_restart(trio: &mut Trio, node: &str) {
    let agent = trio.fleet.agent(node);
    agent.daemon().unwrap().kill().unwrap();
    agent.start().unwrap();
    let died = now_nanos();
    let api = trio.api().clone();
    wait::until("the new agent", SOON, || async {
        let seen = api.all_nodes().await?.into_iter().find(|n| api::plain(&n.name) == node).unwrap();
        // The one from before is not heard after its death.
        let heard = seen.last_contact.is_some() && seen.connected;
        anyhow::ensure!(heard && now_nanos() > died, "{seen:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_agent_leaves_the_database_alone_and_adopts_it_again() {
    let mut trio = Trio::start().await;
    let before = trio.healthy().await;
    let pids = trio.engine_pids().await;
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    let mut seed = first_seed();
    for round in 0..TIMES {
        tokio::time::sleep(moment(&mut seed, WITHIN)).await;
        // Mostly the primary's.
        let node = if round % 4 == 3 { "n2" } else { "n1" };
        kill_and_restart(&mut trio, node).await;
        assert!(pids.iter().all(|pid| process::lives(*pid)), "round {round}: an engine died with its agent");
    }
    let after = trio.healthy().await;
    assert_eq!(trio.engine_pids().await, pids, "the agents adopted the processes that were there");
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "no failover");
    assert!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().is_empty());
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&trio.login, &trio.members[0]).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.lost.is_empty() && account.is_consistent() && account.unknown == 0, "{account:?}");

    // An adopted engine is watched: its death is a failover at once.
    let (old, _) = trio.kill_primary().await;
    trio.api().other_primary(CLUSTER, &old, SOON).await.unwrap();
    trio.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicas_agent_killed_during_a_clone_ends_neither_the_old_copy_nor_the_operation() {
    let mut trio = Trio::start().await;
    postgres::add_ballast(&trio.login, &trio.members[0], 48).await.unwrap();
    let before = trio.healthy().await;
    let pids = trio.engine_pids().await;
    let operation = trio.resync(&["db2"], 8 << 20).await;
    let api = trio.api().clone();
    wait::until("a clone half-way", SOON, || async {
        let seen = api.operation(&operation).await?;
        let copied = seen.steps.iter().filter_map(|step| step.progress.as_ref()).any(|p| p.bytes_done > 8 << 20);
        anyhow::ensure!(copied && !seen.done, "{}", api::describe(&seen));
        Ok(())
    })
    .await
    .unwrap();
    kill_and_restart(&mut trio, "n2").await;
    assert!(process::lives(pids[0]) && process::lives(pids[2]), "the others were not touched");
    let ended = api.finish(&operation, SOON * 2).await.unwrap();
    // Either the clone begins again, or the operation fails and the old copy serves on; never a half-copied one.
    assert!(
        matches!(ended.state(), wire::OperationState::Succeeded | wire::OperationState::Failed),
        "{}",
        api::describe(&ended)
    );
    let after = trio.healthy().await;
    assert_eq!((&after.primary, after.epoch), (&before.primary, before.epoch), "no failover");
    let rows = postgres::connect(&trio.login, &trio.members[1]).await.unwrap().0;
    let count: i64 = rows.query_one("SELECT count(*) FROM regent_ballast", &[]).await.unwrap().get(0);
    assert_eq!(count, 48 * 1024, "the copy is whole");
}
