//! A node as it is stored. Its cluster stands in its assignment, what is heard of it in the node table.

use std::collections::BTreeMap;

use jiff::Timestamp;
use regent_common::ids::{ClusterName, NodeName};
use serde::{Deserialize, Serialize};

/// A machine with an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Name.
    pub name: NodeName,
    /// Where its agent is reached, as host:port.
    pub agent_address: String,
    /// Public address; empty when it has none.
    #[serde(default)]
    pub public_address: String,
    /// Private address; empty when it has none.
    #[serde(default)]
    pub private_address: String,
    /// Opaque labels of the platform.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it joined, the last time.
    pub joined_at: Timestamp,
    /// When its newest certificate ends.
    #[serde(default)]
    pub certificate_not_after: Option<Timestamp>,
    /// Serial numbers of its certificates that count, oldest first.
    #[serde(default)]
    pub serials: Vec<String>,
    /// Nothing is sent to it and nothing is taken from it.
    #[serde(default)]
    pub revoked: bool,
    /// It joined again without its ledger and its data (rule T5); cleared when its member is brought back.
    #[serde(default)]
    pub data_lost: bool,
    /// Cluster that its join token asked for; cleared by whoever adds the member.
    #[serde(default)]
    pub join_cluster: Option<ClusterName>,
}
