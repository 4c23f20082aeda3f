//! The audit: who did what, and what was decided by itself and why; records that are only ever added.
//!
//! It decides nothing, and a record that cannot be written never fails the call that it is about: that it is missing stands in
//! the log as an error.
//!
//! **Invariants:** within one process the order of the ids is the order in which the records were made; each record is chained to
//! the one before it ([`regent_common::chain`]), and where the chain ends is stored in the same commit.

use std::sync::Arc;

use jiff::Timestamp;
use regent_common::{chain::Link, clock::Clock, error::ErrorChain, ids::ClusterName};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, OwnedMutexGuard};
use ulid::Ulid;

use crate::{
    sequence::{Sequence, millis},
    store::{Store, StoreError, Transaction, get_json, keys},
};

/// Records read at once.
const PAGE: usize = 500;

/// The actor of what the coordinator decides by itself.
pub const SELF: &str = "regent";

/// The outcome of what went well.
pub const OK: &str = "ok";

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Id; sorts by time.
    pub id: Ulid,
    /// When.
    pub time: Timestamp,
    /// Who, such as `user/alice`; [`SELF`] for own decisions.
    pub actor: String,
    /// Address of the caller; empty for own decisions.
    pub source: String,
    /// Call or decision.
    pub action: String,
    /// Resource name; empty when it is of none.
    pub resource: String,
    /// What came of it: [`OK`], or the reason of the refusal.
    pub outcome: String,
    /// For people: evidence and reasons; may begin with a resource name and a colon.
    pub detail: String,
    /// Digest of the record before; empty for the first.
    #[serde(default)]
    pub previous: String,
    /// Digest of this record and of the one before; empty where it was written before there was a chain.
    #[serde(default)]
    pub digest: String,
}

/// Where the chain of the records ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// Digest of the last record.
    digest: String,
}

/// The end of the chain with the version of its key, to commit the next record under; 0 before the first record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct End {
    digest: String,
    version: u64,
}

/// The turn to write. Nobody else writes to the audit as long as it is held.
pub struct Turn(OwnedMutexGuard<Option<End>>);

/// Where records are written; cheap to clone.
#[derive(Clone)]
pub struct AuditLog(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    ids: Sequence,
    /// Held over each commit. `None` until it is read, and after a commit whose outcome is not known.
    end: Arc<Mutex<Option<End>>>,
}

// === impl AuditRecord ===

impl AuditRecord {
    /// Whether its resource, or the one that its detail begins with, is the cluster or a part of it.
    pub fn concerns(&self, cluster: &ClusterName) -> bool {
        let cluster = cluster.resource();
        let belongs = |resource: &str| {
            resource.strip_prefix(&cluster).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let first = self.detail.split_whitespace().next().unwrap_or_default();
        belongs(&self.resource) || belongs(first.trim_end_matches(':'))
    }

    /// The digest that it should have.
    pub fn chained(&self) -> String {
        let said = [&self.actor, &self.source, &self.action, &self.resource, &self.outcome, &self.detail];
        let said = said.map(String::as_str);
        Link { previous: &self.previous, id: &self.id.to_string(), time: self.time, said }.digest()
    }
}

// === impl AuditLog ===

impl AuditLog {
    /// Writes to this store, with the times of this clock.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Inner { store, clock, ids: Sequence::after(Ulid::nil()), end: Arc::default() }))
    }

    /// Adds a record; it is durable when this returns, unless the log says that it could not be written.
    pub async fn record(&self, actor: &str, source: &str, action: &str, resource: &str, outcome: &str, detail: &str) {
        let mut turn = self.turn().await;
        let (log, said) = (self.clone(), [actor, source, action, resource, outcome, detail].map(ToOwned::to_owned));
        // A task of its own keeps the turn until the commit has ended, also when whoever records goes away meanwhile.
        let written = tokio::spawn(async move {
            let (transaction, digest) = log.add(&mut turn, Transaction::default(), [said]).await?;
            let version = log.0.store.commit(transaction).await?.0;
            *turn.0 = Some(End { digest, version });
            Ok::<_, StoreError>(())
        });
        let error = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => ErrorChain(&error).to_string(),
            Err(error) => ErrorChain(&error).to_string(),
        };
        tracing::error!(actor, action, resource, outcome, detail, error, "an audit record was not written");
    }

    /// Adds records of the coordinator's own to a commit, so that there is exactly one of each with what it is about. The turn is
    /// to be held until that commit has ended.
    pub async fn with_own(
        &self,
        transaction: Transaction,
        action: &str,
        resource: &str,
        outcome: &str,
        details: impl IntoIterator<Item = String>,
    ) -> Result<(Transaction, Turn), StoreError> {
        let mut turn = self.turn().await;
        let records = details.into_iter().map(|detail| {
            let [actor, source, action, resource, outcome] =
                [SELF, "", action, resource, outcome].map(ToOwned::to_owned);
            [actor, source, action, resource, outcome, detail]
        });
        let (transaction, _) = self.add(&mut turn, transaction, records.collect::<Vec<_>>()).await?;
        Ok((transaction, turn))
    }

    async fn turn(&self) -> Turn {
        Turn(Arc::clone(&self.0.end).lock_owned().await)
    }

    /// Adds records to a commit; the digest of the last one. The end of the chain is not known any more until that commit has
    /// gone well.
    async fn add(
        &self,
        turn: &mut Turn,
        mut transaction: Transaction,
        records: impl IntoIterator<Item = [String; 6]>,
    ) -> Result<(Transaction, String), StoreError> {
        let key = keys::audit_end();
        let end = match turn.0.take() {
            Some(end) => end,
            None => get_json::<Head>(self.0.store.as_ref(), &key)
                .await?
                .map(|stored| End { digest: stored.value.digest, version: stored.version })
                .unwrap_or_default(),
        };
        let mut last = end.digest;
        let mut any = false;
        for [actor, source, action, resource, outcome, detail] in records {
            let time = self.0.clock.wall();
            let (id, previous, digest) = (self.0.ids.next(time), last, String::new());
            let record = AuditRecord { id, time, actor, source, action, resource, outcome, detail, previous, digest };
            let record = AuditRecord { digest: record.chained(), ..record };
            let key = keys::audit(&record.id.to_string());
            transaction = transaction.require_absent(key.clone()).put_json(key, &record);
            (last, any) = (record.digest, true);
        }
        if any {
            transaction = match end.version {
                0 => transaction.require_absent(key.clone()),
                version => transaction.require_version(key.clone(), version),
            };
            transaction = transaction.put_json(key, &Head { digest: last.clone() });
        }
        Ok((transaction, last))
    }

    /// Reads records, oldest first, `limit` at most: only those of a cluster, at or after a time, and after an id (which need
    /// not be there any more).
    pub async fn list(
        &self,
        cluster: Option<&ClusterName>,
        since: Option<Timestamp>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<AuditRecord>, StoreError> {
        // No id of a record at or after `since` lies before its millisecond: ids run ahead of the clock, never behind it.
        let before_since = since.map(|since| match millis(since).checked_sub(1) {
            Some(millis) => Ulid::from_parts(millis, u128::MAX).to_string(),
            None => Ulid::nil().to_string(),
        });
        let start = before_since.as_deref().max(after);
        let mut last = start.map(keys::audit);
        let mut found = Vec::new();
        while found.len() < limit {
            let page = self.0.store.list(keys::AUDIT, last.as_ref(), PAGE).await?;
            for (key, stored) in &page {
                let record: AuditRecord = serde_json::from_slice(&stored.value)
                    .map_err(|source| StoreError::Value { key: key.clone(), source })?;
                let wanted = cluster.is_none_or(|cluster| record.concerns(cluster))
                    && since.is_none_or(|since| record.time >= since);
                if wanted && found.len() < limit {
                    found.push(record);
                }
            }
            match page.into_iter().next_back() {
                Some((key, _)) => last = Some(key),
                None => break,
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use regent_common::clock::ManualClock;

    use super::*;
    use crate::store::memory::MemoryStore;

    fn fresh() -> (Arc<ManualClock>, AuditLog) {
        let clock = Arc::new(ManualClock::default());
        (clock.clone(), AuditLog::new(Arc::new(MemoryStore::default()), clock))
    }

    fn actions(records: &[AuditRecord]) -> Vec<&str> {
        records.iter().map(|record| record.action.as_str()).collect()
    }

    #[tokio::test]
    async fn records_come_back_oldest_first_even_when_the_clock_went_back() {
        let (clock, audit) = fresh();
        clock.advance(Duration::from_secs(100));
        audit.record("user/alice", "127.0.0.1:4", "CreateCluster", "clusters/db", OK, "").await;
        clock.set_wall(Timestamp::UNIX_EPOCH);
        audit.record(SELF, "", "NoFailover", "clusters/db", "refused", "no replica").await;
        let all = audit.list(None, None, None, 10).await.unwrap();
        assert_eq!(actions(&all), ["CreateCluster", "NoFailover"]);
        assert_eq!((all[0].actor.as_str(), all[0].source.as_str()), ("user/alice", "127.0.0.1:4"));
        assert_eq!(all[1].time, Timestamp::UNIX_EPOCH);
    }

    #[tokio::test]
    async fn a_cluster_has_its_own_records_and_those_whose_detail_names_it() {
        let (_, audit) = fresh();
        for (action, resource, detail) in [
            ("whole", "clusters/db", ""),
            ("part", "clusters/db/members/db1", ""),
            ("by-detail", "operations/x", "clusters/db/members/db2: broken"),
            ("longer-name", "clusters/db-two", ""),
            ("none", "nodes/n", "about clusters/db"),
        ] {
            audit.record(SELF, "", action, resource, OK, detail).await;
        }
        let cluster = ClusterName::new("db").unwrap();
        let found = audit.list(Some(&cluster), None, None, 10).await.unwrap();
        assert_eq!(actions(&found), ["whole", "part", "by-detail"]);
    }

    #[tokio::test]
    async fn pages_and_times_leave_nothing_out_and_give_nothing_twice() {
        let (clock, audit) = fresh();
        for number in 0..1200 {
            audit.record(SELF, "", &number.to_string(), "", OK, "").await;
            clock.advance(Duration::from_millis(1));
        }
        let since = Timestamp::from_millisecond(700).unwrap();
        let mut seen = Vec::new();
        let mut after = None;
        loop {
            let page = audit.list(None, Some(since), after.as_deref(), 77).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.id.to_string());
            seen.extend(page.into_iter().map(|record| record.action));
        }
        let wanted: Vec<String> = (700..1200).map(|number| number.to_string()).collect();
        assert_eq!(seen, wanted);
    }

    #[tokio::test]
    async fn every_record_is_chained_to_the_one_before_it_also_after_a_restart() {
        let (store, clock) = (Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
        let open = || AuditLog::new(store.clone(), clock.clone());
        let audit = open();
        audit.record("user/alice", "", "CreateCluster", "clusters/db", OK, "").await;
        let details = ["one", "two"].map(ToOwned::to_owned);
        let (transaction, turn) =
            audit.with_own(Transaction::default(), "FORCED", "clusters/db", "adopted", details).await.unwrap();
        store.commit(transaction).await.unwrap();
        drop(turn);
        clock.advance(Duration::from_secs(1));
        let audit = open();
        audit.record(SELF, "", "NoFailover", "clusters/db", "refused", "no replica").await;
        let all = audit.list(None, None, None, 10).await.unwrap();
        assert_eq!(actions(&all), ["CreateCluster", "FORCED", "FORCED", "NoFailover"]);
        let mut previous = String::new();
        for record in &all {
            assert_eq!((&record.previous, &record.digest), (&previous, &record.chained()), "{record:?}");
            previous.clone_from(&record.digest);
        }
        let changed = AuditRecord { detail: "another reason".to_owned(), ..all[3].clone() };
        assert_ne!(changed.chained(), all[3].digest);
    }

    #[tokio::test]
    async fn a_record_that_cannot_be_written_does_not_fail_the_caller() {
        let (store, clock) = (Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
        // The next id of this log is known and its key is taken.
        let log = AuditLog(Arc::new(Inner {
            store: store.clone(),
            clock,
            ids: Sequence::after(Ulid::from_parts(5, 0)),
            end: Arc::default(),
        }));
        let taken = keys::audit(&Ulid::from_parts(5, 1).to_string());
        store.commit(Transaction::default().put(taken.clone(), b"taken".to_vec())).await.unwrap();
        log.record(SELF, "", "late", "", OK, "").await;
        assert_eq!(store.get(&taken).await.unwrap().unwrap().value, b"taken");
        log.record(SELF, "", "later", "", OK, "").await;
        assert_eq!(store.list(keys::AUDIT, None, 10).await.unwrap().len(), 2);
    }
}
