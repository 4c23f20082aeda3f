//! A certificate that was issued, stored under its serial number.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// An issued certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRecord {
    /// Whom it speaks for (`regent://...`).
    pub identity: String,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    /// By whose word: an identity, `token DIGEST`, "init" or "renewal".
    pub issued_by: String,
    /// When it was revoked.
    #[serde(default)]
    pub revoked_at: Option<Timestamp>,
}
