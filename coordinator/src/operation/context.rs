//! What a step sees, and how it acts on members: every call carries the epoch, the token and a key that makes it safe to
//! send twice (rule T1).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use prost::Message;
use regent_common::{
    error::Reason,
    ids::{Epoch, MemberName, NodeName, OperationToken, Revision},
    topology::{ClusterSpec, EngineState, Peer, Progress},
};
use regent_proto::agent::v1::{Action, StepHeader, StepResult, action::Action as Kind};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::{StepError, parameters};
use crate::{
    cluster::ClusterHandle,
    environment::Environment,
    model::{cluster::ClusterRecord, operation::OperationRecord, shown::Shown},
    nodes::{AgentError, NodeView, StepCall},
};

/// Pause between two tries to reach an agent.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How long a call waits for an agent that cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// As long as it takes: only the operation's cancellation ends it.
    Forever,
    /// At most so long, without the time that the step itself runs on the agent.
    AtMost(Duration),
}

/// What a step sees.
pub struct StepContext<'a> {
    pub(super) environment: &'a Environment,
    pub(super) cluster: &'a ClusterHandle,
    pub(super) operation: &'a OperationRecord,
    pub(super) index: usize,
    pub(super) token: OperationToken,
    pub(super) outputs: BTreeMap<String, serde_json::Value>,
    pub(super) progress: watch::Sender<Progress>,
    /// What members' ledgers have shown by their answers; stored with the step's end (rule T5).
    pub(super) shown: Arc<Mutex<BTreeMap<MemberName, Shown>>>,
    /// "" going forward, "undo-" unwinding: an undo has keys of its own.
    pub(super) prefix: &'static str,
}

// === impl StepContext ===

impl StepContext<'_> {
    /// The stored cluster, as of now.
    pub fn cluster(&self) -> Result<Arc<ClusterRecord>, StepError> {
        self.cluster.record().ok_or_else(|| {
            StepError::new(Reason::ClusterNotFound, format!("cluster {} no longer exists", self.cluster.name()))
        })
    }

    /// The operation.
    pub fn operation(&self) -> &OperationRecord {
        self.operation
    }

    /// The operation's parameters.
    pub fn parameters<T: DeserializeOwned>(&self) -> T {
        parameters::read(&self.operation.parameters)
    }

    /// What an earlier step brought.
    pub fn output<T: DeserializeOwned>(&self, step: &str) -> Result<T, StepError> {
        let value = self.outputs.get(step).cloned().unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|error| StepError::new(Reason::Internal, format!("output of step {step} cannot be read: {error}")))
    }

    /// What everything around needs: clock, store, secrets.
    pub fn environment(&self) -> &Environment {
        self.environment
    }

    /// The last word of a member's node.
    pub fn view(&self, member: &MemberName) -> Result<NodeView, StepError> {
        Ok(self.environment.agents.view(&self.node_of(member)?))
    }

    /// The last word of a member's node, waited for while this coordinator, just started, still dials it: having heard nobody
    /// says nothing of anybody. A node that was heard before, or whose dial has failed, is not waited for; what comes back
    /// may be silence.
    pub async fn heard(&self, member: &MemberName, limit: Duration) -> Result<NodeView, StepError> {
        let node = self.node_of(member)?;
        let began = self.environment.clock.boottime();
        loop {
            let view = self.environment.agents.view(&node);
            let dialling = view.last_contact.is_none() && view.problem.is_empty();
            let waited = self.environment.clock.boottime().saturating_sub(began);
            if !dialling || waited >= limit {
                return Ok(view);
            }
            self.environment.agents.wait_for_change(&node, RETRY_PAUSE).await;
        }
    }

    /// Waits until the primary has acknowledged the newest electorate (rule M1), at most so long; whether it has.
    pub async fn electorate_acknowledged(&self, limit: Option<Duration>) -> Result<bool, StepError> {
        let began = self.environment.clock.boottime();
        loop {
            let cluster = self.cluster()?;
            let Some(reign) = cluster.reign.as_ref().filter(|reign| !reign.is_acknowledged()) else { return Ok(true) };
            let wanted = reign.newest().version;
            let seen = self.view(&reign.primary)?.observation.filter(|seen| seen.epoch == reign.epoch);
            let said = seen.and_then(|seen| seen.authority.electorate).map(|electorate| electorate.version);
            if said == Some(wanted) {
                // The cluster's own look counts it as well; whoever comes second changes nothing.
                let (epoch, index) = (reign.epoch, self.index);
                let stored = self.cluster.change(|record| {
                    if let Some(reign) = record.reign.as_mut().filter(|reign| reign.epoch == epoch) {
                        reign.acknowledge(wanted);
                    }
                    Ok(crate::store::Transaction::default())
                });
                stored.await.map_err(|error| {
                    StepError::new(
                        Reason::Internal,
                        format!("step {index}: the electorate could not be stored: {error}"),
                    )
                })?;
                return Ok(true);
            }
            let waited = self.environment.clock.boottime().saturating_sub(began);
            if limit.is_some_and(|limit| waited >= limit) {
                return Ok(false);
            }
            let node = self.node_of(&reign.primary)?;
            self.environment.agents.wait_for_change(&node, RETRY_PAUSE).await;
        }
    }

    /// Waits until the engines of these members are seen to run in the role that the record gives them, at most so long: what was seen
    /// of them before a step must not be what the planner decides by after it.
    pub async fn seen_running(&self, members: &[MemberName], limit: Duration) -> Result<(), StepError> {
        let began = self.environment.clock.boottime();
        for member in members {
            loop {
                let cluster = self.cluster()?;
                let seen = self.view(member)?.observation;
                let seen = seen.filter(|seen| seen.cluster_id == cluster.id && seen.member == *member);
                let engine = seen.map(|seen| seen.engine);
                let role = Some(cluster.role_of(member));
                if engine.as_ref().is_some_and(|engine| engine.state == EngineState::Running && engine.role == role) {
                    break;
                }
                let waited = self.environment.clock.boottime().saturating_sub(began);
                if waited >= limit {
                    let why = engine.map_or_else(|| "its agent was not heard".to_owned(), |engine| engine.reason);
                    let message = format!("the engine of {member} is not seen to run in its role: {why}");
                    return Err(StepError::new(Reason::EngineFailed, message));
                }
                self.environment.agents.wait_for_change(&self.node_of(member)?, RETRY_PAUSE).await;
            }
        }
        Ok(())
    }

    /// A member as its peers see it.
    pub fn peer(&self, member: &MemberName) -> Result<Peer, StepError> {
        let cluster = self.cluster()?;
        self.environment
            .peer(&cluster, member)
            .ok_or_else(|| StepError::new(Reason::MemberNotFound, format!("the endpoint of {member} is not known")))
    }

    /// What every member applies, by the stored topology.
    pub fn spec(&self) -> Result<ClusterSpec, StepError> {
        let cluster = self.cluster()?;
        self.environment.spec(&cluster).map_err(|error| StepError::new(Reason::Internal, error.to_string()))
    }

    /// Has one member do one action. Waits for an agent that cannot be reached as long as `patience` says.
    pub async fn call(&self, member: &MemberName, action: Kind, patience: Patience) -> Result<StepResult, StepError> {
        self.call_watched(member, action, patience, &self.progress).await
    }

    /// Has several members do the same kind of action at once; one result each.
    pub async fn call_all(
        &self,
        members: &[MemberName],
        patience: Patience,
        action: impl Fn(&MemberName) -> Kind,
    ) -> Vec<(MemberName, Result<StepResult, StepError>)> {
        join_all(members.iter().map(|member| {
            let action = action(member);
            async move { (member.clone(), self.call(member, action, patience).await) }
        }))
        .await
    }

    async fn call_watched(
        &self,
        member: &MemberName,
        action: Kind,
        patience: Patience,
        progress: &watch::Sender<Progress>,
    ) -> Result<StepResult, StepError> {
        let node = self.node_of(member)?;
        let label = action_label(&action);
        let action = Action { action: Some(action) };
        let cluster = self.cluster()?;
        let header = StepHeader {
            cluster_id: cluster.id.to_string(),
            member: member.to_string(),
            epoch: cluster.epoch.0,
            token: self.token.0,
            operation: self.operation.id.to_string(),
            step: format!("{}{}-{}-{}", self.prefix, self.index, self.operation.steps[self.index].name, label),
            digest: digest(&action),
            revision: self.environment.revision().await.0,
        };
        // An answer proves that the ledger has these; a release leaves none.
        let leaves = matches!(action.action, Some(Kind::Release(_)));
        let (epoch, token, revision) = (Epoch(header.epoch), self.token, Revision(header.revision));
        let shown = Shown { epoch, token, revision, electorate: None };
        let call = StepCall { header, action };
        let began = self.environment.clock.boottime();
        loop {
            match self.environment.agents.execute(&node, call.clone(), progress).await {
                Ok(result) => {
                    if !leaves {
                        let mut all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
                        let known = all.entry(member.clone()).or_default();
                        *known = known.max(shown);
                    }
                    return Ok(result);
                }
                Err(AgentError::Refused { reason, message, node }) => {
                    return Err(StepError::new(reason, format!("{label} on {member} ({node}): {message}")));
                }
                Err(error @ AgentError::Unreachable { .. }) => {
                    let waited = self.environment.clock.boottime().saturating_sub(began);
                    if let Patience::AtMost(limit) = patience
                        && waited >= limit
                    {
                        return Err(StepError::new(Reason::NodeUnreachable, format!("{label} on {member}: {error}")));
                    }
                    tracing::debug!(%member, %error, "the agent cannot be reached, trying again");
                    self.environment.agents.wait_for_change(&node, RETRY_PAUSE).await;
                }
            }
        }
    }

    /// The epoch that this operation's calls carry.
    pub fn epoch(&self) -> Result<Epoch, StepError> {
        Ok(self.cluster()?.epoch)
    }

    fn node_of(&self, member: &MemberName) -> Result<NodeName, StepError> {
        let cluster = self.cluster()?;
        cluster.members.get(member).map(|record| record.node.clone()).ok_or_else(|| {
            StepError::new(Reason::MemberNotFound, format!("{member} is no member of cluster {}", cluster.name))
        })
    }
}

/// SHA-256 of the encoded action: the same content has the same digest (rule T1).
pub fn digest(action: &Action) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, &action.encode_to_vec()).as_ref().to_vec()
}

/// Name of an action, for step keys and people.
pub fn action_label(action: &Kind) -> &'static str {
    match action {
        Kind::Assign(_) => "assign",
        Kind::Configure(_) => "configure",
        Kind::Initialize(_) => "initialize",
        Kind::Clone(_) => "clone",
        Kind::Swap(_) => "swap",
        Kind::DiscardKept(_) => "discard-kept",
        Kind::Fence(_) => "fence",
        Kind::Prepare(_) => "prepare",
        Kind::Promote(_) => "promote",
        Kind::Follow(_) => "follow",
        Kind::Examine(_) => "examine",
        Kind::Rewind(_) => "rewind",
        Kind::Release(_) => "release",
        Kind::Checkpoint(_) => "checkpoint",
        Kind::Drain(_) => "drain",
        Kind::UndoDrain(_) => "undo-drain",
        Kind::Adopt(_) => "adopt",
        Kind::Activate(_) => "activate",
        Kind::Compare(_) => "compare",
        Kind::Refill(_) => "refill",
    }
}
