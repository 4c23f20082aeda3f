//! What is heard from nodes, and how steps reach them.
//!
//! [`NodeTable`] holds the last word of every node; [`Agents`] is the seam through which operations act. The real one
//! ([`link`]) dials agents; tests and the simulation have others.
//!
//! **Invariant:** nothing here decides; silence is shown as silence, with its age.

use std::{collections::BTreeMap, sync::RwLock, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use regent_common::{
    error::Reason,
    ids::{ClusterId, NodeName, Revision},
    position::Position,
    topology::{EngineOffer, HostFacts, Observation, Progress},
};
use regent_proto::agent::v1::{Action, CheckSettingsRequest, StepHeader, StepResult};
use tokio::sync::{broadcast, watch};

pub mod joiner;
pub mod link;
pub mod reaper;

/// The last word of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeView {
    /// Whether a session stands.
    pub connected: bool,
    /// When it was last heard, by the coordinator's CLOCK_BOOTTIME.
    pub last_contact: Option<Duration>,
    /// The same in wall time, for display.
    pub last_contact_wall: Option<Timestamp>,
    /// Version of its agent.
    pub agent_version: String,
    /// Boot id of its kernel.
    pub boot_id: String,
    /// Highest revision of a store that it has seen.
    pub revision: Revision,
    /// Whether it has seen a newer store than this one (rule T4).
    pub stale_store: bool,
    /// Engines that it can run.
    pub engines: Vec<EngineOffer>,
    /// State of its member; `None` for a spare, or before it was heard.
    pub observation: Option<Observation>,
    /// Last position that its member reported, kept when the engine no longer answers (rule P4).
    pub last_position: Option<(ClusterId, Position)>,
    /// Facts of its machine.
    pub host: Option<HostFacts>,
    /// Steps that run on it.
    pub jobs: Vec<JobView>,
    /// Why there is no session; empty when there is one.
    pub problem: String,
}

/// A step that runs on a node.
#[derive(Debug, Clone, PartialEq)]
pub struct JobView {
    /// Id of the operation.
    pub operation: String,
    /// Key of the step.
    pub step: String,
    /// How far it has come.
    pub progress: Progress,
}

/// The last word of every node.
#[derive(Debug)]
pub struct NodeTable {
    views: RwLock<BTreeMap<NodeName, NodeView>>,
    changes: broadcast::Sender<NodeName>,
}

/// A call of one step on one node.
#[derive(Debug, Clone)]
pub struct StepCall {
    /// Who asks for what, and when.
    pub header: StepHeader,
    /// What to do.
    pub action: Action,
}

/// Why a step has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// The agent was not reached, or the call broke off: nobody knows whether the step runs.
    #[error("node {node} cannot be reached: {detail}")]
    Unreachable {
        /// The node.
        node: NodeName,
        /// What happened.
        detail: String,
    },
    /// The agent answered that it did not do it.
    #[error("node {node} answered: {message}")]
    Refused {
        /// The node.
        node: NodeName,
        /// Reason from the table of reasons.
        reason: Reason,
        /// The agent's own words.
        message: String,
    },
}

/// How operations act on nodes.
#[async_trait]
pub trait Agents: Send + Sync {
    /// The last word of a node; the default for one that was never heard.
    fn view(&self, node: &NodeName) -> NodeView;

    /// Has a node's agent ask the engine's own program whether it would take these settings; changes nothing.
    async fn check_settings(&self, node: &NodeName, wanted: CheckSettingsRequest) -> Result<(), AgentError>;

    /// Waits until something is heard of a node, at most so long.
    async fn wait_for_change(&self, node: &NodeName, at_most: Duration);

    /// Sends a step and waits for its result. Dropping the future leaves the step running on the node; the same call again
    /// joins it (rule T1).
    async fn execute(
        &self,
        node: &NodeName,
        call: StepCall,
        progress: &watch::Sender<Progress>,
    ) -> Result<StepResult, AgentError>;
}

// === impl NodeTable ===

impl Default for NodeTable {
    fn default() -> Self {
        Self { views: RwLock::default(), changes: broadcast::channel(1024).0 }
    }
}

impl NodeTable {
    /// The last word of a node.
    pub fn view(&self, node: &NodeName) -> NodeView {
        self.views.read().expect("no writer panics").get(node).cloned().unwrap_or_default()
    }

    /// All nodes that were heard or dialled.
    pub fn all(&self) -> BTreeMap<NodeName, NodeView> {
        self.views.read().expect("no writer panics").clone()
    }

    /// Changes what is known of a node, and tells who listens.
    pub fn update(&self, node: &NodeName, change: impl FnOnce(&mut NodeView)) {
        change(self.views.write().expect("no writer panics").entry(node.clone()).or_default());
        // Nobody listening is no error.
        let _ = self.changes.send(node.clone());
    }

    /// Forgets a node.
    pub fn remove(&self, node: &NodeName) {
        self.views.write().expect("no writer panics").remove(node);
    }

    /// Names of nodes whose view has changed.
    pub fn changes(&self) -> broadcast::Receiver<NodeName> {
        self.changes.subscribe()
    }
}
