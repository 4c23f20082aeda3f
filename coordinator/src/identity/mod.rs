//! Who belongs to the installation: users, join tokens, nodes' certificates, and what was revoked.
//!
//! It decides who gets a certificate and whose no longer count; the caller's role was checked before. It makes no connection
//! and starts no operation: what follows from a change is told through [`Hooks`].
//!
//! **Invariants:** a certificate is recorded in the same transaction as the record that it is for, before it is given out. A
//! join token admits one key of one node. Whatever is revoked stands in the store before anybody is told, and is told
//! before the answer is given. After `commit` no method awaits anything, but a caller that may be dropped (a handler of a
//! connection that breaks) must run them in a task of their own.

mod nodes;
mod revocation;
#[cfg(test)]
mod tests;
mod tokens;
mod users;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::Timestamp;
use regent_common::{
    clock::Clock,
    error::{ErrorChain, Reason, bad_field, refuse},
    identity::{Identity, Principal},
    ids::NodeName,
    transport::Revocations,
};
use tokio::sync::watch;
use tonic::Status;

pub use nodes::{Addresses, Join, Joined};
pub use tokens::{NewToken, TokenWish};
pub use users::{NewUser, UserWish};

use crate::{
    model::{certificate::CertificateRecord, node::NodeRecord},
    pki::{Authority, Host, Issued, PkiError, PublicKey, Subject},
    store::{Store, StoreError, Transaction, keys},
};

/// All of it; shared by the services.
pub struct Identities {
    settings: Settings,
    revoked: watch::Sender<Vec<String>>,
    revocations: Revocations,
}

/// What [`Identities`] needs.
pub struct Settings {
    /// Records of users, tokens, nodes and certificates.
    pub store: Arc<dyn Store>,
    /// Time of day, for lifetimes.
    pub clock: Arc<dyn Clock>,
    /// Signs certificates.
    pub authority: Arc<Authority>,
    /// The installation's id.
    pub coordinator_id: String,
    /// How long a node's certificate is valid.
    pub certificate_life: Duration,
    /// Hosts of the coordinator: no node's certificate ever carries them.
    pub reserved: BTreeSet<Host>,
    /// Whom to tell.
    pub hooks: Hooks,
}

/// Told when a record of a node has been told.
pub type NodeHook = Arc<dyn Fn(NodeRecord) + Send + Sync>;

/// Told of a process that announces itself at an address: why it is refused, when another process speaks for its node (rule T5).
pub type ContestHook = Arc<dyn Fn(NodeName, String, String) -> BoxFuture<'static, Option<String>> + Send + Sync>;

/// What happens after a change has been stored. Each may be called more than once for the same change.
#[derive(Clone)]
pub struct Hooks {
    /// A node has joined, or joined again.
    pub on_joined: NodeHook,
    /// A node's agent has started; the record has its present addresses.
    pub on_announced: NodeHook,
    /// A node was revoked.
    pub on_revoked: Arc<dyn Fn(NodeName) + Send + Sync>,
    /// Asked before an announcement is believed: node, address, the process's name.
    pub contest: ContestHook,
}

/// Why something was not done. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Refused with a reason.
    #[error("{message}")]
    Refused {
        /// For programs.
        reason: Reason,
        /// For people.
        message: String,
    },
    /// A field is not usable.
    #[error("{field}: {problem}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority failed.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

/// How long a user's certificate is valid: people renew by hand, so it is longer than a node's.
pub const USER_CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Times that a change is tried again when somebody else changed the same record meanwhile.
const ATTEMPTS: usize = 8;

/// Tries a change again as long as somebody else was faster.
macro_rules! retrying {
    ($attempt:expr) => {{
        let mut left = $crate::identity::ATTEMPTS;
        loop {
            left -= 1;
            match $attempt.await {
                Err($crate::identity::IdentityError::Store($crate::store::StoreError::Conflict { .. })) if left > 0 => {
                }
                outcome => break outcome,
            }
        }
    }};
}
use retrying;

// === impl Hooks ===

impl Default for Hooks {
    fn default() -> Self {
        Self {
            on_joined: Arc::new(|_| ()),
            on_announced: Arc::new(|_| ()),
            on_revoked: Arc::new(|_| ()),
            contest: Arc::new(|_, _, _| Box::pin(async { None })),
        }
    }
}

// === impl IdentityError ===

impl IdentityError {
    fn refused(reason: Reason, message: impl Into<String>) -> Self {
        Self::Refused { reason, message: message.into() }
    }

    fn field(field: &'static str, problem: impl fmt::Display) -> Self {
        Self::Field { field, problem: problem.to_string() }
    }
}

impl From<IdentityError> for Status {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::Refused { reason, message } => refuse(reason, message),
            IdentityError::Field { field, problem } => bad_field(field, problem),
            IdentityError::Store(StoreError::Conflict { .. }) => {
                refuse(Reason::EtagMismatch, "others are changing the same records: try again; nothing was changed")
            }
            IdentityError::Store(StoreError::Deposed { .. }) => {
                refuse(Reason::NotLeader, "another coordinator has taken over: ask that one")
            }
            IdentityError::Store(error) => refuse(Reason::Internal, ErrorChain(&error).to_string()),
            IdentityError::Pki(error) => refuse(Reason::Internal, ErrorChain(&error).to_string()),
        }
    }
}

// === impl Identities ===

impl Identities {
    /// Loads what was revoked before.
    pub async fn open(settings: Settings) -> Result<Self, StoreError> {
        let (revoked, _) = watch::channel(Vec::new());
        let identities = Self { settings, revoked, revocations: Revocations::default() };
        identities.load_revoked().await?;
        Ok(identities)
    }

    /// The authority's certificate in PEM.
    pub fn ca_pem(&self) -> &str {
        self.settings.authority.pem()
    }

    /// The installation's id.
    pub fn coordinator_id(&self) -> &str {
        &self.settings.coordinator_id
    }

    fn store(&self) -> &dyn Store {
        self.settings.store.as_ref()
    }

    fn now(&self) -> Timestamp {
        self.settings.clock.wall()
    }

    /// Makes a certificate, and adds its record to the transaction that must be committed before it is given out.
    fn issue(
        &self,
        transaction: Transaction,
        principal: Principal,
        hosts: BTreeSet<Host>,
        key: &PublicKey,
        issued_by: &str,
    ) -> Result<(Issued, Transaction), PkiError> {
        let now = self.now();
        let life = match principal {
            Principal::User(_) => USER_CERTIFICATE_LIFE,
            Principal::Node(_) | Principal::Coordinator(_) => self.settings.certificate_life,
        };
        let identity = Identity { coordinator_id: self.settings.coordinator_id.clone(), principal };
        let subject = Subject { identity, hosts };
        let issued = self.settings.authority.issue(&subject, key, life, now)?;
        Ok(record_issued(transaction, &subject.identity, issued, issued_by, now))
    }
}

/// Adds the record of a certificate to a transaction.
pub(crate) fn record_issued(
    transaction: Transaction,
    identity: &Identity,
    issued: Issued,
    issued_by: &str,
    now: Timestamp,
) -> (Issued, Transaction) {
    let record = CertificateRecord {
        identity: identity.to_string(),
        issued_at: now,
        not_after: issued.not_after,
        issued_by: issued_by.to_owned(),
        revoked_at: None,
    };
    let key = keys::certificate(&issued.serial);
    let transaction = transaction.require_absent(key.clone()).put_json(key, &record);
    (issued, transaction)
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities").field("coordinator_id", &self.settings.coordinator_id).finish_non_exhaustive()
    }
}
