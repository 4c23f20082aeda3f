//! Who may do what: no certificate, a foreign one, a revoked one, each role for each call.

use std::{collections::BTreeMap, path::Path};

use prost::Message;
use prost_types::{FileDescriptorSet, MethodDescriptorProto};
use regent_common::{
    error::{Reason, reason_of},
    identity::IdentityDirectory,
    tls::{ExpectedServer, ReloadingIdentity},
    transport,
};
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{Api, request_id},
    cluster::{Coordinator, Fleet},
    folder::TestFolder,
    process::program,
    users,
};
use tonic::{Code, Request, Status, client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

use crate::support::{create, refused};

/// All methods of a package: path and description.
fn methods(package: &str) -> Vec<(String, MethodDescriptorProto)> {
    let set = FileDescriptorSet::decode(regent_proto::DESCRIPTORS).unwrap();
    let files = set.file.into_iter().filter(|file| file.package() == package);
    let services = files.flat_map(|file| file.service);
    let methods = services.flat_map(|service| {
        let name = service.name().to_owned();
        service.method.into_iter().map(move |method| (format!("/{}.{name}/{}", "PACKAGE", method.name()), method))
    });
    methods.map(|(path, method)| (path.replace("PACKAGE", package), method)).collect()
}

/// Calls a method with an empty message; the refusal, if there was one before anything was answered.
async fn call(channel: &Channel, path: &str, method: &MethodDescriptorProto) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = path.parse().unwrap();
    let codec = ProstCodec::<(), ()>::default();
    match (method.client_streaming(), method.server_streaming()) {
        (false, false) => grpc.unary(Request::new(()), path, codec).await.map(drop),
        (false, true) => grpc.server_streaming(Request::new(()), path, codec).await.map(drop),
        (true, _) => grpc.streaming(Request::new(tokio_stream::pending()), path, codec).await.map(drop),
    }
}

async fn channel(address: &str, identity: Option<&Path>, expected: ExpectedServer) -> Channel {
    let identity = identity.map(|path| ReloadingIdentity::open(&IdentityDirectory::new(path)).unwrap());
    transport::connect(address, identity, expected).await.unwrap()
}

/// The one thing that a machine without a certificate may ask.
const OPEN: &str = "/regent.coordinator.v1.EnrollmentService/JoinNode";

async fn every_call_is_refused(channel: &Channel, package: &str, reasons: &[Reason]) {
    let all = methods(package);
    assert!(all.len() > 3, "the descriptors have the methods of {package}");
    for (path, method) in all.iter().filter(|(path, _)| path != OPEN) {
        let status = call(channel, path, method).await.expect_err(path);
        let reason = reason_of(&status);
        assert!(reason.is_some_and(|reason| reasons.contains(&reason)), "{path}: {status:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_refused_everywhere() {
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1"]).await.unwrap();
    let own = ReloadingIdentity::open(&IdentityDirectory::new(fleet.coordinator.admin())).unwrap();
    let server = || ExpectedServer::AnyCoordinatorOf(own.identity().coordinator_id);
    let other = Coordinator::init(&folder.join("other"), program("regent-coordinator").unwrap()).unwrap();
    let authority = users::authority_fingerprint(&fleet.coordinator.admin()).unwrap();
    let agent = &fleet.agents["n1"].address;

    let nobody = channel(&fleet.coordinator.address, None, ExpectedServer::CaFingerprint(authority.clone())).await;
    every_call_is_refused(&nobody, "regent.coordinator.v1", &[Reason::NoCertificate]).await;
    let foreigner =
        channel(&fleet.coordinator.address, Some(&other.admin()), ExpectedServer::CaFingerprint(authority.clone()))
            .await;
    every_call_is_refused(&foreigner, "regent.coordinator.v1", &[Reason::UnknownAuthority]).await;

    // What strangers get from an agent is seen by a client that does not check whom it speaks with: stock_client.py.
    // An administrator is no coordinator: agents do not obey people.
    let node = ExpectedServer::Identity(format!("regent://{}/node/n1", own.identity().coordinator_id).parse().unwrap());
    let admin = channel(agent, Some(&fleet.coordinator.admin()), node).await;
    every_call_is_refused(&admin, "regent.agent.v1", &[Reason::WrongCaller]).await;
    // And a node may not call as a person.
    let node = channel(&fleet.coordinator.address, Some(&fleet.agents["n1"].identity()), server()).await;
    let status = call(&node, "/regent.coordinator.v1.ClusterService/CreateCluster", &MethodDescriptorProto::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_user_is_refused_from_then_on_also_on_an_open_connection() {
    let folder = TestFolder::new().unwrap();
    let mut fleet = Fleet::start(&folder, &[]).await.unwrap();
    let identity = folder.join("ann");
    users::create(&fleet.api, "ann", wire::UserRole::Operator, &identity).await.unwrap();
    let ann = Api::connect(&fleet.coordinator.address, &identity).await.unwrap();
    ann.all_nodes().await.unwrap();
    let revoke = wire::RevokeUserRequest { name: "users/ann".to_owned(), confirm_name: "ann".to_owned() };
    fleet.api.identities().revoke_user(revoke).await.unwrap();
    let list = wire::ListNodesRequest::default;
    refused(ann.nodes().list_nodes(list()).await, Reason::CertificateRevoked);
    // Revocation is stored.
    fleet.coordinator.daemon().unwrap().kill().unwrap();
    fleet.coordinator.start().unwrap();
    fleet.answers().await.unwrap();
    let ann = Api::connect(&fleet.coordinator.address, &identity).await.unwrap();
    refused(ann.nodes().list_nodes(list()).await, Reason::CertificateRevoked);
    let users = fleet.api.identities().list_users(wire::ListUsersRequest {}).await.unwrap().into_inner().users;
    assert!(users.iter().any(|user| user.name == "users/ann" && user.revoked), "{users:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_role_may_call_what_the_table_says() {
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1"]).await.unwrap();
    let roles =
        [("viewer", wire::UserRole::Viewer), ("operator", wire::UserRole::Operator), ("admin", wire::UserRole::Admin)];
    let mut channels = BTreeMap::new();
    let coordinator = &fleet.coordinator.address;
    for (name, role) in roles {
        let identity = folder.join(name);
        users::create(&fleet.api, &format!("a-{name}"), role, &identity).await.unwrap();
        let id = ReloadingIdentity::open(&IdentityDirectory::new(&identity)).unwrap().identity().coordinator_id;
        channels.insert(name, channel(coordinator, Some(&identity), ExpectedServer::AnyCoordinatorOf(id)).await);
    }
    let id = ReloadingIdentity::open(&IdentityDirectory::new(fleet.coordinator.admin())).unwrap().identity();
    let node = fleet.agents["n1"].identity();
    let expected = ExpectedServer::AnyCoordinatorOf(id.coordinator_id);
    channels.insert("node", channel(coordinator, Some(&node), expected).await);
    let mut lines = Vec::new();
    for (path, method) in methods("regent.coordinator.v1") {
        let mut may = Vec::new();
        for name in ["viewer", "operator", "admin", "node"] {
            let answer = call(&channels[name], &path, &method).await;
            let denied = answer.is_err_and(|status| status.code() == Code::PermissionDenied);
            may.push(if denied { format!("{:9}", "-") } else { format!("{name:9}") });
        }
        let short = path.trim_start_matches("/regent.coordinator.v1.").to_owned();
        lines.push(format!("{short:40} {}", may.join(" ").trim_end()));
    }
    insta::assert_snapshot!("roles", lines.join("\n"));
    // A viewer's change is refused with the reason, and nothing has changed.
    let viewer = Api::connect(coordinator, &folder.join("viewer")).await.unwrap();
    refused(viewer.clusters().create_cluster(create("db", &["n1"])).await, Reason::RoleTooLow);
    let request = wire::CreateTokenRequest { request_id: request_id(), ..Default::default() };
    refused(viewer.identities().create_token(request).await, Reason::RoleTooLow);
    let clusters = fleet.api.clusters().list_clusters(wire::ListClustersRequest::default()).await.unwrap().into_inner();
    assert!(clusters.clusters.is_empty());
}
