//! What the policy of a cluster says of failures is done, and nothing else.

use std::net::TcpListener;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use regent_common::error::Reason;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api, process, wait,
    workload::{checker, now_nanos, postgres},
};

use crate::support::{CLUSTER, SOON, Trio, refused};

fn change() -> wire::UpdateClusterRequest {
    wire::UpdateClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        request_id: api::request_id(),
        ..Default::default()
    }
}

async fn set(trio: &Trio, change: wire::UpdateClusterRequest) -> wire::Cluster {
    trio.api().clusters().update_cluster(change).await.unwrap().into_inner()
}

/// Waits until `cluster show` says so of the cluster.
async fn told(trio: &Trio, wanted: &str) {
    wait::until(wanted, SOON, || async {
        let cluster = trio.api().cluster(CLUSTER).await?;
        ensure!(cluster.situation.contains(wanted), "{}", cluster.situation);
        Ok(())
    })
    .await
    .unwrap();
}

async fn kinds(trio: &Trio, kind: &str) -> usize {
    trio.api().operations_of(CLUSTER, kind).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_one_backend_is_no_reason_to_fail_over() {
    let trio = Trio::start().await;
    let before = trio.healthy().await;
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    let (client, _) = postgres::connect(&trio.login, &trio.members[0]).await.unwrap();
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    process::signal(backend.try_into().unwrap(), Signal::SIGKILL).unwrap();
    // The engine throws everybody out and recovers by itself.
    writers.acknowledged(now_nanos(), 300, SOON).await.unwrap();
    let after = trio.healthy().await;
    assert_eq!((after.primary, after.epoch), (before.primary, before.epoch));
    assert_eq!(kinds(&trio, "failover").await, 0);
    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&trio.login, &trio.members[0]).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.is_consistent() && account.lost.is_empty(), "{account:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_restored_on_its_own_data_where_the_policy_says_so() {
    let trio = Trio::start().await;
    let before = trio.healthy().await;
    let restore = wire::HealingMode::RestorePrimary;
    let wanted = wire::UpdateClusterRequest { healing: restore.into(), restart_budget: Some(1), ..change() };
    let changed = set(&trio, wanted).await;
    assert_eq!((changed.healing(), changed.restart_budget), (restore, 1));
    let writers = trio.write();
    writers.acknowledged(0, 300, SOON).await.unwrap();
    trio.kill_primary().await;
    let again = wait::until("the restart in place", SOON, || async {
        let cluster = trio.api().healthy(CLUSTER, SOON).await?;
        ensure!(cluster.epoch > before.epoch, "{}", cluster.situation);
        Ok(cluster)
    })
    .await
    .unwrap();
    assert_eq!(again.primary, before.primary, "nobody else was promoted");
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&trio.login, &trio.members[0]).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.is_consistent() && account.lost.is_empty(), "everything committed is there: {account:?}");

    // The budget is used up: the next one waits for a person, who may have another member take its place.
    trio.kill_primary().await;
    told(&trio, "automatic failover is paused").await;
    let ask = wire::FailoverClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        request_id: api::request_id(),
        ..Default::default()
    };
    let operation = trio.api().clusters().failover_cluster(ask).await.unwrap().into_inner();
    trio.api().succeed(&operation.name, SOON).await.unwrap();
    assert_ne!(trio.healthy().await.primary, before.primary, "a person's word");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_happens_by_itself_while_a_cluster_is_paused() {
    let trio = Trio::start().await;
    let before = trio.healthy().await;
    let paused = set(&trio, wire::UpdateClusterRequest { paused: Some(true), ..change() }).await;
    assert!(paused.warnings.iter().any(|warning| warning.contains("regentctl cluster resume")), "{paused:?}");
    trio.kill_primary().await;
    told(&trio, "automatic decisions are paused").await;
    assert_eq!(kinds(&trio, "failover").await, 0);
    set(&trio, wire::UpdateClusterRequest { paused: Some(false), ..change() }).await;
    trio.api().other_primary(CLUSTER, &before.primary, SOON).await.unwrap();
    trio.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_tried_in_vain_is_told_with_its_reason_until_it_is_done() {
    let trio = Trio::start().await;
    let before = trio.healthy().await;
    set(&trio, wire::UpdateClusterRequest { paused: Some(true), ..change() }).await;
    let replica = before.members.iter().position(|member| api::plain(&member.name) != before.primary).unwrap();
    let (name, engine) =
        (api::plain(&before.members[replica].name), api::engine_pid(&before.members[replica]).unwrap());
    process::signal(engine, Signal::SIGKILL).unwrap();
    process::ended(engine, SOON).await.unwrap();
    let address = &trio.members[replica];
    let somebody = wait::until("its port", SOON, || async { Ok(TcpListener::bind(address)?) }).await.unwrap();
    set(&trio, wire::UpdateClusterRequest { paused: Some(false), ..change() }).await;
    let failed = format!("bringing {name} back has failed");
    let warning = wait::until("a warning", SOON, || async {
        let warnings = trio.api().cluster(CLUSTER).await?.warnings;
        let told = warnings.iter().find(|warning| warning.starts_with(&failed)).cloned();
        told.with_context(|| format!("{warnings:?}"))
    })
    .await
    .unwrap();
    for part in ["times in a row", "port", "regentctl operation show"] {
        assert!(warning.contains(part), "{part:?} is not in {warning}");
    }
    drop(somebody);
    let after = trio.healthy().await;
    assert!(!after.warnings.iter().any(|warning| warning.starts_with(&failed)), "{:?}", after.warnings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_never_to_be_promoted_is_not_and_bad_changes_change_nothing() {
    let trio = Trio::start().await;
    trio.healthy().await;
    let mut bad = change();
    bad.priorities = [("db9".to_owned(), 1)].into();
    refused(trio.api().clusters().update_cluster(bad).await, Reason::MemberNotFound);
    let bad = wire::UpdateClusterRequest { healing: 77, paused: Some(true), ..change() };
    refused(trio.api().clusters().update_cluster(bad).await, Reason::InvalidField);
    assert!(!trio.api().cluster(CLUSTER).await.unwrap().paused, "all or nothing");

    let mut never = change();
    never.priorities = [("db2".to_owned(), 0)].into();
    set(&trio, never).await;
    wait::until("an electorate without db2", SOON, || async {
        let cluster = trio.api().cluster(CLUSTER).await?;
        let electorate = cluster.electorate.unwrap_or_default().members;
        ensure!(cluster.electorate_acknowledged && electorate == ["db3"], "{electorate:?}");
        Ok(())
    })
    .await
    .unwrap();
    let promote = wire::PromoteMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        member: "db2".to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    };
    refused(trio.api().clusters().promote_member(promote).await, Reason::NoReplica);
    trio.kill_primary().await;
    let after = trio.api().other_primary(CLUSTER, "db1", SOON).await.unwrap();
    assert_eq!(after.primary, "db3");
}
