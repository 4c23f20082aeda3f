//! What a person on this machine can know of the agent without the coordinator: from the running agent over a socket
//! that only its user can open, else from the ledger alone.

use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{Json, Router, extract::State, routing::get};
use jiff::Timestamp;
use regent_common::{
    ids::{ClusterName, Epoch, MemberName},
    topology::{EngineObservation, Role},
};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::{ledger::Ledger, node::Node};

/// How long the running agent may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The state of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the node; absent when it has not joined.
    pub node: Option<String>,
    /// Id of the coordinator that it belongs to.
    pub coordinator_id: Option<String>,
    /// Whether the agent runs; what is below `member` is then current.
    pub running: bool,
    /// Sessions that coordinators have open.
    pub sessions: usize,
    /// When a coordinator was heard last.
    pub heard_at: Option<Timestamp>,
    /// One sentence on whether a failover would happen by itself.
    pub automatic_failover: String,
    /// Why the ledger is not to be believed.
    pub quarantine: Option<String>,
    /// The member, by the ledger; absent for a spare.
    pub member: Option<MemberStatus>,
    /// What is seen of the engine; absent when the agent does not run.
    pub engine: Option<EngineObservation>,
    /// Names of the actions that are being carried out.
    pub jobs: Vec<String>,
}

/// The member, by the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub member: MemberName,
    /// Role that the last step gave it.
    pub role: Option<Role>,
    /// Highest epoch.
    pub epoch: Epoch,
    /// Highest epoch in which its engine may have been writable.
    pub writable_epoch: Option<Epoch>,
    /// Whether a fence stands.
    pub fenced: bool,
    /// Whether the data must not be started.
    pub dirty: bool,
    /// Port of its engine.
    pub port: u16,
}

// === impl Status ===

impl Status {
    /// What the ledger alone tells.
    pub fn of_ledger(ledger: &Ledger) -> Self {
        Self {
            node: None,
            coordinator_id: None,
            running: false,
            sessions: 0,
            heard_at: None,
            automatic_failover: "off: the agent does not run".to_owned(),
            quarantine: ledger.quarantine.clone(),
            member: ledger.membership.as_ref().map(|membership| MemberStatus {
                cluster: membership.spec.cluster.clone(),
                member: membership.member.clone(),
                role: membership.role,
                epoch: membership.epoch,
                writable_epoch: membership.writable_epoch,
                fenced: membership.fenced,
                dirty: membership.must_not_start(),
                port: membership.port,
            }),
            engine: None,
            jobs: Vec::new(),
        }
    }

    fn of_node(node: &Node) -> Self {
        let contact = node.contact.borrow().clone();
        let observation = node.observation();
        let mut status = Self {
            node: Some(node.name.to_string()),
            coordinator_id: Some(node.coordinator_id.clone()),
            running: true,
            sessions: contact.sessions,
            heard_at: contact.heard_at,
            automatic_failover: automatic_failover(contact.sessions, contact.stale_store).to_owned(),
            jobs: node.jobs().into_iter().map(|job| job.action).collect(),
            ..Self::of_ledger(&node.ledger().read())
        };
        if let (Some(member), Some(seen)) = (&mut status.member, &observation) {
            member.dirty = seen.dirty;
        }
        status.engine = observation.map(|seen| seen.engine);
        status
    }

    /// Asks the running agent; `None` when none answers.
    pub fn of_running_agent(socket: &Path) -> Option<Self> {
        let mut stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
        stream.write_all(b"GET /status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (_, body) = answer.split_once("\r\n\r\n")?;
        serde_json::from_str(body).ok()
    }
}

fn automatic_failover(sessions: usize, stale_store: bool) -> &'static str {
    match (sessions, stale_store) {
        (0, _) => "off: no coordinator is connected; the engine goes on as it is",
        (_, true) => "off: the coordinator's store is older than one that this node has seen",
        (_, false) => "on: a coordinator is connected",
    }
}

/// Answers people on this machine until told to stop.
pub async fn serve(socket: &Path, node: Arc<Node>, stop: CancellationToken) -> std::io::Result<()> {
    // An agent that was killed leaves its socket behind; that no other one lives is sure by the lock.
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let router = Router::new().route("/status", get(show)).with_state(node);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn show(State(node): State<Arc<Node>>) -> Json<Status> {
    Json(Status::of_node(&node))
}
