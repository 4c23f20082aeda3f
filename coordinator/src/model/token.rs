//! A join token as it is stored: under the digest of its secret, never the secret itself.

use jiff::Timestamp;
use regent_common::ids::{ClusterName, NodeName};
use serde::{Deserialize, Serialize};

/// A join token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// The one node that it admits; any when absent.
    #[serde(default)]
    pub node: Option<NodeName>,
    /// Cluster that the node becomes a replica of.
    #[serde(default)]
    pub cluster: Option<ClusterName>,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// When it ends.
    pub expires_at: Timestamp,
    /// By whom it was used.
    #[serde(default)]
    pub used: Option<TokenUse>,
}

/// The one use of a token; the same machine may repeat it when the answer was lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenUse {
    /// The node that joined.
    pub node: NodeName,
    /// Digest of its public key.
    pub key: String,
    /// Serial number of the certificate that it was given last.
    pub serial: String,
    /// When.
    pub at: Timestamp,
}
