//! A user as it is stored. The role stands here and not in the certificate, so that it can be taken away.

use jiff::Timestamp;
use regent_common::ids::UserName;
use serde::{Deserialize, Serialize};

/// What a user may do; each role may do all that those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserRole {
    /// Read.
    Viewer,
    /// Everyday verbs.
    Operator,
    /// Everything.
    Admin,
}

/// A person or a program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    /// Name.
    pub name: UserName,
    /// What it may do.
    pub role: UserRole,
    /// Its certificates are refused.
    #[serde(default)]
    pub revoked: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it: an identity, or "init".
    pub created_by: String,
    /// When its newest certificate ends.
    #[serde(default)]
    pub certificate_not_after: Option<Timestamp>,
    /// Serial numbers of its certificates that count, oldest first.
    #[serde(default)]
    pub serials: Vec<String>,
}

// === impl UserRole ===

impl UserRole {
    /// Every role, lowest first.
    pub const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The name, as people write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}
