//! A certificate authority for a test, and agents that serve on loopback with what it issued.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module of test binaries, each of which uses a part of it"
)]

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, SanType};
use regent_agent::{
    firewall::{Means, fake::FakeMachine},
    gate::{Gate, none::NoGate},
    ledger::{LedgerStore, RealDisk},
    node::{KeeperRuns, Node, Parts},
    observe,
    peer::PeerCalls,
    server,
};
use regent_common::{
    clock::{Clock, SystemClock},
    identity::IdentityDirectory,
    tls::{ExpectedServer, ReloadingIdentity},
    transport::{self, Revocations, ServeOptions, TcpDialer},
};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Channel;

use crate::support::{Machine, lease, member_of, within};

pub const INSTALLATION: &str = "inst";

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

pub struct Holder {
    pub identity: ReloadingIdentity,
    _folder: TempDir,
}

pub struct Agent {
    pub node: Arc<Node>,
    pub machine: Arc<Machine>,
    pub address: String,
    pub directory: TempDir,
    stop: DropGuard,
    serving: tokio::task::JoinHandle<()>,
}

// === impl Authority ===

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// An identity such as `node/n1`.
    pub fn issue(&self, who: &str) -> Holder {
        self.issue_beside(who, self)
    }

    /// An identity of this authority in a directory that trusts another one.
    pub fn issue_beside(&self, who: &str, trusted: &Self) -> Holder {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        let uri = format!("regent://{INSTALLATION}/{who}");
        params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        let directory = IdentityDirectory::new(folder.path());
        directory.store(&pem, &key.serialize_pem().into(), &trusted.pem).unwrap();
        Holder { identity: ReloadingIdentity::open(&directory).unwrap(), _folder: folder }
    }

    /// A certificate for a request, such as `node/n1`.
    pub fn sign(&self, request: &str, who: &str) -> String {
        self.sign_until(request, who, 4000)
    }

    /// The same, of which less than a third of its life is left: it began years ago and ends with this year.
    pub fn sign_aged(&self, request: &str, who: &str) -> String {
        let year = SystemClock.wall().to_zoned(jiff::tz::TimeZone::UTC).year();
        self.sign_until(request, who, i32::from(year) + 1)
    }

    fn sign_until(&self, request: &str, who: &str, end: i32) -> String {
        let mut request = CertificateSigningRequestParams::from_pem(request).unwrap();
        request.params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        request.params.not_after = rcgen::date_time_ymd(end, 1, 1);
        let uri = format!("regent://{INSTALLATION}/{who}");
        request.params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().unwrap()));
        request.signed_by(&self.issuer).unwrap().pem()
    }

    /// Its certificate.
    pub fn pem(&self) -> String {
        self.pem.clone()
    }

    /// Fingerprint of its certificate.
    pub fn fingerprint(&self) -> String {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.pem.as_bytes()).unwrap();
        regent_common::tls::fingerprint(&pem.contents)
    }

    /// An agent that serves as node `name`.
    pub async fn agent(&self, name: &str) -> Agent {
        self.agent_on(name, Machine::new(), tempfile::tempdir().unwrap()).await
    }

    /// The agent of a machine and a state directory.
    pub async fn agent_on(&self, name: &str, machine: Arc<Machine>, directory: TempDir) -> Agent {
        let agent = self.agent_without_leases(name, machine, directory).await;
        lease::grant_all(&agent.node.lease, agent.node.ledger());
        agent
    }

    /// The same, with leases only from who has a session.
    pub async fn agent_without_leases(&self, name: &str, machine: Arc<Machine>, directory: TempDir) -> Agent {
        self.agent_behind(Arc::new(NoGate::new("a test has none")), name, machine, directory).await
    }

    /// The same behind a gate.
    pub async fn agent_behind(
        &self,
        gate: Arc<dyn Gate>,
        name: &str,
        machine: Arc<Machine>,
        directory: TempDir,
    ) -> Agent {
        let identity = self.issue(&format!("node/{name}")).identity;
        let ledger = LedgerStore::open(Arc::new(RealDisk), directory.path().to_owned(), None).unwrap();
        let stop = CancellationToken::new();
        let peers = PeerCalls::new(Arc::new(TcpDialer), identity.clone(), INSTALLATION.to_owned());
        let node = Node::start(Parts {
            name: name.parse().unwrap(),
            coordinator_id: INSTALLATION.to_owned(),
            boot_id: regent_agent::host::boot_id(),
            ledger,
            member: member_of(&machine, directory.path()),
            peers: Arc::new(peers.clone()),
            endorsers: Arc::new(peers),
            gate,
            firewall: Means::fake(FakeMachine::new()),
            coordinators: Vec::new(),
            keeper: KeeperRuns::OnThisRuntime,
            stop: stop.clone(),
            clock: Arc::new(SystemClock),
        })
        .await;
        let steps = node.executor.table().changes();
        // A period that no test waits for: what arrives sooner was pushed.
        let period = std::time::Duration::from_secs(3600);
        tokio::spawn(observe::run(node.member.clone(), steps, period, stop.clone()));
        let revocations = Revocations::default();
        let routes = server::routes(&node, revocations.clone(), stop.clone()).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let until = stop.clone();
        let serving = tokio::spawn(async move {
            transport::serve_with(listener, identity, routes, ServeOptions { revocations }, until).await.unwrap();
        });
        Agent { node, machine, address, directory, stop: stop.drop_guard(), serving }
    }
}

// === impl Agent ===

impl Agent {
    /// A channel to it for a caller.
    pub async fn channel(&self, caller: &Holder) -> Channel {
        let expected = format!("regent://{INSTALLATION}/node/{}", self.node.name);
        let expected = ExpectedServer::Identity(expected.parse().unwrap());
        transport::connect(&self.address, Some(caller.identity.clone()), expected).await.unwrap()
    }

    /// Ends it, and gives back what outlives an agent.
    pub async fn end(self) -> (Arc<Machine>, TempDir) {
        drop(self.stop);
        within(self.serving).await.unwrap();
        (self.machine, self.directory)
    }
}
