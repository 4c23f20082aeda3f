//! Real loopback servers with certificates made for the test.

use std::sync::Mutex;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType, SerialNumber};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, service::Routes, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::*;
use crate::{
    error::{ErrorChain, reason_of},
    identity::IdentityDirectory,
    tls::{ExpectedServer, ReloadingIdentity, fingerprint},
};

const COORDINATOR: &str = "regent://inst/coordinator/c1";

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    fingerprint: String,
}

struct Holder {
    folder: TempDir,
    identity: ReloadingIdentity,
}

struct Running {
    address: String,
    callers: Arc<Mutex<Vec<Caller>>>,
    revocations: Revocations,
    _stop: tokio_util::sync::DropGuard,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), fingerprint: fingerprint(certificate.der()), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, folder: &TempDir, uri: &str, serial: u64, end_year: i32) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_after = rcgen::date_time_ymd(end_year, 1, 1);
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        IdentityDirectory::new(folder.path()).store(&pem, &key.serialize_pem().into(), &self.pem).unwrap();
    }

    fn holder(&self, uri: &str, serial: u64, end_year: i32) -> Holder {
        let folder = tempfile::tempdir().unwrap();
        self.issue(&folder, uri, serial, end_year);
        let identity = ReloadingIdentity::open(&IdentityDirectory::new(folder.path())).unwrap();
        Holder { folder, identity }
    }

    fn user(&self) -> Holder {
        self.holder("regent://inst/user/admin", 0x77, 4000)
    }
}

async fn start(identity: &ReloadingIdentity) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (callers, revocations, stop) =
        (Arc::new(Mutex::new(Vec::new())), Revocations::default(), CancellationToken::new());
    let seen = callers.clone();
    let (_, health) = tonic_health::server::health_reporter();
    let service = tonic::service::interceptor::InterceptedService::new(health, move |request: tonic::Request<()>| {
        let caller = Caller::of(&request).map_err(|status| *status)?;
        seen.lock().unwrap().push(caller.clone());
        caller.authenticated().map_err(|status| *status)?;
        Ok(request)
    });
    let options = ServeOptions { revocations: revocations.clone() };
    tokio::spawn(serve_with(listener, identity.clone(), Routes::new(service), options, stop.clone()));
    Running { address, callers, revocations, _stop: stop.drop_guard() }
}

async fn call(channel: &Channel) -> Result<(), Status> {
    HealthClient::new(channel.clone()).check(HealthCheckRequest { service: String::new() }).await.map(|_| ())
}

fn any() -> ExpectedServer {
    ExpectedServer::AnyCoordinatorOf("inst".to_owned())
}

#[tokio::test]
async fn the_right_identity_is_seen_and_a_slow_client_delays_nobody() {
    let authority = Authority::new();
    let (server, user) = (authority.holder(COORDINATOR, 1, 4000), authority.user());
    let running = start(&server.identity).await;
    // Never says a word; its handshake is still open while the other one calls.
    let _silent = TcpStream::connect(&running.address).await.unwrap();
    let expected = ExpectedServer::Identity(COORDINATOR.parse().unwrap());
    let channel = connect(&running.address, Some(user.identity.clone()), expected).await.unwrap();
    call(&channel).await.unwrap();
    let callers = running.callers.lock().unwrap();
    assert_eq!(callers[0].identity.as_ref().unwrap().to_string(), "regent://inst/user/admin");
    assert_eq!(callers[0].serial.as_deref(), Some("77"));
    assert!(callers[0].address.unwrap().ip().is_loopback());
}

#[tokio::test]
async fn nobody_foreigners_and_the_expired_are_refused_with_a_reason() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let server = authority.holder(COORDINATOR, 1, 4000);
    let running = start(&server.identity).await;
    let pinned = || ExpectedServer::CaFingerprint(authority.fingerprint.clone());
    let cases = [
        (None, Reason::NoCertificate),
        (Some(foreign.user()), Reason::UnknownAuthority),
        (Some(authority.holder("regent://inst/user/admin", 2, 2020)), Reason::CertificateExpired),
        (Some(authority.holder("regent://other/user/admin", 3, 4000)), Reason::UnknownAuthority),
    ];
    for (holder, reason) in cases {
        let identity = holder.as_ref().map(|holder| holder.identity.clone());
        let channel = connect(&running.address, identity, pinned()).await.unwrap();
        let status = call(&channel).await.unwrap_err();
        assert_eq!((status.code(), reason_of(&status)), (Code::Unauthenticated, Some(reason)), "{status:?}");
    }
}

#[tokio::test]
async fn a_revocation_holds_on_an_existing_connection() {
    let authority = Authority::new();
    let (server, user) = (authority.holder(COORDINATOR, 1, 4000), authority.user());
    let running = start(&server.identity).await;
    let channel = connect(&running.address, Some(user.identity.clone()), any()).await.unwrap();
    call(&channel).await.unwrap();
    running.revocations.revoke(user.identity.serial());
    assert_eq!(reason_of(&call(&channel).await.unwrap_err()), Some(Reason::CertificateRevoked));
    let callers = running.callers.lock().unwrap();
    assert_eq!(callers[0].address, callers[1].address, "it was another connection");
}

#[tokio::test]
async fn a_server_that_is_not_the_expected_one_is_refused() {
    let (authority, foreign) = (Authority::new(), Authority::new());
    let (node, user) = (authority.holder("regent://inst/node/n1", 1, 4000), authority.user());
    let running = start(&node.identity).await;
    let right = ExpectedServer::Identity("regent://inst/node/n1".parse().unwrap());
    connect(&running.address, Some(user.identity.clone()), right.clone()).await.unwrap();
    let wrong = [
        (user.identity.clone(), ExpectedServer::Identity("regent://inst/node/n2".parse().unwrap()), "not the expected"),
        (user.identity.clone(), any(), "not the expected"),
        (user.identity.clone(), ExpectedServer::CaFingerprint(foreign.fingerprint.clone()), "fingerprint"),
        (user.identity.clone(), ExpectedServer::CaFingerprint(authority.fingerprint.clone()), "not the expected"),
        (foreign.user().identity, right, "does not lead to the authority"),
    ];
    for (identity, expected, text) in wrong {
        let error = connect(&running.address, Some(identity), expected.clone()).await.unwrap_err();
        let error = ErrorChain(&error).to_string();
        assert!(error.contains(text), "{expected:?}: {error}");
    }
    assert!(matches!(connect(&running.address, None, any()).await, Err(TransportError::Tls(TlsError::NoAuthority))));
}

#[tokio::test]
async fn a_reload_reaches_new_connections_and_leaves_old_ones() {
    let authority = Authority::new();
    let (server, user) = (authority.holder(COORDINATOR, 1, 4000), authority.user());
    let running = start(&server.identity).await;
    let old = connect(&running.address, Some(user.identity.clone()), any()).await.unwrap();
    call(&old).await.unwrap();
    authority.issue(&user.folder, "regent://inst/user/admin", 0x99, 4000);
    authority.issue(&server.folder, COORDINATOR, 2, 4000);
    assert!(user.identity.reload().unwrap() && server.identity.reload().unwrap());
    assert!(!user.identity.reload().unwrap());
    let new = connect(&running.address, Some(user.identity.clone()), any()).await.unwrap();
    call(&new).await.unwrap();
    call(&old).await.unwrap();
    let serials: Vec<_> = running.callers.lock().unwrap().iter().map(|caller| caller.serial.clone().unwrap()).collect();
    assert_eq!(serials, ["77", "99", "77"]);
    // A key that does not fit leaves the identity as it was.
    let other = KeyPair::generate().unwrap().serialize_pem();
    std::fs::write(user.folder.path().join("key.pem"), other).unwrap();
    assert!(matches!(user.identity.reload(), Err(TlsError::Pair { .. })));
    assert_eq!(user.identity.serial(), "99");
}

#[tokio::test]
async fn bad_addresses_are_named() {
    for bad in ["", "host", "host:port", "http://host:1", "host:1/path"] {
        let result = connect(bad, None, ExpectedServer::CaFingerprint(String::new())).await;
        assert!(matches!(result, Err(TransportError::Address(_))), "{bad:?} was taken");
    }
}
