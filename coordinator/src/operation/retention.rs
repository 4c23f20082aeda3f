//! Forgets old operations, so that the store does not grow for ever. The audit and the events keep what matters of them.

use regent_common::ids::ClusterName;

use super::log::Entry;
use crate::{
    model::operation::OperationRecord,
    store::{Store, StoreError, Transaction, keys, list_json},
};

/// Operations of a cluster that are kept.
pub const KEPT: usize = 100;

/// Removes the oldest operations of a cluster beyond [`KEPT`], with their logs. The one that runs is never among them: it
/// is the newest.
pub async fn prune(store: &dyn Store, cluster: &ClusterName) -> Result<usize, StoreError> {
    let records = list_json::<OperationRecord>(store, keys::OPERATIONS).await?;
    // Ids sort by time, so the oldest come first.
    let own: Vec<_> = records.into_iter().filter(|(_, stored)| stored.value.cluster == *cluster).collect();
    let surplus = own.len().saturating_sub(KEPT);
    for (key, stored) in own.into_iter().take(surplus) {
        let log = list_json::<Entry>(store, &keys::operation_log_prefix(&stored.value.id)).await?;
        let transaction = log.into_iter().fold(Transaction::default().delete(key), |t, (entry, _)| t.delete(entry));
        store.commit(transaction).await?;
    }
    Ok(surplus)
}

#[cfg(test)]
mod tests {
    use regent_common::ids::{ClusterId, OperationId};

    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn the_oldest_operations_of_the_cluster_go_with_their_logs() {
        let store = MemoryStore::default();
        let cluster: ClusterName = "db".parse().unwrap();
        for n in 0..KEPT as u64 + 3 {
            for name in ["db", "other"] {
                let id = OperationId::from_parts(n, u128::from(n % 2 == 0));
                let id = if name == "db" { id } else { OperationId::from_parts(n, 7) };
                let record = OperationRecord {
                    id,
                    kind: "resync".to_owned(),
                    cluster: name.parse().unwrap(),
                    cluster_id: ClusterId::from_parts(1, 1),
                    parameters: serde_json::Value::Null,
                    steps: Vec::new(),
                    created_by: String::new(),
                    reason: String::new(),
                    created_at: jiff::Timestamp::UNIX_EPOCH,
                };
                let entry =
                    Entry { at: jiff::Timestamp::UNIX_EPOCH, event: crate::operation::log::Event::Undone { step: 0 } };
                let transaction = Transaction::default()
                    .put_json(keys::operation(&id), &record)
                    .put_json(keys::operation_log(&id, 0), &entry);
                store.commit(transaction).await.unwrap();
            }
        }
        assert_eq!(prune(&store, &cluster).await.unwrap(), 3);
        assert_eq!(prune(&store, &cluster).await.unwrap(), 0);
        let left = list_json::<OperationRecord>(&store, keys::OPERATIONS).await.unwrap();
        assert_eq!(left.len(), 2 * KEPT + 3);
        assert_eq!(store.list("operation_logs/", None, usize::MAX).await.unwrap().len(), left.len());
    }
}
