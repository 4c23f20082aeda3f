//! SessionService: the standing connection with the coordinator. Heartbeats on its period, and at once when something
//! changes; answers, and with them leases, the other way.
//!
//! Nothing here decides. **Invariant:** a heartbeat shows the ledger and the engine as they are when it is sent, under a
//! nonce that this process never used before; a coordinator that reads slowly misses heartbeats, it never gets old ones. An
//! answer counts once, for the member that asked, and as a whole: one that answers nothing, or is another member's, changes
//! neither lease nor ledger nor the time between heartbeats.

use std::{pin::Pin, sync::Arc, time::Duration};

use regent_common::{
    chance,
    convert::to_wire_time,
    error::{ErrorChain, Reason, bad_field, refuse},
    ids::{Epoch, NameError, OperationToken, Revision},
    lease::{Grant, Timing},
    topology::{EngineState, HostFacts, Observation, Role, Ternary},
    transport::Revocations,
};
use regent_proto::agent::v1::{
    AgentHello, AllowListAbility, CoordinatorHello, Grant as WireGrant, Heartbeat, HeartbeatAnswer, Job, LedgerMark,
    OpenRequest, OpenResponse, Quarantine as WireQuarantine, open_request, open_response,
    session_service_server::SessionService,
};
use tokio::{
    sync::{mpsc, watch},
    time::{Interval, MissedTickBehavior},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    access,
    lease::Answer,
    ledger::{Ledger, Quarantine},
    node::Node,
};

/// How long a coordinator may take to say who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// Least and most time between two heartbeats, whatever the coordinator asks for.
const PERIODS: (Duration, Duration) = (Timing::LEAST_HEARTBEAT, Duration::from_secs(60));
/// Least time between two heartbeats that are sent for progress alone.
const PROGRESS_PERIOD: Duration = Duration::from_millis(250);

/// SessionService of a node.
#[derive(Debug, Clone)]
pub struct Sessions {
    node: Arc<Node>,
    revocations: Revocations,
    stop: CancellationToken,
}

type Outgoing = mpsc::Sender<Result<OpenResponse, Status>>;

/// What a change of makes a heartbeat go out at once.
#[derive(Debug, Clone, PartialEq)]
struct Notable {
    state: EngineState,
    role: Option<Role>,
    streaming: Ternary,
    storage_writable: Ternary,
    upstream: Option<regent_common::ids::MemberName>,
    pid: Option<u32>,
    epoch: u64,
    token: u64,
    fenced: bool,
    dirty: bool,
    /// The lease stands; the electorate that is acknowledged.
    stands: bool,
    acknowledged: Option<u64>,
    /// A lease is handed over, or was and is replaced (rule L7).
    hand_over: bool,
    replaced: Option<u64>,
}

/// One open session.
struct Session {
    node: Arc<Node>,
    revocations: Revocations,
    out: Outgoing,
    host: watch::Receiver<HostFacts>,
    /// What the last heartbeat showed; `None` when it could not be sent.
    shown: Option<(Option<Notable>, Vec<Job>)>,
}

/// Counts a session as open while it lives.
struct Counted(Arc<Node>);

/// What a session does next.
enum Event {
    Tick,
    Look,
    Progress,
    Message(Result<Option<OpenRequest>, Status>),
    Stop,
}

// === impl Sessions ===

impl Sessions {
    /// The service; `stop` ends its sessions.
    pub fn new(node: Arc<Node>, revocations: Revocations, stop: CancellationToken) -> Self {
        Self { node, revocations, stop }
    }
}

#[tonic::async_trait]
impl SessionService for Sessions {
    type OpenStream = Pin<Box<dyn Stream<Item = Result<OpenResponse, Status>> + Send>>;

    async fn open(&self, request: Request<Streaming<OpenRequest>>) -> Result<Response<Self::OpenStream>, Status> {
        access::coordinator(&request, &self.node.coordinator_id)?;
        let (out, receiver) = mpsc::channel(4);
        let session = Session {
            node: self.node.clone(),
            revocations: self.revocations.clone(),
            out: out.clone(),
            host: self.node.host.subscribe(),
            shown: None,
        };
        let (incoming, stop) = (request.into_inner(), self.stop.clone());
        // The answer's headers do not wait for the first message: neither side may wait for the other.
        tokio::spawn(async move {
            if let Err(status) = session.run(incoming, stop).await {
                tracing::info!(reason = status.message(), "a session ended");
                let _ = out.send(Err(status)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

// === impl Counted ===

impl Counted {
    fn new(node: Arc<Node>, stale_store: bool) -> Self {
        let now = node.wall();
        node.contact.send_modify(|contact| {
            contact.sessions += 1;
            contact.heard_at = Some(now);
            contact.stale_store = stale_store;
        });
        Self(node)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.contact.send_modify(|contact| contact.sessions -= 1);
    }
}

// === impl Session ===

impl Session {
    async fn run(mut self, mut incoming: Streaming<OpenRequest>, stop: CancellationToken) -> Result<(), Status> {
        let hello = tokio::time::timeout(HELLO_WITHIN, incoming.message())
            .await
            .map_err(|_| refuse(Reason::Deadline, "no hello came from the coordinator"))??;
        let Some(OpenRequest { message: Some(open_request::Message::Hello(hello)) }) = hello else {
            return Err(bad_field("message", "the first one has to be a hello"));
        };
        let stale_store = self.greet(&hello).await?;
        let _counted = Counted::new(self.node.clone(), stale_store);
        let mut ticks = ticks(Duration::from_millis(hello.heartbeat_millis.into()));
        let mut lease = self.node.lease.changes();
        let mut beats = self.node.lease.beats();
        let mut seen = self.node.member.watch_seen();
        let mut ledger = self.node.ledger().watch();
        let mut steps = self.node.executor.table().changes();
        loop {
            let working = !self.node.executor.table().all().is_empty();
            let event = tokio::select! {
                () = stop.cancelled() => Event::Stop,
                message = incoming.message() => Event::Message(message),
                Ok(()) = seen.changed() => Event::Look,
                Ok(()) = ledger.changed() => Event::Look,
                Ok(()) = steps.changed() => Event::Look,
                Ok(()) = lease.changed() => Event::Look,
                Ok(()) = beats.changed() => Event::Tick,
                _ = ticks.tick() => Event::Tick,
                () = tokio::time::sleep(PROGRESS_PERIOD), if working => Event::Progress,
            };
            match event {
                Event::Stop | Event::Message(Ok(None)) => return Ok(()),
                Event::Message(Ok(Some(message))) => {
                    if let Some(period) = self.hear(message)?.filter(|period| *period != ticks.period()) {
                        ticks = self::ticks(period);
                    }
                }
                Event::Message(Err(status)) => return Err(status),
                Event::Tick => self.send(),
                Event::Look => self.send_if(|was, is| was.0 != is.0 || !same_jobs(&was.1, &is.1)),
                Event::Progress => self.send_if(|was, is| was != is),
            }
        }
    }

    /// Answers a hello. Whether the coordinator's store is older than one that this node has seen (rule T4).
    async fn greet(&self, hello: &CoordinatorHello) -> Result<bool, Status> {
        if hello.coordinator_id != self.node.coordinator_id {
            let message = format!("this node belongs to coordinator {}", self.node.coordinator_id);
            return Err(refuse(Reason::ForeignCoordinator, message));
        }
        let ledger = self.node.ledger().read();
        let (given, known) = (Revision(hello.revision), ledger.revision);
        let stale_store = known > given;
        if stale_store {
            tracing::error!(known = known.0, given = given.0, "the coordinator's store is older than one seen before");
        } else if known < given {
            let noted = self.node.ledger().update(move |ledger: &mut Ledger| ledger.revision = given).await;
            noted.map_err(|error| refuse(Reason::Internal, ErrorChain(&error).to_string()))?;
        }
        let member = self.node.member.clone();
        let offers = self.node.ledger().offload(move || member.offers()).await;
        let offers = offers.ok_or_else(|| refuse(Reason::Internal, "the engines could not be looked for"))?;
        let answer = AgentHello {
            node: self.node.name.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.node.boot_id.clone(),
            started_at: Some(to_wire_time(self.node.started_at)),
            engines: offers.iter().map(Into::into).collect(),
            revision: known.max(given).0,
            stale_store,
            incarnation: self.node.incarnation.clone(),
            ledger: mark_of(&ledger),
            allow_list: Some(AllowListAbility { problem: self.node.firewall.inability() }),
        };
        let message = Some(open_response::Message::Hello(answer));
        let sent = self.out.send(Ok(OpenResponse { message })).await;
        sent.map_err(|_| refuse(Reason::Cancelled, "the coordinator went away"))?;
        Ok(stale_store)
    }

    /// Takes a message; the time between heartbeats that it asks for, if it does.
    fn hear(&self, message: OpenRequest) -> Result<Option<Duration>, Status> {
        let now = self.node.wall();
        self.node.contact.send_modify(|contact| contact.heard_at = Some(now));
        match message.message {
            Some(open_request::Message::Answer(answer)) => Ok(self.deliver(answer)),
            Some(open_request::Message::Revocations(revocations)) => {
                self.revocations.replace(revocations.serials.into_iter().collect());
                Ok(None)
            }
            Some(open_request::Message::Quarantine(word)) => {
                let word = read_quarantine(word)?;
                self.node.enter_quarantine(word);
                Ok(None)
            }
            Some(open_request::Message::Hello(_)) => Err(bad_field("message", "a second hello came")),
            // A message of a later version: there is nothing in it for this one.
            None => Ok(None),
        }
    }

    /// Takes an answer when it is delivered, which in a simulation may be later or twice.
    fn deliver(&self, answer: HeartbeatAnswer) -> Option<Duration> {
        let delivery = chance::delivery(chance::Message::Answer);
        if let Some(after) = delivery.again {
            let (node, answer) = (self.node.clone(), answer.clone());
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                take(&node, answer);
            });
        }
        if delivery.now { take(&self.node, answer) } else { None }
    }

    fn present(&self) -> (Option<Observation>, Vec<Job>) {
        (self.node.observation(), self.node.jobs())
    }

    fn send(&mut self) {
        let (member, jobs) = self.present();
        self.send_this(member, jobs);
    }

    /// Sends when nothing was shown yet or `differs` says so of what was shown and what is.
    fn send_if(&mut self, differs: impl FnOnce(&(Option<Notable>, Vec<Job>), &(Option<Notable>, Vec<Job>)) -> bool) {
        let (member, jobs) = self.present();
        let is = (member.as_ref().map(Notable::of), jobs);
        if self.shown.as_ref().is_none_or(|was| differs(was, &is)) {
            self.send_this(member, is.1);
        }
    }

    fn send_this(&mut self, member: Option<Observation>, jobs: Vec<Job>) {
        let fresh = self.host.has_changed().unwrap_or(false) || self.shown.is_none();
        let host = fresh.then(|| self.host.borrow_and_update().clone());
        let heartbeat = Heartbeat {
            nonce: self.node.lease.stamp(),
            member: member.as_ref().map(Into::into),
            host: host.as_ref().map(Into::into),
            jobs: jobs.clone(),
            quarantine: self.node.ledger().read().quarantine.clone().unwrap_or_default(),
        };
        let message = Some(open_response::Message::Heartbeat(heartbeat));
        // Never waits: a coordinator that does not read gets the state of then when it reads again.
        self.shown = match self.out.try_send(Ok(OpenResponse { message })) {
            Ok(()) => Some((member.as_ref().map(Notable::of), jobs)),
            Err(_) => None,
        };
    }
}

/// How far the ledger has come as a member, before the hello that it goes with changes it (rule T5).
fn mark_of(ledger: &Ledger) -> Option<LedgerMark> {
    let membership = ledger.membership.as_ref()?;
    Some(LedgerMark {
        cluster_id: membership.cluster_id.to_string(),
        member: membership.member.to_string(),
        epoch: membership.epoch.0,
        token: membership.token.0,
        revision: ledger.revision.0,
        electorate_version: membership.electorate.as_ref().map(|electorate| electorate.version),
    })
}

fn read_quarantine(word: WireQuarantine) -> Result<Quarantine, Status> {
    let name = |field: &'static str| move |error: NameError| bad_field(field, error.to_string());
    Ok(Quarantine {
        cluster_id: word.cluster_id.parse().map_err(name("cluster_id"))?,
        member: word.member.parse().map_err(name("member"))?,
        epoch: Epoch(word.epoch),
        token: OperationToken(word.token),
        reason: word.reason,
    })
}

/// Takes an answer to a heartbeat, and with it the lease; the time between heartbeats that it asks for, if it does and counts.
fn take(node: &Node, answer: HeartbeatAnswer) -> Option<Duration> {
    let nonce = answer.nonce;
    if is_foreign(node, &answer) {
        // Late, most likely: this node was released, or became another member, since it asked. What it says of epoch and times
        // is not about this member either.
        tracing::info!("an answer came that is not for this member, and was dropped");
        node.lease.answered(Answer { nonce, grant: None, stored_epoch: Epoch(0), timing: None });
        return None;
    }
    let timing = times_in(node, &answer);
    let in_force = timing.unwrap_or_else(|| node.lease.timing());
    let grant = answer.grant.and_then(|grant| read_grant(grant, in_force.heartbeat));
    let granted = grant.as_ref().map(|grant| (grant.epoch, grant.electorate.clone()));
    let stored_epoch = Epoch(answer.stored_epoch);
    let counted = node.lease.answered(Answer { nonce, grant, stored_epoch, timing });
    if counted && (granted.is_some() || timing.is_some()) {
        node.recorder.note(granted, in_force);
    }
    timing.filter(|_| counted).map(|timing| timing.heartbeat)
}

/// Whether an answer is meant for another member than the one that this node is, or for one while it is none.
fn is_foreign(node: &Node, answer: &HeartbeatAnswer) -> bool {
    let ledger = node.ledger().read();
    let membership = ledger.believed();
    answer.grant.as_ref().is_some_and(|grant| {
        !membership.is_some_and(|membership| {
            grant.cluster_id == membership.cluster_id.to_string() && grant.member == membership.member.as_str()
        })
    })
}

/// The times of the cluster's profile, as an answer says them. Those that no lease can be kept by are complained about, once
/// each, and not taken: the ones in force stay.
fn times_in(node: &Node, answer: &HeartbeatAnswer) -> Option<Timing> {
    if (answer.heartbeat_millis, answer.ttl_millis) == (0, 0) {
        return None;
    }
    let heartbeat = Duration::from_millis(answer.heartbeat_millis.into()).clamp(PERIODS.0, PERIODS.1);
    let read = Timing::checked(heartbeat, Duration::from_millis(answer.ttl_millis.into()));
    let refused = read.err();
    let is_news = node.contact.send_if_modified(|contact| {
        let is_news = contact.refused_times != refused;
        contact.refused_times = refused;
        is_news
    });
    if let Some(refused) = refused.filter(|_| is_news) {
        tracing::warn!(%refused, "the coordinator named times that are not taken; those of before stay in force");
    }
    read.ok()
}

/// The lease that a grant for this member confers; `None` when it confers none.
fn read_grant(grant: WireGrant, heartbeat: Duration) -> Option<Grant> {
    let established = grant.established;
    let read = Grant::try_from(grant).map_err(|error| error.to_string()).and_then(|grant| {
        Timing::checked(heartbeat, grant.ttl).map(|_| grant).map_err(|untenable| untenable.to_string())
    });
    match read {
        Ok(grant) if established => Some(grant),
        Ok(grant) => {
            tracing::info!(epoch = %grant.epoch, "a grant came of an epoch that is not established, and was dropped");
            None
        }
        Err(why) => {
            tracing::info!(why, "a grant came that confers no lease, and was dropped");
            None
        }
    }
}

/// Ticks of this period, within what is sensible.
fn ticks(period: Duration) -> Interval {
    let mut ticks = tokio::time::interval(period.clamp(PERIODS.0, PERIODS.1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Whether the same steps run, however far they have come.
fn same_jobs(was: &[Job], is: &[Job]) -> bool {
    was.len() == is.len() && was.iter().zip(is).all(|(a, b)| a.operation == b.operation && a.step == b.step)
}

// === impl Notable ===

impl Notable {
    fn of(seen: &Observation) -> Self {
        Self {
            state: seen.engine.state,
            role: seen.engine.role,
            streaming: seen.engine.streaming,
            storage_writable: seen.engine.storage_writable,
            upstream: seen.engine.upstream.clone(),
            pid: seen.engine.pid,
            epoch: seen.epoch.0,
            token: seen.token.0,
            fenced: seen.fenced,
            dirty: seen.dirty,
            stands: seen.authority.lease.as_ref().is_some_and(|lease| lease.stands),
            acknowledged: seen.authority.electorate.as_ref().map(|electorate| electorate.version),
            hand_over: seen.authority.hand_over,
            replaced: seen.authority.replaced,
        }
    }
}
