//! Makes nodes that joined with a cluster's token replicas of it, without a second call.
//!
//! Level-triggered: a node whose record still names a cluster is looked at until the operation that adds it has begun (it
//! clears the name in the same commit) or the cluster is gone. A cluster that is busy is asked again.

use std::{sync::Arc, time::Duration};

use regent_common::{error::ErrorChain, ids::ClusterName};
use tokio_util::sync::CancellationToken;

use super::NodeTable;
use crate::{
    cluster::directory::Directory,
    model::{cluster::Phase, node::NodeRecord},
    operation::{executor::NewOperation, kinds::add_member},
    store::{StoreError, Transaction, Versioned, keys, list_json},
};

/// How late a node is seen that nothing announced.
const PERIOD: Duration = Duration::from_secs(2);

/// Watches all nodes until `stop`.
pub async fn run(directory: Directory, table: Arc<NodeTable>, stop: CancellationToken) {
    let mut period = tokio::time::interval(PERIOD);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = period.tick() => {}
        }
        if let Err(error) = look(&directory, &table).await {
            tracing::warn!(error = %ErrorChain(&error), "the joined nodes could not be looked at");
        }
    }
}

async fn look(directory: &Directory, table: &NodeTable) -> Result<(), StoreError> {
    let store = directory.environment().store.as_ref();
    for (_, stored) in list_json::<NodeRecord>(store, keys::NODES).await? {
        let Some(cluster) = stored.value.join_cluster.clone() else { continue };
        // The operation needs the agent at once; before it is heard there is nothing to begin.
        if table.view(&stored.value.name).connected && !stored.value.revoked {
            add(directory, stored, &cluster).await;
        }
    }
    Ok(())
}

async fn add(directory: &Directory, stored: Versioned<NodeRecord>, cluster: &ClusterName) {
    let actor = directory.get(cluster);
    let record = actor.as_ref().and_then(|actor| actor.cluster.record());
    let (Some(actor), Some(record)) = (actor, record) else {
        tracing::debug!(node = %stored.value.name, %cluster, "the cluster that the node was to join is gone");
        return;
    };
    if record.operation.is_some() || record.primary.is_none() || record.phase != Phase::Active {
        return;
    }
    let key = keys::node(&stored.value.name);
    let parameters = add_member::Parameters { node: stored.value.name.clone(), max_bytes_per_second: 0 };
    let reason = format!("node {} joined with a token of this cluster", stored.value.name);
    let new = NewOperation::automatic(&add_member::AddMember, &parameters, reason);
    let node = NodeRecord { join_cluster: None, ..stored.value };
    let transaction = Transaction::default().require_version(key.clone(), stored.version).put_json(key, &node);
    if let Err(error) = directory.begin(&actor, new, transaction).await {
        tracing::debug!(node = %node.name, %cluster, error = %ErrorChain(&error), "the node is not added yet");
    }
}
