//! What agents ask of each other: whether a copy is whole (rule T2), whether they endorse the primary while no coordinator
//! renews its lease (rules E1, E2), and what they know before a person makes one of them the primary (rule P9). The asking side
//! and the answering side.
//!
//! **Invariant:** the answer is about now: the engine is looked at for it, and it echoes the asker's nonce.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    error::{ErrorChain, Reason, bad_field, refuse},
    identity::{Identity, Principal},
    ids::{ClusterId, Epoch, OperationToken},
    lease::Timing,
    mutation::{self, Rule},
    position::Position,
    tls::{ExpectedServer, ReloadingIdentity},
    topology::{EngineState, Observation, Peer, Ternary},
    transport::{self, Dialer},
};
use regent_proto::agent::v1::{
    ConfirmWholeRequest, ConfirmWholeResponse, EndorseRequest, EndorseResponse, ReportRequest, ReportResponse,
    peer_service_client::PeerServiceClient, peer_service_server::PeerService,
};
use ring::rand::SecureRandom;
use tonic::{Request, Response, Status, transport::Channel};

use crate::{
    access,
    force::Word as Told,
    lease::{
        Endorsers, Question, Word,
        promises::{Asker, NoPromise},
    },
    ledger::{Ledger, Membership},
    node::Node,
    steps::Peers,
};

/// How long a peer may take to answer; looking at its engine included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A question for endorsement that was not answered within this part of a lease is not relied on to be answered in time.
const PARTS_OF_A_LEASE: u32 = 5;

/// PeerService of a node.
#[derive(Debug, Clone)]
pub struct PeerAnswers(pub Arc<Node>);

/// The way to other agents.
#[derive(Debug, Clone)]
pub struct PeerCalls {
    /// Opens connections.
    pub dialer: Arc<dyn Dialer>,
    /// Our identity.
    pub identity: ReloadingIdentity,
    /// Coordinator that we and they belong to.
    pub coordinator_id: String,
    /// Connections for endorsement, by address: a question must not wait for a handshake.
    channels: Arc<Mutex<BTreeMap<String, Channel>>>,
}

#[tonic::async_trait]
impl PeerService for PeerAnswers {
    async fn confirm_whole(
        &self,
        request: Request<ConfirmWholeRequest>,
    ) -> Result<Response<ConfirmWholeResponse>, Status> {
        let ledger = self.0.ledger().read();
        access::peer(&request, &self.0.coordinator_id, &ledger)?;
        let ConfirmWholeRequest { cluster_id, token, nonce } = request.into_inner();
        let cluster_id = read_cluster(&cluster_id)?;
        let Some(membership) = ledger.membership.as_ref().filter(|m| m.cluster_id == cluster_id) else {
            return Err(refuse(Reason::WrongCluster, format!("this node is not a member of cluster {cluster_id}")));
        };
        refuse_in_quarantine(&ledger)?;
        let position = whole(&self.0, membership, OperationToken(token))
            .await
            .map_err(|reason| refuse(Reason::CopyNotWhole, reason))?;
        Ok(Response::new(ConfirmWholeResponse { nonce, position: Some((&position).into()) }))
    }

    async fn endorse(&self, request: Request<EndorseRequest>) -> Result<Response<EndorseResponse>, Status> {
        let ledger = self.0.ledger().read();
        let caller = access::peer(&request, &self.0.coordinator_id, &ledger)?;
        let asked = request.into_inner();
        let membership = ledger.membership.as_ref().filter(|m| m.cluster_id.to_string() == asked.cluster_id);
        let Some(membership) = membership else {
            let message = format!("this node is not a member of cluster {}", asked.cluster_id);
            return Err(refuse(Reason::WrongCluster, message));
        };
        refuse_in_quarantine(&ledger)?;
        let asker = read_asker(&asked)?;
        let is_caller = |peer: &Peer| peer.node == caller && peer.member == asker.member;
        if !membership.spec.members.iter().any(is_caller) {
            return Err(refuse(Reason::WrongMember, format!("node {caller} is not member {}", asker.member)));
        }
        let (nonce, ttl) = (asked.nonce, asker.ttl);
        if membership.longest_ttl() < Some(ttl) {
            // After a restart this member waits as long as its longest promise: that has to be on disk before it is given.
            let kept = self.0.ledger().update(move |ledger| {
                if let Some(membership) = &mut ledger.membership {
                    membership.keep_longest_ttl(ttl);
                }
            });
            kept.await.map_err(|error| refuse(Reason::Internal, ErrorChain(&error).to_string()))?;
        }
        let epoch = asker.epoch.0;
        let word = self.promise(asker);
        let answer = if word.is_ok() { "given" } else { "refused" };
        metrics::counter!("regent_agent_endorsements_total", "answer" => answer).increment(1);
        let known_epoch = self.0.ledger().read().membership.as_ref().map_or(0, |membership| membership.epoch.0);
        // Who goes on endorsing a lower epoch does not tell of the higher one either.
        let known_epoch = if mutation::broken(Rule::E3Prepared) { epoch } else { known_epoch };
        Ok(Response::new(EndorseResponse {
            nonce,
            endorsed: word.is_ok(),
            known_epoch,
            reason: word.err().map(|reason| reason.to_string()).unwrap_or_default(),
        }))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        access::peer(&request, &self.0.coordinator_id, &self.0.ledger().read())?;
        let ReportRequest { cluster_id, nonce } = request.into_inner();
        let cluster_id = read_cluster(&cluster_id)?;
        let Some(seen) = self.0.observation().filter(|seen| seen.cluster_id == cluster_id) else {
            return Err(refuse(Reason::WrongCluster, format!("this node is not a member of cluster {cluster_id}")));
        };
        let sessions = self.0.contact.borrow().sessions;
        Ok(Response::new(ReportResponse {
            nonce,
            member: Some((&seen).into()),
            coordinator_sessions: u32::try_from(sessions).unwrap_or(u32::MAX),
        }))
    }
}

/// What nobody knows to have been promised here is neither promised again nor vouched for (rule T5).
fn refuse_in_quarantine(ledger: &Ledger) -> Result<(), Status> {
    match &ledger.quarantine {
        Some(reason) => Err(refuse(Reason::LedgerLost, format!("this node is in quarantine: {reason}"))),
        None => Ok(()),
    }
}

// === impl PeerAnswers ===

fn read_cluster(cluster_id: &str) -> Result<ClusterId, Status> {
    cluster_id.parse().map_err(|error: regent_common::ids::NameError| bad_field("cluster_id", error.to_string()))
}

impl PeerAnswers {
    /// Gives the promise, or not (rule E2). A promise and a preparation meet in the lock of the promises: whichever comes
    /// second knows of the first.
    fn promise(&self, asker: Asker) -> Result<(), NoPromise> {
        let node = &self.0;
        let mut promises = node.lease.promises();
        let ledger = node.ledger().read();
        let Some(membership) = ledger.believed() else {
            return Err(NoPromise::HigherEpoch { asked: asker.epoch, known: asker.epoch.next() });
        };
        if membership.writable_epoch >= Some(asker.epoch) {
            let (holder, epoch) = (membership.member.clone(), membership.epoch);
            return Err(NoPromise::OtherAsker { holder, epoch });
        }
        let seen = node.member.watch_seen().borrow().clone();
        let streams = |seen: &regent_common::topology::EngineObservation| {
            seen.streaming == Ternary::Yes && seen.upstream.as_ref() == Some(&asker.member)
        };
        let stream_lives = seen.as_ref().is_some_and(streams);
        promises.endorse(node.lease.clock().now(), asker, membership.epoch, stream_lives)
    }
}

fn read_asker(asked: &EndorseRequest) -> Result<Asker, Status> {
    let member = asked.member.parse();
    let member = member.map_err(|error: regent_common::ids::NameError| bad_field("member", error.to_string()))?;
    let lease = asked.lease.ok_or_else(|| bad_field("lease", "is missing"))?;
    if asked.boot_id.is_empty() {
        return Err(bad_field("boot_id", "a question for endorsement names the boot of the asker's machine"));
    }
    // The asker may have other times than this member has heard of: only what no profile could have is refused. A promise
    // without a limit would keep this member from being prepared for as long after every start.
    let ttl = Duration::from_millis(asked.ttl_millis.into());
    Timing::checked(Timing::LEAST_HEARTBEAT, ttl)
        .map_err(|untenable| bad_field("ttl_millis", untenable.to_string()))?;
    Ok(Asker {
        member,
        boot_id: asked.boot_id.clone(),
        epoch: Epoch(asked.epoch),
        ttl,
        lease: lease.into(),
        position: asked.position.clone().map(Into::into),
    })
}

/// The position of this node's copy, or why it is not to be relied on.
async fn whole(node: &Node, membership: &Membership, token: OperationToken) -> Result<Position, String> {
    let member = &membership.member;
    if membership.token != token {
        return Err(format!("{member} has accepted operation token {}, not {token}", membership.token));
    }
    let driver = node.member.driver().ok_or_else(|| format!("{member} has no driver"))?;
    if membership.must_not_start() || membership.resyncing || driver.is_dirty() {
        return Err(format!("the copy of {member} is itself in the middle of a change"));
    }
    if membership.fenced {
        return Err(format!("{member} is fenced"));
    }
    let seen = tokio::time::timeout(ANSWER_WITHIN / 2, driver.observe())
        .await
        .map_err(|_| format!("the engine of {member} does not answer"))?;
    match (seen.state, seen.position) {
        (EngineState::Running, Some(position)) => Ok(position),
        (EngineState::Running, None) => Err(format!("the position of {member} is unknown")),
        (
            EngineState::Absent
            | EngineState::Stopped
            | EngineState::Starting
            | EngineState::Stopping
            | EngineState::Crashed
            | EngineState::Hung,
            _,
        ) => Err(format!("the engine of {member} is not running ({:?})", seen.state)),
    }
}

fn random_nonce() -> Result<u64, String> {
    let mut random = [0; 8];
    ring::rand::SystemRandom::new().fill(&mut random).map_err(|_| "the system has no random numbers".to_owned())?;
    Ok(u64::from_le_bytes(random))
}

// === impl PeerCalls ===

impl PeerCalls {
    /// Calls with this identity.
    pub fn new(dialer: Arc<dyn Dialer>, identity: ReloadingIdentity, coordinator_id: String) -> Self {
        Self { dialer, identity, coordinator_id, channels: Arc::default() }
    }

    fn expected(&self, peer: &Peer) -> ExpectedServer {
        ExpectedServer::Identity(Identity {
            coordinator_id: self.coordinator_id.clone(),
            principal: Principal::Node(peer.node.clone()),
        })
    }

    /// A kept connection that comes up, and comes up again, by itself. Used from one runtime only.
    fn channel(&self, peer: &Peer) -> Result<Channel, String> {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(&peer.agent_address) {
            return Ok(channel.clone());
        }
        let (dialer, identity) = (Arc::clone(&self.dialer), Some(self.identity.clone()));
        let channel = transport::connect_lazy_through(dialer, &peer.agent_address, identity, self.expected(peer))
            .map_err(|error| ErrorChain(&error).to_string())?;
        channels.insert(peer.agent_address.clone(), channel.clone());
        Ok(channel)
    }

    /// Opens a new connection for the next question. One whose other end has been powered off breaks only when its keepalive
    /// fails, which is longer than a lease lasts.
    fn distrust(&self, peer: &Peer) {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer.agent_address);
    }

    /// A connection for one question.
    async fn connect(&self, peer: &Peer) -> Result<Channel, String> {
        let (dialer, identity) = (Arc::clone(&self.dialer), Some(self.identity.clone()));
        transport::connect_through(dialer, &peer.agent_address, identity, self.expected(peer))
            .await
            .map_err(|error| ErrorChain(&error).to_string())
    }

    /// What a member knows, if it can be reached at all (rule P9).
    pub async fn report(&self, peer: &Peer, cluster_id: ClusterId) -> Told {
        let asking = async {
            let channel = match self.connect(peer).await {
                Ok(channel) => channel,
                Err(problem) => return Told::Silent(problem),
            };
            match self.ask_for_report(channel, cluster_id).await {
                Ok((observation, sessions)) => Told::Report { observation: Box::new(observation), sessions },
                Err(problem) => Told::Unreadable(problem),
            }
        };
        let waited = tokio::time::timeout(ANSWER_WITHIN, asking).await;
        waited.unwrap_or_else(|_| Told::Unreadable(format!("it connects, and has no answer within {ANSWER_WITHIN:?}")))
    }

    async fn ask_for_report(&self, channel: Channel, cluster_id: ClusterId) -> Result<(Observation, u32), String> {
        let nonce = random_nonce()?;
        let question = ReportRequest { cluster_id: cluster_id.to_string(), nonce };
        let answer = PeerServiceClient::new(channel).report(question).await;
        let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
        if answer.nonce != nonce {
            return Err("the answer is to another question".to_owned());
        }
        let seen = answer.member.ok_or("the answer names no member")?;
        let seen = Observation::try_from(seen).map_err(|error| ErrorChain(&error).to_string())?;
        Ok((seen, answer.coordinator_sessions))
    }

    async fn confirm(&self, source: &Peer, question: ConfirmWholeRequest) -> Result<ConfirmWholeResponse, String> {
        let answer = PeerServiceClient::new(self.connect(source).await?).confirm_whole(question).await;
        answer.map(Response::into_inner).map_err(|status| status.message().to_owned())
    }
}

#[async_trait]
impl Endorsers for PeerCalls {
    async fn ask(&self, question: Question) -> Result<Word, String> {
        let nonce = question.nonce;
        let channel = self.channel(&question.peer)?;
        let request = EndorseRequest {
            cluster_id: question.cluster_id.to_string(),
            member: question.member.to_string(),
            epoch: question.epoch.0,
            nonce,
            boot_id: question.boot_id,
            ttl_millis: u32::try_from(question.ttl.as_millis()).unwrap_or(u32::MAX),
            lease: Some((&question.lease).into()),
            position: question.position.as_ref().map(Into::into),
        };
        let mut client = PeerServiceClient::new(channel);
        let mut asking = std::pin::pin!(client.endorse(request));
        let answer = match tokio::time::timeout(question.ttl / PARTS_OF_A_LEASE, &mut asking).await {
            Ok(answer) => answer,
            Err(_) => {
                self.distrust(&question.peer);
                asking.await
            }
        };
        let answer = answer.map_err(|status| status.message().to_owned())?.into_inner();
        if answer.nonce != nonce {
            return Err("the answer is to another question".to_owned());
        }
        if !answer.endorsed {
            tracing::debug!(peer = %question.peer.member, reason = answer.reason, "not endorsed");
        }
        Ok(Word { endorsed: answer.endorsed, known_epoch: Epoch(answer.known_epoch) })
    }
}

#[async_trait]
impl Peers for PeerCalls {
    async fn confirm_whole(
        &self,
        source: &Peer,
        cluster_id: ClusterId,
        token: OperationToken,
    ) -> Result<Position, String> {
        let nonce = random_nonce()?;
        let question = ConfirmWholeRequest { cluster_id: cluster_id.to_string(), token: token.0, nonce };
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.confirm(source, question))
            .await
            .map_err(|_| format!("no answer from {} within {ANSWER_WITHIN:?}", source.agent_address))??;
        if answer.nonce != nonce {
            return Err("the answer is to another question".to_owned());
        }
        answer.position.map(Into::into).ok_or_else(|| "the answer names no position".to_owned())
    }
}
