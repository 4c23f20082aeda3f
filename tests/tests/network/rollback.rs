//! An old copy of the coordinator's store is put back in place of the present one: the ledgers of the agents know more, and
//! their word counts. The cluster is frozen until all have been heard, clients notice nothing, and no epoch goes back.

use std::path::Path;

use anyhow::ensure;
use nix::sys::signal::Signal;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, Api},
    cluster::run,
    process,
    scenario::{Bed, CLUSTER, NODES},
    wait,
    workload::{checker, now_nanos, writers::Writers},
};

use crate::support::{PROFILE, SLACK, SOON, bed, inside};

/// Copies a folder with all that is in it, owners and modes included.
fn copy(from: &Path, to: &Path) {
    let mut command = std::process::Command::new("cp");
    command.arg("--archive").arg(from).arg(to);
    run(command).unwrap();
}

/// One failover, by the death of the primary's engine.
async fn fail_over(bed: &Bed) -> wire::Cluster {
    let cast = bed.cast().await.unwrap();
    process::signal(cast.primary.engine, Signal::SIGKILL).unwrap();
    bed.fleet.api.other_primary(CLUSTER, &cast.primary.member, SOON).await.unwrap();
    bed.healthy().await.unwrap()
}

/// The highest epoch in an agent's ledger.
async fn epoch_of_ledger(bed: &Bed, node: &str) -> u64 {
    let identity = bed.fleet.coordinator.own_identity();
    let agent = Api::connect_to_agent(&bed.fleet.agents[node].address, &identity, node).await.unwrap();
    agent.ledger().await.unwrap().epoch
}

#[test]
fn an_old_store_is_frozen_and_then_learns_from_the_ledgers() {
    inside(|| async {
        let mut bed = bed().await;
        let state = bed.fleet.coordinator.home.join("state");
        let old = bed.folder.join("old-state");
        bed.fleet.coordinator.daemon().unwrap().stop().await.unwrap();
        copy(&state, &old);
        bed.fleet.coordinator.start().unwrap();
        bed.fleet.all_connected().await.unwrap();
        let then = bed.healthy().await.unwrap();
        fail_over(&bed).await;
        let before = fail_over(&bed).await;
        assert!(before.epoch > then.epoch);
        let writers = Writers::start(&bed.folder.join("writers"), &bed.client, &bed.members, true).unwrap();
        writers.acknowledged(0, 100, SOON).await.unwrap();

        bed.fleet.coordinator.daemon().unwrap().stop().await.unwrap();
        std::fs::remove_dir_all(&state).unwrap();
        copy(&old, &state);
        let restored = now_nanos();
        bed.fleet.coordinator.start().unwrap();
        bed.fleet.answers().await.unwrap();
        // Members that the old store does not suspect of anything are not what it says: it must not act before it knows.
        let api = bed.fleet.api.clone();
        wait::until("the epoch of the ledgers", SOON, || async {
            let seen = api.cluster(CLUSTER).await?;
            ensure!(seen.epoch >= before.epoch, "epoch {} {:?}", seen.epoch, seen.reasons);
            Ok(())
        })
        .await
        .unwrap();
        let after = bed.healthy().await.unwrap();
        assert_eq!(after.primary, before.primary, "the lease that stood is adopted");
        for node in NODES {
            assert!(epoch_of_ledger(&bed, node).await <= after.epoch, "{node} knows more than the store still");
        }
        writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
        let follower = writers.follower().unwrap();
        let gap = checker::longest_gap(&[follower], restored, now_nanos());
        assert!(
            gap.millis() < PROFILE.node_lost().as_secs_f64() * 1e3 * SLACK,
            "endorsement carries on while the cluster is frozen: no writes for {:.0} ms",
            gap.millis()
        );

        // It is a coordinator like any other again.
        let last = fail_over(&bed).await;
        assert!(last.epoch > after.epoch);
        assert!(api::member(&last, &before.primary).is_ok());
        let histories = writers.stop().await.unwrap();
        let account = checker::account(&histories, &bed.same_on_all().await.unwrap());
        assert!(account.is_consistent(), "{account:?}");
        assert_eq!(checker::overlaps(&histories, 0, u64::MAX), []);
    });
}
