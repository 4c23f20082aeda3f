//! What happened, for the platform: a stream of numbered events that can be resumed.
//!
//! It decides nothing, and an event that cannot be stored never fails what it is about: that it is missing stands in the log as
//! an error.
//!
//! **Invariants:** events are committed in the order of their ids, also over a restart and when the clock goes back. A watcher
//! sees every event after its start once and in order, or an error. At most [`KEPT`] events are kept.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use futures::{Stream, stream};
use jiff::Timestamp;
use regent_common::{
    clock::Clock,
    error::{ErrorChain, bad_field},
    ids::ClusterName,
};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};
use ulid::Ulid;

use crate::{
    api::failed_store,
    sequence::Sequence,
    store::{Change, Key, Store, StoreError, Transaction, keys},
};

#[cfg(test)]
mod tests;

/// Most events that are kept.
pub const KEPT: usize = 10_000;

/// Events that are removed at once; with the new one they fit into one transaction.
const PRUNED_AT_ONCE: usize = 64;

/// Events read at once.
const PAGE: usize = 200;

/// Asks for all events that are kept.
pub const FROM_THE_FIRST: &str = "0";

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Id; sorts by time.
    pub id: Ulid,
    /// When.
    pub time: Timestamp,
    /// Kind, such as `FAILOVER_SUCCEEDED`.
    pub kind: String,
    /// Cluster that it concerns.
    pub cluster: Option<ClusterName>,
    /// Resource that it is about.
    pub resource: String,
    /// For people.
    pub message: String,
    /// Facts, by name.
    pub facts: BTreeMap<String, String>,
}

/// Why events cannot be watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// Not an id.
    #[error(
        "{0:?} is not the id of an event: give the id of the last event seen, nothing for new events, or \"0\" for all"
    )]
    NotAnId(String),
    /// Events after it may be lost to the watcher.
    #[error(
        "event {0} is older than the events that are kept: some may have been missed; look at the present state, then watch \
         from \"0\""
    )]
    TooOld(Ulid),
    /// This store never had it.
    #[error(
        "event {0} is newer than every event of this store, as after the store was restored from a backup: look at the \
         present state, then watch from \"0\""
    )]
    Unknown(Ulid),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where events are published; cheap to clone.
#[derive(Clone)]
pub struct EventLog(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    keep: usize,
    /// Held over each commit, so that the order of the commits is the order of the ids. `None` until it is read, and after a
    /// commit whose outcome is not known.
    kept: Arc<Mutex<Option<Kept>>>,
}

/// The ids that are in the store.
struct Kept {
    /// Oldest first.
    ids: VecDeque<Ulid>,
    sequence: Sequence,
}

/// Where a watcher is.
struct Watcher {
    log: EventLog,
    cluster: Option<ClusterName>,
    /// All events up to this one were seen or passed over; `None` before the first.
    last: Option<Ulid>,
    source: Source,
}

/// Where a watcher's next event comes from.
enum Source {
    /// The store; what is committed meanwhile gathers in the channel.
    Stored { ready: VecDeque<EventRecord>, live: mpsc::Receiver<Change> },
    /// The channel.
    Live(mpsc::Receiver<Change>),
    /// Nowhere: an error was told.
    Ended,
}

// === impl WatchError ===

impl From<WatchError> for tonic::Status {
    fn from(error: WatchError) -> Self {
        match error {
            WatchError::NotAnId(_) | WatchError::TooOld(_) | WatchError::Unknown(_) => {
                bad_field("resume_after", error.to_string())
            }
            WatchError::Store(error) => failed_store(error),
        }
    }
}

// === impl EventLog ===

impl EventLog {
    /// Publishes to this store, with the times of this clock.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self::keeping(store, clock, KEPT)
    }

    fn keeping(store: Arc<dyn Store>, clock: Arc<dyn Clock>, keep: usize) -> Self {
        Self(Arc::new(Inner { store, clock, keep, kept: Arc::default() }))
    }

    /// Publishes an event; it is durable when this returns, unless the log says that it could not be stored.
    pub async fn publish(
        &self,
        kind: &str,
        cluster: Option<&ClusterName>,
        resource: &str,
        message: &str,
        facts: BTreeMap<String, String>,
    ) {
        let mut guard = Arc::clone(&self.0.kept).lock_owned().await;
        let (log, time) = (self.clone(), self.0.clock.wall());
        let record = EventRecord {
            id: Ulid::nil(),
            time,
            kind: kind.to_owned(),
            cluster: cluster.cloned(),
            resource: resource.to_owned(),
            message: message.to_owned(),
            facts,
        };
        // A task of its own keeps the lock until the commit has ended, also when the publisher goes away meanwhile.
        let commit = tokio::spawn(async move { log.commit(&mut guard, record).await });
        match commit.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = ErrorChain(&error);
                tracing::error!(kind, resource, message, %error, "an event was not published");
            }
            Err(error) => {
                let error = ErrorChain(&error);
                tracing::error!(kind, resource, message, %error, "publishing an event broke off");
            }
        }
    }

    async fn commit(&self, guard: &mut Option<Kept>, mut record: EventRecord) -> Result<(), StoreError> {
        // Put back only after a commit that went well; otherwise the ids are read anew the next time.
        let mut kept = match guard.take() {
            Some(kept) => kept,
            None => Kept::read(self.0.store.as_ref()).await?,
        };
        record.id = kept.sequence.next(record.time);
        let mut transaction = Transaction::default().require_absent(key(record.id)).put_json(key(record.id), &record);
        let pruned = if kept.ids.len() < self.0.keep { 0 } else { PRUNED_AT_ONCE.min(kept.ids.len()) };
        for id in kept.ids.iter().take(pruned) {
            transaction = transaction.delete(key(*id));
        }
        self.0.store.commit(transaction).await?;
        kept.ids.drain(..pruned);
        kept.ids.push_back(record.id);
        *guard = Some(kept);
        Ok(())
    }

    /// Events as they happen, of one cluster or of all: from now on (`""`), all that are kept and then new ones
    /// ([`FROM_THE_FIRST`]), or those after the event of this id.
    pub async fn watch(
        &self,
        resume_after: &str,
        cluster: Option<ClusterName>,
    ) -> Result<impl Stream<Item = Result<EventRecord, WatchError>> + Send + 'static + use<>, WatchError> {
        let mut guard = self.0.kept.lock().await;
        if guard.is_none() {
            *guard = Some(Kept::read(self.0.store.as_ref()).await?);
        }
        let ids = guard.as_ref().map(|kept| &kept.ids);
        let newest = ids.and_then(|ids| ids.back().copied());
        let last = match resume_after {
            "" => newest,
            FROM_THE_FIRST => None,
            text => {
                let id = Ulid::from_string(text).map_err(|_| WatchError::NotAnId(text.to_owned()))?;
                if newest.is_none_or(|newest| id > newest) {
                    return Err(WatchError::Unknown(id));
                }
                if ids.and_then(VecDeque::front).is_some_and(|oldest| id < *oldest) {
                    return Err(WatchError::TooOld(id));
                }
                Some(id)
            }
        };
        // Nothing is published while the lock is held: what is not in the store yet comes through the channel.
        let live = self.0.store.watch(keys::EVENTS);
        drop(guard);
        let source = if resume_after.is_empty() { Source::Live(live) } else { Source::stored(live) };
        let watcher = Watcher { log: self.clone(), cluster, last, source };
        Ok(stream::unfold(watcher, |mut watcher| async move {
            let next = watcher.next().await?;
            Some((next, watcher))
        }))
    }

    /// Whether events after this one have been removed. True as well when only itself was removed.
    async fn has_lost(&self, last: Option<Ulid>) -> Result<bool, StoreError> {
        let Some(last) = last else { return Ok(false) };
        let oldest = self.0.store.list(keys::EVENTS, None, 1).await?;
        Ok(oldest.first().is_some_and(|(key, _)| key.last_part() > last.to_string().as_str()))
    }
}

// === impl Kept ===

impl Kept {
    async fn read(store: &dyn Store) -> Result<Self, StoreError> {
        let mut ids = VecDeque::new();
        let mut after: Option<Key> = None;
        loop {
            let page = store.list(keys::EVENTS, after.as_ref(), PAGE).await?;
            ids.extend(page.iter().filter_map(|(key, _)| Ulid::from_string(key.last_part()).ok()));
            match page.into_iter().next_back() {
                Some((key, _)) => after = Some(key),
                None => break,
            }
        }
        let sequence = Sequence::after(ids.back().copied().unwrap_or(Ulid::nil()));
        Ok(Self { ids, sequence })
    }
}

// === impl Source ===

impl Source {
    fn stored(live: mpsc::Receiver<Change>) -> Self {
        Self::Stored { ready: VecDeque::new(), live }
    }
}

// === impl Watcher ===

impl Watcher {
    async fn next(&mut self) -> Option<Result<EventRecord, WatchError>> {
        loop {
            match self.any_next().await {
                Ok(None) => return None,
                Ok(Some(event)) => {
                    if self.cluster.is_none() || self.cluster == event.cluster {
                        return Some(Ok(event));
                    }
                }
                Err(error) => {
                    self.source = Source::Ended;
                    return Some(Err(error));
                }
            }
        }
    }

    /// The next event of any cluster.
    async fn any_next(&mut self) -> Result<Option<EventRecord>, WatchError> {
        loop {
            match std::mem::replace(&mut self.source, Source::Ended) {
                Source::Ended => return Ok(None),
                Source::Stored { mut ready, live } => {
                    if let Some(event) = ready.pop_front() {
                        self.last = Some(event.id);
                        self.source = Source::Stored { ready, live };
                        return Ok(Some(event));
                    }
                    let page = self.page().await?;
                    self.source =
                        if page.is_empty() { Source::Live(live) } else { Source::Stored { ready: page, live } };
                }
                Source::Live(mut live) => match live.recv().await {
                    Some(change) => {
                        let event = change.value.map(|value| read(&change.key, &value)).transpose()?;
                        self.source = Source::Live(live);
                        if let Some(event) = event.filter(|event| self.last.is_none_or(|last| event.id > last)) {
                            self.last = Some(event.id);
                            return Ok(Some(event));
                        }
                    }
                    // Too slow. The new channel is opened before the store is read: nothing falls between.
                    None => self.source = Source::stored(self.log.0.store.watch(keys::EVENTS)),
                },
            }
        }
    }

    /// Stored events after the last one.
    async fn page(&self) -> Result<VecDeque<EventRecord>, WatchError> {
        let store = &self.log.0.store;
        let after = self.last.map(key);
        let page = store.list(keys::EVENTS, after.as_ref(), PAGE).await?;
        let events = page.iter().map(|(key, stored)| read(key, &stored.value)).collect::<Result<_, _>>()?;
        // Asked after the page was read, so that nothing was removed before it unnoticed.
        match self.last {
            Some(last) if self.log.has_lost(Some(last)).await? => Err(WatchError::TooOld(last)),
            Some(_) | None => Ok(events),
        }
    }
}

fn key(id: Ulid) -> Key {
    keys::event(&id.to_string())
}

fn read(key: &Key, value: &[u8]) -> Result<EventRecord, StoreError> {
    serde_json::from_slice(value).map_err(|source| StoreError::Value { key: key.clone(), source })
}
