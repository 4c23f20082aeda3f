//! Versions side by side, and agents that are replaced in the middle of an operation.
//!
//! `REGENT_TEST_OLD_PROGRAMS=FOLDER tests/run process` takes `regent-agent` and `regent-coordinator` of an earlier version from there, as
//! none can be built from here. Without it the earlier version is this one: what is tested then is the replacing.

use std::{fs, path::PathBuf};

use anyhow::ensure;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::{Agent, Fleet},
    folder::TestFolder,
    process::program,
    wait,
    workload::{now_nanos, postgres, writers::Writers},
};

use crate::support::{CLUSTER, ENGINE, SOON, Trio};

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// A program of the earlier version.
fn old(name: &str) -> PathBuf {
    match std::env::var_os("REGENT_TEST_OLD_PROGRAMS") {
        Some(folder) => PathBuf::from(folder).join(name),
        None => program(name).unwrap(),
    }
}

/// A cluster of three under these programs.
async fn trio(coordinator: PathBuf, agent: PathBuf) -> Trio {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start_with(&folder, &[], coordinator).await.unwrap();
    for node in NODES {
        let prepared = Agent::prepare(folder.path(), node, agent.clone()).unwrap();
        // Keys that the earlier version may not have; without systemd, and without an allow-list, they change nothing.
        let config = fs::read_to_string(prepared.config()).unwrap();
        let known = |line: &&str| !["supervisor", "allow_table"].iter().any(|key| line.starts_with(key));
        fs::write(prepared.config(), config.lines().filter(known).collect::<Vec<_>>().join("\n")).unwrap();
        fleet.add_prepared(prepared).await.unwrap();
    }
    fleet.connected(&NODES).await.unwrap();
    let cluster = fleet.create(CLUSTER, ENGINE, &NODES).await.unwrap();
    Trio::made(folder, fleet, &cluster).await
}

async fn promote(trio: &Trio, member: &str) {
    let request = wire::PromoteMemberRequest {
        name: format!("clusters/{CLUSTER}"),
        member: member.to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    };
    // One that has just come back is in the electorate a moment after it has caught up.
    let promoting = || async { Ok(trio.api().clusters().promote_member(request.clone()).await?.into_inner()) };
    let operation = wait::until("a member that may be promoted", SOON, promoting).await.unwrap();
    trio.api().succeed(&operation.name, SOON).await.unwrap();
}

/// A failover, a planned promotion and a resync, under writers.
async fn everything(trio: &Trio, writers: &Writers) {
    writers.acknowledged(0, 300, SOON).await.unwrap();
    let (old_primary, _) = trio.kill_primary().await;
    writers.acknowledged(now_nanos(), 300, SOON).await.unwrap();
    let cluster = trio.healthy().await;
    assert_ne!(cluster.primary, old_primary);
    promote(trio, &old_primary).await;
    trio.healthy().await;
    writers.acknowledged(now_nanos(), 300, SOON).await.unwrap();
    let replica = cluster.primary.as_str();
    let resync = trio.resync(&[replica], 0).await;
    trio.api().succeed(&resync, SOON).await.unwrap();
    trio.healthy().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newer_agents_obey_an_old_coordinator() {
    let trio = trio(old("regent-coordinator"), program("regent-agent").unwrap()).await;
    let (began, writers) = (now_nanos(), trio.write());
    everything(&trio, &writers).await;
    trio.settle(writers, began).await;
}

/// Old agents obey a newer coordinator. Then every one is replaced by a newer one while a copy is being made; none of their
/// engines notices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_agents_obey_a_newer_coordinator_and_are_upgraded_in_the_middle_of_a_resync() {
    let mut trio = trio(program("regent-coordinator").unwrap(), old("regent-agent")).await;
    let (began, writers) = (now_nanos(), trio.write());
    everything(&trio, &writers).await;
    let before = trio.api().operations_of(CLUSTER, "failover").await.unwrap().len();
    postgres::add_ballast(&trio.login, &trio.members[0], 64).await.unwrap();
    writers.acknowledged(now_nanos(), 300, SOON).await.unwrap();
    let engines = trio.engine_pids().await;
    let resync = trio.resync(&["db3"], 8 << 20).await;
    wait::until("a copy that is being made", SOON, || async {
        let operation = trio.api().operation(&resync).await?;
        let running = |step: &wire::Step| step.name == "clone" && step.state() == wire::StepState::Running;
        ensure!(operation.steps.iter().any(running), "{}", api::describe(&operation));
        Ok(())
    })
    .await
    .unwrap();
    for node in NODES {
        let agent = trio.fleet.agent(node);
        agent.daemon().unwrap().stop().await.unwrap();
        agent.replace_program(program("regent-agent").unwrap());
        agent.start().unwrap();
    }
    trio.fleet.connected(&NODES).await.unwrap();
    trio.api().succeed(&resync, SOON).await.unwrap();
    trio.healthy().await;
    assert_eq!(trio.engine_pids().await[..2], engines[..2], "engines that were not copied go on");
    assert_eq!(trio.api().operations_of(CLUSTER, "failover").await.unwrap().len(), before);
    trio.settle(writers, began).await;
}
