//! An actor's care for a pair: which side has taken writes alone is stored while the other lacks them, and who takes writes is told
//! whenever that changes, so that names can be moved, and which side cannot catch up. It decides nothing: who is brought back is the
//! planner's.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use regent_common::{error::ErrorChain, ids::MemberName};

use super::Actor;
use crate::{
    detector::{Judgement, Verdict},
    model::cluster::{ClusterRecord, Phase},
    nodes::NodeView,
    planner::pair::{either_data, serving, survivor},
    store::Transaction,
};

// === impl Actor ===

impl Actor {
    /// Stores who has taken writes alone, before anything is decided by it.
    pub(super) async fn keep_survivor(
        &self,
        record: Arc<ClusterRecord>,
        judgements: &BTreeMap<MemberName, Judgement>,
    ) -> Arc<ClusterRecord> {
        if !record.is_pair() || record.phase != Phase::Active {
            return record;
        }
        let survivor = survivor(&record, judgements);
        if survivor == record.survivor {
            return record;
        }
        let (before, operation) = (record.survivor.clone(), record.operation);
        let stored = self.cluster.change(|record| {
            // What an operation has found since is newer than this look.
            if record.survivor == before && record.operation == operation {
                record.survivor.clone_from(&survivor);
            }
            Ok(Transaction::default())
        });
        match stored.await {
            Ok(stored) => {
                tracing::info!(survivor = ?stored.survivor, "which side of the pair takes writes alone");
                stored
            }
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "which side goes on alone could not be stored; it is tried again");
                record
            }
        }
    }

    /// Tells the platform which sides take writes, when it is not what was told before.
    pub(super) async fn tell_who_serves(
        &mut self,
        record: &ClusterRecord,
        judgements: &BTreeMap<MemberName, Judgement>,
        views: &BTreeMap<MemberName, NodeView>,
    ) {
        let uncertain = judgements.values().any(|judgement| judgement.verdict == Verdict::Suspect)
            || record.members.keys().any(|member| self.is_word_of_before(views, member));
        if !record.is_pair() || record.phase != Phase::Active || uncertain {
            return;
        }
        let now: BTreeSet<MemberName> = serving(record, judgements).into_iter().cloned().collect();
        let before = self.serving.replace(now.clone());
        // What an earlier coordinator has told is not known: a pair that is whole is no news.
        let news = before.map_or(now.len() != record.members.len(), |before| before != now);
        if !news {
            return;
        }
        let names = now.iter().map(MemberName::as_str).collect::<Vec<_>>().join(",");
        let mut parts = vec![match now.len() {
            0 => "no side takes writes".to_owned(),
            1 => format!("{names} takes writes alone"),
            _ => format!("{} both take writes", names.replace(',', " and ")),
        }];
        let ill =
            judgements.iter().filter(|(member, judgement)| !now.contains(*member) && !judgement.reason.is_empty());
        parts.extend(ill.map(|(_, judgement)| judgement.reason.clone()));
        let message = parts.join("; ");
        let facts = BTreeMap::from([("serving".to_owned(), names)]);
        self.write_down("SIDES_CHANGED", &record.name.resource(), "decided", &message).await;
        self.tell("SIDES_CHANGED", &record.name.resource(), &message, facts).await;
    }

    /// Tells the platform, once, of a side that cannot catch up: both go on, and lack more and more of each other.
    pub(super) async fn tell_who_is_stale(
        &mut self,
        record: &ClusterRecord,
        judgements: &BTreeMap<MemberName, Judgement>,
    ) {
        if !record.is_pair() || record.phase != Phase::Active {
            return;
        }
        let is = |member: &MemberName, verdict| judgements.get(member).is_some_and(|judged| judged.verdict == verdict);
        self.stale.retain(|member| !is(member, Verdict::Healthy));
        for (member, judgement) in judgements.iter().filter(|(member, _)| is(member, Verdict::Stale)) {
            if self.stale.insert(member.clone()) {
                let why = format!("{}; {}", judgement.reason, either_data(record, member));
                self.tell_of_a_resync(record, member, &why).await;
            }
        }
    }
}
