//! Tests of who may call what.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    fmt::Write as _,
};

use prost::Message as _;
use regent_common::{clock::ManualClock, ids::NodeName};
use regent_proto::coordinator::v1::audit_service_server::AuditServiceServer;
use tokio::sync::oneshot;
use tower::{ServiceExt as _, service_fn, util::BoxCloneSyncService};

use super::*;
use crate::{
    api::audit::AuditApi,
    store::{Transaction, memory::MemoryStore},
};

const CREATE: &str = "/regent.coordinator.v1.ClusterService/CreateCluster";
const LIST: &str = "/regent.coordinator.v1.AuditService/ListAuditRecords";
const ANNOUNCE: &str = "/regent.coordinator.v1.EnrollmentService/AnnounceNode";
const JOIN: &str = "/regent.coordinator.v1.EnrollmentService/JoinNode";
const RENEW: &str = "/regent.coordinator.v1.IdentityService/RenewCertificate";
const HEALTH: &str = "/grpc.health.v1.Health/Check";
const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

type Backend = BoxCloneSyncService<Request<Body>, Response<String>, Infallible>;

struct Bench {
    store: Arc<MemoryStore>,
    audit: AuditLog,
    layer: AuthorizationLayer,
}

impl Bench {
    /// Users of each role by its name, and `gone`, an administrator that was revoked.
    async fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        let audit = AuditLog::new(store.clone(), Arc::new(ManualClock::default()));
        let layer = AuthorizationLayer::new(Arc::new(StoredRoles(store.clone())), audit.clone());
        let bench = Self { store, audit, layer };
        for role in UserRole::ALL {
            bench.set(role.as_str(), Standing { role, revoked: false }).await;
        }
        bench.set("gone", Standing { role: UserRole::Admin, revoked: true }).await;
        bench
    }

    async fn set(&self, user: &str, standing: Standing) {
        let key = keys::user(&UserName::new(user).unwrap());
        self.store.commit(Transaction::default().put_json(key, &standing)).await.unwrap();
    }

    /// Calls a service that answers with the actor and address that it was given.
    async fn call(&self, path: &str, caller: Option<Caller>) -> Response<String> {
        let backend = service_fn(|request: Request<Body>| async move {
            let who = request.extensions().get::<Authorized>().unwrap();
            Ok(Response::new(format!("{} from {}", who.actor, who.address)))
        });
        self.call_backend(path, caller, Backend::new(backend)).await
    }

    async fn call_backend(&self, path: &str, caller: Option<Caller>, backend: Backend) -> Response<String> {
        let mut request = Request::builder().uri(path).body(Body::empty()).unwrap();
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        self.layer.layer(backend).oneshot(request).await.unwrap()
    }

    /// The reason of the refusal, `ok` when the service was reached.
    async fn outcome(&self, path: &str, caller: Option<Caller>) -> String {
        let response = self.call(path, caller).await;
        let (outcome, _) = outcome(response.headers());
        assert_eq!(outcome == OK, !response.body().is_empty(), "a refusal must not reach the service");
        outcome
    }

    /// Actor, address, action and outcome of the audit's records.
    async fn audited(&self) -> Vec<String> {
        let records = self.audit.list(None, None, None, 1000).await.unwrap();
        let line = |r: crate::audit::AuditRecord| format!("{} {} {} {}", r.actor, r.source, r.action, r.outcome);
        records.into_iter().map(line).collect()
    }
}

fn caller(identity: Result<Principal, AuthenticationError>) -> Option<Caller> {
    let identity = identity.map(|principal| Identity { coordinator_id: "test".to_owned(), principal });
    Some(Caller { identity, serial: None, address: Some("192.0.2.1:5000".parse().unwrap()) })
}

fn user(name: &str) -> Option<Caller> {
    caller(Ok(Principal::User(UserName::new(name).unwrap())))
}

fn node() -> Option<Caller> {
    caller(Ok(Principal::Node(NodeName::new("n1").unwrap())))
}

fn methods_of_the_coordinator() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(regent_proto::DESCRIPTORS).unwrap().file;
    let mut methods = Vec::new();
    for file in files.iter().filter(|file| file.package() == "regent.coordinator.v1") {
        for service in &file.service {
            let path = |method: &str| format!("/{}.{}/{method}", file.package(), service.name());
            methods.extend(service.method.iter().map(|method| path(method.name())));
        }
    }
    methods
}

#[test]
fn the_table_has_every_method_once_and_no_other() {
    let wanted = methods_of_the_coordinator();
    assert!(wanted.len() > 20, "the descriptors were not read: {wanted:?}");
    let table: BTreeSet<&str> = METHODS.iter().map(|(method, _)| *method).collect();
    assert_eq!(table.len(), METHODS.len(), "a method stands in the table twice");
    assert_eq!(table, wanted.iter().map(String::as_str).collect());
}

#[tokio::test]
async fn roles_and_methods_are_as_published() {
    let bench = Bench::new().await;
    let mut callers = vec![("none", None), ("node", node())];
    callers.extend(UserRole::ALL.map(|role| (role.as_str(), user(role.as_str()))));
    let mut text = format!("{:40}", "");
    for (name, _) in &callers {
        write!(text, " {name:>8}").unwrap();
    }
    text.push('\n');
    for path in methods_of_the_coordinator().iter().map(String::as_str).chain([HEALTH, REFLECTION]) {
        let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap();
        let service = service.rsplit('.').next().unwrap();
        write!(text, "{:40}", format!("{service}/{method}")).unwrap();
        for (_, caller) in &callers {
            let permitted = bench.outcome(path, caller.clone()).await == OK;
            write!(text, " {:>8}", if permitted { "yes" } else { "-" }).unwrap();
        }
        text.push('\n');
    }
    assert_eq!(text, include_str!("roles.txt"), "\nif this was meant, roles.txt must be:\n{text}");
}

#[tokio::test]
async fn nobody_we_know_gets_the_reason() {
    let bench = Bench::new().await;
    for (identity, reason) in [
        (AuthenticationError::NoCertificate, Reason::NoCertificate),
        (AuthenticationError::UnknownAuthority, Reason::UnknownAuthority),
        (AuthenticationError::Expired, Reason::CertificateExpired),
        (AuthenticationError::Revoked, Reason::CertificateRevoked),
        (AuthenticationError::Malformed("text".to_owned()), Reason::MalformedIdentity),
    ] {
        for path in [CREATE, LIST, ANNOUNCE, RENEW, REFLECTION, "/unknown/Method"] {
            let response = bench.call(path, caller(Err(identity.clone()))).await;
            let status = Status::from_header_map(response.headers()).unwrap();
            assert_eq!((status.code(), reason_of(&status)), (Code::Unauthenticated, Some(reason)), "{path}");
        }
        for path in [JOIN, HEALTH] {
            let response = bench.call(path, caller(Err(identity.clone()))).await;
            assert_eq!(response.body(), "anonymous from 192.0.2.1:5000");
        }
    }
    // A request that did not come through the secured transport is from nobody.
    assert_eq!(bench.outcome(CREATE, None).await, "NO_CERTIFICATE");
    assert_eq!(bench.audited().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_right_that_is_missing_is_told_and_recorded() {
    let bench = Bench::new().await;
    for (path, caller, code, reason) in [
        (CREATE, user("viewer"), Code::PermissionDenied, Reason::RoleTooLow),
        (CREATE, node(), Code::PermissionDenied, Reason::WrongCaller),
        (ANNOUNCE, user("admin"), Code::PermissionDenied, Reason::WrongCaller),
        (LIST, user("gone"), Code::Unauthenticated, Reason::CertificateRevoked),
        (RENEW, user("gone"), Code::Unauthenticated, Reason::CertificateRevoked),
        (LIST, user("never-made"), Code::Unauthenticated, Reason::CertificateRevoked),
    ] {
        let response = bench.call(path, caller).await;
        let status = Status::from_header_map(response.headers()).unwrap();
        assert_eq!((status.code(), reason_of(&status)), (code, Some(reason)), "{path}");
    }
    assert_eq!(
        bench.audited().await,
        [
            "user/viewer 192.0.2.1:5000 CreateCluster ROLE_TOO_LOW",
            "node/n1 192.0.2.1:5000 CreateCluster WRONG_CALLER",
            "user/admin 192.0.2.1:5000 AnnounceNode WRONG_CALLER",
            "user/gone 192.0.2.1:5000 ListAuditRecords CERTIFICATE_REVOKED",
            "user/gone 192.0.2.1:5000 RenewCertificate CERTIFICATE_REVOKED",
            "user/never-made 192.0.2.1:5000 ListAuditRecords CERTIFICATE_REVOKED",
        ]
    );
}

#[tokio::test]
async fn a_revocation_holds_for_the_next_call() {
    let bench = Bench::new().await;
    assert_eq!(bench.outcome(CREATE, user("admin")).await, OK);
    bench.set("admin", Standing { role: UserRole::Admin, revoked: true }).await;
    assert_eq!(bench.outcome(CREATE, user("admin")).await, "CERTIFICATE_REVOKED");
}

#[tokio::test]
async fn a_method_that_there_is_not_reaches_no_service() {
    let bench = Bench::new().await;
    let response = bench.call("/regent.coordinator.v1.ClusterService/Unheard", user("admin")).await;
    assert!(response.body().is_empty());
    assert_eq!(Status::from_header_map(response.headers()).unwrap().code(), Code::Unimplemented);
}

#[tokio::test]
async fn calls_that_change_something_are_recorded_with_their_outcome() {
    let bench = Bench::new().await;
    assert_eq!(bench.call(CREATE, user("operator")).await.body(), "user/operator from 192.0.2.1:5000");
    assert_eq!(bench.outcome(LIST, user("viewer")).await, OK);
    assert_eq!(bench.outcome(ANNOUNCE, node()).await, OK);
    let refusing = service_fn(|_| async { Ok(refuse(Reason::NodeTwice, "node n1 is named twice").into_http()) });
    bench.call_backend(CREATE, user("admin"), Backend::new(refusing)).await;
    let panicking = service_fn(|_| async { panic!("on purpose") });
    let response = bench.call_backend(CREATE, user("admin"), Backend::new(panicking)).await;
    assert_eq!(outcome(response.headers()).0, "INTERNAL");
    assert_eq!(
        bench.audited().await,
        [
            "user/operator 192.0.2.1:5000 CreateCluster ok",
            "user/admin 192.0.2.1:5000 CreateCluster NODE_TWICE",
            "user/admin 192.0.2.1:5000 CreateCluster INTERNAL",
        ]
    );
}

#[tokio::test]
async fn a_change_whose_caller_hangs_up_is_finished_and_recorded() {
    let bench = Bench::new().await;
    let (begun, has_begun) = oneshot::channel();
    let (go_on, may_go_on) = oneshot::channel::<()>();
    let channels = Arc::new(std::sync::Mutex::new(Some((begun, may_go_on))));
    let slow = service_fn(move |_| {
        let (begun, may_go_on) = channels.lock().unwrap().take().unwrap();
        async move {
            begun.send(()).unwrap();
            may_go_on.await.unwrap();
            Ok(Response::new("done".to_owned()))
        }
    });
    let mut recorded = bench.store.watch(keys::AUDIT);
    {
        let call = bench.call_backend(CREATE, user("operator"), Backend::new(slow));
        tokio::select! {
            _ = call => panic!("it cannot end yet"),
            begun = has_begun => begun.unwrap(),
        }
    }
    go_on.send(()).unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(20), recorded.recv()).await.unwrap().unwrap();
    assert_eq!(bench.audited().await, ["user/operator 192.0.2.1:5000 CreateCluster ok"]);
}

#[tokio::test]
async fn routes_are_protected_as_a_whole() {
    let bench = Bench::new().await;
    let routes = Routes::new(AuditServiceServer::new(AuditApi(bench.audit.clone())));
    let routes = protect(routes, Arc::new(StoredRoles(bench.store.clone())), bench.audit.clone());
    let mut outcomes = BTreeMap::new();
    for (name, caller) in [("none", caller(Err(AuthenticationError::NoCertificate))), ("viewer", user("viewer"))] {
        let request = Request::post(LIST).header("content-type", "application/grpc");
        // An empty message in one frame.
        let mut request = request.body(tonic::body::Body::new(axum::body::Body::from(vec![0; 5]))).unwrap();
        request.extensions_mut().insert(caller.unwrap());
        let response = routes.clone().oneshot(request).await.unwrap();
        outcomes.insert(name, outcome(response.headers()).0);
    }
    assert_eq!(outcomes, BTreeMap::from([("none", "NO_CERTIFICATE".to_owned()), ("viewer", OK.to_owned())]));
}
