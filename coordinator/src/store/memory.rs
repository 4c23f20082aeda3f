//! The store in memory: for tests and the simulation. It forgets everything when it is dropped.

use std::{collections::BTreeMap, sync::Mutex};

use async_trait::async_trait;
use regent_common::ids::{Revision, Term};
use tokio::sync::mpsc;

use super::{Change, Key, Precondition, Store, StoreError, Transaction, Versioned, Watchers, Write};

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    values: BTreeMap<Key, Versioned>,
    revision: Revision,
    watchers: Watchers,
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        Ok(self.state.lock().expect("no holder panics").values.get(key).cloned())
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Versioned)>, StoreError> {
        let state = self.state.lock().expect("no holder panics");
        let rows = state.values.iter().filter(|(key, _)| key.as_str().starts_with(prefix));
        let rows = rows.filter(|(key, _)| after.is_none_or(|after| *key > after));
        Ok(rows.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        let mut state = self.state.lock().expect("no holder panics");
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
        self.state.lock().expect("no holder panics").watchers.add(prefix)
    }

    fn term(&self) -> Term {
        Term(1)
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        Ok(self.state.lock().expect("no holder panics").revision)
    }

    async fn raise_revision(&self, at_least: Revision) -> Result<(), StoreError> {
        let mut state = self.state.lock().expect("no holder panics");
        state.revision = state.revision.max(at_least);
        Ok(())
    }
}
