//! An actor's part in the hand-over of a lease at a planned restart of an agent (rule L7): the store has the length of such a
//! lease before one is granted, and for as long as one may stand, so that a coordinator that starts meanwhile waits for it
//! (rule L2). Granting is [`crate::authority`]'s.

use std::{collections::BTreeMap, sync::Arc};

use regent_common::{convert::to_millis, error::ErrorChain, ids::MemberName, lease::Timing};

use super::Actor;
use crate::{
    model::cluster::{ClusterRecord, Phase},
    nodes::NodeView,
    store::Transaction,
};

// === impl Actor ===

impl Actor {
    /// Stores the length of a hand-over's lease when the primary's agent asks for one, and forgets it when none can stand.
    pub(super) async fn keep_hand_over(
        &mut self,
        record: &Arc<ClusterRecord>,
        views: &BTreeMap<MemberName, NodeView>,
    ) {
        let asks = asks(record, views);
        if asks {
            // Also when the record has it: that the store does is sure only after a commit.
            if !self.authority.grants_hand_over() && self.store_hand_over(to_millis(Timing::HAND_OVER_TTL)).await {
                self.authority.open_hand_over();
                tracing::info!("the agent of the primary is about to be restarted: its lease may be handed over");
            }
        } else if record.hand_over_ttl().is_some() {
            let left = self.authority.handed_over_left();
            if self.authority.close_hand_over() {
                // What was closed stays closed when the store does not answer: it is tried again at the next look.
                self.store_hand_over(0).await;
            } else {
                self.look_at = self.look_at.min(self.environment.clock.boottime() + left);
            }
        }
    }

    async fn store_hand_over(&self, millis: u64) -> bool {
        let stored = self.cluster.change(|record| {
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
}

/// Whether the primary's agent, which is connected, asks for a lease that outlives it.
fn asks(record: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>) -> bool {
    let view = record.primary.as_ref().and_then(|primary| views.get(primary)).filter(|view| view.connected);
    let seen = view.and_then(|view| view.observation.as_ref());
    record.phase == Phase::Active
        && seen.is_some_and(|seen| {
            seen.cluster_id == record.id && seen.epoch == record.epoch && seen.authority.hand_over
        })
}
