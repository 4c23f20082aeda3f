//! Requests that are sent again: the same id with the same body gets the operation that it began, for 24 hours.
//!
//! It does not answer the caller; it says which operation the request began. Requests with `validate_only` change nothing and
//! are not remembered.
//!
//! **Invariant:** a request is remembered by the very commit that begins its operation, under the condition that it is not
//! remembered yet. Of two that arrive at once, one commit fails with a conflict on a key for which [`is_request`] is true;
//! its caller then asks [`repeated`] again.

use jiff::{SignedDuration, Timestamp};
use prost::Message;
use regent_common::{
    clock::Clock,
    error::{Reason, bad_field, refuse},
    ids::OperationId,
};
use ring::digest::SHA256;
use serde::{Deserialize, Serialize};
use tonic::Status;

use super::failed_store;
use crate::store::{Key, Store, StoreError, Transaction, get_json, keys};

/// How long a request is remembered.
const REMEMBERED: SignedDuration = SignedDuration::from_hours(24);

/// Longest request id in bytes.
const LONGEST_ID: usize = 128;

/// Records that are read and removed at once.
const PAGE: usize = 50;

/// A remembered request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct RequestRecord {
    /// SHA-256 of the body without its request id.
    digest: [u8; 32],
    operation: OperationId,
    at: Timestamp,
}

/// SHA-256 of a request's body without its request id, which the closure clears.
pub fn digest<M: Message + Clone>(message: &M, clear_request_id: impl Fn(&mut M)) -> [u8; 32] {
    let mut message = message.clone();
    clear_request_id(&mut message);
    let digest = ring::digest::digest(&SHA256, &message.encode_to_vec());
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

/// The operation that this request began before; `None` for a new request, and for one without an id.
///
/// # Errors
/// `REQUEST_ID_REUSED` when the id was used with another body, `INVALID_FIELD` when it is too long.
pub async fn repeated(
    store: &dyn Store,
    clock: &dyn Clock,
    caller: &str,
    rpc: &str,
    request_id: &str,
    body_digest: [u8; 32],
) -> Result<Option<OperationId>, Status> {
    if request_id.is_empty() {
        return Ok(None);
    }
    if request_id.len() > LONGEST_ID {
        return Err(bad_field("request_id", format!("has more than {LONGEST_ID} bytes")));
    }
    let key = keys::request(caller, rpc, request_id);
    loop {
        let Some(found) = get_json::<RequestRecord>(store, &key).await.map_err(failed_store)? else {
            return Ok(None);
        };
        if !found.value.is_expired(clock.wall()) {
            return if found.value.digest == body_digest {
                Ok(Some(found.value.operation))
            } else {
                let message = format!(
                    "request id {request_id:?} was used for {rpc} before with another body (operations/{}); nothing was \
                     changed",
                    found.value.operation
                );
                Err(refuse(Reason::RequestIdReused, message))
            };
        }
        // Removed here, so that `remember` has one precondition for every new request.
        let forget = Transaction::default().require_version(key.clone(), found.version).delete(key.clone());
        match store.commit(forget).await {
            // On a conflict somebody was faster, and what is there now counts.
            Ok(_) | Err(StoreError::Conflict { .. }) => {}
            Err(error) => return Err(failed_store(error)),
        }
    }
}

/// Adds to a transaction that this request begins this operation; without a request id nothing is added.
#[must_use]
pub fn remember(
    transaction: Transaction,
    clock: &dyn Clock,
    caller: &str,
    rpc: &str,
    request_id: &str,
    digest: [u8; 32],
    operation: &OperationId,
) -> Transaction {
    if request_id.is_empty() {
        return transaction;
    }
    let key = keys::request(caller, rpc, request_id);
    let record = RequestRecord { digest, operation: *operation, at: clock.wall() };
    transaction.require_absent(key.clone()).put_json(key, &record)
}

/// Whether a conflict on this key means that the same request was taken meanwhile.
pub fn is_request(key: &Key) -> bool {
    key.as_str().starts_with(keys::REQUESTS)
}

/// Forgets requests that are older than 24 hours, a few at once; gives their number. To be called every hour or so.
pub async fn prune(store: &dyn Store, clock: &dyn Clock) -> Result<usize, StoreError> {
    let mut forgotten = 0;
    let mut after: Option<Key> = None;
    loop {
        let page = store.list(keys::REQUESTS, after.as_ref(), PAGE).await?;
        let Some((last, _)) = page.last() else { return Ok(forgotten) };
        after = Some(last.clone());
        let mut transaction = Transaction::default();
        for (key, stored) in &page {
            let record: RequestRecord = serde_json::from_slice(&stored.value)
                .map_err(|source| StoreError::Value { key: key.clone(), source })?;
            if record.is_expired(clock.wall()) {
                transaction = transaction.require_version(key.clone(), stored.version).delete(key.clone());
            }
        }
        let expired = transaction.writes.len();
        if expired > 0 {
            match store.commit(transaction).await {
                Ok(_) => forgotten += expired,
                // One of them was forgotten and asked again just now; the others wait for the next time.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

// === impl RequestRecord ===

impl RequestRecord {
    fn is_expired(&self, now: Timestamp) -> bool {
        now.duration_since(self.at) > REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use regent_common::{clock::ManualClock, error::reason_of};
    use regent_proto::coordinator::v1::CreateClusterRequest;

    use super::*;
    use crate::store::memory::MemoryStore;

    const RPC: &str = "CreateCluster";
    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn body(engine: &str, id: &str) -> [u8; 32] {
        let labels = [("a", "1"), ("b", "2")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let (engine, request_id) = (engine.to_owned(), id.to_owned());
        let request = CreateClusterRequest { engine, request_id, labels, ..Default::default() };
        digest(&request, |request| request.request_id.clear())
    }

    fn first() -> OperationId {
        OperationId::from_parts(1, 1)
    }

    async fn began(store: &MemoryStore, clock: &ManualClock, id: &str, operation: OperationId) {
        let transaction = remember(Transaction::default(), clock, "user/a", RPC, id, body("x", id), &operation);
        store.commit(transaction).await.unwrap();
    }

    #[test]
    fn a_digest_is_of_the_body_without_its_id() {
        assert_eq!(body("x", "one"), body("x", "two"));
        assert_ne!(body("x", "one"), body("y", "one"));
    }

    #[tokio::test]
    async fn the_same_request_gets_its_operation_and_another_body_is_refused() {
        let (store, clock) = (MemoryStore::default(), ManualClock::default());
        assert_eq!(repeated(&store, &clock, "user/a", RPC, "id 1/ä", body("x", "")).await.unwrap(), None);
        began(&store, &clock, "id 1/ä", first()).await;
        clock.advance(DAY);
        assert_eq!(repeated(&store, &clock, "user/a", RPC, "id 1/ä", body("x", "")).await.unwrap(), Some(first()));
        let refused = repeated(&store, &clock, "user/a", RPC, "id 1/ä", body("y", "")).await.unwrap_err();
        assert_eq!((refused.code(), reason_of(&refused)), (tonic::Code::AlreadyExists, Some(Reason::RequestIdReused)));
        // Another caller, another method, another id, no id: each a request of its own.
        for (caller, rpc, id) in [
            ("user/b", RPC, "id 1/ä"),
            ("user/a", "DeleteCluster", "id 1/ä"),
            ("user/a", RPC, "id"),
            ("user/a", RPC, ""),
        ] {
            assert_eq!(repeated(&store, &clock, caller, rpc, id, body("y", "")).await.unwrap(), None);
        }
        let long = "x".repeat(LONGEST_ID + 1);
        let refused = repeated(&store, &clock, "user/a", RPC, &long, body("x", "")).await.unwrap_err();
        assert_eq!(reason_of(&refused), Some(Reason::InvalidField));
    }

    #[tokio::test]
    async fn after_a_day_the_id_is_free_again() {
        let (store, clock) = (MemoryStore::default(), ManualClock::default());
        began(&store, &clock, "id", first()).await;
        clock.advance(DAY + Duration::from_secs(1));
        assert_eq!(repeated(&store, &clock, "user/a", RPC, "id", body("y", "")).await.unwrap(), None);
        began(&store, &clock, "id", OperationId::from_parts(2, 2)).await;
        let again = repeated(&store, &clock, "user/a", RPC, "id", body("x", "")).await.unwrap();
        assert_eq!(again, Some(OperationId::from_parts(2, 2)));
    }

    #[tokio::test]
    async fn of_two_at_once_one_is_taken() {
        let (store, clock) = (MemoryStore::default(), ManualClock::default());
        began(&store, &clock, "id", first()).await;
        let second = remember(
            Transaction::default(),
            &clock,
            "user/a",
            RPC,
            "id",
            body("x", ""),
            &OperationId::from_parts(2, 2),
        );
        match store.commit(second).await.unwrap_err() {
            StoreError::Conflict { key } => assert!(is_request(&key)),
            other => panic!("{other}"),
        }
        let nothing = remember(Transaction::default(), &clock, "user/a", RPC, "", body("x", ""), &first());
        assert_eq!(nothing, Transaction::default());
    }

    #[tokio::test]
    async fn pruning_forgets_the_old_and_keeps_the_young() {
        let (store, clock) = (MemoryStore::default(), ManualClock::default());
        for number in 0..120 {
            began(&store, &clock, &format!("old-{number}"), first()).await;
        }
        clock.advance(DAY);
        for number in 0..7 {
            began(&store, &clock, &format!("young-{number}"), first()).await;
        }
        assert_eq!(prune(&store, &clock).await.unwrap(), 0);
        clock.advance(Duration::from_secs(1));
        assert_eq!(prune(&store, &clock).await.unwrap(), 120);
        assert_eq!(store.list(keys::REQUESTS, None, 1000).await.unwrap().len(), 7);
    }
}
