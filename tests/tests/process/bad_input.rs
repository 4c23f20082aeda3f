//! Bad input of every kind: a typed error that tells a person what to do, and nothing changed.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    time::Duration,
};

use nix::sys::signal::Signal;
use regent_common::error::{Reason, reason_of};
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, Api, request_id},
    cluster::Fleet,
    folder::{TestFolder, processes_in},
    process, wait,
};

use crate::support::{SOON, create, refused};

/// Everything that a refused call must leave as it was.
pub(crate) async fn state(api: &Api) -> String {
    let clusters = api.clusters().list_clusters(wire::ListClustersRequest::default()).await.unwrap().into_inner();
    let clusters: Vec<_> =
        clusters.clusters.iter().map(|c| (c.name.clone(), c.etag.clone(), c.members.len())).collect();
    let nodes: Vec<_> = api.all_nodes().await.unwrap().into_iter().map(|node| (node.name, node.cluster)).collect();
    let operations =
        api.operations().list_operations(wire::ListOperationsRequest::default()).await.unwrap().into_inner().operations;
    format!("{clusters:?} {nodes:?} {}", operations.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_makes_no_sense_is_refused_and_changes_nothing() {
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1", "n2", "n3"]).await.unwrap();
    fleet.create("db", "postgresql", &["n1"]).await.unwrap();
    let api = &fleet.api;
    let before = state(api).await;
    type Change = fn(&mut wire::CreateClusterRequest);
    let cases: [(&str, Reason, Change); 13] = [
        ("an unknown engine", Reason::UnknownEngine, |r| r.engine = "oracle".into()),
        ("no engine", Reason::UnknownEngine, |r| r.engine.clear()),
        ("an unknown setting", Reason::UnknownSetting, |r| drop(r.settings.insert("shared_bufers".into(), "1".into()))),
        ("an unknown mode", Reason::UnknownMode, |r| r.mode = "ring".into()),
        ("a node twice", Reason::NodeTwice, |r| r.nodes.push("n2".into())),
        ("a node of another cluster", Reason::NodeInCluster, |r| r.nodes.push("n1".into())),
        ("a node that nobody knows", Reason::NodeNotFound, |r| r.nodes.push("n9".into())),
        ("a name that is no label", Reason::NameInvalid, |r| r.cluster = "Db_x".into()),
        ("no name", Reason::NameInvalid, |r| r.cluster.clear()),
        ("a name that clashes with a member's", Reason::NameInvalid, |r| r.cluster = "db1".into()),
        ("a name that is taken", Reason::NameTaken, |r| r.cluster = "db".into()),
        ("more replicas than spares", Reason::NotEnoughSpares, |r| {
            r.nodes.clear();
            r.replicas = Some(2);
        }),
        ("a port that is none", Reason::InvalidField, |r| r.port = 70_000),
    ];
    let mut wrong = Vec::new();
    for (what, reason, change) in cases {
        let mut request = create("other", &["n2", "n3"]);
        change(&mut request);
        for validate_only in [true, false] {
            request.validate_only = validate_only;
            match api.clusters().create_cluster(request.clone()).await {
                Ok(operation) => wrong.push(format!("{what}: taken, {:?}", operation.into_inner().name)),
                Err(status) if reason_of(&status) != Some(reason) || status.code() != reason.code() => {
                    wrong.push(format!("{what}: {:?} instead of {reason}: {}", reason_of(&status), status.message()));
                }
                Err(status) if status.message().len() < 15 => {
                    wrong.push(format!("{what}: says only {:?}", status.message()))
                }
                Err(_) => {}
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let too_many = wire::CreateClusterRequest { replicas: Some(7), ..create("other", &[]) };
    refused(api.clusters().create_cluster(too_many).await, Reason::NotEnoughSpares);
    let confirm = |confirm_name: &str| wire::DeleteClusterRequest {
        name: "clusters/db".into(),
        confirm_name: confirm_name.into(),
        request_id: request_id(),
        ..Default::default()
    };
    refused(api.clusters().delete_cluster(confirm("")).await, Reason::ConfirmNameWrong);
    refused(api.clusters().delete_cluster(confirm("dbx")).await, Reason::ConfirmNameWrong);
    refused(
        api.clusters().get_cluster(wire::GetClusterRequest { name: "clusters/no".into() }).await,
        Reason::ClusterNotFound,
    );
    assert_eq!(state(api).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_id_means_one_request() {
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1", "n2"]).await.unwrap();
    let request = create("db", &["n1"]);
    let first = fleet.api.clusters().create_cluster(request.clone()).await.unwrap().into_inner();
    let again = fleet.api.clusters().create_cluster(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.name, again.name, "the same request has the same answer");
    let other = wire::CreateClusterRequest { nodes: vec!["n2".into()], ..request.clone() };
    refused(fleet.api.clusters().create_cluster(other).await, Reason::RequestIdReused);
    fleet.api.succeed(&first.name, SOON).await.unwrap();
    let later = fleet.api.clusters().create_cluster(request).await.unwrap().into_inner();
    assert_eq!(later.name, first.name, "also when it has ended");
    assert_eq!(fleet.api.operations_of("db", &first.kind).await.unwrap().len(), 1);
}

/// Creates a cluster that cannot be made; the reason that it ended with, however far it came.
async fn cannot_create(api: &Api, cluster: &str, nodes: &[&str]) -> (Reason, String) {
    match api.clusters().create_cluster(create(cluster, nodes)).await {
        Err(status) => (reason_of(&status).unwrap_or_else(|| panic!("{status:?}")), status.message().to_owned()),
        Ok(operation) => {
            let ended = api.finish(&operation.into_inner().name, SOON).await.unwrap();
            assert_eq!(ended.state(), wire::OperationState::Failed, "{ended:?}");
            (ended.error_reason.parse().unwrap(), ended.error)
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_fit_is_said_to_be_and_is_left_as_it_is() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start(&folder, &["n1", "n2", "n3"]).await.unwrap();
    let nodes_before = fleet.api.all_nodes().await.unwrap().len();

    // Data that is not ours.
    let foreign = fleet.agent("n1").home.join("engines/db/data");
    fs::create_dir_all(&foreign).unwrap();
    fs::write(foreign.join("precious"), "data").unwrap();
    let (reason, text) = cannot_create(&fleet.api, "db", &["n1"]).await;
    assert_eq!(reason, Reason::ForeignData, "{text}");
    assert!(text.contains("engines/db/data"), "it names the place: {text}");
    assert_eq!(fs::read_to_string(foreign.join("precious")).unwrap(), "data");
    fs::remove_dir_all(fleet.agent("n1").home.join("engines/db")).unwrap();

    // A port in use.
    let port = fleet.agent("n2").engine_port;
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let (reason, text) = cannot_create(&fleet.api, "db", &["n2"]).await;
    assert_eq!(reason, Reason::PortInUse, "{text}");
    assert!(text.contains(&port.to_string()), "it names the port: {text}");
    drop(taken);

    // Programs that are missing, then of another major version.
    let empty = folder.join("empty-bin");
    fs::create_dir(&empty).unwrap();
    restart_with_bin(&mut fleet, "n3", &empty).await;
    let (reason, text) = cannot_create(&fleet.api, "db", &["n3"]).await;
    assert_eq!(reason, Reason::EngineMissing, "{text}");
    let old = folder.join("old-bin");
    fs::create_dir(&old).unwrap();
    for program in ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_ctl", "pg_verifybackup"] {
        let script = format!("#!/bin/sh\necho '{program} (PostgreSQL) 9.6.1'\n");
        fs::write(old.join(program), script).unwrap();
        fs::set_permissions(old.join(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    restart_with_bin(&mut fleet, "n3", &old).await;
    let (reason, text) = cannot_create(&fleet.api, "db", &["n1", "n3"]).await;
    assert_eq!(reason, Reason::VersionsDiffer, "{text}");

    // Everything was put right or left alone: the same nodes are good for a cluster.
    assert_eq!(fleet.api.all_nodes().await.unwrap().len(), nodes_before);
    fleet.create("db", "postgresql", &["n1", "n2"]).await.unwrap();
}

/// Restarts an agent with another folder of the engine's programs.
async fn restart_with_bin(fleet: &mut Fleet, node: &str, bin: &std::path::Path) {
    let agent = fleet.agent(node);
    agent.daemon().unwrap().stop().await.unwrap();
    let config = fs::read_to_string(agent.config()).unwrap();
    let kept: Vec<_> = config.lines().filter(|line| !line.starts_with("bin_dir")).collect();
    fs::write(agent.config(), format!("{}\nbin_dir = {bin:?}\n", kept.join("\n"))).unwrap();
    agent.start().unwrap();
    let api = fleet.api.clone();
    wait::until("the agent's new offer", SOON, || async {
        let nodes = api.all_nodes().await?;
        let seen = nodes.iter().find(|n| n.name == format!("nodes/{node}")).unwrap();
        let ours = seen.engines.iter().filter(|offer| offer.engine == "postgresql");
        let offered: Vec<_> = ours.flat_map(|offer| offer.versions.clone()).collect();
        anyhow::ensure!(seen.connected && !offered.iter().any(|v| !v.starts_with("9.6")), "{offered:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_is_broken_is_not_served_from() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start(&folder, &[]).await.unwrap();
    fleet.coordinator.daemon().unwrap().stop().await.unwrap();
    let state = fleet.coordinator.home.join("state");
    let mut spoiled = 0;
    for entry in fs::read_dir(&state).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name.contains("-wal") || name.contains("-shm") {
            fs::remove_file(entry.path()).unwrap();
        } else if fs::read(entry.path()).is_ok_and(|bytes| bytes.starts_with(b"SQLite format 3")) {
            fs::write(entry.path(), b"SQLite format 3\0 this is no longer a store").unwrap();
            spoiled += 1;
        }
    }
    assert_eq!(spoiled, 1, "the store was found in {}", state.display());
    fleet.coordinator.start().unwrap();
    let status = fleet.coordinator.daemon().unwrap().wait(SOON).await.unwrap();
    assert!(!status.success());
    let log = fs::read_to_string(fleet.coordinator.daemon().unwrap().log()).unwrap();
    let last = log.lines().last().unwrap();
    assert!(last.contains("store"), "it says what is broken: {last}");
    assert!(!log.contains("panicked"), "{log}");
}

/// Whether somebody who listens on this port of the machine is reached there; 0 is some port that is free.
fn is_reached(port: u16) -> bool {
    let listening = TcpListener::bind(("127.0.0.1", port)).unwrap();
    TcpStream::connect_timeout(&listening.local_addr().unwrap(), Duration::from_millis(500)).is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_truncated_ledger_starts_no_engine_and_opens_no_gate() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start(&folder, &["n1", "n2"]).await.unwrap();
    let cluster = fleet.create("db", "postgresql", &["n1", "n2"]).await.unwrap();
    let engine = api::engine_pid(api::member(&cluster, "db1").unwrap()).unwrap();
    let agent = fleet.agent("n1");
    agent.daemon().unwrap().stop().await.unwrap();
    process::signal(engine, Signal::SIGKILL).unwrap();
    let (home, port, log) = (agent.home.clone(), agent.engine_port, agent.log().to_owned());
    let engines = home.join("engines");
    wait::until("the end of the engine", SOON, || async {
        let left = processes_in(&engines)?;
        anyhow::ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
    // The other one reigns only when the gate here is closed.
    fleet.api.other_primary("db", "db1", SOON).await.unwrap();
    assert!(is_reached(0) && !is_reached(port), "the gate is closed before, and only for the engine's port");

    let path = home.join("state/ledger.json");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let before = fs::read_to_string(&log).unwrap().len();
        let agent = fleet.agent("n1");
        agent.start().unwrap();
        let status = agent.daemon().unwrap().wait(SOON).await.unwrap();
        assert!(!status.success(), "cut at {length}");
        let said = fs::read_to_string(&log).unwrap()[before..].to_owned();
        for part in ["ledger.json", "nothing was changed", "put back a whole copy"] {
            assert!(said.contains(part), "cut at {length}: {part:?} is not in {said}");
        }
        assert!(!said.contains("panicked"), "cut at {length}: {said}");
        assert_eq!(processes_in(&engines).unwrap(), Vec::<i32>::new(), "cut at {length}: an engine was started");
        assert!(!is_reached(port), "cut at {length}: the gate was opened");
        assert_eq!(fs::read(&path).unwrap(), &whole[..length], "cut at {length}: the file was changed");
    }
    // With the whole one it is a member again, and a replica: that it is somebody else's turn it learns from the coordinator.
    fs::write(&path, &whole).unwrap();
    fleet.agent("n1").start().unwrap();
    let whole = fleet.api.healthy("db", SOON).await.unwrap();
    assert_eq!(whole.primary, "db2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_waits_for_the_end_of_a_failover() {
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1", "n2"]).await.unwrap();
    let cluster = fleet.create("db", "postgresql", &["n1", "n2"]).await.unwrap();
    let update = |profile: &str, validate_only| wire::UpdateClusterRequest {
        name: "clusters/db".into(),
        profile: profile.into(),
        validate_only,
        request_id: request_id(),
        ..Default::default()
    };
    // The failover asks the replica's agent, which stands still: for some seconds there is no primary.
    let replica = fleet.agents["n2"].pid().unwrap();
    process::signal(replica, Signal::SIGSTOP).unwrap();
    process::signal(api::engine_pid(api::member(&cluster, "db1").unwrap()).unwrap(), Signal::SIGKILL).unwrap();
    wait::until("a failover", SOON, || async {
        let cluster = fleet.api.cluster("db").await?;
        anyhow::ensure!(cluster.primary.is_empty(), "{} is the primary", cluster.primary);
        Ok(())
    })
    .await
    .unwrap();
    for (profile, validate_only) in [("fast", true), ("fast", false), ("relaxed", false)] {
        refused(fleet.api.clusters().update_cluster(update(profile, validate_only)).await, Reason::ClusterBusy);
    }
    assert_eq!(fleet.api.cluster("db").await.unwrap().profile, "standard");
    process::signal(replica, Signal::SIGCONT).unwrap();
    fleet.api.healthy("db", SOON).await.unwrap();
    // Afterwards it is changed, and the lease follows.
    refused(fleet.api.clusters().update_cluster(update("quick", false)).await, Reason::InvalidField);
    let changed = fleet.api.clusters().update_cluster(update("fast", false)).await.unwrap().into_inner();
    assert_eq!(changed.profile, "fast");
    wait::until("a lease of the new length", SOON, || async {
        let cluster = fleet.api.cluster("db").await?;
        let lease = cluster.lease.unwrap_or_default();
        anyhow::ensure!(lease.stands && lease.remaining_millis <= 1500, "{lease:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(fleet.api.operations_of("db", "failover").await.unwrap().len(), 1, "the change made no failover");
}
