//! The program itself: it joins, announces itself, serves, tells its state, and ends without touching anything.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::Mutex,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_common::{
    error::{Reason, refuse},
    identity::IdentityDirectory,
    tls::{ExpectedServer, ReloadingIdentity},
    transport::{self, Caller},
};
use regent_proto::{
    agent::v1::{GetLedgerRequest, step_service_client::StepServiceClient},
    coordinator::v1::{
        AnnounceNodeRequest, AnnounceNodeResponse, CreateTokenRequest, CreateUserRequest, CreateUserResponse,
        JoinNodeRequest, JoinNodeResponse, ListUsersRequest, ListUsersResponse, RenewCertificateRequest,
        RenewCertificateResponse, RevokeNodeRequest, RevokeNodeResponse, RevokeUserRequest, RevokeUserResponse, Token,
        enrollment_service_server::{EnrollmentService, EnrollmentServiceServer},
        identity_service_server::{IdentityService, IdentityServiceServer},
    },
};
use secrecy::ExposeSecret;
use support::{
    wire::{Authority, Holder, INSTALLATION},
    within,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::{Child, Command},
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, service::Routes};

/// What a coordinator does for a node that joins, and nothing more.
struct Enrollment {
    authority: std::sync::Arc<Authority>,
    joins: std::sync::Arc<Mutex<Vec<JoinNodeRequest>>>,
    announced: mpsc::Sender<(String, AnnounceNodeRequest)>,
}

struct Coordinator {
    authority: std::sync::Arc<Authority>,
    identity: Holder,
    address: String,
    joins: std::sync::Arc<Mutex<Vec<JoinNodeRequest>>>,
    announced: mpsc::Receiver<(String, AnnounceNodeRequest)>,
    _stop: DropGuard,
}

#[tonic::async_trait]
impl EnrollmentService for Enrollment {
    async fn join_node(&self, request: Request<JoinNodeRequest>) -> Result<Response<JoinNodeResponse>, Status> {
        let request = request.into_inner();
        if request.token.starts_with("used.") {
            return Err(refuse(Reason::TokenUsed, "the token was used"));
        }
        let certificate_pem =
            self.authority.sign_aged(&request.certificate_request_pem, &format!("node/{}", request.node));
        self.joins.lock().unwrap().push(request);
        let (coordinator_id, ca_pem) = (INSTALLATION.to_owned(), self.authority.pem());
        Ok(Response::new(JoinNodeResponse { coordinator_id, certificate_pem, ca_pem, cluster: String::new() }))
    }

    async fn announce_node(
        &self,
        request: Request<AnnounceNodeRequest>,
    ) -> Result<Response<AnnounceNodeResponse>, Status> {
        let caller = Caller::of(&request).map_err(|status| *status)?;
        let who = caller.authenticated().map_err(|status| *status)?.to_string();
        let _ = self.announced.send((who, request.into_inner())).await;
        Ok(Response::new(AnnounceNodeResponse {}))
    }
}

/// Renews certificates, and nothing more.
struct Renewals(std::sync::Arc<Authority>);

#[tonic::async_trait]
impl IdentityService for Renewals {
    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let who = Caller::of(&request).map_err(|status| *status)?;
        let who = who.authenticated().map_err(|status| *status)?.to_string();
        let name = who.strip_prefix("regent://inst/").expect("an identity of this installation").to_owned();
        let certificate_pem = self.0.sign(&request.into_inner().certificate_request_pem, &name);
        Ok(Response::new(RenewCertificateResponse { certificate_pem, ca_pem: self.0.pem() }))
    }
    async fn create_token(&self, _: Request<CreateTokenRequest>) -> Result<Response<Token>, Status> {
        Err(Status::unimplemented("an agent asks for no tokens"))
    }
    async fn create_user(&self, _: Request<CreateUserRequest>) -> Result<Response<CreateUserResponse>, Status> {
        Err(Status::unimplemented("an agent makes no users"))
    }
    async fn list_users(&self, _: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        Err(Status::unimplemented("an agent lists no users"))
    }
    async fn revoke_user(&self, _: Request<RevokeUserRequest>) -> Result<Response<RevokeUserResponse>, Status> {
        Err(Status::unimplemented("an agent revokes nobody"))
    }
    async fn revoke_node(&self, _: Request<RevokeNodeRequest>) -> Result<Response<RevokeNodeResponse>, Status> {
        Err(Status::unimplemented("an agent revokes nobody"))
    }
}

impl Coordinator {
    async fn start() -> Self {
        let authority = std::sync::Arc::new(Authority::new());
        let identity = authority.issue("coordinator/c1");
        let (sender, announced) = mpsc::channel(4);
        let joins = std::sync::Arc::new(Mutex::new(Vec::new()));
        let service = Enrollment { authority: authority.clone(), joins: joins.clone(), announced: sender };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let stop = CancellationToken::new();
        let routes = Routes::new(EnrollmentServiceServer::new(service))
            .add_service(IdentityServiceServer::new(Renewals(authority.clone())));
        tokio::spawn(transport::serve(listener, identity.identity.clone(), routes, stop.clone()));
        Self { authority, identity, address, joins, announced, _stop: stop.drop_guard() }
    }

    fn token(&self) -> String {
        format!("regent1.c2VjcmV0.{}", self.authority.fingerprint())
    }
}

/// The folder of an agent with its configuration; the program is started on it.
struct Home {
    folder: tempfile::TempDir,
    address: String,
    http: String,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Free at this moment; nothing else on this machine asks for this very port.
        let held = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let [address, http] = held.map(|listener| listener.local_addr().unwrap().to_string());
        let at = |name: &str| folder.path().join(name);
        let config = format!(
            "listen = {address:?}\nhttp_listen = {http:?}\nadvertise = \"127.0.0.1\"\nstate_dir = {:?}\ndata_root = {:?}\n\
             run_dir = {:?}\nsupervisor = \"process\"\n",
            at("state"),
            at("engines"),
            at("run"),
        );
        std::fs::write(at("agent.toml"), config).unwrap();
        Self { folder, address, http }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_regent-agent")));
        command.arg(verb).arg("--config").arg(self.path("agent.toml"));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    async fn output(&self, verb: &str, more: &[&str]) -> (i32, String, String) {
        let done = within(self.command(verb).args(more).output()).await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (done.status.code().unwrap(), text(done.stdout), text(done.stderr))
    }

    async fn status(&self) -> serde_json::Value {
        let (code, shown, errors) = self.output("status", &["--output", "json"]).await;
        assert_eq!((code, errors.as_str()), (0, ""));
        serde_json::from_str(&shown).unwrap()
    }

    /// The answer to a plain HTTP request, head and body.
    async fn get(&self, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(&self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }

    fn run(&self) -> Child {
        // Its log is not read here: a full pipe would stop it.
        self.command("run").stderr(Stdio::null()).spawn().unwrap()
    }
}

async fn end(mut child: Child) -> i32 {
    kill(Pid::from_raw(child.id().unwrap().try_into().unwrap()), Signal::SIGTERM).unwrap();
    within(child.wait()).await.unwrap().code().unwrap()
}

#[tokio::test]
async fn a_machine_joins_runs_tells_its_state_and_ends() {
    let mut coordinator = Coordinator::start().await;
    let home = Home::new();
    let (code, _, errors) = home.output("run", &[]).await;
    assert_eq!(code, 3, "it has not joined");
    assert!(errors.contains("regent-agent join"), "{errors}");

    let token = coordinator.token();
    let join = ["--name", "n1", "--token", &token, "--label", "zone=a", &coordinator.address];
    let (code, shown, errors) = home.output("join", &join).await;
    assert_eq!(code, 0, "{errors}");
    assert!(shown.contains("n1") && shown.contains("a spare"), "{shown}");
    let asked = coordinator.joins.lock().unwrap().pop().unwrap();
    assert_eq!((asked.node.as_str(), asked.agent_address.as_str()), ("n1", home.address.as_str()));
    assert_eq!((asked.labels["zone"].as_str(), asked.ledger_empty), ("a", true));
    assert!(asked.clock.is_some());
    assert_eq!(home.status().await["running"], false);

    let agent = home.run();
    let (who, told) = within(coordinator.announced.recv()).await.unwrap();
    assert_eq!((who.as_str(), told.agent_address.as_str()), ("regent://inst/node/n1", home.address.as_str()));
    let expected = ExpectedServer::Identity("regent://inst/node/n1".parse().unwrap());
    let channel =
        transport::connect(&home.address, Some(coordinator.identity.identity.clone()), expected).await.unwrap();
    let ledger = StepServiceClient::new(channel).get_ledger(GetLedgerRequest {}).await.unwrap().into_inner();
    assert_eq!(ledger.cluster_id, "");
    let status = within(async {
        loop {
            let status = home.status().await;
            if status["running"] == true {
                return status;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((status["node"].as_str(), status["sessions"].as_u64()), (Some("n1"), Some(0)));
    assert!(status["automatic_failover"].as_str().unwrap().starts_with("off"));

    let health = home.get("/health").await;
    assert!(health.starts_with("HTTP/1.1 200") && health.contains("\"node\":\"n1\""), "{health}");
    for wanted in ["/primary", "/replica"] {
        let health = home.get(wanted).await;
        assert!(health.starts_with("HTTP/1.1 503") && health.contains("\"writable\":false"), "{wanted}: {health}");
    }
    assert_eq!((&status["lease"], &status["promise"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert_eq!(status["gate"]["state"], "unarmed");
    assert!(status["fence"]["timed_gate"].is_boolean());
    assert!(home.get("/metrics").await.starts_with("HTTP/1.1 200"));

    let (code, _, errors) = home.output("run", &[]).await;
    assert_eq!(code, 3, "a second agent on the same state: {errors}");
    assert_eq!(end(agent).await, 0);
    assert_eq!(home.status().await["running"], false);
}

/// The agent of a member does not start on what is left of its ledger, and says so; nothing of the machine is touched.
#[tokio::test]
async fn a_truncated_ledger_keeps_the_program_from_starting() {
    let coordinator = Coordinator::start().await;
    let home = Home::new();
    let token = coordinator.token();
    let join = ["--name", "n1", "--token", &token, &coordinator.address];
    assert_eq!(home.output("join", &join).await.0, 0);
    let (path, data) = (home.path("state/ledger.json"), home.path("engines/db/data/PG_VERSION"));
    let whole = r#"{"format":1,"revision":7,"past_clusters":[],"operations":[],"quarantine":null}"#;
    std::fs::create_dir_all(data.parent().unwrap()).unwrap();
    std::fs::write(&data, "15").unwrap();
    for cut in [0, 1, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        // A second join, or a look at the state, is no way round it: nobody is told that this machine has promised nothing.
        for (verb, more) in [("run", &[][..]), ("status", &[]), ("join", &join)] {
            let (code, shown, errors) = home.output(verb, more).await;
            assert_ne!(code, 0, "{verb} with {cut} bytes: {shown}");
            for part in ["state/ledger.json", "nothing was changed", "put back a whole copy", "quarantine"] {
                assert!(errors.contains(part), "{verb} with {cut} bytes: {part:?} is not in {errors:?}");
            }
            assert!(!errors.contains("panicked"), "{errors}");
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole[..cut], "the file is as it was");
        assert_eq!(std::fs::read_to_string(&data).unwrap(), "15", "the data is as it was");
    }
    assert_eq!(coordinator.joins.lock().unwrap().len(), 1, "the joins that failed were not sent");
    // It is the cut alone that keeps it from starting.
    std::fs::write(&path, whole).unwrap();
    let mut coordinator = coordinator;
    let agent = home.run();
    within(coordinator.announced.recv()).await.unwrap();
    assert_eq!(end(agent).await, 0);
}

#[tokio::test]
async fn a_certificate_near_its_end_is_renewed_with_a_new_key() {
    let coordinator = Coordinator::start().await;
    let home = Home::new();
    let token = coordinator.token();
    let (code, _, errors) = home.output("join", &["--name", "n1", "--token", &token, &coordinator.address]).await;
    assert_eq!(code, 0, "{errors}");
    let directory = IdentityDirectory::new(home.path("state/identity"));
    let (before, key) = (ReloadingIdentity::open(&directory).unwrap(), directory.load().unwrap().key);
    let agent = home.run();
    let after = within(async {
        loop {
            let now = ReloadingIdentity::open(&directory).unwrap();
            if now.not_after() > before.not_after() {
                return now;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(after.identity(), before.identity());
    assert_ne!(directory.load().unwrap().key.expose_secret(), key.expose_secret());
    assert_eq!(end(agent).await, 0);
}

#[tokio::test]
async fn a_machine_that_obeys_one_coordinator_does_not_join_another() {
    let (first, second) = (Coordinator::start().await, Coordinator::start().await);
    let home = Home::new();
    let join = async |coordinator: &Coordinator| {
        let token = coordinator.token();
        home.output("join", &["--name", "n1", "--token", &token, &coordinator.address]).await
    };
    assert_eq!(join(&first).await.0, 0);
    let (code, _, errors) = join(&second).await;
    assert_eq!(code, 3);
    assert!(
        errors.contains("FOREIGN_COORDINATOR") && errors.contains("n1") && errors.contains("join again"),
        "{errors}"
    );
    assert!(second.joins.lock().unwrap().is_empty());
    assert_eq!(join(&first).await.0, 0, "the same one takes it back");
}

#[tokio::test]
async fn a_bad_token_or_coordinator_is_told_with_its_exit_code() {
    let coordinator = Coordinator::start().await;
    let home = Home::new();
    let join =
        async |token: &str, address: &str| home.output("join", &["--name", "n1", "--token", token, address]).await;
    let (code, _, errors) = join("nothing", &coordinator.address).await;
    assert_eq!(code, 2, "{errors}");
    let (code, _, errors) = join(&format!("used.{}", coordinator.authority.fingerprint()), &coordinator.address).await;
    assert_eq!(code, 3, "{errors}");
    assert!(errors.contains("TOKEN_USED"), "{errors}");
    // Not the coordinator that the token is of.
    let (code, _, errors) = join(&format!("x.{}", "0".repeat(64)), &coordinator.address).await;
    assert_eq!(code, 6, "{errors}");
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let started = tokio::time::timeout(Duration::from_secs(15), join(&coordinator.token(), &unused)).await;
    assert_eq!(started.expect("it gives up").0, 6);
    assert!(!home.path("state/identity").exists(), "a join that failed left something behind");
    assert_eq!(home.output("join", &["--name", "Not A Name", "--token", "t", "c"]).await.0, 2);
}
