//! x
use jiff::Timestamp;
use regent_common::ids::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeRecord {
    pub name: NodeName,
    pub agent_address: String,
    pub public_address: String,
    pub private_address: String,
    pub labels: BTreeMap<String, String>,
    pub joined_at: Timestamp,
    pub certificate_not_after: Option<Timestamp>,
    pub serials: Vec<String>,
    pub revoked: bool,
    pub data_lost: bool,
    pub join_cluster: Option<ClusterName>,
}
