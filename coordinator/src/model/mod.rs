//! What is stored, and only that: what people want, epochs, operation logs, identities. All else is recomputed.

use regent_common::ids::{ClusterId, ClusterName, Epoch, MemberName, OperationToken};
use serde::{Deserialize, Serialize};

pub mod certificate;
pub mod cluster;
pub mod node;
pub mod operation;
pub mod reign;
pub mod shown;
pub mod token;
pub mod user;

/// Which member a node is; its key is the node, so that a node is never in two clusters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Cluster.
    pub cluster: ClusterName,
    /// Member.
    pub member: MemberName,
}

/// What remains of a removed cluster, or of a member that has left: enough to empty a node that was away, and to never revive the
/// cluster there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tombstone {
    /// Id of the cluster.
    pub id: ClusterId,
    /// Its name then.
    pub name: ClusterName,
    /// Its last epoch.
    pub epoch: Epoch,
    /// Its last token.
    pub token: OperationToken,
    /// Whether the data stays on the nodes.
    pub keep_data: bool,
    /// Whether an instance that was taken over goes on as it was found.
    #[serde(default)]
    pub give_back: bool,
}

// === impl Tombstone ===

impl Tombstone {
    /// The tombstone of a cluster.
    pub fn of(record: &cluster::ClusterRecord) -> Self {
        Self {
            id: record.id,
            name: record.name.clone(),
            epoch: record.epoch,
            token: record.token,
            keep_data: record.keep_data_on_delete,
            give_back: record.adopting,
        }
    }

    /// The tombstone of a member that leaves a cluster.
    pub fn of_member(record: &cluster::ClusterRecord, keep_data: bool) -> Self {
        Self { keep_data, ..Self::of(record) }
    }
}
