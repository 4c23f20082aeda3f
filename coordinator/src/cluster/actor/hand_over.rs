//! An actor's part in the hand-over of a lease at a planned restart of an agent (rule L7): the store has the length of such a
//! lease before one is granted, and for as long as one may stand, so that a coordinator that starts meanwhile waits for it
//! (rule L2). Granting is [`crate::authority`]'s.

use std::{collections::BTreeMap, time::Duration};

use regent_common::{convert::to_millis, error::ErrorChain, ids::MemberName, lease::Timing};

use super::Actor;
use crate::{
    authority::Authority,
    cluster::ClusterHandle,
    model::cluster::{ClusterRecord, Phase},
    nodes::NodeView,
    store::Transaction,
};

// === impl Actor ===

impl Actor {
    /// Stores the length of a hand-over's lease when the primary's agent asks for one, and forgets it when none can stand.
    pub(super) async fn keep_hand_over(&mut self, record: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>) {
        if let Some(left) = keep(&self.cluster, &self.authority, asks(record, views)).await {
            self.look_at = self.look_at.min(self.environment.clock.boottime() + left);
        }
    }
}

/// Whether the primary's agent, which is connected, asks for a lease that outlives it.
fn asks(record: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>) -> bool {
    let view = record.primary.as_ref().and_then(|primary| views.get(primary)).filter(|view| view.connected);
    let seen = view.and_then(|view| view.observation.as_ref());
    record.phase == Phase::Active
        && seen
            .is_some_and(|seen| seen.cluster_id == record.id && seen.epoch == record.epoch && seen.authority.hand_over)
}

/// Keeps the store and what may be granted in step; how long to wait before the store may forget a length.
async fn keep(cluster: &ClusterHandle, authority: &Authority, asks: bool) -> Option<Duration> {
    if asks {
        // Also when the record has it: that the store does is sure only after a commit.
        if !authority.grants_hand_over() && store(cluster, to_millis(Timing::HAND_OVER_TTL)).await {
            authority.open_hand_over();
            tracing::info!("the agent of the primary is about to be restarted: its lease may be handed over");
        }
        return None;
    }
    cluster.record()?.hand_over_ttl()?;
    if !authority.close_hand_over() {
        return Some(authority.handed_over_left());
    }
    // What was closed stays closed when the store does not answer: it is tried again at the next look.
    store(cluster, 0).await;
    None
}

async fn store(cluster: &ClusterHandle, millis: u64) -> bool {
    let stored = cluster.change(|record| {
        record.hand_over_millis = millis;
        Ok(Transaction::default())
    });
    match stored.await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(error = %ErrorChain(&error), "the length of a lease for a restart could not be stored");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use regent_common::{
        clock::{Clock, ManualClock},
        lease::margin,
    };

    use super::*;
    use crate::{
        authority::Authorities,
        planner::fixtures::{cluster, name, observation},
        store::{Store, get_json, keys, memory::MemoryStore},
    };

    struct Bench {
        clock: Arc<ManualClock>,
        store: Arc<MemoryStore>,
        handle: Arc<ClusterHandle>,
        authorities: Authorities,
        authority: Arc<Authority>,
    }

    async fn bench() -> Bench {
        let (store, record, clock) = (Arc::new(MemoryStore::default()), cluster(), Arc::new(ManualClock::default()));
        clock.advance(Duration::from_secs(100));
        let transaction = Transaction::default().put_json(keys::cluster(&record.name), &record);
        let version = store.commit(transaction).await.unwrap();
        let handle = Arc::new(ClusterHandle::new(store.clone(), record, version.0));
        let authorities = Authorities::new(clock.clone());
        let authority = authorities.register(&handle, false);
        Bench { clock, store, handle, authorities, authority }
    }

    impl Bench {
        async fn keep(&self, asks: bool) -> Option<Duration> {
            keep(&self.handle, &self.authority, asks).await
        }

        /// What the primary is granted when it asks.
        fn granted(&self) -> Duration {
            let mut seen = observation(name(1));
            seen.authority.hand_over = true;
            let grant = self.authorities.answer(&"n1".parse().unwrap(), Some("boot"), 1, Some(&seen)).grant.unwrap();
            Duration::from_millis(grant.ttl_millis.into())
        }

        async fn stored(&self) -> u64 {
            let key = keys::cluster(self.handle.name());
            let found = get_json::<ClusterRecord>(self.store.as_ref(), &key).await.unwrap().unwrap();
            found.value.hand_over_millis
        }

        /// How long a coordinator waits that starts now, on this store.
        async fn waited_for_after_a_restart(&self) -> Duration {
            let key = keys::cluster(self.handle.name());
            let found = get_json::<ClusterRecord>(self.store.as_ref(), &key).await.unwrap().unwrap();
            let handle = Arc::new(ClusterHandle::new(self.store.clone(), found.value, found.version));
            let clock: Arc<dyn Clock> = self.clock.clone();
            Authorities::new(clock).register(&handle, true).lease_left()
        }
    }

    fn waited_for(ttl: Duration) -> Duration {
        ttl + margin(ttl)
    }

    #[tokio::test]
    async fn the_length_is_in_the_store_before_it_is_granted_and_until_no_such_lease_can_stand() {
        let (bench, usual, long) = (bench().await, Duration::from_secs(5), Timing::HAND_OVER_TTL);
        bench.store.fail_commits(true);
        assert_eq!(bench.keep(true).await, None);
        assert_eq!(bench.granted(), usual, "it could not be stored");
        bench.store.fail_commits(false);
        bench.keep(true).await;
        assert_eq!(bench.stored().await, 30_000);
        assert_eq!(bench.granted(), long);
        assert_eq!(bench.waited_for_after_a_restart().await, waited_for(long));

        bench.clock.advance(Duration::from_secs(10));
        let left = waited_for(long) - Duration::from_secs(10);
        assert_eq!(bench.keep(false).await, Some(left), "it may stand, asked for or not");
        assert_eq!(bench.stored().await, 30_000);
        bench.clock.advance(left);
        bench.store.fail_commits(true);
        assert_eq!(bench.keep(false).await, None);
        assert_eq!(bench.granted(), usual, "nothing is granted that the store is about to forget");
        bench.store.fail_commits(false);
        bench.keep(false).await;
        assert_eq!(bench.stored().await, 0);
        assert_eq!(bench.waited_for_after_a_restart().await, waited_for(usual));
    }

    #[test]
    fn only_the_connected_primary_of_the_present_epoch_asks() {
        let view = |change: fn(&mut NodeView)| {
            let mut seen = observation(name(1));
            seen.authority.hand_over = true;
            let mut view = NodeView { connected: true, observation: Some(seen), ..NodeView::default() };
            change(&mut view);
            asks(&cluster(), &[(name(1), view.clone()), (name(2), NodeView::default())].into())
        };
        assert!(view(|_| ()));
        assert!(!view(|view| view.connected = false), "it has ended");
        assert!(!view(|view| view.observation.as_mut().unwrap().authority.hand_over = false));
        assert!(!view(|view| view.observation.as_mut().unwrap().epoch = regent_common::ids::Epoch(9)));
        let mut seen = observation(name(2));
        seen.authority.hand_over = true;
        let replica = NodeView { connected: true, observation: Some(seen), ..NodeView::default() };
        assert!(!asks(&cluster(), &[(name(2), replica)].into()));
    }
}
