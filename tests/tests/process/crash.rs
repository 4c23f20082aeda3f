//! The coordinator as a real process, aborted before and after every step of every kind of operation: the restarted one
//! finishes it, and no agent has executed a step twice.
//!
//! Uses a build of the coordinator with the feature `failpoints`: `REGENT_FAILPOINT=KIND/STEP/before|after` aborts it there.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, Api, request_id},
    cluster::Fleet,
    folder::TestFolder,
    foreign::{Foreign, adopt_request},
    process, wait,
};

use crate::support::{CLUSTER, ENGINE, SOON, create};

const FAILPOINT: &str = "REGENT_FAILPOINT";

/// A fleet whose coordinator is the build with failpoints.
async fn fleet(folder: &TestFolder, nodes: &[&str]) -> Fleet {
    Fleet::start_with(folder, nodes, process::failpoint_coordinator().unwrap()).await.unwrap()
}

/// `KIND/STEP/PLACE` for every step of an operation that has run.
fn places(operation: &wire::Operation) -> Vec<String> {
    let names: BTreeSet<_> = operation.steps.iter().map(|step| step.name.clone()).collect();
    assert!(!names.is_empty(), "{operation:?}");
    names
        .iter()
        .flat_map(|name| ["before", "after"].map(|place| format!("{}/{name}/{place}", operation.kind)))
        .collect()
}

/// Restarts the coordinator so that it aborts at a place; without one it runs through.
async fn arm(fleet: &mut Fleet, place: Option<&str>) {
    fleet.coordinator.daemon().unwrap().stop().await.unwrap();
    fleet.coordinator.set_environment(FAILPOINT, place);
    fleet.coordinator.start().unwrap();
    fleet.all_connected().await.unwrap();
}

/// Waits until the coordinator has aborted at the place; starts it again, armed for the next one.
async fn crash(fleet: &mut Fleet, place: &str, next: Option<&str>) {
    let status = fleet.coordinator.daemon().unwrap().wait(SOON).await;
    let status = status.unwrap_or_else(|error| panic!("{place} was not reached: {error:#}"));
    assert!(!status.success(), "{place}: the coordinator ended by itself: {status}");
    fleet.coordinator.set_environment(FAILPOINT, next);
    fleet.coordinator.start().unwrap();
    fleet.all_connected().await.unwrap();
}

/// No agent has executed any step more than once.
async fn executed_once(fleet: &Fleet) {
    for (node, agent) in &fleet.agents {
        let ledger = Api::connect_to_agent(&agent.address, &fleet.coordinator.own_identity(), node).await.unwrap();
        let ledger = ledger.ledger().await.unwrap();
        assert!(!ledger.steps.is_empty(), "{node} remembers its steps");
        let twice: Vec<_> = ledger.steps.iter().filter(|step| step.executions > 1).collect();
        assert!(twice.is_empty(), "{node} executed steps more than once: {twice:#?}");
    }
}

/// The one operation of a kind that is the newest of a cluster, when it has succeeded.
async fn newest(api: &Api, cluster: &str, kind: &str) -> Result<wire::Operation> {
    let found = api.operations_of(cluster, kind).await?;
    let newest = found.first().cloned().ok_or_else(|| anyhow::anyhow!("no {kind} yet"))?;
    ensure!(newest.done, "{}", api::describe(&newest));
    assert_eq!(newest.state(), wire::OperationState::Succeeded, "{}", api::describe(&newest));
    Ok(newest)
}

fn delete() -> wire::DeleteClusterRequest {
    wire::DeleteClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        confirm_name: CLUSTER.to_owned(),
        request_id: request_id(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creating_and_deleting_survive_a_crash_at_every_step() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = fleet(&folder, &["n1", "n2"]).await;
    let nodes = ["n1", "n2"];
    fleet.create(CLUSTER, ENGINE, &nodes).await.unwrap();
    let made = fleet.api.operations_of(CLUSTER, "create_cluster").await.unwrap();
    let created = places(&made[0]);
    let removal = fleet.api.clusters().delete_cluster(delete()).await.unwrap().into_inner();
    let deleted = places(&fleet.api.succeed(&removal.name, SOON).await.unwrap());
    for round in 0..created.len().max(deleted.len()) {
        let (at_create, at_delete) = (&created[round % created.len()], &deleted[round % deleted.len()]);
        arm(&mut fleet, Some(at_create)).await;
        let request = create(CLUSTER, &nodes);
        let mut clusters = fleet.api.clusters();
        let asked = tokio::spawn(async move { clusters.create_cluster(request).await });
        crash(&mut fleet, at_create, Some(at_delete)).await;
        drop(asked.await.unwrap());
        let operation = wait::until(at_create, SOON, || newest(&fleet.api, CLUSTER, "create_cluster")).await.unwrap();
        fleet.api.healthy(CLUSTER, SOON).await.unwrap();
        let request = delete();
        let mut clusters = fleet.api.clusters();
        let asked = tokio::spawn(async move { clusters.delete_cluster(request).await });
        crash(&mut fleet, at_delete, None).await;
        drop(asked.await.unwrap());
        let gone = || async {
            let left =
                fleet.api.clusters().list_clusters(wire::ListClustersRequest::default()).await?.into_inner().clusters;
            ensure!(left.is_empty(), "{:?} is left after {at_delete}", left[0].reasons);
            Ok(())
        };
        wait::until("the end of the cluster", SOON, gone).await.unwrap();
        executed_once(&fleet).await;
        assert!(operation.steps.iter().any(|step| step.attempts > 1), "{at_create}: a step was begun again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failover_rejoin_and_resync_survive_a_crash_at_every_step() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = fleet(&folder, &["n1", "n2", "n3"]).await;
    fleet.create(CLUSTER, ENGINE, &["n1", "n2", "n3"]).await.unwrap();
    kill_primary(&fleet).await;
    let failover = wait::until("a failover", SOON, || newest(&fleet.api, CLUSTER, "failover")).await.unwrap();
    let rejoin = wait::until("a rejoin", SOON, || newest(&fleet.api, CLUSTER, "rejoin")).await.unwrap();
    fleet.api.healthy(CLUSTER, SOON).await.unwrap();
    let request = resync_of_a_replica(&fleet).await;
    let resync = fleet.api.clusters().resync_cluster(request).await.unwrap().into_inner();
    let resync = fleet.api.succeed(&resync.name, SOON).await.unwrap();
    let (failover, rejoin, resync) = (places(&failover), places(&rejoin), places(&resync));
    for round in 0..failover.len().max(rejoin.len()).max(resync.len()) {
        let (at_failover, at_rejoin) = (&failover[round % failover.len()], &rejoin[round % rejoin.len()]);
        let at_resync = &resync[round % resync.len()];
        arm(&mut fleet, Some(at_failover)).await;
        fleet.api.healthy(CLUSTER, SOON).await.unwrap();
        let old = kill_primary(&fleet).await;
        crash(&mut fleet, at_failover, Some(at_rejoin)).await;
        crash(&mut fleet, at_rejoin, Some(at_resync)).await;
        let cluster = fleet.api.healthy(CLUSTER, SOON).await.unwrap();
        assert_ne!(cluster.primary, old, "{at_failover}");
        let request = resync_of_a_replica(&fleet).await;
        let mut clusters = fleet.api.clusters();
        let asked = tokio::spawn(async move { clusters.resync_cluster(request).await });
        crash(&mut fleet, at_resync, None).await;
        drop(asked.await.unwrap());
        wait::until(at_resync, SOON, || newest(&fleet.api, CLUSTER, "resync")).await.unwrap();
        fleet.api.healthy(CLUSTER, SOON).await.unwrap();
        executed_once(&fleet).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn growing_and_shrinking_survive_a_crash_at_every_step() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = fleet(&folder, &["n1", "n2", "n3"]).await;
    fleet.create(CLUSTER, ENGINE, &["n1", "n2"]).await.unwrap();
    let growth = fleet.api.clusters().add_member(growth()).await.unwrap().into_inner();
    let added = places(&fleet.api.succeed(&growth.name, SOON).await.unwrap());
    let removal = removal(&fleet).await;
    let removal = fleet.api.clusters().remove_member(removal).await.unwrap().into_inner();
    let removed = places(&fleet.api.succeed(&removal.name, SOON).await.unwrap());
    for round in 0..added.len().max(removed.len()) {
        let (at_add, at_remove) = (&added[round % added.len()], &removed[round % removed.len()]);
        arm(&mut fleet, Some(at_add)).await;
        let mut clusters = fleet.api.clusters();
        let asked = tokio::spawn(async move { clusters.add_member(self::growth()).await });
        crash(&mut fleet, at_add, Some(at_remove)).await;
        drop(asked.await.unwrap());
        wait::until(at_add, SOON, || newest(&fleet.api, CLUSTER, "add_member")).await.unwrap();
        let cluster = fleet.api.healthy(CLUSTER, SOON).await.unwrap();
        assert_eq!(cluster.members.len(), 3, "{at_add}");
        let request = self::removal(&fleet).await;
        let mut clusters = fleet.api.clusters();
        let asked = tokio::spawn(async move { clusters.remove_member(request).await });
        crash(&mut fleet, at_remove, None).await;
        drop(asked.await.unwrap());
        wait::until(at_remove, SOON, || newest(&fleet.api, CLUSTER, "remove_member")).await.unwrap();
        let cluster = fleet.api.healthy(CLUSTER, SOON).await.unwrap();
        assert_eq!(cluster.members.len(), 2, "{at_remove}");
        executed_once(&fleet).await;
    }
}

/// Makes an instance of nobody's with a replica, adopts both, and deletes what they have become; the adoption. The coordinator aborts
/// at the place, and finds the instances as processes that nobody has restarted.
async fn adopt(folder: &TestFolder, fleet: &mut Fleet, round: usize, place: Option<&str>) -> wire::Operation {
    let found = Foreign::start(folder, &format!("first{round}"), &fleet.agents["n1"], "").unwrap();
    let replica = found.replica(folder, &format!("second{round}"), &fleet.agents["n2"]).await.unwrap();
    let processes = [found.pid().unwrap(), replica.pid().unwrap()];
    let request = adopt_request(CLUSTER, &[&found, &replica]);
    let mut clusters = fleet.api.clusters();
    let asked = tokio::spawn(async move { clusters.adopt_cluster(request).await });
    if let Some(place) = place {
        crash(fleet, place, None).await;
    }
    drop(asked.await.unwrap());
    let adopted = || newest(&fleet.api, CLUSTER, "adopt_cluster");
    let adopted = wait::until("the adoption", SOON, adopted).await.unwrap();
    fleet.api.healthy(CLUSTER, SOON).await.unwrap();
    assert_eq!([found.pid().unwrap(), replica.pid().unwrap()], processes, "{place:?}: an instance was restarted");
    let removal = fleet.api.clusters().delete_cluster(delete()).await.unwrap().into_inner();
    fleet.api.succeed(&removal.name, SOON).await.unwrap();
    adopted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adopting_survives_a_crash_at_every_step() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = fleet(&folder, &["n1", "n2"]).await;
    let adopted = places(&adopt(&folder, &mut fleet, 0, None).await);
    for (round, place) in (1..).zip(&adopted) {
        arm(&mut fleet, Some(place)).await;
        let operation = adopt(&folder, &mut fleet, round, Some(place)).await;
        assert!(operation.steps.iter().any(|step| step.attempts > 1), "{place}: a step was begun again");
        executed_once(&fleet).await;
    }
}

fn growth() -> wire::AddMemberRequest {
    wire::AddMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        node: "n3".to_owned(),
        request_id: request_id(),
        ..Default::default()
    }
}

/// Asks for the removal of the member on n3.
async fn removal(fleet: &Fleet) -> wire::RemoveMemberRequest {
    let cluster = fleet.api.healthy(CLUSTER, SOON).await.unwrap();
    let member = cluster.members.iter().find(|member| member.node == "nodes/n3").unwrap();
    let member = api::plain(&member.name).to_owned();
    wire::RemoveMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        confirm_name: member.clone(),
        member,
        request_id: request_id(),
        ..Default::default()
    }
}

async fn kill_primary(fleet: &Fleet) -> String {
    let cluster = fleet.api.healthy(CLUSTER, SOON).await.unwrap();
    let primary = api::member(&cluster, &cluster.primary).unwrap();
    process::signal(api::engine_pid(primary).unwrap(), nix::sys::signal::Signal::SIGKILL).unwrap();
    cluster.primary
}

async fn resync_of_a_replica(fleet: &Fleet) -> wire::ResyncClusterRequest {
    let cluster = fleet.api.healthy(CLUSTER, SOON).await.unwrap();
    let replica = cluster.members.iter().map(|m| api::plain(&m.name)).find(|m| *m != cluster.primary).unwrap();
    wire::ResyncClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        members: vec![replica.to_owned()],
        confirm_name: replica.to_owned(),
        request_id: request_id(),
        ..Default::default()
    }
}
