//! What the platform and the auditor are told: the hook gets each event in order, and a record of the audit that was changed is
//! found.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::ensure;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::{Fleet, run},
    folder::TestFolder,
    process::program,
    wait,
};

use crate::support::{CLUSTER, ENGINE, SOON};

/// regentctl as the first administrator.
fn regentctl(fleet: &Fleet, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("regentctl").unwrap());
    command.args(arguments).args(["--coordinator", &fleet.coordinator.address, "--output", "json", "--identity"]);
    command.arg(fleet.coordinator.admin());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hook_is_handed_each_event_and_a_changed_record_of_the_audit_is_found() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start(&folder, &["n1"]).await.unwrap();
    let (hook, seen) = (folder.join("hook"), folder.join("hook.seen"));
    fs::write(&hook, format!("#!/bin/sh\ncat >> {}\n", seen.display())).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let mut config = fs::read_to_string(fleet.coordinator.config()).unwrap();
    config.push_str(&format!("hook = {hook:?}\n"));
    fs::write(fleet.coordinator.config(), config).unwrap();
    fleet.coordinator.daemon().unwrap().stop().await.unwrap();
    fleet.coordinator.start().unwrap();
    fleet.all_connected().await.unwrap();

    fleet.create(CLUSTER, ENGINE, &["n1"]).await.unwrap();
    let delete = wire::DeleteClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        confirm_name: CLUSTER.to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    };
    let operation = fleet.api.clusters().delete_cluster(delete).await.unwrap().into_inner();
    fleet.api.succeed(&operation.name, SOON).await.unwrap();
    wait::until("both events", SOON, || async {
        let text = fs::read_to_string(&seen).unwrap_or_default();
        let events: Vec<serde_json::Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let kinds: Vec<_> = events.iter().filter_map(|event| event["kind"].as_str()).collect();
        let ended: Vec<_> = kinds.iter().filter(|kind| kind.ends_with("_SUCCEEDED")).collect();
        ensure!(ended == [&"CLUSTER_CREATE_SUCCEEDED", &"CLUSTER_DELETE_SUCCEEDED"], "{kinds:?}");
        Ok(())
    })
    .await
    .unwrap();

    let asked = run(regentctl(&fleet, &["audit", "--cluster", CLUSTER])).unwrap();
    let asked: serde_json::Value = serde_json::from_str(&asked).unwrap();
    let calls: BTreeMap<_, _> = asked["records"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|record| record["actor"] == "user/admin")
        .map(|record| (record["action"].as_str().unwrap(), record))
        .collect();
    let create = calls["CreateCluster"];
    assert_eq!(create["resource"], format!("clusters/{CLUSTER}"));
    assert!(create["detail"].as_str().unwrap().contains("\"nodes\":[\"n1\"]"), "what was asked is told: {create}");
    assert!(calls.contains_key("DeleteCluster"), "{calls:?}");

    let whole = run(regentctl(&fleet, &["audit", "--verify"])).unwrap();
    let whole: serde_json::Value = serde_json::from_str(&whole).unwrap();
    assert!(whole["records"].as_u64().unwrap() > 3, "{whole}");
    fleet.coordinator.daemon().unwrap().stop().await.unwrap();
    // Somebody with the store in his hands makes it another person's doing.
    let change = "import sqlite3, sys\n\
                  store = sqlite3.connect(sys.argv[1])\n\
                  changed = store.execute('UPDATE entries SET value = CAST(replace(CAST(value AS TEXT), ?, ?) AS BLOB) WHERE \
                  key LIKE ? AND CAST(value AS TEXT) LIKE ?', ('user/admin', 'user/alice', 'audit/%', '%DeleteCluster%'))\n\
                  assert changed.rowcount == 1, changed.rowcount\n\
                  store.commit()\n";
    let mut python = Command::new("python3");
    python.args(["-c", change]).arg(fleet.coordinator.home.join("state/store.db"));
    run(python).unwrap();
    fleet.coordinator.start().unwrap();
    fleet.answers().await.unwrap();
    let broken = regentctl(&fleet, &["audit", "--verify"]).output().unwrap();
    let said = String::from_utf8_lossy(&broken.stderr);
    assert_eq!(broken.status.code(), Some(1), "{said}");
    assert!(said.contains("changed since it was written"), "{said}");
}
