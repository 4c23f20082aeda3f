//! A node that is not who it was (rule T5): its state directory was put back to an older one, or a copy of it runs as well.

use std::{path::Path, process::Command, time::Duration};

use anyhow::ensure;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, member},
    cluster::{Agent, run},
    process::program,
    wait,
    workload::{now_nanos, postgres},
};
use serde_json::Value;

use crate::support::{CLUSTER, SOON, Trio};

/// How long a connection is tried that is expected to reach nobody.
const TRY: Duration = Duration::from_secs(2);

fn copy(from: &Path, to: &Path) {
    let mut command = Command::new("cp");
    command.arg("-a").arg(from).arg(to);
    run(command).unwrap();
}

/// `regent-agent status` of a node.
fn status(agent: &Agent) -> Value {
    let mut command = agent.command("status").unwrap();
    serde_json::from_str(
        &run({
            command.args(["--output", "json"]);
            command
        })
        .unwrap(),
    )
    .unwrap()
}

async fn node(trio: &Trio, name: &str) -> wire::Node {
    trio.api().nodes().get_node(wire::GetNodeRequest { name: format!("nodes/{name}") }).await.unwrap().into_inner()
}

/// The details of the audit's records of this action.
async fn audit(trio: &Trio, action: &str) -> Vec<String> {
    let request = wire::ListAuditRecordsRequest { page_size: 1000, ..Default::default() };
    let records = trio.api().audit().list_audit_records(request).await.unwrap().into_inner().records;
    records.into_iter().filter(|record| record.action == action).map(|record| record.detail).collect()
}

async fn electorate(trio: &Trio, wanted: &[&str]) {
    wait::until("the electorate", SOON, || async {
        let cluster = trio.api().cluster(CLUSTER).await?;
        let members = cluster.electorate.clone().unwrap_or_default().members;
        ensure!(members == wanted && cluster.electorate_acknowledged, "it is {members:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Waits until these members are well and nothing is being done.
async fn settled(trio: &Trio, members: &[&str]) {
    wait::until("the others are well", SOON, || async {
        let cluster = trio.api().cluster(CLUSTER).await?;
        ensure!(cluster.operation.is_empty(), "{} runs", cluster.operation);
        for name in members {
            let seen = member(&cluster, name)?;
            ensure!(seen.verdict == "Healthy", "{name}: {}: {}", seen.verdict, seen.reason);
        }
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_state_was_put_back_is_kept_out_until_it_is_resynced() {
    let mut trio = Trio::start().await;
    trio.healthy().await;
    electorate(&trio, &["db2", "db3"]).await;
    let (state, backup) = (trio.fleet.agent("n3").home.join("state"), trio.folder.join("backup"));
    trio.fleet.agent("n3").daemon().unwrap().stop().await.unwrap();
    copy(&state, &backup);
    trio.fleet.agent("n3").start().unwrap();

    // A failover at epoch 2, to which the third node says yes: from then on it has shown more than the backup has.
    trio.fleet.connected(&["n3"]).await.unwrap();
    trio.healthy().await;
    let (old, _) = trio.kill_primary().await;
    trio.api().other_primary(CLUSTER, &old, SOON).await.unwrap();
    let cluster = trio.healthy().await;
    assert_eq!(cluster.epoch, 2);
    let (third, other) = ("db3", ["db1", "db2"].into_iter().find(|name| *name != cluster.primary).unwrap());
    if cluster.primary == third {
        panic!("the first by name among equals is promoted");
    }
    electorate(&trio, &[other, third]).await;

    trio.fleet.agent("n3").daemon().unwrap().stop().await.unwrap();
    std::fs::rename(&state, trio.folder.join("newest")).unwrap();
    copy(&backup, &state);
    trio.fleet.agent("n3").start().unwrap();
    let kept_out = wait::until("the quarantine", SOON, || async {
        let cluster = trio.api().cluster(CLUSTER).await?;
        let third = member(&cluster, third)?.clone();
        let engine = third.observation.as_ref().map(|seen| seen.engine_state().as_str_name().to_owned());
        ensure!(third.verdict == "Quarantined", "{}: {}", third.verdict, third.reason);
        ensure!(engine.as_deref() == Some("ENGINE_STATE_STOPPED"), "its engine: {engine:?}");
        Ok(third)
    })
    .await
    .unwrap();
    for part in ["put back to an older one", "epoch 1 and has had 2", "regentctl cluster resync db db3"] {
        assert!(kept_out.reason.contains(part), "{part}: {}", kept_out.reason);
    }
    electorate(&trio, &[other]).await;
    let cluster = trio.api().cluster(CLUSTER).await.unwrap();
    assert!(cluster.reasons.iter().any(|reason| reason.contains("db3 is in quarantine")), "{:?}", cluster.reasons);
    let shown = node(&trio, "n3").await;
    assert!(shown.reason.starts_with("in quarantine") && shown.reason.contains("resync"), "{}", shown.reason);
    let local = status(trio.fleet.agent("n3"));
    assert!(local["quarantine"].as_str().is_some_and(|why| why.contains("put back")), "{local}");
    assert_eq!(audit(&trio, "QUARANTINED").await.len(), 1, "it is written down, once");

    // It is no candidate, also when the primary dies; and a coordinator that starts knows it from its store and the ledger.
    trio.fleet.coordinator.daemon().unwrap().stop().await.unwrap();
    trio.fleet.coordinator.start().unwrap();
    trio.fleet.answers().await.unwrap();
    trio.fleet.all_connected().await.unwrap();
    let primary = api::engine_pid(member(&trio.api().cluster(CLUSTER).await.unwrap(), &cluster.primary).unwrap());
    regent_tests::process::signal(primary.unwrap(), nix::sys::signal::Signal::SIGKILL).unwrap();
    let next = trio.api().other_primary(CLUSTER, &cluster.primary, SOON).await.unwrap();
    assert_eq!(next.primary, other);
    assert_eq!(member(&next, third).unwrap().verdict, "Quarantined");

    // The person's step.
    settled(&trio, &["db1", "db2"]).await;
    let resync = trio.resync(&[third], 0).await;
    trio.api().succeed(&resync, SOON).await.unwrap();
    let cluster = trio.healthy().await;
    assert_eq!(member(&cluster, third).unwrap().verdict, "Healthy");
    electorate(
        &trio,
        &[
            cluster.members.iter().map(|m| api::plain(&m.name)).find(|name| *name != other && *name != third).unwrap(),
            third,
        ],
    )
    .await;
    assert_eq!(status(trio.fleet.agent("n3"))["quarantine"], Value::Null);
    trio.check_logs(&[
        "quarantine",
        "QUARANTINE",
        "not who it was",
        "no coordinator answers",
        "the engine",
        "STALE",
        "failover",
    ]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_the_primarys_node_is_refused_and_the_primary_goes_on() {
    let mut trio = Trio::start().await;
    let before = trio.healthy().await;
    let writers = trio.write();
    writers.acknowledged(0, 100, SOON).await.unwrap();
    let pids = trio.engine_pids().await;
    let address = node(&trio, "n1").await.agent_address;

    let mut clone = Agent::prepare(trio.folder.path(), "copy", program("regent-agent").unwrap()).unwrap();
    // On a machine of its own it would close its own gate; here it would be that of the node it was copied from.
    clone.gate_table = String::new();
    clone.configure("", "").unwrap();
    std::fs::remove_dir_all(clone.home.join("state")).unwrap();
    copy(&trio.fleet.agent("n1").home.join("state"), &clone.home.join("state"));
    clone.start().unwrap();

    let shown = wait::until("the copy is shown", SOON, || async {
        let shown = node(&trio, "n1").await;
        ensure!(shown.reason.contains("two agents speak for node n1"), "{}", shown.reason);
        Ok(shown)
    })
    .await
    .unwrap();
    for part in [&address, &clone.address, "stop the copy", "revoke n1"] {
        assert!(shown.reason.contains(part), "{part}: {}", shown.reason);
    }
    assert!(shown.connected && shown.agent_address == address, "the one that was there stays");
    wait::until("the copy keeps itself out", SOON, || async {
        let said = status(&clone);
        ensure!(said["quarantine"].as_str().is_some_and(|why| why.contains("two agents")), "{said}");
        Ok(())
    })
    .await
    .unwrap();
    wait::until("the copy's own log", SOON, || async {
        let log = std::fs::read_to_string(clone.log())?;
        ensure!(log.contains("the coordinator refuses this agent") && log.contains("two agents"), "{log}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(audit(&trio, "IDENTITY_TWICE").await.iter().all(|detail| detail.contains("stays")));
    wait::until("it is written down", SOON, || async {
        ensure!(audit(&trio, "IDENTITY_TWICE").await.len() == 1);
        Ok(())
    })
    .await
    .unwrap();

    // The primary goes on, with its lease, its electorate and its engine.
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    let cluster = trio.api().cluster(CLUSTER).await.unwrap();
    assert_eq!((&cluster.primary, cluster.epoch), (&before.primary, before.epoch));
    assert_eq!(member(&cluster, "db1").unwrap().verdict, "Healthy");
    assert_eq!(trio.engine_pids().await, pids);
    electorate(&trio, &["db2", "db3"]).await;
    assert_eq!(status(trio.fleet.agent("n1"))["quarantine"], Value::Null);

    // A coordinator that starts calls the one that was there, and rules again when the copy announces itself.
    trio.fleet.coordinator.daemon().unwrap().stop().await.unwrap();
    trio.fleet.coordinator.start().unwrap();
    trio.fleet.answers().await.unwrap();
    trio.fleet.connected(&["n1", "n2", "n3"]).await.unwrap();
    assert_eq!(node(&trio, "n1").await.agent_address, address);
    clone.daemon().unwrap().stop().await.unwrap();
    trio.healthy().await;
    writers.acknowledged(now_nanos(), 100, SOON).await.unwrap();
    assert_eq!(trio.engine_pids().await, pids);
    trio.check_logs(&["IDENTITY_TWICE", "not who it was"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_whose_ledger_is_lost_is_replaced_and_its_engine_reaches_nobody() {
    let mut trio = Trio::start().await;
    trio.healthy().await;
    electorate(&trio, &["db2", "db3"]).await;
    let (address, old) = (trio.members[0].clone(), trio.engine_pids().await[0]);
    let agent = trio.fleet.agent("n1");
    agent.daemon().unwrap().stop().await.unwrap();
    std::fs::remove_file(agent.home.join("state/ledger.json")).unwrap();
    // As after a flush of the rules: nothing of the reign of before keeps the port shut.
    agent.command("remove-gate").and_then(run).unwrap();
    postgres::connect(&trio.login, &address).await.unwrap();
    trio.fleet.agent("n1").start().unwrap();

    let login = trio.login.clone();
    wait::until("its port is shut", SOON, || async {
        let tried = tokio::time::timeout(TRY, postgres::connect(&login, &address)).await;
        ensure!(!matches!(tried, Ok(Ok(_))), "somebody still reaches it");
        Ok(())
    })
    .await
    .unwrap();
    assert!(regent_tests::process::lives(old), "nobody knows how to stop it");
    let cluster = trio.api().other_primary(CLUSTER, "db1", SOON).await.unwrap();
    let lost = member(&cluster, "db1").unwrap();
    assert!(lost.verdict == "Quarantined" && lost.reason.contains("no ledger"), "{}: {}", lost.verdict, lost.reason);
    assert!(node(&trio, "n1").await.reason.starts_with("in quarantine"));
    settled(&trio, &["db2", "db3"]).await;
    let resync = trio.resync(&["db1"], 0).await;
    trio.api().succeed(&resync, SOON).await.unwrap();
    trio.healthy().await;
    assert!(!regent_tests::process::lives(old));
    assert_eq!(audit(&trio, "QUARANTINED").await.len(), 1);
    trio.check_logs(&["quarantine", "not who it was", "beside no ledger"]);
}
