//! The stored record of an operation. Its progress is not here: that is the log ([`crate::operation::log`]).

use jiff::Timestamp;
use regent_common::ids::{ClusterId, ClusterName, MemberName, OperationId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::audit::SELF;

/// An operation as it is stored, written once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Id.
    pub id: OperationId,
    /// Name of the kind; one of [`crate::operation::KINDS`].
    pub kind: String,
    /// Cluster.
    pub cluster: ClusterName,
    /// Its id, so that a cluster made again under the same name is not touched.
    pub cluster_id: ClusterId,
    /// What was asked for, in the kind's own form.
    pub parameters: Value,
    /// The steps, in order.
    pub steps: Vec<PlannedStep>,
    /// Who asked for it; [`SELF`] for its own decisions.
    pub created_by: String,
    /// Why it was begun.
    pub reason: String,
    /// When it was asked for.
    pub created_at: Timestamp,
}

/// A step of an operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// Name, from the kind.
    pub name: String,
    /// Members that it works on.
    pub members: Vec<MemberName>,
    /// From the start of this step on, the operation only goes forward.
    pub point_of_no_return: bool,
}

// === impl OperationRecord ===

impl OperationRecord {
    /// Whether Regent began it by itself.
    pub fn is_automatic(&self) -> bool {
        self.created_by == SELF
    }
}

// === impl PlannedStep ===

impl PlannedStep {
    /// A step that can be undone.
    pub fn new(name: &str, members: impl IntoIterator<Item = MemberName>) -> Self {
        Self { name: name.to_owned(), members: members.into_iter().collect(), point_of_no_return: false }
    }

    /// Makes this the step from which on the operation only goes forward.
    #[must_use]
    pub fn no_return(mut self) -> Self {
        self.point_of_no_return = true;
        self
    }
}
