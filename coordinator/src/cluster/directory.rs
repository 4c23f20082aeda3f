//! The table of clusters: finds an actor by name, makes new ones, and wakes those whose nodes have changed.

use std::{
    collections::BTreeMap,
    sync::{Arc, RwLock},
};

use regent_common::ids::{ClusterName, NodeName, OperationId};
use tokio::sync::{broadcast, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    ChangeError, ClusterHandle,
    actor::{self, ActorHandle, Request},
};
use crate::{
    environment::Environment,
    model::{cluster::ClusterRecord, operation::OperationRecord},
    operation::{
        executor::{self, NewOperation},
        log::Failure,
    },
    store::{StoreError, Transaction, keys, list_json},
};

/// All clusters of this coordinator.
#[derive(Clone)]
pub struct Directory {
    environment: Environment,
    stop: CancellationToken,
    actors: Arc<RwLock<BTreeMap<ClusterName, ActorHandle>>>,
}

// === impl Directory ===

impl Directory {
    /// Reads all clusters from the store and starts their actors, which resume what was running.
    pub async fn open(
        environment: Environment,
        changes: broadcast::Receiver<NodeName>,
        stop: CancellationToken,
    ) -> Result<Self, StoreError> {
        let directory = Self { environment, stop, actors: Arc::default() };
        let records = list_json::<ClusterRecord>(directory.environment.store.as_ref(), keys::CLUSTERS).await?;
        for (_, record) in records {
            let version = record.version;
            directory.start(record.value, version, true);
        }
        tokio::spawn(directory.clone().relay(changes));
        Ok(directory)
    }

    /// What everything around needs.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The actor of a cluster.
    pub fn get(&self, name: &ClusterName) -> Option<ActorHandle> {
        let actors = self.actors.read().expect("no writer panics");
        actors.get(name).filter(|actor| actor.cluster.record().is_some()).cloned()
    }

    /// All actors, by name.
    pub fn all(&self) -> Vec<ActorHandle> {
        let actors = self.actors.read().expect("no writer panics");
        actors.values().filter(|actor| actor.cluster.record().is_some()).cloned().collect()
    }

    /// Stores a new cluster with the operation that makes it, and starts its actor.
    pub async fn create(
        &self,
        mut record: ClusterRecord,
        new: NewOperation,
        transaction: Transaction,
    ) -> Result<OperationRecord, StoreError> {
        let now = self.environment.clock.wall();
        let (operation, mut transaction) = executor::begin(&new, &mut record, now, transaction);
        for (member, stored) in &record.members {
            transaction = executor::assign(transaction, &record, member, &stored.node);
        }
        let key = keys::cluster(&record.name);
        let transaction = transaction.require_absent(key.clone()).put_json(key, &record);
        let revision = self.environment.store.commit(transaction).await?;
        self.start(record, revision.0, false);
        Ok(operation)
    }

    /// Begins an operation of an existing cluster.
    pub async fn begin(
        &self,
        actor: &ActorHandle,
        new: NewOperation,
        transaction: Transaction,
    ) -> Result<OperationRecord, ChangeError> {
        let (reply, answer) = oneshot::channel();
        let gone = || ChangeError::Gone(actor.cluster.name().clone());
        actor.mailbox.send(Request::Start { new, transaction, reply }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Cancels a running operation; `false` when it does not run.
    pub async fn cancel(&self, actor: &ActorHandle, operation: OperationId, failure: Failure) -> bool {
        let (reply, answer) = oneshot::channel();
        actor.mailbox.send(Request::Cancel { operation, failure, reply }).await.is_ok() && answer.await.unwrap_or(false)
    }

    fn start(&self, record: ClusterRecord, version: u64, resumed: bool) {
        let name = record.name.clone();
        let handle = Arc::new(ClusterHandle::new(Arc::clone(&self.environment.store), record, version));
        let authority = self.environment.authorities.register(&handle, resumed);
        let actor = actor::spawn(self.environment.clone(), handle, authority, resumed, self.stop.clone());
        self.actors.write().expect("no writer panics").insert(name, actor);
    }

    /// Wakes the actor of each node that has changed.
    async fn relay(self, mut changes: broadcast::Receiver<NodeName>) {
        loop {
            let node = tokio::select! {
                () = self.stop.cancelled() => return,
                node = changes.recv() => node,
            };
            let actors = match node {
                Ok(node) => self.all().into_iter().filter(|actor| has_node(actor, &node)).collect(),
                // Too many changes to name: everybody looks.
                Err(broadcast::error::RecvError::Lagged(_)) => self.all(),
                Err(broadcast::error::RecvError::Closed) => return,
            };
            for actor in actors {
                // A full mailbox is awake already.
                let _ = actor.mailbox.try_send(Request::NodeChanged);
            }
        }
    }
}

fn has_node(actor: &ActorHandle, node: &NodeName) -> bool {
    actor.cluster.record().is_some_and(|record| record.member_on(node).is_some())
}
