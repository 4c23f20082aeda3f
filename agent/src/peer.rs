//! What agents ask of each other: whether a copy is whole (rule T2). The asking side and the answering side.
//!
//! **Invariant:** the answer is about now: the engine is looked at for it, and it echoes the asker's nonce.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use regent_common::{
    error::{ErrorChain, Reason, bad_field, refuse},
    identity::{Identity, Principal},
    ids::{ClusterId, OperationToken},
    position::Position,
    tls::{ExpectedServer, ReloadingIdentity},
    topology::{EngineState, Peer},
    transport::{self, Dialer},
};
use regent_proto::agent::v1::{
    ConfirmWholeRequest, ConfirmWholeResponse, peer_service_client::PeerServiceClient, peer_service_server::PeerService,
};
use ring::rand::SecureRandom;
use tonic::{Request, Response, Status};

use crate::{access, ledger::Membership, node::Node, steps::Peers};

/// How long a peer may take to answer; looking at its engine included.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

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
        let cluster_id: ClusterId = cluster_id
            .parse()
            .map_err(|error: regent_common::ids::NameError| bad_field("cluster_id", error.to_string()))?;
        let Some(membership) = ledger.membership.as_ref().filter(|m| m.cluster_id == cluster_id) else {
            return Err(refuse(Reason::WrongCluster, format!("this node is not a member of cluster {cluster_id}")));
        };
        let position = whole(&self.0, membership, OperationToken(token))
            .await
            .map_err(|reason| refuse(Reason::CopyNotWhole, reason))?;
        Ok(Response::new(ConfirmWholeResponse { nonce, position: Some((&position).into()) }))
    }
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

// === impl PeerCalls ===

impl PeerCalls {
    async fn ask(&self, source: &Peer, question: ConfirmWholeRequest) -> Result<ConfirmWholeResponse, String> {
        let expected = ExpectedServer::Identity(Identity {
            coordinator_id: self.coordinator_id.clone(),
            principal: Principal::Node(source.node.clone()),
        });
        let (dialer, identity) = (Arc::clone(&self.dialer), Some(self.identity.clone()));
        let channel = transport::connect_through(dialer, &source.agent_address, identity, expected)
            .await
            .map_err(|error| ErrorChain(&error).to_string())?;
        let answer = PeerServiceClient::new(channel).confirm_whole(question).await;
        answer.map(Response::into_inner).map_err(|status| status.message().to_owned())
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
        let mut random = [0; 8];
        ring::rand::SystemRandom::new().fill(&mut random).map_err(|_| "the system has no random numbers".to_owned())?;
        let nonce = u64::from_le_bytes(random);
        let question = ConfirmWholeRequest { cluster_id: cluster_id.to_string(), token: token.0, nonce };
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.ask(source, question))
            .await
            .map_err(|_| format!("no answer from {} within {ANSWER_WITHIN:?}", source.agent_address))??;
        if answer.nonce != nonce {
            return Err("the answer is to another question".to_owned());
        }
        answer.position.map(Into::into).ok_or_else(|| "the answer names no position".to_owned())
    }
}
