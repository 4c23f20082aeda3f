//! Empties nodes that belong to a cluster which is no more, or whose member has left.
//!
//! A node that was away while its cluster was deleted comes back with a ledger that names it. The tombstone says under
//! which numbers to release it; a cluster id is never used again, so nothing can be revived by mistake. A node whose
//! cluster has no tombstone here is left alone: its data may be all that is left of it. An instance that was about to be adopted is
//! given back as it was found, where the tombstone says so.

use std::{sync::Arc, time::Duration};

use regent_common::{
    ids::{NodeName, OperationId},
    topology::{Observation, Progress},
};
use regent_proto::agent::v1::{Action, Release, StepHeader, action};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use super::{Agents, NodeTable, StepCall};
use crate::{
    model::{Assignment, Tombstone},
    operation::context::digest,
    store::{Store, StoreError, Transaction, get_json, keys},
};

/// How late a change that was missed is seen.
const PERIOD: Duration = Duration::from_secs(10);

/// Watches all nodes until `stop`.
pub async fn run(store: Arc<dyn Store>, agents: Arc<dyn Agents>, table: Arc<NodeTable>, stop: CancellationToken) {
    let mut changes = table.changes();
    loop {
        for (node, view) in table.all() {
            if let Some(seen) = view.observation.filter(|_| view.connected)
                && let Err(error) = visit(store.as_ref(), agents.as_ref(), &node, &seen).await
            {
                tracing::warn!(%node, %error, "a node of a removed cluster could not be looked at");
            }
        }
        let again = async {
            loop {
                match changes.recv().await {
                    Ok(node) if table.view(&node).observation.is_none() => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => return,
                    Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            _ = async { tokio::join!(tokio::time::timeout(PERIOD, again), tokio::time::sleep(Duration::from_secs(1))) } => {}
        }
    }
}

async fn visit(store: &dyn Store, agents: &dyn Agents, node: &NodeName, seen: &Observation) -> Result<(), StoreError> {
    if get_json::<Assignment>(store, &keys::assignment(node)).await?.is_some() {
        return Ok(());
    }
    let mut found = None;
    for key in [keys::member_tombstone(&seen.cluster_id, &seen.member), keys::tombstone(&seen.cluster_id)] {
        if found.is_none() {
            found = get_json::<Tombstone>(store, &key).await?.map(|stored| (key, stored));
        }
    }
    let Some((key, stored)) = found else { return Ok(()) };
    let mut tombstone = stored.value;
    if seen.epoch > tombstone.epoch || seen.authority.forced.is_some() {
        // A person has made it the primary since (rule P9): its data may be all that is left, and only a person takes that away.
        tracing::debug!(%node, cluster = %tombstone.name, epoch = %seen.epoch, "a node of a removed cluster was made its primary since, and is left alone");
        return Ok(());
    }
    // The higher token is durable before it is sent (rule T3). It is raised only where it has to be: a node that is taken in again is
    // so by the next token of its cluster.
    if tombstone.token < seen.token {
        tombstone.token = seen.token;
    }
    tombstone.epoch = tombstone.epoch.max(seen.epoch);
    let transaction = Transaction::default().require_version(key.clone(), stored.version).put_json(key, &tombstone);
    let revision = store.commit(transaction).await?;
    let Tombstone { keep_data, give_back, .. } = tombstone;
    let action = Action { action: Some(action::Action::Release(Release { keep_data, give_back })) };
    let header = StepHeader {
        cluster_id: tombstone.id.to_string(),
        member: seen.member.to_string(),
        epoch: tombstone.epoch.0,
        token: tombstone.token.0,
        operation: OperationId::generate().to_string(),
        step: "0-release-after-removal".to_owned(),
        digest: digest(&action),
        revision: revision.0,
    };
    let (progress, _) = watch::channel(Progress::default());
    match agents.execute(node, StepCall { header, action }, &progress).await {
        Ok(_) => tracing::info!(%node, cluster = %tombstone.name, "emptied a node of a removed cluster"),
        Err(error) => {
            tracing::warn!(%node, cluster = %tombstone.name, %error, "a node of a removed cluster was not emptied")
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use regent_common::{
        ids::{ClusterId, Epoch, MemberName, OperationToken},
        lease::Forced,
    };

    use super::*;
    use crate::{
        nodes::double::Unheard,
        planner::fixtures::{cluster, name, observation},
        store::memory::MemoryStore,
    };

    /// A store with tombstones: of the whole cluster, or of this member.
    async fn store_with(tombstones: &[(Option<MemberName>, Tombstone)]) -> MemoryStore {
        let store = MemoryStore::default();
        let put = |transaction: Transaction, (member, tombstone): &(Option<MemberName>, Tombstone)| {
            let key = match member {
                Some(member) => keys::member_tombstone(&tombstone.id, member),
                None => keys::tombstone(&tombstone.id),
            };
            transaction.put_json(key, tombstone)
        };
        store.commit(tombstones.iter().fold(Transaction::default(), put)).await.unwrap();
        store
    }

    /// What the agent of a node that reports this is told: whether its data is kept, its epoch, and its token.
    async fn told(store: &MemoryStore, seen: &Observation) -> Option<(bool, u64, u64)> {
        released(store, seen).await.map(|(release, header)| (release.keep_data, header.epoch, header.token))
    }

    async fn released(store: &MemoryStore, seen: &Observation) -> Option<(Release, StepHeader)> {
        let agents = Unheard::obedient();
        visit(store, &agents, &"n1".parse().unwrap(), seen).await.unwrap();
        let StepCall { header, action } = agents.told().into_iter().next()?;
        let Some(action::Action::Release(release)) = action.action else { panic!("{action:?}") };
        Some((release, header))
    }

    fn tombstone(keep_data: bool) -> Tombstone {
        Tombstone { epoch: Epoch(3), token: OperationToken(7), keep_data, ..Tombstone::of(&cluster()) }
    }

    fn seen() -> Observation {
        Observation { epoch: Epoch(2), token: OperationToken(5), ..observation(name(1)) }
    }

    #[tokio::test]
    async fn a_node_of_a_removed_cluster_is_released_under_the_tombstones_numbers() {
        let store = store_with(&[(None, tombstone(false))]).await;
        assert_eq!(told(&store, &seen()).await, Some((false, 3, 7)));
        let other = Observation { cluster_id: ClusterId::from_parts(9, 9), ..seen() };
        assert_eq!(told(&store, &other).await, None, "nobody knows what became of that cluster");
    }

    #[tokio::test]
    async fn an_instance_that_was_about_to_be_adopted_is_given_back() {
        let mut record = cluster();
        for adopting in [false, true] {
            record.adopting = adopting;
            let tombstone = Tombstone { token: OperationToken(7), epoch: Epoch(3), ..Tombstone::of(&record) };
            let store = store_with(&[(None, tombstone)]).await;
            let (release, _) = released(&store, &seen()).await.unwrap();
            assert_eq!(release.give_back, adopting);
        }
    }

    #[tokio::test]
    async fn a_higher_token_is_stored_before_it_is_sent() {
        let store = store_with(&[(None, tombstone(false))]).await;
        let later = Observation { token: OperationToken(9), ..seen() };
        assert_eq!(told(&store, &later).await, Some((false, 3, 9)));
        let key = keys::tombstone(&seen().cluster_id);
        assert_eq!(get_json::<Tombstone>(&store, &key).await.unwrap().unwrap().value.token, OperationToken(9));
    }

    #[tokio::test]
    async fn what_was_said_of_the_member_goes_before_what_was_said_of_the_cluster() {
        let store = store_with(&[(Some(name(1)), tombstone(true)), (None, tombstone(false))]).await;
        assert_eq!(told(&store, &seen()).await, Some((true, 3, 7)), "a person wanted its data to be kept");
    }

    #[tokio::test]
    async fn who_has_been_made_a_primary_since_is_left_alone() {
        let store = store_with(&[(None, tombstone(false))]).await;
        let promoted = Observation { epoch: Epoch(4), ..seen() };
        assert_eq!(told(&store, &promoted).await, None);
        let mut forced = seen();
        let at = jiff::Timestamp::UNIX_EPOCH;
        forced.authority.forced = Some(Forced { at, confirmed_off: [].into() });
        assert_eq!(told(&store, &forced).await, None, "only a person takes away what a person has made");
    }

    #[tokio::test]
    async fn a_member_of_a_cluster_is_left_alone() {
        let store = store_with(&[(None, tombstone(false))]).await;
        let assignment = Assignment { cluster: cluster().name, member: name(1) };
        let node: NodeName = "n1".parse().unwrap();
        store.commit(Transaction::default().put_json(keys::assignment(&node), &assignment)).await.unwrap();
        assert_eq!(told(&store, &seen()).await, None);
    }
}
