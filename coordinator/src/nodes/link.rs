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
    error::{ErrorChain, Reason, reason_of},
    ids::{ClusterId, ClusterName, NodeName, Revision},
    tls::ReloadingIdentity,
    topology::{HostFacts, Observation, Progress},
    transport::Dialer,
};
use regent_proto::agent::v1::{
    AgentHello, CheckAllowListRequest, CheckAllowListResponse, CheckSettingsRequest, ExecuteRequest, Heartbeat,
    HeartbeatAnswer, OpenResponse, Revocations, StepResult, SurveyInstancesRequest, SurveyInstancesResponse,
    action::Action, execute_response::Event, open_request::Message as ToAgent, open_response::Message as FromAgent,
    step_service_client::StepServiceClient,
};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use crate::{
    authority::Authorities,
    model::{Assignment, cluster::ClusterRecord},
    store::{Store, get_json, keys},
};

use super::{
    AgentError, Agents, JobView, NodeTable, NodeView, StepCall,
    contest::claimant,
    identity::{Claimants, KeptOut, Mark, mark_of, rolled_back},
};

/// Pause before a node is dialled again.
const REDIAL: Duration = Duration::from_millis(500);
/// Heartbeats that may be missing before a session is given up; keepalive of the connection finds most breaks sooner.
const MISSED: u32 = 5;

/// What links share.
pub struct Links {
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) identity: ReloadingIdentity,
    pub(super) clock: Arc<dyn Clock>,
    table: Arc<NodeTable>,
    authorities: Arc<Authorities>,
    pub(super) heartbeat: Duration,
    pub(super) term: u64,
    pub(super) store: Arc<dyn Store>,
    /// The processes that have spoken for each node (rule T5).
    claimants: Mutex<BTreeMap<NodeName, Claimants>>,
    revoked: watch::Receiver<Vec<String>>,
    links: Mutex<BTreeMap<NodeName, Link>>,
    stop: CancellationToken,
}

/// One node's link.
struct Link {
    address: watch::Sender<String>,
    channel: watch::Receiver<Option<Channel>>,
    redial: Arc<Notify>,
    displaced: Arc<Notify>,
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
            claimants: Mutex::default(),
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
        let (redial, displaced) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let stop = self.stop.child_token();
        let link = Link { address, channel, redial, displaced, stop };
        let (redial, displaced) = (Arc::clone(&link.redial), Arc::clone(&link.displaced));
        let task = Arc::clone(self).keep(node.clone(), addresses, channels, redial, displaced, link.stop.clone());
        tokio::spawn(task);
        links.insert(node.clone(), link);
    }

    /// Ends the link of a node that was revoked or removed.
    pub fn hang_up(&self, node: &NodeName) {
        if let Some(link) = self.links.lock().expect("no holder panics").remove(node) {
            link.stop.cancel();
        }
        self.claimants.lock().expect("no holder panics").remove(node);
        self.table.update(node, |view| *view = NodeView::default());
    }

    /// Where a node's agent is reached.
    pub fn address(&self, node: &NodeName) -> Option<String> {
        self.links.lock().expect("no holder panics").get(node).map(|link| link.address.borrow().clone())
    }

    /// Ends a node's session: another process of it stays.
    pub(super) fn displace(&self, node: &NodeName) {
        if let Some(link) = self.links.lock().expect("no holder panics").get(node) {
            link.displaced.notify_one();
        }
    }

    /// The processes that have spoken for a node.
    pub(super) fn claimants<T>(&self, node: &NodeName, look: impl FnOnce(&mut Claimants) -> T) -> T {
        look(self.claimants.lock().expect("no holder panics").entry(node.clone()).or_default())
    }

    /// The revoked identities, as agents are told.
    pub(super) fn revocations(&self) -> ToAgent {
        ToAgent::Revocations(Revocations { serials: self.revoked.borrow().clone() })
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
        displaced: Arc<Notify>,
        stop: CancellationToken,
    ) {
        loop {
            let address = addresses.borrow().clone();
            let problem = tokio::select! {
                () = stop.cancelled() => return,
                () = displaced.notified() => "another process of this node has its place".to_owned(),
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
        // Before the session is opened: what a hello shows is then later than all of it (rule T5).
        let before = match self.shown_before(node).await {
            Ok(before) => before,
            Err(problem) => return problem,
        };
        let mut opening = match self.open(node, address).await {
            Ok(opening) => opening,
            Err(problem) => return problem,
        };
        let mut revocations = self.revoked.clone();
        let mut hello = None;
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout(self.heartbeat * MISSED, opening.stream.message()) => message,
                Ok(()) = revocations.changed() => {
                    revocations.mark_unchanged();
                    opening.send(self.revocations());
                    continue;
                }
            };
            match message {
                Err(_) => return format!("no heartbeat for {} ms", (self.heartbeat * MISSED).as_millis()),
                Ok(Err(status)) => return describe(&status),
                Ok(Ok(None)) => return "the agent ended the session".to_owned(),
                Ok(Ok(Some(OpenResponse { message: None }))) => {}
                Ok(Ok(Some(OpenResponse { message: Some(FromAgent::Hello(said)) }))) => {
                    if said.stale_store {
                        tracing::error!(
                            agent_knows = said.revision,
                            store_has = opening.revision,
                            "STALE_STORE: this node has seen a newer store than this coordinator has; was a backup restored?"
                        );
                    }
                    self.table.update(node, |view| {
                        address.clone_into(&mut view.address);
                        view.greeted(said.clone());
                    });
                    hello = Some(said);
                }
                Ok(Ok(Some(OpenResponse { message: Some(FromAgent::Heartbeat(heartbeat)) }))) => {
                    // Who it is comes before all that it says: with the first heartbeat, and before a step can reach it.
                    let first = hello.take();
                    if let Some(word) =
                        first.as_ref().and_then(|hello| self.judge(node, address, hello, before.as_ref(), &heartbeat))
                    {
                        opening.send(ToAgent::Quarantine(word));
                    }
                    // First what it says, then the answer: what is decided meanwhile knows of both or of neither.
                    match self.heard(node, heartbeat) {
                        Ok(answer) => opening.send(ToAgent::Answer(answer)),
                        Err(problem) => return problem,
                    }
                    if first.is_some() {
                        channels.send_replace(Some(opening.channel.clone()));
                    }
                }
            }
        }
    }

    /// What the ledger of a node's member has shown to have, by what is stored and by what this coordinator has heard, with the
    /// name of its cluster; `None` for a node that is no member.
    async fn shown_before(&self, node: &NodeName) -> Result<Option<(ClusterName, Mark)>, String> {
        let failed = |error: crate::store::StoreError| ErrorChain(&error).to_string();
        let heard = self.table.view(node).shown;
        let found = get_json::<Assignment>(self.store.as_ref(), &keys::assignment(node)).await.map_err(failed)?;
        let Some(Assignment { cluster, member }) = found.map(|found| found.value) else { return Ok(None) };
        let record = get_json::<ClusterRecord>(self.store.as_ref(), &keys::cluster(&cluster)).await.map_err(failed)?;
        let Some(record) = record.map(|record| record.value) else { return Ok(None) };
        let heard = heard.filter(|heard| (heard.cluster_id, &heard.member) == (record.id, &member));
        let shown = record.shown(&member).max(heard.map(|heard| heard.shown).unwrap_or_default());
        Ok(Some((cluster, Mark { cluster_id: record.id, member, shown })))
    }

    /// Judges who it is that speaks (rule T5); what it is told when it is kept out.
    fn judge(
        &self,
        node: &NodeName,
        address: &str,
        hello: &AgentHello,
        before: Option<&(ClusterName, Mark)>,
        heartbeat: &Heartbeat,
    ) -> Option<regent_proto::agent::v1::Quarantine> {
        let mark = mark_of(hello.ledger.as_ref());
        let speaks = claimant(hello, address, heartbeat);
        let incarnation = speaks.incarnation.clone();
        let twice = self.claimants(node, |claimants| claimants.hear(speaks));
        let refused = twice.and_then(|twice| {
            let sentence = self.note_twice(node, &twice);
            (twice.goes.incarnation == incarnation).then(|| KeptOut { mark: mark.clone(), why: sentence })
        });
        let kept_out = refused.or_else(|| {
            let (mark, (cluster, before)) = (mark.as_ref()?, before?);
            let ours = (before.cluster_id, &before.member) == (mark.cluster_id, &mark.member);
            ours.then(|| rolled_back(cluster, mark, &before.shown)).flatten()
        });
        if let Some(kept_out) = &kept_out {
            tracing::error!(%node, "QUARANTINE: {}", kept_out.why);
        }
        let word = kept_out.as_ref().and_then(KeptOut::word);
        self.table.update(node, |view| view.judged(mark, Revision(hello.revision), kept_out));
        word
    }

    /// Takes a heartbeat; what it is answered with.
    fn heard(&self, node: &NodeName, heartbeat: Heartbeat) -> Result<HeartbeatAnswer, String> {
        let observation = heartbeat.member.map(Observation::try_from).transpose();
        let observation = observation.map_err(|error| format!("the agent sent what cannot be read: {error}"))?;
        let view = self.table.view(node);
        let kept_out = !heartbeat.quarantine.is_empty() || view.keeps_out(observation.as_ref());
        // In quarantine it is granted nothing (rule T5).
        let boot = (!kept_out).then_some(view.boot_id.as_str());
        let answer = self.authorities.answer(node, boot, heartbeat.nonce, observation.as_ref());
        let (at, wall) = (self.clock.boottime(), self.clock.wall());
        self.table.update(node, |view| {
            view.last_contact_wall = Some(wall);
            view.quarantine = heartbeat.quarantine;
            view.heard(at, observation);
            if let Some(host) = heartbeat.host {
                view.host = Some(HostFacts::from(host));
            }
            view.jobs = heartbeat.jobs.into_iter().map(JobView::from).collect();
        });
        Ok(answer)
    }
}

// === impl Links ===

impl Links {
    /// A node was made a member anew: what it was kept out for is over (rule T5).
    fn bring_back(&self, node: &NodeName) {
        let incarnation = self.table.view(node).incarnation;
        self.claimants(node, |claimants| claimants.pardon(&incarnation));
        self.table.update(node, |view| {
            view.kept_out = None;
            view.quarantine.clear();
        });
    }
}

#[async_trait]
impl Agents for Links {
    fn view(&self, node: &NodeName) -> NodeView {
        self.table.view(node)
    }

    fn members_of(&self, cluster: &ClusterId) -> BTreeMap<NodeName, NodeView> {
        let ours = |view: &NodeView| view.observation.as_ref().is_some_and(|seen| seen.cluster_id == *cluster);
        self.table.all().into_iter().filter(|(_, view)| ours(view)).collect()
    }

    async fn check_settings(&self, node: &NodeName, wanted: CheckSettingsRequest) -> Result<(), AgentError> {
        let problem = || AgentError::Unreachable { node: node.clone(), detail: self.table.view(node).problem };
        let mut client = StepServiceClient::new(self.channel(node).ok_or_else(problem)?);
        client.check_settings(wanted).await.map(|_| ()).map_err(|status| refused(node, &status))
    }

    async fn check_allow_list(
        &self,
        node: &NodeName,
        wanted: CheckAllowListRequest,
    ) -> Result<CheckAllowListResponse, AgentError> {
        let problem = || AgentError::Unreachable { node: node.clone(), detail: self.table.view(node).problem };
        let mut client = StepServiceClient::new(self.channel(node).ok_or_else(problem)?);
        client.check_allow_list(wanted).await.map(tonic::Response::into_inner).map_err(|status| refused(node, &status))
    }

    async fn survey_instances(&self, node: &NodeName) -> Result<SurveyInstancesResponse, AgentError> {
        let problem = || AgentError::Unreachable { node: node.clone(), detail: self.table.view(node).problem };
        let mut client = StepServiceClient::new(self.channel(node).ok_or_else(problem)?);
        let answer = client.survey_instances(SurveyInstancesRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            if status.code() != Code::Unimplemented {
                return refused(node, &status);
            }
            let message = "this agent is too old to take a running instance over: upgrade it".to_owned();
            AgentError::Refused { node: node.clone(), reason: Reason::NotAdoptable, message }
        })
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
        let action = call.action.action.as_ref();
        let enters = matches!(action, Some(Action::Assign(_)));
        if let Some(KeptOut { why, .. }) = self.table.view(node).kept_out
            && !enters
            && !matches!(action, Some(Action::Release(_)))
        {
            // It may not have heard yet that it is in quarantine (rule T5).
            return Err(AgentError::Refused { node: node.clone(), reason: Reason::LedgerLost, message: why });
        }
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
                    Some(Event::Result(result)) => {
                        if enters {
                            self.bring_back(node);
                        }
                        return Ok(result);
                    }
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

pub(super) fn describe(status: &Status) -> String {
    format!("{:?}: {}", status.code(), status.message())
}
