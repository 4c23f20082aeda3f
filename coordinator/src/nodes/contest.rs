//! What is done when an agent announces itself for a node whose session is another process's (rule T5): both are asked, afresh.
//!
//! A process that has ended leaves a session that looks open for a while; so the one that announces itself may be its successor, a
//! node that has moved, or a copy of a machine. Asked after the newcomer has answered, a former process that answers as well is
//! proof that both live; silence proves nothing and makes way, as before. Then [`Claimants`](super::identity::Claimants) rules, and
//! the one that goes is told to keep itself out. **Invariant:** as long as both live the address that is stored, and that
//! members ask for endorsement, is the one of the process that stays.

use std::{sync::Arc, time::Duration};

use regent_common::{
    error::ErrorChain,
    identity::{Identity, Principal},
    ids::NodeName,
    tls::ExpectedServer,
    topology::Observation,
    transport,
};
use regent_proto::agent::v1::{
    AgentHello, CoordinatorHello, Heartbeat, OpenRequest, OpenResponse, open_request::Message as ToAgent,
    open_response::Message as FromAgent, session_service_client::SessionServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

use super::{
    identity::{Claimant, KeptOut, Rival, Twice, mark_of},
    link::Links,
};

/// How long a process may take to answer when it is asked who it is.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// How long one that is told to keep itself out may take to say that it does.
const OBEY_WITHIN: Duration = Duration::from_secs(2);

/// A session that is being opened.
pub(super) struct Opening {
    /// The connection.
    pub(super) channel: Channel,
    /// To the agent.
    pub(super) sender: mpsc::Sender<OpenRequest>,
    /// From the agent.
    pub(super) stream: Streaming<OpenResponse>,
    /// Revision of the store that it was told.
    pub(super) revision: u64,
}

/// A process that has just said who it is.
struct Spoken {
    opening: Opening,
    hello: AgentHello,
    claimant: Claimant,
}

// === impl Links ===

impl Links {
    /// Connects to an agent and opens a session with it.
    pub(super) async fn open(&self, node: &NodeName, address: &str) -> Result<Opening, String> {
        let coordinator_id = self.identity.identity().coordinator_id;
        let expected = Identity { coordinator_id: coordinator_id.clone(), principal: Principal::Node(node.clone()) };
        let (dialer, identity) = (Arc::clone(&self.dialer), Some(self.identity.clone()));
        let expected = ExpectedServer::Identity(expected);
        let channel = transport::connect_through(dialer, address, identity, expected).await;
        let channel = channel.map_err(|error| ErrorChain(&error).to_string())?;
        let (sender, receiver) = mpsc::channel(16);
        let revision = self.store.revision().await.map_err(|error| ErrorChain(&error).to_string())?.0;
        let hello = ToAgent::Hello(CoordinatorHello {
            coordinator_id,
            term: self.term,
            revision,
            heartbeat_millis: u32::try_from(self.heartbeat.as_millis()).unwrap_or(u32::MAX),
        });
        for message in [hello, self.revocations()] {
            sender.try_send(OpenRequest { message: Some(message) }).expect("the channel holds 16");
        }
        let mut client = SessionServiceClient::new(channel.clone());
        let answer = client.open(ReceiverStream::new(receiver)).await;
        let stream = answer.map_err(|status| super::link::describe(&status))?.into_inner();
        Ok(Opening { channel, sender, stream, revision })
    }

    /// Finds out whether an agent that announces itself at another address than the session's is its process's successor. Why it is
    /// refused, when it is not.
    pub async fn contest(&self, node: &NodeName, address: &str, incarnation: &str) -> Option<String> {
        let view = self.table().view(node);
        let incumbent_at = view.address.clone();
        let other = view.connected && !view.incarnation.is_empty() && view.incarnation != incarnation;
        if !other || incarnation.is_empty() || incumbent_at == address {
            return None;
        }
        let newcomer = self.speak(node, address).await;
        // Asked after the newcomer has answered: what it says now it did not say before.
        let incumbent = self.speak(node, &incumbent_at).await.ok();
        let mut incumbent = incumbent.filter(|spoken| spoken.claimant.incarnation == view.incarnation)?;
        let mut newcomer = match newcomer {
            Ok(newcomer) if newcomer.claimant.incarnation == incarnation => newcomer,
            Ok(_) | Err(_) => {
                return Some(format!(
                    "an agent at {incumbent_at} speaks for node {node}, and the one that announces itself does not answer at \
                     {address}; nothing was changed"
                ));
            }
        };
        let twice = self.claimants(node, |claimants| {
            claimants.hear(incumbent.claimant.clone());
            claimants.hear(newcomer.claimant.clone());
            claimants.hear(incumbent.claimant.clone())
        })?;
        let sentence = self.note_twice(node, &twice);
        if twice.stays.incarnation == incarnation {
            incumbent.keep_out(sentence).await;
            self.displace(node);
            return None;
        }
        newcomer.keep_out(sentence.clone()).await;
        Some(sentence)
    }

    /// Keeps what is known of a process that is refused, for people.
    pub(super) fn note_twice(&self, node: &NodeName, twice: &Twice) -> String {
        let sentence = twice.sentence(node);
        let known = self.table().view(node).rival.is_some_and(|rival| {
            rival.twice.goes.incarnation == twice.goes.incarnation
                && rival.twice.stays.incarnation == twice.stays.incarnation
        });
        if !known {
            tracing::error!(%node, "IDENTITY_TWICE: {sentence}");
        }
        let rival = Rival { twice: twice.clone(), heard_at: self.clock.wall(), heard: self.clock.boottime() };
        self.table().update(node, |view| view.rival = Some(rival));
        sentence
    }

    /// Has the process at an address say who it is.
    async fn speak(&self, node: &NodeName, address: &str) -> Result<Spoken, String> {
        let asking = async {
            let mut opening = self.open(node, address).await?;
            let mut hello = None;
            loop {
                match opening.next().await? {
                    Some(FromAgent::Hello(said)) => hello = Some(said),
                    Some(FromAgent::Heartbeat(heartbeat)) => {
                        let hello = hello.take().ok_or("it says nothing of itself")?;
                        let claimant = claimant(&hello, address, &heartbeat);
                        return Ok(Spoken { opening, hello, claimant });
                    }
                    None => {}
                }
            }
        };
        tokio::time::timeout(ANSWER_WITHIN, asking)
            .await
            .unwrap_or_else(|_| Err("it does not answer in time".to_owned()))
    }
}

/// Who speaks, by his first words.
pub(super) fn claimant(hello: &AgentHello, address: &str, heartbeat: &Heartbeat) -> Claimant {
    let seen = heartbeat.member.clone().and_then(|member| Observation::try_from(member).ok());
    Claimant {
        incarnation: hello.incarnation.clone(),
        boot_id: hello.boot_id.clone(),
        address: address.to_owned(),
        holds_lease: seen.is_some_and(|seen| seen.authority.lease.is_some_and(|lease| lease.stands)),
    }
}

// === impl Opening ===

impl Opening {
    /// The next message; why there is none.
    async fn next(&mut self) -> Result<Option<FromAgent>, String> {
        match self.stream.message().await {
            Err(status) => Err(super::link::describe(&status)),
            Ok(None) => Err("the agent ended the session".to_owned()),
            Ok(Some(OpenResponse { message })) => Ok(message),
        }
    }

    /// Sends a message; one that finds no room is lost with the session, which is breaking.
    pub(super) fn send(&self, message: ToAgent) {
        let _ = self.sender.try_send(OpenRequest { message: Some(message) });
    }
}

// === impl Spoken ===

impl Spoken {
    /// Tells the process to keep itself out, and waits a moment until it says that it does. A spare has nothing to keep out of.
    async fn keep_out(&mut self, why: String) {
        let kept_out = KeptOut { mark: mark_of(self.hello.ledger.as_ref()), why };
        let Some(word) = kept_out.word() else { return };
        self.opening.send(ToAgent::Quarantine(word));
        let obeyed = async {
            loop {
                match self.opening.next().await {
                    Ok(Some(FromAgent::Heartbeat(heartbeat))) if heartbeat.quarantine.is_empty() => {}
                    Ok(Some(FromAgent::Hello(_)) | None) => {}
                    Ok(Some(FromAgent::Heartbeat(_))) | Err(_) => return,
                }
            }
        };
        // One that does not obey in time is told again when it announces itself again.
        let _ = tokio::time::timeout(OBEY_WITHIN, obeyed).await;
    }
}
