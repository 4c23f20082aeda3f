//! The store in memory: for tests and the simulation. It forgets everything when its last handle is dropped.
//!
//! A handle is what one coordinator opens: [`MemoryStore::reopen`] gives the next coordinator its own, whose term deposes
//! all before it, as opening the file of a real store does. What a backup holds can be put back, and commits can be made to
//! fail.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
};

use async_trait::async_trait;
use regent_common::ids::{Revision, Term};
use tokio::sync::mpsc;

use super::{Change, Key, Precondition, Store, StoreError, Transaction, Versioned, Watchers, Write};

/// A handle on a store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    shared: Arc<Mutex<State>>,
    term: Term,
}

/// What a backup of a store holds.
#[derive(Debug, Clone)]
pub struct Backup {
    values: BTreeMap<Key, Versioned>,
    revision: Revision,
    term: Term,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<Key, Versioned>,
    revision: Revision,
    /// The highest term that was given out.
    term: Term,
    watchers: Watchers,
    failing: bool,
}

// === impl MemoryStore ===

impl Default for MemoryStore {
    fn default() -> Self {
        let state = State { term: Term(1), ..State::default() };
        Self { shared: Arc::new(Mutex::new(state)), term: Term(1) }
    }
}

impl MemoryStore {
    /// The same store as its next coordinator opens it: under a new term, without the watchers of before.
    #[must_use]
    pub fn reopen(&self) -> Self {
        let mut state = self.lock();
        state.term = Term(state.term.0 + 1);
        state.watchers = Watchers::default();
        Self { shared: Arc::clone(&self.shared), term: state.term }
    }

    /// All that is stored now.
    pub fn backup(&self) -> Backup {
        let state = self.lock();
        Backup { values: state.values.clone(), revision: state.revision, term: state.term }
    }

    /// Puts a backup in the place of all that is stored, behind the back of every open handle: the next coordinator has to
    /// [`MemoryStore::reopen`].
    pub fn restore(&self, backup: &Backup) {
        let mut state = self.lock();
        state.values = backup.values.clone();
        state.revision = backup.revision;
        // A coordinator that still has the old store open must not write into the restored one, whatever its term.
        state.term = Term(state.term.0.max(backup.term.0) + 1);
        state.watchers = Watchers::default();
    }

    /// Makes every commit fail, as a full or broken disk does, or work again.
    pub fn fail_commits(&self, failing: bool) {
        self.lock().failing = failing;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.lock().expect("no holder panics")
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        Ok(self.lock().values.get(key).cloned())
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Versioned)>, StoreError> {
        let state = self.lock();
        let rows = state.values.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        let rows = rows.filter(|(key, _)| after.is_none_or(|after| *key > after));
        Ok(rows.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        let mut state = self.lock();
        if self.term < state.term {
            return Err(StoreError::Deposed { own: self.term, newest: state.term });
        }
        if state.failing {
            return Err(StoreError::Failed { doing: "commit", source: "it was told to fail".into() });
        }
        for precondition in &transaction.preconditions {
            let (key, holds) = match precondition {
                Precondition::Absent(key) => (key, !state.values.contains_key(key)),
                Precondition::Version(key, version) => {
                    (key, state.values.get(key).is_some_and(|stored| stored.version == *version))
                }
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        let revision = state.revision.next();
        state.revision = revision;
        for write in &transaction.writes {
            match write {
                Write::Put(key, value) => {
                    state.values.insert(key.clone(), Versioned { value: value.clone(), version: revision.0 });
                }
                Write::Delete(key) => {
                    state.values.remove(key);
                }
            }
        }
        state.watchers.tell(&transaction.writes, revision);
        Ok(revision)
    }

    fn watch(&self, prefix: &str) -> mpsc::Receiver<Change> {
        self.lock().watchers.add(prefix)
    }

    fn term(&self) -> Term {
        self.term
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.lock().revision)
    }

    async fn raise_revision(&self, at_least: Revision) -> Result<(), StoreError> {
        let mut state = self.lock();
        state.revision = state.revision.max(at_least);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(value: &str) -> Transaction {
        Transaction::default().put(Key::new("a"), value.as_bytes().to_vec())
    }

    async fn read(store: &MemoryStore) -> Option<String> {
        let stored = store.get(&Key::new("a")).await.unwrap();
        stored.map(|stored| String::from_utf8(stored.value).unwrap())
    }

    #[tokio::test]
    async fn the_next_handle_has_all_and_deposes_the_one_before() {
        let first = MemoryStore::default();
        let mut told = first.watch("a");
        first.commit(put("one")).await.unwrap();
        let second = first.reopen();
        assert!(second.term() > first.term());
        assert!(matches!(first.commit(put("late")).await, Err(StoreError::Deposed { .. })));
        second.commit(put("two")).await.unwrap();
        assert_eq!(read(&second).await.as_deref(), Some("two"));
        assert_eq!(told.recv().await.unwrap().value.as_deref(), Some(&b"one"[..]));
        assert_eq!(told.recv().await, None, "a watcher of the former coordinator has to list again");
    }

    #[tokio::test]
    async fn a_backup_brings_back_values_and_revision_but_no_term() {
        let store = MemoryStore::default();
        store.commit(put("one")).await.unwrap();
        let (backup, revision) = (store.backup(), store.revision().await.unwrap());
        store.commit(put("two")).await.unwrap();
        store.restore(&backup);
        assert!(matches!(store.commit(put("late")).await, Err(StoreError::Deposed { .. })));
        let restored = store.reopen();
        assert_eq!((read(&restored).await.as_deref(), restored.revision().await.unwrap()), (Some("one"), revision));
        assert!(restored.term() > store.term());
    }

    #[tokio::test]
    async fn a_commit_that_fails_changes_nothing() {
        let store = MemoryStore::default();
        store.fail_commits(true);
        assert!(matches!(store.commit(put("one")).await, Err(StoreError::Failed { .. })));
        store.fail_commits(false);
        assert_eq!((read(&store).await, store.revision().await.unwrap()), (None, Revision(0)));
    }

    async fn raise_revision(&self, at_least: Revision) -> Result<(), StoreError> {
        let mut state = self.state.lock().expect("no holder panics");
        state.revision = state.revision.max(at_least);
        Ok(())
    }
}
