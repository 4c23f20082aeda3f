//! Joining over real TLS on loopback: with the fingerprint alone, then with the certificate that was given.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use rcgen::{CertificateParams, KeyPair};
use regent_common::{
    clock::{Clock as _, SystemClock},
    convert::to_wire_time,
    error::reason_of,
    identity::IdentityDirectory,
    tls::{ExpectedServer, ReloadingIdentity},
    transport::{ServeOptions, connect, serve_with},
};
use regent_proto::coordinator::v1::{
    CreateTokenRequest, CreateUserRequest, ListUsersRequest, Node, RenewCertificateRequest, RevokeNodeRequest,
    UserRole, enrollment_service_client::EnrollmentServiceClient, enrollment_service_server::EnrollmentServiceServer,
    identity_service_client::IdentityServiceClient, identity_service_server::IdentityServiceServer,
};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{service::Routes, transport::Channel};

use super::*;
use crate::{
    api::identity::IdentityApi,
    commands::init::{InitOptions, InitReport, init},
    identity::{Hooks, Settings},
    pki::{Authority, StateDirectory},
    store::sqlite::SqliteStore,
};

struct Running {
    folder: tempfile::TempDir,
    report: InitReport,
    address: String,
    _stop: DropGuard,
}

struct Machine {
    key: KeyPair,
    directory: IdentityDirectory,
}

async fn start() -> Running {
    let folder = tempfile::tempdir().unwrap();
    let options = InitOptions {
        state_dir: folder.path().join("state"),
        config_path: folder.path().join("coordinator.toml"),
        advertise: vec!["127.0.0.1".to_owned()],
        admin_dir: None,
        admin: "admin".parse().unwrap(),
        certificate_life: Duration::from_secs(3600),
    };
    let report = init(options).await.unwrap();
    let state = StateDirectory(report.state_dir.clone());
    let settings = Settings {
        store: Arc::new(SqliteStore::create(&state.store()).unwrap()),
        clock: Arc::new(SystemClock),
        authority: Arc::new(Authority::open(&state.authority()).unwrap()),
        coordinator_id: report.coordinator_id.clone(),
        certificate_life: Duration::from_secs(3600),
        reserved: Default::default(),
        hooks: Hooks::default(),
    };
    let identities = Arc::new(Identities::open(settings).await.unwrap());
    let options = ServeOptions { revocations: identities.revocations() };
    let api = IdentityApi {
        identities: identities.clone(),
        render_node: Arc::new(|record, _| Node { name: record.name.resource(), ..Node::default() }),
    };
    let routes = Routes::new(EnrollmentServiceServer::new(EnrollmentApi(identities)))
        .add_service(IdentityServiceServer::new(api));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let own = ReloadingIdentity::open(&IdentityDirectory::new(state.identity())).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(serve_with(listener, own, routes, options, stop.clone()));
    Running { folder, report, address, _stop: stop.drop_guard() }
}

fn request_pem(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

// === impl Running ===

impl Running {
    async fn channel(&self, directory: PathBuf) -> Channel {
        let identity = ReloadingIdentity::open(&IdentityDirectory::new(directory)).unwrap();
        let expected = ExpectedServer::AnyCoordinatorOf(self.report.coordinator_id.clone());
        connect(&self.address, Some(identity), expected).await.unwrap()
    }

    async fn admin(&self) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.channel(self.report.admin_dir.clone()).await)
    }

    async fn token(&self) -> String {
        self.admin().await.create_token(CreateTokenRequest::default()).await.unwrap().into_inner().token
    }

    fn machine(&self, name: &str) -> Machine {
        let directory = IdentityDirectory::new(self.folder.path().join(name));
        Machine { key: KeyPair::generate().unwrap(), directory }
    }

    async fn join(&self, machine: &Machine, request: JoinNodeRequest) -> Result<JoinNodeResponse, Status> {
        let token: JoinToken = self.token().await.parse().unwrap();
        let expected = ExpectedServer::CaFingerprint(token.ca_fingerprint().to_owned());
        let channel = connect(&self.address, None, expected).await.unwrap();
        let answer = EnrollmentServiceClient::new(channel).join_node(request).await?.into_inner();
        let key = machine.key.serialize_pem().into();
        machine.directory.store(&answer.certificate_pem, &key, &answer.ca_pem).unwrap();
        Ok(answer)
    }
}

fn join_request(token: String, machine: &Machine) -> JoinNodeRequest {
    JoinNodeRequest {
        token,
        node: "n1".to_owned(),
        certificate_request_pem: request_pem(&machine.key),
        agent_address: "127.0.0.1:7421".to_owned(),
        public_address: String::new(),
        private_address: String::new(),
        clock: Some(to_wire_time(SystemClock.wall())),
        labels: BTreeMap::new(),
        ledger_empty: true,
    }
}

fn announcement() -> AnnounceNodeRequest {
    AnnounceNodeRequest { agent_address: "127.0.0.1:7999".to_owned(), ..AnnounceNodeRequest::default() }
}

#[tokio::test]
async fn a_machine_joins_announces_renews_and_is_revoked() {
    let running = start().await;
    let machine = running.machine("n1");
    let answer = running.join(&machine, join_request(running.token().await, &machine)).await.unwrap();
    assert_eq!((&answer.coordinator_id, answer.cluster.as_str()), (&running.report.coordinator_id, ""));

    let channel = running.channel(machine.directory.0.clone()).await;
    let mut node = EnrollmentServiceClient::new(channel.clone());
    node.announce_node(announcement()).await.unwrap();
    let request = RenewCertificateRequest { certificate_request_pem: request_pem(&machine.key) };
    let renewed = IdentityServiceClient::new(channel).renew_certificate(request).await.unwrap().into_inner();
    machine.directory.store(&renewed.certificate_pem, &machine.key.serialize_pem().into(), &renewed.ca_pem).unwrap();
    let mut fresh = EnrollmentServiceClient::new(running.channel(machine.directory.0.clone()).await);
    fresh.announce_node(announcement()).await.unwrap();

    let mut admin = running.admin().await;
    let mut revoke = RevokeNodeRequest { name: "nodes/n1".to_owned(), confirm_name: "n2".to_owned() };
    let refused = admin.revoke_node(revoke.clone()).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::ConfirmNameWrong));
    revoke.confirm_name = "n1".to_owned();
    assert_eq!(admin.revoke_node(revoke).await.unwrap().into_inner().node.unwrap().name, "nodes/n1");
    // Both certificates, on connections that were open before.
    for client in [&mut node, &mut fresh] {
        let refused = client.announce_node(announcement()).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::CertificateRevoked));
    }
}

#[tokio::test]
async fn bad_joins_and_strangers_get_a_reason() {
    let running = start().await;
    let machine = running.machine("n1");
    let token = running.token().await;
    let good = || join_request(token.clone(), &machine);
    let cases = [
        (JoinNodeRequest { token: "nonsense".to_owned(), ..good() }, Reason::TokenUnknown),
        (JoinNodeRequest { node: "N1".to_owned(), ..good() }, Reason::NameInvalid),
        (JoinNodeRequest { certificate_request_pem: "x".to_owned(), ..good() }, Reason::InvalidField),
        (JoinNodeRequest { agent_address: "0.0.0.0:7421".to_owned(), ..good() }, Reason::InvalidField),
        (JoinNodeRequest { clock: None, ..good() }, Reason::InvalidField),
        (JoinNodeRequest { clock: Some(Default::default()), ..good() }, Reason::ClockWrong),
    ];
    for (request, reason) in cases {
        let refused = running.join(&machine, request.clone()).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(reason), "{request:?}: {refused}");
    }
    let stranger = ExpectedServer::CaFingerprint(running.report.ca_fingerprint.clone());
    let channel = connect(&running.address, None, stranger).await.unwrap();
    let refused = EnrollmentServiceClient::new(channel).announce_node(announcement()).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::NoCertificate));
    let admin = running.channel(running.report.admin_dir.clone()).await;
    let refused = EnrollmentServiceClient::new(admin).announce_node(announcement()).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::WrongCaller));
    running.join(&machine, good()).await.unwrap();
}

#[tokio::test]
async fn a_user_is_made_from_a_request_and_can_call() {
    let running = start().await;
    let (machine, mut admin) = (running.machine("ada"), running.admin().await);
    let mut request = CreateUserRequest {
        user: "ada".to_owned(),
        role: UserRole::Unspecified.into(),
        certificate_request_pem: request_pem(&machine.key),
        ..CreateUserRequest::default()
    };
    let refused = admin.create_user(request.clone()).await.unwrap_err();
    assert_eq!(reason_of(&refused), Some(Reason::InvalidField));
    request.role = UserRole::Operator.into();
    let made = admin.create_user(request).await.unwrap().into_inner();
    machine.directory.store(&made.certificate_pem, &machine.key.serialize_pem().into(), &made.ca_pem).unwrap();
    let mut ada = IdentityServiceClient::new(running.channel(machine.directory.0.clone()).await);
    let users = ada.list_users(ListUsersRequest {}).await.unwrap().into_inner().users;
    let seen: Vec<_> = users.iter().map(|user| (user.name.as_str(), user.role())).collect();
    assert_eq!(seen, [("users/ada", UserRole::Operator), ("users/admin", UserRole::Admin)]);
    assert!(users[0].created_by.ends_with("/user/admin"), "{}", users[0].created_by);
}
