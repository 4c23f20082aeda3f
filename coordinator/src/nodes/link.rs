//! The real [`Agents`]: one link per node dials its agent, holds the session, and carries steps.
//!
//! A link never gives up: it dials again after a pause, and at once when the agent announces itself. What the session
//! brings goes into the [`NodeTable`]; what goes missing is shown as silence.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    clock::Clock,
    error::{Reason, reason_of},
    identity::{Identity, Principal},
    ids::NodeName,
    tls::{ExpectedServer, ReloadingIdentity},
    topology::{HostFacts, Observation, Progress},
    transport::{self, Dialer},
};
use regent_proto::agent::v1::{
    CheckSettingsRequest, CoordinatorHello, ExecuteRequest, Heartbeat, HeartbeatAnswer, OpenRequest, OpenResponse,
    Revocations, StepResult, execute_response::Event, open_request::Message as ToAgent,
    open_response::Message as FromAgent, session_service_client::SessionServiceClient,
    step_service_client::StepServiceClient,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{authority::Authorities, store::Store};

use super::{AgentError, Agents, JobView, NodeTable, NodeView, StepCall};

/// Pause before a node is dialled again.
const REDIAL: Duration = Duration::from_millis(500);
/// Heartbeats that may be missing before a session is given up; keepalive of the connection finds most breaks sooner.
const MISSED: u32 = 5;

/// What links share.
pub struct Links {
    dialer: Arc<dyn Dialer>,
    identity: ReloadingIdentity,
    clock: Arc<dyn Clock>,
    table: Arc<NodeTable>,
    authorities: Arc<Authorities>,
    heartbeat: Duration,
    term: u64,
    store: Arc<dyn Store>,
    revoked: watch::Receiver<Vec<String>>,
    links: Mutex<BTreeMap<NodeName, Link>>,
    stop: CancellationToken,
}

/// One node's link.
struct Link {
    address: watch::Sender<String>,
    channel: watch::Receiver<Option<Channel>>,
    redial: Arc<Notify>,
    stop: CancellationToken,
}

/// What a link is made of.
pub struct LinkSettings {
    /// Opens connections.
    pub dialer: Arc<dyn Dialer>,
    /// Identity to call with.
    pub identity: ReloadingIdentity,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Where what is heard goes.
    pub table: Arc<NodeTable>,
    /// Answers heartbeats with leases.
    pub authorities: Arc<Authorities>,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Term of this coordinator's leadership.
    pub term: u64,
    /// The store: a session names its present revision (rule T4).
    pub store: Arc<dyn Store>,
    /// Serial numbers of revoked certificates.
    pub revoked: watch::Receiver<Vec<String>>,
    /// Ends all links.
    pub stop: CancellationToken,
}

// === impl Links ===

impl Links {
    /// No links yet.
    pub fn new(settings: LinkSettings) -> Self {
        let LinkSettings { dialer, identity, clock, table, authorities, heartbeat, term, store, revoked, stop } =
            settings;
        Self {
            dialer,
            identity,
            clock,
            table,
            authorities,
            heartbeat,
            term,
            store,
            revoked,
            links: Mutex::default(),
            stop,
        }
    }

    /// What was heard.
    pub fn table(&self) -> &Arc<NodeTable> {
        &self.table
    }

    /// Makes sure that a node is dialled at this address, now.
    pub fn dial(self: &Arc<Self>, node: &NodeName, address: &str) {
        let mut links = self.links.lock().expect("no holder panics");
        if let Some(link) = links.get(node) {
            link.address.send_replace(address.to_owned());
            link.redial.notify_one();
            return;
        }
        let (address, addresses) = watch::channel(address.to_owned());
        let (channels, channel) = watch::channel(None);
        let redial = Arc::new(Notify::new());
        let stop = self.stop.child_token();
        let task = Arc::clone(self).keep(node.clone(), addresses, channels, Arc::clone(&redial), stop.clone());
        tokio::spawn(task);
        links.insert(node.clone(), Link { address, channel, redial, stop });
    }

    /// Ends the link of a node that was revoked or removed.
    pub fn hang_up(&self, node: &NodeName) {
        if let Some(link) = self.links.lock().expect("no holder panics").remove(node) {
            link.stop.cancel();
        }
        self.table.update(node, |view| *view = NodeView::default());
    }

    /// Where a node's agent is reached.
    pub fn address(&self, node: &NodeName) -> Option<String> {
        self.links.lock().expect("no holder panics").get(node).map(|link| link.address.borrow().clone())
    }

    fn channel(&self, node: &NodeName) -> Option<Channel> {
        let links = self.links.lock().expect("no holder panics");
        links.get(node).and_then(|link| link.channel.borrow().clone())
    }

    #[tracing::instrument(name = "link", skip_all, fields(%node))]
    async fn keep(
        self: Arc<Self>,
        node: NodeName,
        addresses: watch::Receiver<String>,
        channels: watch::Sender<Option<Channel>>,
        redial: Arc<Notify>,
        stop: CancellationToken,
    ) {
        loop {
            let address = addresses.borrow().clone();
            let problem = tokio::select! {
                () = stop.cancelled() => return,
                problem = self.session(&node, &address, &channels) => problem,
            };
            channels.send_replace(None);
            tracing::debug!(problem, "no session");
            self.table.update(&node, |view| view.lost(problem));
            tokio::select! {
                () = stop.cancelled() => return,
                () = redial.notified() => {}
                () = tokio::time::sleep(REDIAL) => {}
            }
        }
    }

    /// Holds one session until it breaks; says why it did.
    async fn session(&self, node: &NodeName, address: &str, channels: &watch::Sender<Option<Channel>>) -> String {
        let coordinator_id = self.identity.identity().coordinator_id;
        let expected = Identity { coordinator_id: coordinator_id.clone(), principal: Principal::Node(node.clone()) };
        let (dialer, identity) = (Arc::clone(&self.dialer), Some(self.identity.clone()));
        let expected = ExpectedServer::Identity(expected);
        let channel = match transport::connect_through(dialer, address, identity, expected).await {
            Ok(channel) => channel,
            Err(error) => return regent_common::error::ErrorChain(&error).to_string(),
        };
        let (sender, receiver) = mpsc::channel(16);
        let revision = match self.store.revision().await {
            Ok(revision) => revision.0,
            Err(error) => return regent_common::error::ErrorChain(&error).to_string(),
        };
        let hello = ToAgent::Hello(CoordinatorHello {
            coordinator_id,
            term: self.term,
            revision,
            heartbeat_millis: u32::try_from(self.heartbeat.as_millis()).unwrap_or(u32::MAX),
        });
        let revoked = ToAgent::Revocations(Revocations { serials: self.revoked.borrow().clone() });
        for message in [hello, revoked] {
            sender.try_send(OpenRequest { message: Some(message) }).expect("the channel holds 16");
        }
        let mut client = SessionServiceClient::new(channel.clone());
        let mut stream = match client.open(ReceiverStream::new(receiver)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return describe(&status),
        };
        let mut revocations = self.revoked.clone();
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(self.heartbeat * MISSED, stream.message()) => message,
                Ok(()) = revocations.changed() => {
                    let serials = revocations.borrow_and_update().clone();
                    let message = ToAgent::Revocations(Revocations { serials });
                    // A full channel is a session that is breaking.
                    let _ = sender.try_send(OpenRequest { message: Some(message) });
                    continue;
                }
            };
            match message {
                Err(_) => return format!("no heartbeat for {} ms", (self.heartbeat * MISSED).as_millis()),
                Ok(Err(status)) => return describe(&status),
                Ok(Ok(None)) => return "the agent ended the session".to_owned(),
                Ok(Ok(Some(OpenResponse { message: None }))) => {}
                Ok(Ok(Some(OpenResponse { message: Some(FromAgent::Hello(hello)) }))) => {
                    if hello.stale_store {
                        tracing::error!(
                            agent_knows = hello.revision,
                            store_has = revision,
                            "STALE_STORE: this node has seen a newer store than this coordinator has; was a backup restored?"
                        );
                    }
                    channels.send_replace(Some(channel.clone()));
                    self.table.update(node, |view| view.greeted(hello));
                }
                Ok(Ok(Some(OpenResponse { message: Some(FromAgent::Heartbeat(heartbeat)) }))) => {
                    // First what it says, then the answer: what is decided meanwhile knows of both or of neither.
                    let answer = match self.heard(node, heartbeat) {
                        Ok(answer) => ToAgent::Answer(answer),
                        Err(problem) => return problem,
                    };
                    // A full channel is a session that is breaking.
                    let _ = sender.try_send(OpenRequest { message: Some(answer) });
                }
            }
        }
    }

    /// Takes a heartbeat; what it is answered with.
    fn heard(&self, node: &NodeName, heartbeat: Heartbeat) -> Result<HeartbeatAnswer, String> {
        let observation = heartbeat.member.map(Observation::try_from).transpose();
        let observation = observation.map_err(|error| format!("the agent sent what cannot be read: {error}"))?;
        let answer = self.authorities.answer(node, heartbeat.nonce, observation.as_ref());
        let (at, wall) = (self.clock.boottime(), self.clock.wall());
        self.table.update(node, |view| {
            view.last_contact_wall = Some(wall);
            view.heard(at, observation);
            if let Some(host) = heartbeat.host {
                view.host = Some(HostFacts::from(host));
            }
            view.jobs = heartbeat.jobs.into_iter().map(JobView::from).collect();
        });
        Ok(answer)
    }
}

#[async_trait]
impl Agents for Links {
    fn view(&self, node: &NodeName) -> NodeView {
        self.table.view(node)
    }

    async fn check_settings(&self, node: &NodeName, wanted: CheckSettingsRequest) -> Result<(), AgentError> {
        let problem = || AgentError::Unreachable { node: node.clone(), detail: self.table.view(node).problem };
        let mut client = StepServiceClient::new(self.channel(node).ok_or_else(problem)?);
        client.check_settings(wanted).await.map(|_| ()).map_err(|status| refused(node, &status))
    }

    async fn wait_for_change(&self, node: &NodeName, at_most: Duration) {
        let mut changes = self.table.changes();
        let change = async {
            while let Ok(changed) = changes.recv().await {
                if &changed == node {
                    return;
                }
            }
        };
        // Running out of time is as good as a change: the caller looks again.
        let _ = tokio::time::timeout(at_most, change).await;
    }

    async fn execute(
        &self,
        node: &NodeName,
        call: StepCall,
        progress: &watch::Sender<Progress>,
    ) -> Result<StepResult, AgentError> {
        let unreachable = |detail: String| AgentError::Unreachable { node: node.clone(), detail };
        let channel = self.channel(node).ok_or_else(|| unreachable(self.table.view(node).problem))?;
        let request = ExecuteRequest { header: Some(call.header), action: Some(call.action) };
        let answer = StepServiceClient::new(channel).execute(request).await;
        let mut stream = answer.map_err(|status| refused(node, &status))?.into_inner();
        loop {
            match stream.message().await {
                Err(status) => return Err(refused(node, &status)),
                Ok(None) => return Err(unreachable("the answer broke off".to_owned())),
                Ok(Some(part)) => match part.event {
                    None => {}
                    Some(Event::Progress(now)) => {
                        progress.send_replace(now.into());
                    }
                    Some(Event::Result(result)) => return Ok(result),
                },
            }
        }
    }
}

/// Tells an answer of the agent from a break of the connection.
fn refused(node: &NodeName, status: &Status) -> AgentError {
    match reason_of(status) {
        Some(reason) => AgentError::Refused { node: node.clone(), reason, message: status.message().to_owned() },
        None => match status.code() {
            Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded | Code::Internal => {
                AgentError::Unreachable { node: node.clone(), detail: describe(status) }
            }
            Code::Ok
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
            | Code::Unauthenticated => AgentError::Refused {
                node: node.clone(),
                reason: Reason::Internal,
                message: status.message().to_owned(),
            },
        },
    }
}

fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
