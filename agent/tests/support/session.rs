//! The coordinator's side of the agent's services, for tests: steps with their headers, and a session that shows what is
//! pushed and sends whatever a test wants to have sent.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a module of test binaries, each of which uses a part of it"
)]

use prost::Message;
use regent_proto::agent::v1::{
    self as wire, CoordinatorHello, ExecuteRequest, HeartbeatAnswer, OpenRequest, StepHeader, execute_response::Event,
    open_request, open_response, session_service_client::SessionServiceClient, step_service_client::StepServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use crate::support::{
    cluster_id, operation,
    wire::{Agent, INSTALLATION},
    within,
};

/// Peers as the coordinator would name them: where the agents of this test really are.
pub fn spec_of(agents: &[&Agent]) -> wire::ClusterSpec {
    let members = agents.iter().enumerate().map(|(index, agent)| peer_of(index, agent)).collect();
    wire::ClusterSpec {
        allow_list: Vec::new(),
        access_rules: String::new(),
        mode: String::new(),
        tls: false,
        cluster: "db".to_owned(),
        engine: "test".to_owned(),
        version: String::new(),
        members,
        settings: Default::default(),
        secrets: [("replication".to_owned(), "hush".to_owned())].into(),
    }
}

pub fn peer_of(index: usize, agent: &Agent) -> wire::Peer {
    wire::Peer {
        member: format!("db{}", index + 1),
        node: agent.node.name.to_string(),
        engine: Some(regent_proto::types::v1::Endpoint { host: "127.0.0.1".to_owned(), port: 7777 }),
        agent_address: agent.address.clone(),
    }
}

pub fn request(member: &str, epoch: u64, token: u64, step: &str, action: wire::action::Action) -> ExecuteRequest {
    let action = wire::Action { action: Some(action) };
    let digest = regent_agent::ledger::Digest::of(&action.encode_to_vec()).as_bytes().to_vec();
    let header = StepHeader {
        cluster_id: cluster_id().to_string(),
        member: member.to_owned(),
        epoch,
        token,
        operation: operation().to_string(),
        step: step.to_owned(),
        digest,
        revision: 3,
    };
    ExecuteRequest { header: Some(header), action: Some(action) }
}

pub async fn execute(
    channel: &Channel,
    request: ExecuteRequest,
) -> Result<(Vec<wire::ExecuteResponse>, wire::StepResult), Status> {
    let mut stream = within(StepServiceClient::new(channel.clone()).execute(request)).await?.into_inner();
    let mut before = Vec::new();
    loop {
        match within(stream.message()).await?.expect("the stream ends with a result") {
            wire::ExecuteResponse { event: Some(Event::Result(result)) } => return Ok((before, result)),
            other => before.push(other),
        }
    }
}

pub fn hello(revision: u64) -> OpenRequest {
    let hello = CoordinatorHello {
        coordinator_id: INSTALLATION.to_owned(),
        term: 1,
        revision,
        // Longer than any test waits: what arrives sooner was pushed.
        heartbeat_millis: 60_000,
    };
    OpenRequest { message: Some(open_request::Message::Hello(hello)) }
}

pub struct Session {
    pub out: mpsc::Sender<OpenRequest>,
    pub answers: Streaming<wire::OpenResponse>,
}

impl Session {
    pub async fn open(channel: &Channel, first: OpenRequest) -> Self {
        let (out, requests) = mpsc::channel(4);
        out.send(first).await.unwrap();
        let answers = within(SessionServiceClient::new(channel.clone()).open(ReceiverStream::new(requests))).await;
        Self { out, answers: answers.unwrap().into_inner() }
    }

    pub async fn next(&mut self) -> Result<open_response::Message, Status> {
        let message = within(self.answers.message()).await?.expect("the session goes on");
        Ok(message.message.expect("a message"))
    }

    pub async fn heartbeat(&mut self) -> wire::Heartbeat {
        match self.next().await.unwrap() {
            open_response::Message::Heartbeat(heartbeat) => heartbeat,
            open_response::Message::Hello(_) => panic!("a second hello"),
        }
    }

    /// Waits for a heartbeat of that kind.
    pub async fn until(&mut self, fits: impl Fn(&wire::Heartbeat) -> bool) -> wire::Heartbeat {
        loop {
            let heartbeat = self.heartbeat().await;
            if fits(&heartbeat) {
                return heartbeat;
            }
        }
    }

    pub async fn answer(&self, answer: HeartbeatAnswer) {
        let message = Some(open_request::Message::Answer(answer));
        self.out.send(OpenRequest { message }).await.unwrap();
    }
}
