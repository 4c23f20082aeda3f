//! The clusters of this coordinator: one [`ClusterHandle`] each, through which alone its record is changed, and one
//! [`actor`] each, which listens, decides and runs one operation at a time.
//!
//! **Invariant:** a record is changed by compare-and-swap on the version that was read, under the store's term; a
//! coordinator that was deposed changes nothing.

use std::sync::Arc;

use regent_common::{
    ids::{ClusterName, OperationId},
    mutation::{self, Rule},
};
use tokio::sync::{Mutex, watch};

use crate::{
    model::cluster::ClusterRecord,
    store::{Store, StoreError, Transaction, keys},
};

pub mod actor;
pub mod adoption;
pub mod backoff;
pub mod brake;
pub mod directory;
pub mod judging;

/// A cluster's record and the only way to change it.
pub struct ClusterHandle {
    name: ClusterName,
    store: Arc<dyn Store>,
    /// The record and its version; `None` once it was removed.
    current: Arc<Mutex<Option<(ClusterRecord, u64)>>>,
    snapshot: watch::Sender<Option<Arc<ClusterRecord>>>,
}

/// Why a record was not changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The cluster is gone.
    #[error("cluster {0} no longer exists")]
    Gone(ClusterName),
    /// The change does not fit what is stored.
    #[error("{0}")]
    Refused(String),
    /// Another operation runs.
    #[error("operation {running} of cluster {cluster} is running")]
    Busy {
        /// The cluster.
        cluster: ClusterName,
        /// The operation.
        running: OperationId,
    },
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl ClusterHandle ===

impl ClusterHandle {
    /// The handle of a stored record.
    pub fn new(store: Arc<dyn Store>, record: ClusterRecord, version: u64) -> Self {
        let (snapshot, _) = watch::channel(Some(Arc::new(record.clone())));
        Self { name: record.name.clone(), store, current: Arc::new(Mutex::new(Some((record, version)))), snapshot }
    }

    /// Name of the cluster.
    pub fn name(&self) -> &ClusterName {
        &self.name
    }

    /// The record as last committed; `None` once the cluster is gone.
    pub fn record(&self) -> Option<Arc<ClusterRecord>> {
        self.snapshot.borrow().clone()
    }

    /// Version of the record, for etags.
    pub async fn version(&self) -> Option<u64> {
        self.current.lock().await.as_ref().map(|(_, version)| *version)
    }

    /// Follows the record.
    pub fn watch(&self) -> watch::Receiver<Option<Arc<ClusterRecord>>> {
        self.snapshot.subscribe()
    }

    /// Changes the record and commits it together with what `change` returns; durable when this returns (rule T3).
    /// `change` sees the newest record and may refuse. A caller that goes away meanwhile does not stop the commit from being
    /// taken notice of: what is known here and what is stored stay the same.
    pub async fn change(
        &self,
        change: impl FnOnce(&mut ClusterRecord) -> Result<Transaction, ChangeError>,
    ) -> Result<Arc<ClusterRecord>, ChangeError> {
        let mut current = Arc::clone(&self.current).lock_owned().await;
        let (record, version) = current.as_ref().ok_or_else(|| ChangeError::Gone(self.name.clone()))?;
        let mut next = record.clone();
        let transaction = change(&mut next)?;
        let key = keys::cluster(&self.name);
        let transaction = transaction.require_version(key.clone(), *version).put_json(key, &next);
        if mutation::broken(Rule::T3Store) {
            self.snapshot.send_replace(Some(Arc::new(next.clone())));
        }
        let (store, snapshot) = (Arc::clone(&self.store), self.snapshot.clone());
        let commit = async move {
            let revision = store.commit(transaction).await?;
            let shared = Arc::new(next.clone());
            *current = Some((next, revision.0));
            snapshot.send_replace(Some(Arc::clone(&shared)));
            Ok(shared)
        };
        tokio::spawn(commit).await.expect("a commit neither panics nor is aborted")
    }

    /// Removes the record together with `transaction`.
    pub async fn remove(&self, transaction: Transaction) -> Result<(), ChangeError> {
        let mut current = Arc::clone(&self.current).lock_owned().await;
        let (_, version) = current.as_ref().ok_or_else(|| ChangeError::Gone(self.name.clone()))?;
        let key = keys::cluster(&self.name);
        let transaction = transaction.require_version(key.clone(), *version).delete(key);
        let (store, snapshot) = (Arc::clone(&self.store), self.snapshot.clone());
        let commit = async move {
            store.commit(transaction).await?;
            *current = None;
            snapshot.send_replace(None);
            Ok(())
        };
        tokio::spawn(commit).await.expect("a commit neither panics nor is aborted")
    }
}

#[cfg(test)]
mod tests {
    use std::{future::Future as _, task::Context, time::Duration};

    use regent_common::ids::Epoch;

    use super::*;
    use crate::{
        planner::fixtures::cluster,
        store::{get_json, memory::MemoryStore, paused::Paused},
    };

    /// Regression: an operation that was stopped in the middle of a commit left the record as it had been before, and every
    /// later change met a version that was not its own.
    #[tokio::test]
    async fn a_caller_that_goes_away_does_not_part_the_record_from_the_store() {
        let (memory, record) = (Arc::new(MemoryStore::default()), cluster());
        let key = keys::cluster(&record.name);
        let version = memory.commit(Transaction::default().put_json(key.clone(), &record)).await.unwrap();
        let store = Arc::new(Paused::before_commits(memory));
        let handle = ClusterHandle::new(store.clone(), record, version.0);
        let raise = |record: &mut ClusterRecord| {
            record.epoch = record.epoch.next();
            Ok(Transaction::default())
        };
        {
            let mut change = std::pin::pin!(handle.change(raise));
            let mut context = Context::from_waker(std::task::Waker::noop());
            assert!(change.as_mut().poll(&mut context).is_pending(), "the commit waits");
        }
        store.let_through(2);
        let second = tokio::time::timeout(Duration::from_secs(10), handle.change(raise)).await.unwrap().unwrap();
        assert_eq!(second.epoch, Epoch(3));
        let stored = get_json::<ClusterRecord>(store.as_ref(), &key).await.unwrap().unwrap();
        assert_eq!(stored.value, *second);
        assert_eq!(handle.version().await, Some(stored.version));
    }
}
