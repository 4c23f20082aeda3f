//! Operations: every change is a linear list of steps, persisted before each begins and after each ends.
//!
//! **Adding an operation** is one file in [`kinds`], copied from a neighbour, and one line in [`KINDS`]. The generic tests
//! (each step twice, failure at each step, crash at each step) then run over it.
//!
//! A [`Kind`] says which steps there are and what each does through its [`StepContext`]; the [`executor`] persists,
//! resumes and unwinds. A step must be idempotent: after a crash of the coordinator it is run again, and every call that it
//! makes to an agent is answered from the agent's ledger when it had been carried out already (rule T1).

use async_trait::async_trait;
use regent_common::error::Reason;
use serde_json::Value;

use crate::model::{
    cluster::ClusterRecord,
    operation::{OperationRecord, PlannedStep},
};

pub mod context;
pub mod executor;
pub mod kinds;
pub mod log;
pub mod parameters;
pub mod retention;

pub use context::StepContext;

/// Every kind of operation. The one place that lists them.
pub const KINDS: &[&dyn Kind] = &[
    &kinds::create_cluster::CreateCluster,
    &kinds::adopt_cluster::AdoptCluster,
    &kinds::add_member::AddMember,
    &kinds::remove_member::RemoveMember,
    &kinds::failover::Failover,
    &kinds::promote::Promote,
    &kinds::rejoin::Rejoin,
    &kinds::resync::Resync,
    &kinds::compare::Compare,
    &kinds::configure::Configure,
    &kinds::set_allow_list::SetAllowList,
    &kinds::delete_cluster::DeleteCluster,
];

/// Finds a kind by its name.
pub fn kind(name: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}

/// One kind of operation.
#[async_trait]
pub trait Kind: Sync {
    /// Name, as it stands in the store, on the wire and in failpoints.
    fn name(&self) -> &'static str;

    /// The steps for this cluster and these parameters. Pure.
    fn plan(&self, cluster: &ClusterRecord, parameters: &Value) -> Vec<PlannedStep>;

    /// Changes the stored cluster in the same commit that creates the operation; here the epoch is raised where the kind does
    /// so. Pure. The executor has raised the token already.
    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value);

    /// Carries out one step.
    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError>;

    /// Takes the effects of a step back; called for steps before the point of no return, last first, the failed one
    /// included. The default has nothing to take back.
    async fn undo(&self, _step: &PlannedStep, _context: &StepContext<'_>) -> Result<(), StepError> {
        Ok(())
    }

    /// Changes the stored cluster in the commit that ends an operation which has failed or was cancelled, so that what is
    /// stored is true again and the planner sees what is left to do. Pure.
    /// `undone` says whether [`Kind::undo`] was called for the steps that had begun.
    fn abandon(&self, cluster: &mut ClusterRecord, operation: &OperationRecord, undone: bool, why: &str) -> Aftermath;

    /// Whether a failover may end this operation in the middle; what it leaves is then mended by the planner.
    fn yields_to_failover(&self) -> bool;

    /// Whether a failure or a person's cancellation undoes the finished steps before the point of no return. A failover never
    /// waits for that.
    fn undoes(&self) -> bool {
        !self.yields_to_failover()
    }

    /// Whether only a cluster of two sides that both take writes knows it.
    fn is_of_pairs_only(&self) -> bool {
        false
    }

    /// Whether it is begun again by itself when one that Regent has begun has failed.
    fn is_tried_again(&self) -> bool {
        false
    }

    /// Whether a person may cancel it before its point of no return.
    fn cancellable(&self) -> bool;

    /// The event that tells the platform that it ended well, such as "FAILOVER_SUCCEEDED" without the suffix.
    fn event(&self) -> &'static str;
}

/// What becomes of the cluster's record when its operation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aftermath {
    /// It stays.
    Keep,
    /// It is removed, and its nodes are spares again.
    Remove,
}

/// A change of the stored cluster; may be applied more than once.
pub type Change = Box<dyn Fn(&mut ClusterRecord) + Send + Sync>;

/// What a step brought.
#[derive(Default)]
pub struct StepDone {
    /// For later steps.
    pub output: Value,
    /// What it did, a sentence each, for people.
    pub report: Vec<String>,
    /// Change of the stored cluster, in the same commit as the step's success. May be applied more than once.
    pub change: Option<Change>,
    /// Remove the cluster in that commit (only the last step of a deletion).
    pub remove_cluster: bool,
}

/// Why a step cannot do what it should. Transient trouble is retried inside the step; this is final.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// Reason from the table of reasons.
    pub reason: Reason,
    /// What happened, to what, what is unchanged, what to do.
    pub message: String,
}

// === impl StepDone ===

impl StepDone {
    /// A step that brought nothing for later ones.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a sentence for people.
    #[must_use]
    pub fn say(mut self, sentence: impl Into<String>) -> Self {
        self.report.push(sentence.into());
        self
    }

    /// Adds what later steps need.
    #[must_use]
    pub fn output(mut self, output: &impl serde::Serialize) -> Self {
        self.output = serde_json::to_value(output).expect("outputs are plain data");
        self
    }

    /// Adds a change of the stored cluster.
    #[must_use]
    pub fn change(mut self, change: impl Fn(&mut ClusterRecord) + Send + Sync + 'static) -> Self {
        self.change = Some(Box::new(change));
        self
    }
}

// === impl StepError ===

impl StepError {
    /// A failure with its reason.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

#[cfg(test)]
mod generic_tests;
