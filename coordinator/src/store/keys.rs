//! Every key that is ever stored, in one list.

use regent_common::{
    hex::hex,
    ids::{ClusterId, ClusterName, MemberName, NodeName, OperationId, UserName},
};

use super::Key;

/// Prefix of the clusters' records.
pub const CLUSTERS: &str = "clusters/";
/// Prefix of the operations' records.
pub const OPERATIONS: &str = "operations/";
/// Prefix of the nodes' records.
pub const NODES: &str = "nodes/";
/// Prefix of the users' records.
pub const USERS: &str = "users/";
/// Prefix of the join tokens' records.
pub const TOKENS: &str = "tokens/";
/// Prefix of the issued certificates.
pub const CERTIFICATES: &str = "certificates/";
/// Prefix of the audit's records.
pub const AUDIT: &str = "audit/";
/// Prefix of the events.
pub const EVENTS: &str = "events/";
/// Prefix of the remembered requests.
pub const REQUESTS: &str = "requests/";

/// A cluster's record.
pub fn cluster(name: &ClusterName) -> Key {
    Key::new(format!("{CLUSTERS}{name}"))
}

/// What remains of a removed cluster.
pub fn tombstone(id: &ClusterId) -> Key {
    Key::new(format!("tombstones/{id}"))
}

/// What remains of a member that has left a cluster.
pub fn member_tombstone(id: &ClusterId, member: &MemberName) -> Key {
    Key::new(format!("tombstones/{id}/{member}"))
}

/// Which member a node is.
pub fn assignment(node: &NodeName) -> Key {
    Key::new(format!("assignments/{node}"))
}

/// An operation's record.
pub fn operation(id: &OperationId) -> Key {
    Key::new(format!("{OPERATIONS}{id}"))
}

/// Prefix of an operation's log, apart from the records so that these can be listed alone.
pub fn operation_log_prefix(id: &OperationId) -> String {
    format!("operation_logs/{id}/")
}

/// An entry of an operation's log; sorts by its index.
pub fn operation_log(id: &OperationId, index: u64) -> Key {
    Key::new(format!("{}{index:08}", operation_log_prefix(id)))
}

/// A node's record.
pub fn node(name: &NodeName) -> Key {
    Key::new(format!("{NODES}{name}"))
}

/// A user's record.
pub fn user(name: &UserName) -> Key {
    Key::new(format!("{USERS}{name}"))
}

/// A join token's record, by the digest of its secret.
pub fn token(digest: &str) -> Key {
    Key::new(format!("{TOKENS}{digest}"))
}

/// An issued certificate, by its serial number in lower-case hexadecimal.
pub fn certificate(serial: &str) -> Key {
    Key::new(format!("{CERTIFICATES}{serial}"))
}

/// An audit record; ids sort by time.
pub fn audit(id: &str) -> Key {
    Key::new(format!("{AUDIT}{id}"))
}

/// Where the chain of the audit's records ends.
pub fn audit_end() -> Key {
    Key::new("audit_end")
}

/// The last event that the hook was handed.
pub fn hook_cursor() -> Key {
    Key::new("hook_cursor")
}

/// An event; ids sort by time.
pub fn event(id: &str) -> Key {
    Key::new(format!("{EVENTS}{id}"))
}

/// A remembered request, by caller, method and request id.
pub fn request(caller: &str, method: &str, request_id: &str) -> Key {
    Key::new(format!("{REQUESTS}{caller}/{method}/{}", hex(request_id)))
}
