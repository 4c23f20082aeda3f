//! The coordinator's store: the store in memory, seen by the simulation at every commit.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures::FutureExt as _;
use regent_common::ids::{MemberName, Revision, Term};
use regent_coordinator::{
    audit::AuditRecord,
    model::{cluster::ClusterRecord, operation::OperationRecord},
    operation::log::{Entry, Event},
    store::{
        Change, Key, Store, StoreError, Transaction, Versioned, Write, keys,
        memory::{Backup, MemoryStore},
    },
};
use tokio::sync::mpsc;

use super::{chance::Chance, limits::Known, operations::Operations, trace::traced};

/// The disk of the coordinator's machine; clones are the same.
#[derive(Clone)]
pub(crate) struct StoreDisk(Arc<Mutex<State>>);

struct State {
    /// The handle of the newest coordinator.
    newest: Arc<MemoryStore>,
    backup: Option<(Backup, Known)>,
    operations: Operations,
    cluster: Option<ClusterRecord>,
    /// What has happened since the last time somebody asked, for scripts.
    words: Vec<String>,
    /// How long a commit takes beyond the usual.
    slow: Duration,
    chance: Chance,
}

/// What one coordinator opens.
pub(crate) struct SeenStore {
    inner: Arc<MemoryStore>,
    disk: StoreDisk,
}

// === impl StoreDisk ===

impl StoreDisk {
    /// An empty store.
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            newest: Arc::default(),
            backup: None,
            operations: Operations::default(),
            cluster: None,
            words: Vec::new(),
            slow: Duration::ZERO,
            chance: Chance::of(seed, "store"),
        })))
    }

    /// Opens it for the next coordinator.
    pub(crate) fn open(&self) -> SeenStore {
        let mut state = self.lock();
        let inner = Arc::new(state.newest.reopen());
        state.newest = Arc::clone(&inner);
        SeenStore { inner, disk: self.clone() }
    }

    /// Whether nothing was ever stored.
    pub(crate) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.newest.revision().now_or_never().is_some_and(|revision| revision.is_ok_and(|revision| revision.0 == 0))
    }

    /// Makes a backup, in place of an earlier one.
    pub(crate) fn back_up(&self) {
        let mut state = self.lock();
        let revision = state.newest.revision().now_or_never();
        let revision = revision.expect("a store in memory does not wait").expect("a store in memory can be read");
        let cluster = state.cluster.as_ref();
        let known = Known {
            revision,
            cluster: cluster.map(|cluster| (cluster.id, cluster.epoch)),
            electorate: cluster.and_then(|cluster| cluster.reign.as_ref()).map_or(0, |reign| reign.newest().version),
        };
        state.backup = Some((state.newest.backup(), known));
    }

    /// What the backup has, if there is one.
    pub(crate) fn backed_up(&self) -> Option<Known> {
        self.lock().backup.as_ref().map(|(_, known)| *known)
    }

    /// Puts the backup back; false without one. What the simulation knows of the store becomes what was known then.
    pub(crate) fn restore(&self) -> bool {
        let mut state = self.lock();
        let Some((backup, _)) = state.backup.clone() else { return false };
        state.newest.restore(&backup);
        let all = |prefix: &str| {
            let listed = state.newest.list(prefix, None, usize::MAX).now_or_never();
            listed.expect("a store in memory does not wait").expect("a store in memory can be read")
        };
        let (records, clusters) = (all(keys::OPERATIONS), all(keys::CLUSTERS));
        let logs = all("operation_logs/");
        state.operations.forget_all_but(records.iter().map(|(key, _)| key.last_part()));
        for (key, stored) in logs {
            let Some((id, _)) = key.as_str().trim_start_matches("operation_logs/").split_once('/') else { continue };
            if let Ok(entry) = serde_json::from_slice::<Entry>(&stored.value) {
                state.operations.remember(id, &entry.event);
            }
        }
        state.cluster = clusters.first().and_then(|(_, stored)| serde_json::from_slice(&stored.value).ok());
        true
    }

    /// Lets commits fail, or work again.
    pub(crate) fn fail(&self, failing: bool) {
        self.lock().newest.fail_commits(failing);
    }

    /// Makes every commit take so long.
    pub(crate) fn slow(&self, takes: Duration) {
        self.lock().slow = takes;
    }

    /// Takes what has happened since the last time.
    pub(crate) fn take_words(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().words)
    }

    /// The cluster's record as last committed.
    pub(crate) fn cluster(&self) -> Option<ClusterRecord> {
        self.lock().cluster.clone()
    }

    /// Whether the cluster is stored.
    pub(crate) fn exists(&self) -> bool {
        self.lock().cluster.is_some()
    }

    /// What is known of the operations.
    pub(crate) fn operations(&self) -> Operations {
        self.lock().operations.clone()
    }

    /// Takes the members that were prepared together since the last time: the candidate, then the others.
    pub(crate) fn take_prepared(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut self.lock().operations.prepared)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn see(&self, writes: &[Write]) {
        let mut state = self.lock();
        for write in writes {
            match write {
                Write::Put(key, value) => state.see_put(key.as_str(), value),
                Write::Delete(key) if key.as_str().starts_with(keys::CLUSTERS) => {
                    traced!("store: {key} removed");
                    state.cluster = None;
                }
                Write::Delete(_) => {}
            }
        }
    }
}

// === impl State ===

/// The newest electorate that a record has.
fn electorate(record: &ClusterRecord) -> Option<&BTreeSet<MemberName>> {
    record.reign.as_ref().map(|reign| &reign.newest().members)
}

impl State {
    /// A commit begins.
    fn see_coming(&mut self, writes: &[Write]) {
        for write in writes {
            let Write::Put(key, value) = write else { continue };
            if let Some((id, _)) = key.as_str().strip_prefix("operation_logs/").and_then(|rest| rest.split_once('/'))
                && let Ok(entry) = serde_json::from_slice::<Entry>(value)
                && let Some(word) = self.operations.word(id, &entry.event)
                && word.ends_with(" done")
            {
                self.words.push(word.replace(" done", " coming"));
            }
            if !key.as_str().starts_with(keys::CLUSTERS) {
                continue;
            }
            let Ok(record) = serde_json::from_slice::<ClusterRecord>(value) else { continue };
            if let (Some(was), Some(is)) = (self.cluster.as_ref().and_then(electorate), electorate(&record))
                && !was.is_subset(is)
            {
                self.words.push("leaving".to_owned());
            }
        }
    }

    /// What a committed record differs in from the one before.
    fn tell(&mut self, record: &ClusterRecord) {
        let Some(was) = &self.cluster else { return };
        if was.policy.profile != record.policy.profile {
            self.words.push("times".to_owned());
        }
        let (Some(old), Some(new)) = (&was.reign, &record.reign) else { return };
        if old.epoch != new.epoch {
            return;
        }
        if !old.newest().members.is_subset(&new.newest().members) {
            self.words.push("leaves".to_owned());
        }
        if !new.newest().members.is_subset(&old.newest().members) {
            self.words.push("joins".to_owned());
        }
        if new.is_acknowledged() && !old.is_acknowledged() {
            self.words.push("acknowledged".to_owned());
        }
    }

    fn see_put(&mut self, key: &str, value: &[u8]) {
        if key.starts_with(keys::CLUSTERS) {
            let Ok(record) = serde_json::from_slice::<ClusterRecord>(value) else { return };
            let states: Vec<_> = record.members.iter().map(|(name, m)| format!("{name} {:?}", m.state)).collect();
            traced!(
                "store: epoch {} token {} {:?} primary {} candidate {} [{}]",
                record.epoch,
                record.token,
                record.phase,
                record.primary.as_ref().map_or("-", |name| name.as_str()),
                record.candidate.as_ref().map_or("-", |name| name.as_str()),
                states.join(", "),
            );
            self.tell(&record);
            if self.cluster.as_ref().is_none_or(|before| before.id != record.id) {
                // A cluster that was made after a backup is in no store that it is put back to, and nobody takes it up: its nodes
                // stay its members, and a person has to release them. What is put back here is younger than that.
                self.backup = None;
            }
            self.cluster = Some(record);
        } else if key.starts_with(keys::OPERATIONS) {
            let Ok(record) = serde_json::from_slice::<OperationRecord>(value) else { return };
            let number = self.operations.begin(&record);
            self.words.push(record.kind.clone());
            traced!("operation {number}: {} begins: {}", record.kind, record.reason);
        } else if key.starts_with(keys::AUDIT) {
            if let Ok(record) = serde_json::from_slice::<AuditRecord>(value) {
                self.words.push(record.action);
            }
        } else if let Some(rest) = key.strip_prefix("operation_logs/") {
            let Some((id, _)) = rest.split_once('/') else { return };
            let Ok(entry) = serde_json::from_slice::<Entry>(value) else { return };
            let Some(text) = self.operations.enter(id, &entry.event) else { return };
            self.words.extend(self.operations.word(id, &entry.event));
            if let Event::Succeeded { report, .. } = &entry.event
                && report.iter().any(|sentence| sentence.starts_with("fenced "))
            {
                self.words.push("fenced".to_owned());
            }
            if matches!(entry.event, Event::Started { .. }) {
                self.words.push("step begins".to_owned());
            }
            if !matches!(entry.event, Event::Undone { .. }) {
                traced!("{text}");
            }
        }
    }
}

#[async_trait]
impl Store for SeenStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Versioned)>, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        // The flush takes time; a coordinator that dies meanwhile has committed or not.
        let takes = {
            let mut state = self.disk.lock();
            state.see_coming(&transaction.writes);
            state.chance.millis(0..4) + state.slow
        };
        tokio::time::sleep(takes).await;
        let writes = transaction.writes.clone();
        let revision = self.inner.commit(transaction).await?;
        self.disk.see(&writes);
        let takes = self.disk.lock().chance.millis(0..3);
        tokio::time::sleep(takes).await;
        Ok(revision)
    }

    fn watch(&self, prefix: &str) -> mpsc::Receiver<Change> {
        self.inner.watch(prefix)
    }

    fn term(&self) -> Term {
        self.inner.term()
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.inner.revision().await
    }

    async fn raise_revision(&self, at_least: Revision) -> Result<(), StoreError> {
        self.inner.raise_revision(at_least).await
    }
}
