//! What survives a crash: keys with values, changed by transactions with preconditions.
//!
//! The shape is that of etcd on purpose (compare, then put or delete; no code inside a transaction, no scan inside one), so
//! that several coordinators can share one later without a change in any caller. [`sqlite`] is the default, [`memory`] is
//! for tests and the simulation; `conformance` runs over both.
//!
//! **Invariants:** when [`Store::commit`] returns `Ok`, the change is durable (rule T3), and every change has a revision
//! higher than all before it. A store whose term is no longer the highest refuses every commit.

use std::fmt;

use async_trait::async_trait;
use regent_common::{
    error::Retryable,
    ids::{Revision, Term},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

#[cfg(test)]
mod conformance;
pub mod keys;
pub mod memory;
#[cfg(test)]
pub(crate) mod paused;
pub mod sqlite;

/// A path-like key, such as `clusters/db`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(String);

/// A value and the revision of the commit that wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T = Vec<u8>> {
    /// The value.
    pub value: T,
    /// For [`Precondition::Version`].
    pub version: u64,
}

/// What must hold for a transaction to be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Precondition {
    /// The key has no value.
    Absent(Key),
    /// The key's value was written by this revision.
    Version(Key, u64),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// Sets a value.
    Put(Key, Vec<u8>),
    /// Removes a value; nothing happens when there is none.
    Delete(Key),
}

/// Changes that are made together or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// All must hold.
    pub preconditions: Vec<Precondition>,
    /// Made in order.
    pub writes: Vec<Write>,
}

/// A change that was committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Of which key.
    pub key: Key,
    /// Its value now; `None` when it was removed.
    pub value: Option<Vec<u8>>,
    /// By which commit.
    pub revision: Revision,
}

/// Why the store did not do as asked. Nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A precondition does not hold: somebody else was faster, or what was read is old.
    #[error("the value at {key} is not as expected")]
    Conflict {
        /// The first key that differs.
        key: Key,
    },
    /// Another coordinator has taken over.
    #[error("term {own} of this coordinator has ended: term {newest} has begun")]
    Deposed {
        /// The term of this store handle.
        own: Term,
        /// The highest.
        newest: Term,
    },
    /// Another process has the store open.
    #[error("{path} is in use by process {holder}: only one coordinator may run on a store; stop that process first")]
    Locked {
        /// The lock file.
        path: String,
        /// Process id as the lock file tells it.
        holder: String,
    },
    /// The file is gone.
    #[error("{path} is missing: nothing was changed; put it back from a backup, or make an installation with init")]
    Missing {
        /// The file.
        path: String,
    },
    /// The file cannot be trusted.
    #[error(
        "{path} is damaged ({detail}): nothing was changed; stop the coordinator, move the file aside and restore a backup"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// What was found.
        detail: String,
    },
    /// A newer version of Regent has written the file.
    #[error("{path} has schema {found}, and this version knows up to {known}: install the newer version again")]
    Newer {
        /// The file.
        path: String,
        /// Its schema.
        found: i64,
        /// The newest that is known.
        known: i64,
    },
    /// A stored value cannot be read.
    #[error("the value at {key} cannot be read")]
    Value {
        /// Its key.
        key: Key,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// The file or the disk failed.
    #[error("the store cannot {doing}")]
    Failed {
        /// What was wanted.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Keys with values.
#[async_trait]
pub trait Store: Send + Sync {
    /// Reads one value.
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError>;

    /// Reads the values whose keys start with `prefix`, sorted by key, from after `after`, at most `limit`.
    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Versioned)>, StoreError>;

    /// Makes changes, atomically; durable when it returns.
    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError>;

    /// Changes under `prefix` that are committed after this call, in order. A watcher that falls behind finds its channel
    /// closed, and must list again.
    fn watch(&self, prefix: &str) -> mpsc::Receiver<Change>;

    /// Term of this handle's leadership.
    fn term(&self) -> Term;

    /// Revision of the newest commit.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Lets the next commit have a revision above this one: after an old backup was put back, so that what agents have seen
    /// is older again (rule T4). Never lowers it; durable when it returns.
    async fn raise_revision(&self, at_least: Revision) -> Result<(), StoreError>;
}

/// Changes that a watcher may be behind.
const WATCH_BUFFER: usize = 1024;

// === impl Key ===

impl Key {
    /// A key; made by [`keys`] alone, so that there is one list of what is stored.
    fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last slash.
    pub fn last_part(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Transaction ===

impl Transaction {
    /// Only if the key has no value.
    #[must_use]
    pub fn require_absent(mut self, key: Key) -> Self {
        self.preconditions.push(Precondition::Absent(key));
        self
    }

    /// Only if the key's value is the one that was read.
    #[must_use]
    pub fn require_version(mut self, key: Key, version: u64) -> Self {
        self.preconditions.push(Precondition::Version(key, version));
        self
    }

    /// Sets a value.
    #[must_use]
    pub fn put(mut self, key: Key, value: Vec<u8>) -> Self {
        self.writes.push(Write::Put(key, value));
        self
    }

    /// Sets a value as JSON.
    #[must_use]
    pub fn put_json(self, key: Key, value: &impl Serialize) -> Self {
        let bytes = serde_json::to_vec(value).expect("records are plain data with text keys");
        self.put(key, bytes)
    }

    /// Removes a value.
    #[must_use]
    pub fn delete(mut self, key: Key) -> Self {
        self.writes.push(Write::Delete(key));
        self
    }
}

// === impl StoreError ===

impl Retryable for StoreError {
    /// Whether the same call may work later without anybody doing anything else.
    fn retryable(&self) -> bool {
        match self {
            Self::Failed { .. } => true,
            Self::Conflict { .. }
            | Self::Deposed { .. }
            | Self::Locked { .. }
            | Self::Missing { .. }
            | Self::Corrupt { .. }
            | Self::Newer { .. }
            | Self::Value { .. } => false,
        }
    }
}

fn read<T: DeserializeOwned>(key: &Key, stored: Versioned) -> Result<Versioned<T>, StoreError> {
    let value =
        serde_json::from_slice(&stored.value).map_err(|source| StoreError::Value { key: key.clone(), source })?;
    Ok(Versioned { value, version: stored.version })
}

/// Reads one value as JSON.
pub async fn get_json<T: DeserializeOwned>(store: &dyn Store, key: &Key) -> Result<Option<Versioned<T>>, StoreError> {
    store.get(key).await?.map(|stored| read(key, stored)).transpose()
}

/// Reads all values under a prefix as JSON, sorted by key.
pub async fn list_json<T: DeserializeOwned>(
    store: &dyn Store,
    prefix: &str,
) -> Result<Vec<(Key, Versioned<T>)>, StoreError> {
    let rows = store.list(prefix, None, usize::MAX).await?;
    rows.into_iter().map(|(key, stored)| read(&key, stored).map(|value| (key, value))).collect()
}

/// Those who watch, by prefix; shared by the implementations.
#[derive(Debug, Default)]
struct Watchers(Vec<(String, mpsc::Sender<Change>)>);

impl Watchers {
    fn add(&mut self, prefix: &str) -> mpsc::Receiver<Change> {
        let (sender, receiver) = mpsc::channel(WATCH_BUFFER);
        self.0.push((prefix.to_owned(), sender));
        receiver
    }

    /// Tells everybody whom it concerns; drops those who have gone or fallen behind.
    fn tell(&mut self, writes: &[Write], revision: Revision) {
        self.0.retain(|(prefix, sender)| {
            writes.iter().filter(|write| write.key().as_str().starts_with(prefix.as_str())).all(|write| {
                let value = match write {
                    Write::Put(_, value) => Some(value.clone()),
                    Write::Delete(_) => None,
                };
                sender.try_send(Change { key: write.key().clone(), value, revision }).is_ok()
            }) && !sender.is_closed()
        });
    }
}

impl Write {
    fn key(&self) -> &Key {
        match self {
            Self::Put(key, _) | Self::Delete(key) => key,
        }
    }
}
