//! The memory store with pauses, so that concurrent changes do meet.

use std::sync::Arc;

use async_trait::async_trait;
use regent_common::ids::{Revision, Term};
use tokio::sync::{Semaphore, mpsc};

use super::{Change, Key, Store, StoreError, Transaction, Versioned, memory::MemoryStore};

/// A store that lets others go first after each read, and whose commits may have to wait.
pub(crate) struct Paused {
    store: Arc<MemoryStore>,
    commits: Semaphore,
}

// === impl Paused ===

impl Paused {
    /// Commits wait for nothing.
    pub(crate) fn between_reads(store: Arc<MemoryStore>) -> Self {
        Self { store, commits: Semaphore::new(Semaphore::MAX_PERMITS) }
    }

    /// Every commit waits until one more is let through.
    pub(crate) fn before_commits(store: Arc<MemoryStore>) -> Self {
        Self { store, commits: Semaphore::new(0) }
    }

    /// Lets so many commits through.
    pub(crate) fn let_through(&self, commits: usize) {
        self.commits.add_permits(commits);
    }
}

#[async_trait]
impl Store for Paused {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        let found = self.store.get(key).await;
        tokio::task::yield_now().await;
        found
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Versioned)>, StoreError> {
        self.store.list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.commits.acquire().await.expect("it is never closed").forget();
        self.store.commit(transaction).await
    }

    fn watch(&self, prefix: &str) -> mpsc::Receiver<Change> {
        self.store.watch(prefix)
    }

    fn term(&self) -> Term {
        self.store.term()
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.store.revision().await
    }

    async fn raise_revision(&self, at_least: Revision) -> Result<(), StoreError> {
        self.store.raise_revision(at_least).await
    }
}
