//! Clusters grow and shrink under writers, and a member that was away when it was removed is emptied when it returns.

use anyhow::ensure;
use nix::sys::signal::Signal;
use regent_common::error::Reason;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::Fleet,
    folder::TestFolder,
    logcheck, process, wait,
    workload::{checker, now_nanos, pgbench::Load, postgres, writers::Writers},
};

use crate::support::{CLUSTER, ENGINE, SOON, Trio, create, refused};

pub(crate) fn add(node: &str) -> wire::AddMemberRequest {
    wire::AddMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        node: node.to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    }
}

pub(crate) fn remove(member: &str) -> wire::RemoveMemberRequest {
    wire::RemoveMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        member: member.to_owned(),
        confirm_name: member.to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    }
}

pub(crate) async fn promote(fleet: &Fleet, member: &str) {
    let request = wire::PromoteMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        member: member.to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    };
    let operation = fleet.api.clusters().promote_member(request).await.unwrap().into_inner();
    fleet.api.succeed(&operation.name, SOON).await.unwrap();
}

/// Healthy, with every replica in the acknowledged electorate.
pub(crate) async fn complete(fleet: &Fleet) -> wire::Cluster {
    fleet.api.complete(CLUSTER, SOON).await.unwrap()
}

/// What is left of a cluster on a node.
pub(crate) fn data_of(fleet: &Fleet, node: &str) -> Vec<String> {
    let root = fleet.agents[node].home.join("engines").join(CLUSTER);
    let files = std::fs::read_dir(root).into_iter().flatten().flatten();
    files.map(|file| file.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_and_shrinks_under_writers_and_everybody_is_the_primary_once() {
    let folder = TestFolder::new().unwrap();
    let nodes = ["n1", "n2", "n3", "n4", "n5"];
    let fleet = Fleet::start(&folder, &nodes).await.unwrap();
    let single = fleet.create(CLUSTER, ENGINE, &["n1"]).await.unwrap();
    assert_eq!(single.primary, "db1", "a single node is a primary");
    let login = fleet.api.login(CLUSTER).await.unwrap();
    let host = api::endpoints(&single).unwrap()[0].rsplit_once(':').unwrap().0.to_owned();
    let members = nodes.map(|node| format!("{host}:{}", fleet.agents[node].engine_port)).to_vec();
    postgres::create_table(&login, &members[0]).await.unwrap();
    let began = now_nanos();
    let writers = Writers::start(&folder.join("writers"), &login, &members, true).unwrap();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    // Not as much as it takes: other tests run beside this one.
    let load = Load::start(&login, &members, Some(200)).await.unwrap();

    // 1 -> 3 -> 5: the last two nodes are chosen from the spares.
    for node in ["n2", "n3", "", ""] {
        let planned = wire::AddMemberRequest { validate_only: true, ..add(node) };
        let planned = fleet.api.clusters().add_member(planned).await.unwrap().into_inner();
        assert!(planned.validate_only && planned.report[0].contains("becomes a replica"), "{planned:?}");
        let operation = fleet.api.clusters().add_member(add(node)).await.unwrap().into_inner();
        fleet.api.succeed(&operation.name, SOON).await.unwrap();
    }
    let five = complete(&fleet).await;
    assert_eq!(five.members.len(), 5);
    refused(fleet.api.clusters().add_member(add("")).await, Reason::NotEnoughSpares);
    for member in ["db2", "db3", "db4", "db5"] {
        promote(&fleet, member).await;
        complete(&fleet).await;
        writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    }
    let all = wire::ResyncClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        confirm_name: CLUSTER.to_owned(),
        parallel: 2,
        request_id: api::request_id(),
        ..Default::default()
    };
    let resync = fleet.api.clusters().resync_cluster(all).await.unwrap().into_inner();
    fleet.api.succeed(&resync.name, SOON * 2).await.unwrap();

    // 5 -> 2.
    refused(fleet.api.clusters().remove_member(remove("db5")).await, Reason::MemberIsPrimary);
    refused(fleet.api.clusters().remove_member(remove("db9")).await, Reason::MemberNotFound);
    let unconfirmed = wire::RemoveMemberRequest { confirm_name: "db1".to_owned(), ..remove("db2") };
    refused(fleet.api.clusters().remove_member(unconfirmed).await, Reason::ConfirmNameWrong);
    for member in ["db1", "db2", "db3"] {
        complete(&fleet).await;
        let planned = wire::RemoveMemberRequest { validate_only: true, ..remove(member) };
        let planned = fleet.api.clusters().remove_member(planned).await.unwrap().into_inner();
        let said = |wanted: &str| planned.report.iter().any(|line| line.contains(wanted));
        assert!(said("its data is erased") && said("whole copies are left") && said("sessions"), "{planned:?}");
        let operation = fleet.api.clusters().remove_member(remove(member)).await.unwrap().into_inner();
        fleet.api.succeed(&operation.name, SOON).await.unwrap();
        writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    }
    let two = complete(&fleet).await;
    let names: Vec<_> = two.members.iter().map(|member| api::plain(&member.name)).collect();
    assert_eq!((two.primary.as_str(), names), ("db5", vec!["db4", "db5"]));
    refused(fleet.api.clusters().remove_member(remove("db4")).await, Reason::SingleCopyLeft);
    let (client, _) = postgres::connect(&login, &members[4]).await.unwrap();
    let slots = client.query("SELECT slot_name::text FROM pg_replication_slots", &[]).await.unwrap();
    let slots: Vec<String> = slots.iter().map(|row| row.get(0)).collect();
    assert_eq!(slots, ["db4"], "nothing holds the log back for members that have left");

    // What has left is a spare, and can come again under a number that nobody had.
    for node in ["n1", "n2", "n3"] {
        assert_eq!(data_of(&fleet, node), Vec::<String>::new(), "{node}");
    }
    let again = fleet.api.clusters().add_member(add("n1")).await.unwrap().into_inner();
    fleet.api.succeed(&again.name, SOON).await.unwrap();
    assert!(api::member(&complete(&fleet).await, "db6").is_ok());

    drop(load);
    let histories = writers.stop().await.unwrap();
    let primary = postgres::find_primary(&login, &members).await.unwrap();
    let stored = postgres::read_rows(&login, &primary).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.is_consistent() && account.lost.is_empty(), "{account:?}");
    assert_eq!(checker::overlaps(&histories, began, u64::MAX), [], "two primaries");
    assert_eq!(fleet.api.operations_of(CLUSTER, "failover").await.unwrap().len(), 0, "nothing has failed");
    let logs = fleet.logs();
    logcheck::check(logs.iter().map(std::path::PathBuf::as_path), &[]).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_when_it_was_removed_is_emptied_when_it_returns() {
    let mut trio = Trio::start().await;
    complete(&trio.fleet).await;
    trio.fleet.agent("n3").daemon().unwrap().kill().unwrap();
    let away = || async {
        let cluster = trio.api().cluster(CLUSTER).await?;
        let member = api::member(&cluster, "db3")?;
        ensure!(!member.connected && member.verdict != "Healthy", "{}", member.verdict);
        Ok(())
    };
    wait::until("the loss of db3", SOON, away).await.unwrap();
    let operation = trio.api().clusters().remove_member(remove("db3")).await.unwrap().into_inner();
    let ended = trio.api().succeed(&operation.name, SOON).await.unwrap();
    assert!(ended.report.iter().any(|line| line.contains("could not be reached")), "{ended:?}");
    assert_eq!(trio.healthy().await.members.len(), 2, "the cluster is well without it");
    assert!(data_of(&trio.fleet, "n3").contains(&"data".to_owned()));
    trio.fleet.agent("n3").start().unwrap();
    wait::until("the spare", SOON, || async {
        let nodes = trio.api().all_nodes().await?;
        let node = nodes.iter().find(|node| node.name == "nodes/n3").unwrap();
        let left = data_of(&trio.fleet, "n3");
        ensure!(node.connected && node.reason.is_empty() && left.is_empty(), "{}; {left:?}", node.reason);
        Ok(())
    })
    .await
    .unwrap();

    // The same with its data kept, down to a single copy on a person's word.
    let last = || wire::RemoveMemberRequest { keep_data: true, ..remove("n2") };
    let last = || wire::RemoveMemberRequest { confirm_name: "db2".to_owned(), ..last() };
    refused(trio.api().clusters().remove_member(last()).await, Reason::SingleCopyLeft);
    let allowed = wire::RemoveMemberRequest { allow_single: true, ..last() };
    let operation = trio.api().clusters().remove_member(allowed).await.unwrap().into_inner();
    trio.api().succeed(&operation.name, SOON).await.unwrap();
    let single = trio.healthy().await;
    assert_eq!((single.members.len(), single.primary.as_str()), (1, "db1"));
    assert!(single.situation.contains("the only member"), "{}", single.situation);
    assert_eq!(data_of(&trio.fleet, "n2"), ["kept"], "its data is aside");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_log_is_gone_is_found_unasked_and_a_resync_brings_it_back() {
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1", "n2"]).await.unwrap();
    let kept = [("wal_keep_size", "0"), ("max_slot_wal_keep_size", "16MB"), ("max_wal_size", "48MB")];
    let settings = kept.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let request = wire::CreateClusterRequest { settings, ..create(CLUSTER, &["n1", "n2"]) };
    let cluster = fleet.api.create(request, SOON).await.unwrap();
    let (login, members) = (fleet.api.login(CLUSTER).await.unwrap(), api::endpoints(&cluster).unwrap());
    // The replica stands still until the primary has removed what it needs.
    let pid = api::engine_pid(api::member(&cluster, "db2").unwrap()).unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let engine: Vec<u32> = children.split_whitespace().map(|pid| pid.parse().unwrap()).chain([pid]).collect();
    let all = |signal| engine.iter().for_each(|pid| drop(process::signal(*pid, signal)));
    all(Signal::SIGSTOP);
    let (client, _) = postgres::connect(&login, &members[0]).await.unwrap();
    wait::until("the end of its slot", SOON, || async {
        postgres::add_ballast(&login, &members[0], 64).await?;
        let sql = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'db2' AND wal_status = 'lost'";
        ensure!(client.query_one(sql, &[]).await?.get::<_, i64>(0) == 1, "it is kept");
        Ok(())
    })
    .await
    .unwrap();
    all(Signal::SIGCONT);
    wait::until("that it needs a resync", SOON, || async {
        let cluster = fleet.api.cluster(CLUSTER).await?;
        let member = api::member(&cluster, "db2")?;
        ensure!(member.state() == wire::MemberState::NeedsResync, "{:?} {}", member.state(), member.reason);
        ensure!(cluster.reasons.iter().any(|reason| reason.contains("already removed")), "{:?}", cluster.reasons);
        Ok(())
    })
    .await
    .unwrap();
    let resync = wire::ResyncClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        members: vec!["db2".to_owned()],
        confirm_name: "db2".to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    };
    let operation = fleet.api.clusters().resync_cluster(resync).await.unwrap().into_inner();
    fleet.api.succeed(&operation.name, SOON).await.unwrap();
    fleet.api.healthy(CLUSTER, SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_was_away_while_the_others_were_told_something_is_told_when_it_returns() {
    let mut trio = Trio::start().await;
    complete(&trio.fleet).await;
    trio.fleet.add("n4").await.unwrap();
    trio.fleet.connected(&["n4"]).await.unwrap();
    trio.fleet.agent("n3").daemon().unwrap().kill().unwrap();
    let operation = trio.api().clusters().add_member(add("n4")).await.unwrap().into_inner();
    trio.api().succeed(&operation.name, SOON).await.unwrap();
    trio.fleet.agent("n3").start().unwrap();
    wait::until("the configuration of db3", SOON, || async {
        let cluster = trio.api().healthy(CLUSTER, SOON).await?;
        let applied = cluster.members.iter().map(|member| member.observation.clone().unwrap_or_default().configuration);
        let applied: std::collections::BTreeSet<_> = applied.collect();
        ensure!(applied.len() == 1 && !applied.contains(""), "{applied:?}");
        Ok(())
    })
    .await
    .unwrap();
    let told = trio.api().operations_of(CLUSTER, "configure").await.unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].reason.contains("db3 has not applied"), "{told:?}");
}
