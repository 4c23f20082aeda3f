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
    ids::{ClusterId, MemberName, NodeName, Revision},
    position::Position,
    topology::{EngineOffer, HostFacts, Observation, Progress},
};
use regent_proto::agent::v1::{
    Action, AgentHello, CheckAllowListRequest, CheckAllowListResponse, CheckSettingsRequest, Job, StepHeader,
    StepResult, SurveyInstancesResponse,
};
use tokio::sync::{broadcast, watch};

use self::{
    identity::{KeptOut, Mark, Rival},
    trail::Trail,
};
use crate::model::shown::Shown;

pub mod contest;
#[cfg(test)]
pub(crate) mod double;
pub mod identity;
pub mod joiner;
pub mod link;
pub mod reaper;
pub mod tls;
pub mod trail;

/// The last word of a node.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NodeView {
    /// Whether a session stands and has brought a heartbeat: then all that is said of the member below is of this session.
    pub connected: bool,
    /// When it was last heard, by the coordinator's CLOCK_BOOTTIME.
    pub last_contact: Option<Duration>,
    /// The same in wall time, for display.
    pub last_contact_wall: Option<Timestamp>,
    /// Version of its agent.
    pub agent_version: String,
    /// Boot id of its kernel.
    pub boot_id: String,
    /// Names its process; empty for an agent that does not say.
    pub incarnation: String,
    /// Where its session's agent is reached.
    pub address: String,
    /// Why its own ledger says that it is in quarantine; empty when it is not (rule T5).
    pub quarantine: String,
    /// Why this coordinator keeps it out (rule T5).
    pub kept_out: Option<KeptOut>,
    /// A second process that speaks for it, and is refused.
    pub rival: Option<Rival>,
    /// The most that its ledger has shown, in any session with this coordinator.
    pub shown: Option<Mark>,
    /// Highest revision of a store that it has seen.
    pub revision: Revision,
    /// Whether it has seen a newer store than this one (rule T4).
    pub stale_store: bool,
    /// Engines that it can run.
    pub engines: Vec<EngineOffer>,
    /// Whether an allow-list can be in force on it.
    pub allow_list: AllowListAbility,
    /// State of its member; `None` for a spare, or before it was heard.
    pub observation: Option<Observation>,
    /// Last position that its member reported, kept when the engine no longer answers (rule P4).
    pub last_position: Option<(ClusterId, Position)>,
    /// Positions that its member reported of late (rule M3).
    pub trail: Trail,
    /// Facts of its machine.
    pub host: Option<HostFacts>,
    /// Steps that run on it.
    pub jobs: Vec<JobView>,
    /// Why there is no session; empty when there is one.
    pub problem: String,
}

/// Whether an allow-list can be in force on a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AllowListAbility {
    /// It was not heard yet.
    #[default]
    Unknown,
    /// It can.
    Able,
    /// It cannot: why, and what to do.
    Unable(String),
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

    /// The last word of every node that says it is a member of this cluster, whatever the store says of it.
    fn members_of(&self, cluster: &ClusterId) -> BTreeMap<NodeName, NodeView>;

    /// Has a node's agent ask the engine's own program whether it would take these settings; changes nothing.
    async fn check_settings(&self, node: &NodeName, wanted: CheckSettingsRequest) -> Result<(), AgentError>;

    /// Has a node's agent say whose connections an allow-list would cut; changes nothing.
    async fn check_allow_list(
        &self,
        node: &NodeName,
        wanted: CheckAllowListRequest,
    ) -> Result<CheckAllowListResponse, AgentError>;

    /// Has a node's agent look for instances of engines that run on it and are no member of anything; changes nothing.
    async fn survey_instances(&self, node: &NodeName) -> Result<SurveyInstancesResponse, AgentError>;

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

// === impl NodeView ===

impl NodeView {
    /// Whether it is the machine of this boot.
    pub fn is_boot(&self, boot_id: &str) -> bool {
        self.host.as_ref().map_or(&self.boot_id, |host| &host.boot_id) == boot_id
    }

    /// A session has opened. The node counts as heard with its first heartbeat, not before: what is known of its member is of
    /// before the silence, and a primary that others have endorsed since would look as if nobody did.
    pub fn greeted(&mut self, hello: AgentHello) {
        self.allow_list = match hello.allow_list {
            None => {
                let version = &hello.version;
                AllowListAbility::Unable(format!("its agent, version {version}, knows of no allow-lists: upgrade it"))
            }
            Some(ability) if ability.problem.is_empty() => AllowListAbility::Able,
            Some(ability) => AllowListAbility::Unable(ability.problem),
        };
        self.agent_version = hello.version;
        self.boot_id = hello.boot_id;
        self.incarnation = hello.incarnation;
        self.revision = Revision(hello.revision);
        self.stale_store = hello.stale_store;
        self.engines = hello.engines.into_iter().map(EngineOffer::from).collect();
    }

    /// It is known now who speaks in this session: its ledger before its hello, the revision that the hello left in it, and
    /// why it is kept out.
    pub fn judged(&mut self, mark: Option<Mark>, revision: Revision, kept_out: Option<KeptOut>) {
        if let Some(Mark { cluster_id, member, shown }) = mark {
            self.show(cluster_id, member, Shown { revision, ..shown });
        }
        self.kept_out = kept_out;
    }

    /// Why nothing is granted to it and nothing relied on (rule T5); `None` when it is to be believed.
    pub fn quarantine(&self) -> Option<&str> {
        let own = Some(self.quarantine.as_str()).filter(|own| !own.is_empty());
        self.kept_out.as_ref().map(|kept_out| kept_out.why.as_str()).or(own)
    }

    /// Whether it is kept out, with this word of it. A ledger with a higher token than it was kept out with was brought back by a
    /// step: in quarantine no other is carried out.
    fn keeps_out(&self, seen: Option<&Observation>) -> bool {
        let Some(kept_out) = &self.kept_out else { return false };
        match (&kept_out.mark, seen) {
            (Some(mark), Some(seen)) => seen.cluster_id == mark.cluster_id && seen.token <= mark.shown.token,
            (Some(_), None) | (None, Some(_)) => false,
            (None, None) => true,
        }
    }

    /// Keeps the most that its ledger has shown as this member.
    fn show(&mut self, cluster_id: ClusterId, member: MemberName, shown: Shown) {
        let known = self.shown.take().filter(|known| (known.cluster_id, &known.member) == (cluster_id, &member));
        let shown = known.map_or(shown, |known| known.shown.max(shown));
        self.shown = Some(Mark { cluster_id, member, shown });
    }

    /// A heartbeat has come, at this time of the coordinator's CLOCK_BOOTTIME.
    pub fn heard(&mut self, at: Duration, observation: Option<Observation>) {
        if !self.keeps_out(observation.as_ref()) {
            self.kept_out = None;
        }
        self.connected = true;
        self.problem = String::new();
        self.last_contact = Some(at);
        // Of one in quarantine it would be a lower one than it had (rules T5, P4).
        if let Some(seen) = observation.as_ref().filter(|_| self.quarantine().is_none())
            && let Some(position) = &seen.engine.position
        {
            if self.last_position.as_ref().is_some_and(|(cluster, _)| *cluster != seen.cluster_id) {
                self.trail.clear();
            }
            self.trail.add(at.saturating_sub(seen.observed_ago), position.clone(), at);
            self.last_position = Some((seen.cluster_id, position.clone()));
        }
        if let Some(seen) = &observation {
            let shown = Shown { epoch: seen.epoch, token: seen.token, ..Shown::default() };
            self.show(seen.cluster_id, seen.member.clone(), shown);
        }
        self.observation = observation;
    }

    /// How far its member is behind the `primary`, in positions of its log: behind what that had when this one was last looked at.
    /// What it has written since then, a look and a heartbeat later, would make a busy primary look as if nobody kept up with it.
    pub fn lag_behind(&self, primary: &Self) -> Option<u64> {
        let seen = self.observation.as_ref()?;
        let own = seen.engine.position.as_ref()?;
        let looked = self.last_contact?.saturating_sub(seen.observed_ago);
        Some(primary.trail.at(looked)?.minus(own).amount())
    }

    /// There is no session any more, or it could not be opened.
    pub fn lost(&mut self, problem: String) {
        self.connected = false;
        self.problem = problem;
    }
}

// === impl JobView ===

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        let progress = job.progress.map(Progress::from).unwrap_or_default();
        Self { operation: job.operation, step: job.step, progress }
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        detector::succession,
        model::reign::Reign,
        planner::fixtures::{cluster, name, observation},
    };

    /// Regression: a coordinator that had been cut off from all three found one of them again, took what that one had said
    /// before the cut (no promise, no lease heard of) for its word of now, and failed over a primary that served.
    #[test]
    fn a_node_whose_session_has_just_opened_again_says_nothing_yet() {
        let mut view = NodeView::default();
        view.heard(Duration::from_secs(1), Some(observation(name(2))));
        view.lost("the connection broke".to_owned());
        view.greeted(AgentHello::default());
        let mut record = cluster();
        record.reign = Some(Reign::new(record.epoch, name(1), [name(2)].into(), true));
        let free = |view: &NodeView, now| {
            let views = BTreeMap::from([(name(2), view.clone())]);
            succession::gather(&record, &views, Duration::ZERO, now).free
        };
        assert_eq!(free(&view, Duration::from_secs(10)), [].into());
        assert!(!view.connected && view.last_contact == Some(Duration::from_secs(1)));
        view.heard(Duration::from_secs(10), Some(observation(name(2))));
        assert_eq!(free(&view, Duration::from_secs(10)), [name(2)].into());
    }
}
