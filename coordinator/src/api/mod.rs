//! What the coordinator answers: one file per service, over what they share.

use std::{collections::BTreeMap, sync::Arc};

use regent_common::{
    error::{ErrorChain, Reason, bad_field, refuse},
    ids::{NodeName, OperationId},
};
use regent_proto::coordinator::v1::{
    AddMemberRequest, AdoptClusterRequest, ComparePairRequest, CreateClusterRequest, DeleteClusterRequest,
    FailoverClusterRequest, Operation, PromoteMemberRequest, RemoveMemberRequest, ResyncClusterRequest,
    SetAllowListRequest,
};
use tonic::{Request, Status};

use crate::{
    cluster::{ChangeError, actor::ActorHandle, directory::Directory},
    model::{Assignment, node::NodeRecord, operation::OperationRecord},
    nodes::NodeTable,
    operation::executor,
    store::{StoreError, Transaction, get_json, keys, list_json},
};

pub mod adopt;
pub mod audit;
pub mod authorization;
pub mod catalog;
pub mod cluster;
pub mod create;
pub mod enrollment;
pub mod events;
pub mod idempotency;
pub mod identity;
pub mod node;
pub mod operation;
pub mod routes;
pub mod situation;
pub mod view;
pub mod warnings;

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

    /// Who calls, as the authorization layer has found.
    pub fn caller<T>(&self, request: &Request<T>) -> String {
        request
            .extensions()
            .get::<authorization::Authorized>()
            .map(|authorized| authorized.actor.clone())
            .unwrap_or_default()
    }

    /// The operation that the same request began before, if it is a repetition.
    pub async fn repeated<M: Repeatable>(
        &self,
        caller: &str,
        rpc: &str,
        request: &M,
    ) -> Result<Option<Operation>, Status> {
        let environment = self.directory.environment();
        let (store, clock) = (environment.store.as_ref(), environment.clock.as_ref());
        let (id, digest) = request.identify();
        let Some(operation) = idempotency::repeated(store, clock, caller, rpc, &id, digest).await? else {
            return Ok(None);
        };
        let record = get_json::<OperationRecord>(store, &keys::operation(&operation)).await.map_err(failed_store)?;
        let record = record.map(|stored| stored.value).ok_or_else(|| {
            refuse(
                Reason::OperationNotFound,
                format!("operations/{operation}, begun by this request, is no longer kept"),
            )
        })?;
        let actor = self.directory.get(&record.cluster);
        self.render_operation(&record, actor.as_ref()).await.map(Some)
    }

    /// Adds to a transaction that this request begins this operation.
    pub fn remember<M: Repeatable>(
        &self,
        transaction: Transaction,
        caller: &str,
        rpc: &str,
        request: &M,
        operation: &OperationId,
    ) -> Transaction {
        let (id, digest) = request.identify();
        let clock = self.directory.environment().clock.as_ref();
        idempotency::remember(transaction, clock, caller, rpc, &id, digest, operation)
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

/// A request that may be sent again under the same id.
pub trait Repeatable {
    /// Its id, and the digest of everything else in it.
    fn identify(&self) -> (String, [u8; 32]);
}

macro_rules! repeatable {
    ($($message:ty),+) => {
        $(impl Repeatable for $message {
            fn identify(&self) -> (String, [u8; 32]) {
                (self.request_id.clone(), idempotency::digest(self, |message| message.request_id.clear()))
            }
        })+
    };
}

repeatable!(
    CreateClusterRequest,
    AdoptClusterRequest,
    DeleteClusterRequest,
    ResyncClusterRequest,
    ComparePairRequest,
    FailoverClusterRequest,
    SetAllowListRequest,
    AddMemberRequest,
    RemoveMemberRequest,
    PromoteMemberRequest
);

/// A store that did not do as asked, for the caller.
pub fn failed_store(error: StoreError) -> Status {
    match error {
        StoreError::Conflict { .. } => refuse(
            Reason::EtagMismatch,
            "somebody else changed this just now: look again and retry; nothing was changed",
        ),
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
            format!(
                "operations/{running} of cluster {cluster} is running: wait for it or cancel it; nothing was changed"
            ),
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
