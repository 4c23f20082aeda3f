//! How a machine becomes a node, and how it does not.

use std::fs;

use regent_common::{error::Reason, tls::ExpectedServer, transport};
use regent_proto::coordinator::v1::{self as wire, enrollment_service_client::EnrollmentServiceClient};
use regent_tests::{
    api::request_id,
    cluster::{Agent, Coordinator, Fleet},
    folder::TestFolder,
    process::program,
    users,
};

use crate::support::{CLUSTER, SOON, refused};

fn agent(folder: &TestFolder, node: &str) -> Agent {
    Agent::prepare(folder.path(), node, program("regent-agent").unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_admits_one_node_once_and_only_to_its_own_coordinator() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start(&folder, &[]).await.unwrap();
    let address = fleet.coordinator.address.clone();
    let token = fleet.token("").await.unwrap();
    agent(&folder, "n1").join(&address, &token).unwrap();
    let used = agent(&folder, "n2").join(&address, &token).unwrap_err().to_string();
    assert!(used.contains("TOKEN_USED"), "{used}");

    let named = fleet.token_for("n3").await.unwrap();
    let wrong = agent(&folder, "n4").join(&address, &named).unwrap_err().to_string();
    assert!(wrong.contains("TOKEN_WRONG_NODE") && wrong.contains("n3"), "it says for whom it is: {wrong}");

    let short = wire::CreateTokenRequest { ttl_seconds: 1, request_id: request_id(), ..Default::default() };
    let short = fleet.api.identities().create_token(short).await.unwrap().into_inner();
    let end = short.expire_time.unwrap();
    regent_tests::wait::until("the token's end", SOON, || async {
        let now = regent_common::clock::wall_now().as_second();
        anyhow::ensure!(now > end.seconds + 1, "it is {now}");
        Ok(())
    })
    .await
    .unwrap();
    let expired = agent(&folder, "n5").join(&address, &short.token).unwrap_err().to_string();
    assert!(expired.contains("TOKEN_EXPIRED"), "{expired}");

    let garbage = agent(&folder, "n6").join(&address, "no-token").unwrap_err().to_string();
    assert!(garbage.contains("token"), "{garbage}");

    // A token of another coordinator names another authority: the node does not even ask.
    let other_root = folder.join("other");
    let mut other = Coordinator::init(&other_root, program("regent-coordinator").unwrap()).unwrap();
    other.start().unwrap();
    let up = || async { Ok(tokio::net::TcpStream::connect(&other.address).await?) };
    regent_tests::wait::until("the other coordinator", SOON, up).await.unwrap();
    let foreign = agent(&folder, "n7").join(&other.address, &fleet.token("").await.unwrap());
    let foreign = foreign.unwrap_err().to_string();
    assert!(
        foreign.contains("fingerprint") || foreign.contains("authority") || foreign.contains("coordinator"),
        "{foreign}"
    );

    // A node of one coordinator does not become one of another by accident.
    let joined = agent(&folder, "n8");
    joined.join(&address, &fleet.token("").await.unwrap()).unwrap();
    let twice = joined.join(&address, &fleet.token("").await.unwrap()).unwrap_err().to_string();
    assert!(twice.contains("n8") || twice.contains("already"), "{twice}");
    let nodes = fleet.api.all_nodes().await.unwrap();
    let names: Vec<_> = nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["nodes/n1", "nodes/n8"], "the others are unknown");
    fleet.coordinator.daemon().unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_clock_is_wrong_is_not_admitted() {
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &[]).await.unwrap();
    let authority = users::authority_fingerprint(&fleet.coordinator.admin()).unwrap();
    let channel =
        transport::connect(&fleet.coordinator.address, None, ExpectedServer::CaFingerprint(authority)).await.unwrap();
    let token = fleet.token("").await.unwrap();
    let (certificate_request_pem, _) = users::certificate_request().unwrap();
    let now = regent_common::clock::wall_now().as_second();
    let request = |clock: Option<i64>| wire::JoinNodeRequest {
        token: token.clone(),
        node: "n1".into(),
        certificate_request_pem: certificate_request_pem.clone(),
        agent_address: "127.0.0.1:7421".into(),
        clock: clock.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
        ledger_empty: true,
        ..Default::default()
    };
    let mut enrollment = EnrollmentServiceClient::new(channel);
    for wrong in [now - 3600, now + 3600] {
        refused(enrollment.join_node(request(Some(wrong))).await, Reason::ClockWrong);
    }
    refused(enrollment.join_node(request(None)).await, Reason::InvalidField);
    // None of that used the token up.
    enrollment.join_node(request(Some(now))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_clusters_token_becomes_its_replica_by_itself() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start(&folder, &["n1"]).await.unwrap();
    fleet.create(CLUSTER, crate::support::ENGINE, &["n1"]).await.unwrap();
    let token = fleet.token(CLUSTER).await.unwrap();
    let mut second = agent(&folder, "n2");
    second.join(&fleet.coordinator.address, &token).unwrap();
    second.start().unwrap();
    fleet.agents.insert("n2".into(), second);
    regent_tests::wait::until("a second member", SOON, || async {
        let cluster = fleet.api.cluster(CLUSTER).await?;
        anyhow::ensure!(cluster.members.len() == 2, "{:?}", cluster.reasons);
        Ok(())
    })
    .await
    .unwrap();
    let cluster = fleet.api.healthy(CLUSTER, SOON).await.unwrap();
    assert_eq!(regent_tests::api::plain(&cluster.members[1].name), "db2");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_disk_comes_back_and_is_restored() {
    let mut trio = crate::support::Trio::start().await;
    let agent = trio.fleet.agent("n3");
    agent.daemon().unwrap().kill().unwrap();
    let home = agent.home.clone();
    // The machine and everything on it is gone; another one comes in its place, under its name.
    regent_tests::folder::end_processes_in(&home).unwrap();
    for folder in ["state", "engines", "run"] {
        fs::remove_dir_all(home.join(folder)).unwrap();
        fs::create_dir(home.join(folder)).unwrap();
    }
    let (token, address) = (trio.fleet.token("").await.unwrap(), trio.fleet.coordinator.address.clone());
    let taken = trio.fleet.agent("n3").join(&address, &token).unwrap_err().to_string();
    assert!(taken.contains("NAME_TAKEN"), "nobody takes a name with any token: {taken}");
    let token = trio.fleet.token_for("n3").await.unwrap();
    let agent = trio.fleet.agent("n3");
    agent.join(&address, &token).unwrap();
    agent.start().unwrap();
    trio.fleet.connected(&["n3"]).await.unwrap();
    let cluster = trio.api().cluster(CLUSTER).await.unwrap();
    let lost = regent_tests::api::member(&cluster, "db3").unwrap();
    assert_ne!(cluster.health(), wire::Health::Healthy, "a member without data is not healthy");
    assert!(lost.reason.contains("lost"), "it says why: {lost:?}");
    let operation = trio.resync(&["db3"], 0).await;
    trio.api().succeed(&operation, SOON).await.unwrap();
    trio.healthy().await;
}
