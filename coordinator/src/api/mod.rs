//! What the coordinator answers: one file per service, over what they share.

use std::{collections::BTreeMap, sync::Arc};

use prost::Message;
use regent_common::{
    error::{ErrorChain, Reason, bad_field, refuse},
    ids::{NodeName, OperationId},
};
use regent_proto::coordinator::v1::Operation;
use tonic::{Request, Status};

use crate::{
    cluster::{ChangeError, actor::ActorHandle, directory::Directory},
    model::{Assignment, node::NodeRecord, operation::OperationRecord},
    nodes::NodeTable,
    operation::executor,
    store::{StoreError, Transaction, get_json, keys, list_json},
};

pub mod catalog;
pub mod cluster;
pub mod create;
pub mod node;
pub mod operation;
pub mod view;

/// Rows in one answer when none are asked for, and the most.
const PAGE: (usize, usize) = (100, 1000);

/// What the services share.
pub struct Api {
    /// Clusters.
    pub directory: Directory,
    /// What was heard of nodes.
    pub table: Arc<NodeTable>,
}

// === impl Api ===

impl Api {
    /// A node's stored record.
    pub async fn node_record(&self, node: &NodeName) -> Result<Option<NodeRecord>, Status> {
        let store = self.directory.environment().store.as_ref();
        let found = get_json::<NodeRecord>(store, &keys::node(node)).await.map_err(failed_store)?;
        Ok(found.map(|stored| stored.value))
    }

    /// All nodes with what is known of them.
    pub async fn candidates(&self) -> Result<BTreeMap<NodeName, create::Candidate>, Status> {
        let store = self.directory.environment().store.as_ref();
        let nodes = list_json::<NodeRecord>(store, keys::NODES).await.map_err(failed_store)?;
        let mut candidates = BTreeMap::new();
        for (_, stored) in nodes {
            let record = stored.value;
            let assignment = self.assignment(&record.name).await?;
            let view = self.table.view(&record.name);
            candidates.insert(record.name.clone(), create::Candidate { record, view, assignment });
        }
        Ok(candidates)
    }

    /// The cluster of a node.
    pub async fn assignment(&self, node: &NodeName) -> Result<Option<Assignment>, Status> {
        let store = self.directory.environment().store.as_ref();
        let found = get_json::<Assignment>(store, &keys::assignment(node)).await.map_err(failed_store)?;
        Ok(found.map(|stored| stored.value))
    }

    /// Renders an operation.
    pub async fn render_operation(
        &self,
        operation: &OperationRecord,
        actor: Option<&ActorHandle>,
    ) -> Result<Operation, Status> {
        let status = executor::status(self.directory.environment(), operation).await;
        let status = status.map_err(|error| Status::internal(ErrorChain(&error).to_string()))?;
        let progress = actor.and_then(|actor| actor.progress.borrow().clone());
        Ok(view::operation(operation, &status, progress.as_ref()))
    }
}

/// A store that did not do as asked, for the caller.
pub fn failed_store(error: StoreError) -> Status {
    match error {
        StoreError::Conflict { .. } => {
            refuse(Reason::EtagMismatch, "somebody else changed this just now: look again and retry; nothing was changed")
        }
        StoreError::Deposed { .. } => refuse(Reason::NotLeader, "another coordinator has taken over: ask that one"),
        other => refuse(Reason::Internal, ErrorChain(&other).to_string()),
    }
}

/// A change of a cluster that was not made, for the caller.
pub fn failed_change(error: ChangeError) -> Status {
    match error {
        ChangeError::Gone(name) => refuse(Reason::ClusterNotFound, format!("cluster {name} no longer exists")),
        ChangeError::Refused(why) => refuse(Reason::ClusterBusy, why),
        ChangeError::Busy { cluster, running } => refuse(
            Reason::ClusterBusy,
            format!("operations/{running} of cluster {cluster} is running: wait for it or cancel it; nothing was changed"),
        ),
        ChangeError::Store(error) => failed_store(error),
    }
}

/// One page of named rows, sorted by name, and the token of the next page.
pub fn page<T>(
    rows: impl IntoIterator<Item = (String, T)>,
    size: i32,
    token: &str,
) -> Result<(Vec<T>, String), Status> {
    let size = match usize::try_from(size) {
        Err(_) => return Err(bad_field("page_size", "must not be negative")),
        Ok(0) => PAGE.0,
        Ok(size) => size.min(PAGE.1),
    };
    let mut rows: Vec<_> = rows.into_iter().filter(|(name, _)| name.as_str() > token).collect();
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    let more = rows.len() > size;
    rows.truncate(size);
    let next = if more { rows.last().map(|(name, _)| name.clone()).unwrap_or_default() } else { String::new() };
    Ok((rows.into_iter().map(|(_, row)| row).collect(), next))
}
