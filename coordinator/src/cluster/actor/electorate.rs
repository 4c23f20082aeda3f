//! An actor's keeping of the electorate: what the primary has acknowledged is counted, the next version stored (rules M1, M3). Who is
//! wanted in it is decided by [`electorate::wanted`].

use std::{collections::BTreeMap, sync::Arc};

use regent_common::{error::ErrorChain, ids::MemberName};

use super::Actor;
use crate::{
    detector::Judgement,
    model::{
        cluster::{ClusterRecord, Phase},
        reign::Reign,
    },
    nodes::NodeView,
    planner::electorate,
    store::Transaction,
};

// === impl Actor ===

impl Actor {
    /// Counts what the primary has acknowledged and stores the next version of its electorate (rules M1, M3).
    pub(super) async fn keep_electorate(
        &self,
        record: Arc<ClusterRecord>,
        judgements: &BTreeMap<MemberName, Judgement>,
        views: &BTreeMap<MemberName, NodeView>,
    ) -> Arc<ClusterRecord> {
        let Some(reign) = record.reign.as_ref().filter(|reign| reign.epoch == record.epoch) else { return record };
        let believed = views.get(&reign.primary).filter(|view| view.quarantine().is_none());
        let seen = believed.and_then(|view| view.observation.as_ref());
        let seen = seen.filter(|seen| seen.cluster_id == record.id && seen.epoch == record.epoch);
        let acknowledged =
            seen.and_then(|seen| seen.authority.electorate.as_ref()).map(|electorate| electorate.version);
        let gated = seen.map(|seen| seen.authority.fence.timed_gate);
        let wanted = match record.phase {
            Phase::Active => electorate::wanted(&record, judgements, views, &self.environment.own_machine),
            Phase::Creating | Phase::Deleting => None,
        };
        let mut next = reign.clone();
        let change = |reign: &mut Reign| {
            if let Some(version) = acknowledged {
                reign.acknowledge(version);
            }
            reign.gated = gated.unwrap_or(reign.gated);
            if let Some(wanted) = &wanted {
                reign.set_electorate(wanted.clone());
            }
        };
        change(&mut next);
        if next == *reign {
            return record;
        }
        let (epoch, primary) = (record.epoch, reign.primary.clone());
        let stored = self.cluster.change(|record| {
            if let Some(reign) = record.reign.as_mut().filter(|r| r.epoch == epoch && r.primary == primary) {
                change(reign);
            }
            Ok(Transaction::default())
        });
        match stored.await {
            Ok(stored) => {
                tracing::info!(electorate = %next.newest(), acknowledged = next.is_acknowledged(), "the electorate");
                stored
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "the electorate could not be stored; it is tried again");
                record
            }
        }
    }
}
