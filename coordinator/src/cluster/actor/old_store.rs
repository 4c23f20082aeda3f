//! An actor's look at whether the store is older than what agents have seen, and the adoption of what the ledgers say (rule T4).
//! What it decides is [`adoption`]'s; here it is carried out.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use regent_common::{
    error::{ErrorChain, Reason},
    ids::{MemberName, Revision},
};

use super::Actor;
use crate::{
    cluster::{adoption, judging},
    model::{
        cluster::{ClusterRecord, Phase},
        operation::OperationRecord,
    },
    nodes::NodeView,
    operation::{executor, log::Failure},
    store::{Transaction, get_json, keys},
};

// === impl Actor ===

impl Actor {
    /// Rule T4: whether this store is older than what agents have seen. Then nothing is granted and nothing is decided, until
    /// all have reported and what their ledgers say is adopted.
    pub(super) async fn look_at_store(
        &mut self,
        record: &Arc<ClusterRecord>,
        views: &BTreeMap<MemberName, NodeView>,
    ) -> bool {
        let Some(why) = adoption::frozen(record, views, self.adopted) else {
            if self.frozen.take().is_some() {
                self.authority.freeze(false);
            }
            return false;
        };
        self.authority.freeze(true);
        if self.frozen.is_none() {
            tracing::error!(why, "STALE_STORE: the cluster is frozen until every member has reported");
            self.write_down("FROZEN", &record.name.resource(), "decided", &why).await;
            self.tell("FROZEN", &record.name.resource(), &why, BTreeMap::new()).await;
        }
        self.frozen = Some(why);
        if let Some(running) = self.running.take() {
            // It was begun from what is not true any more; the log hears of it with the adoption.
            running.task.abort();
        }
        let recast = adoption::recast(record, views, &self.environment.agents.members_of(&record.id), self.adopted);
        let of_recast = judging::views(&self.environment, &recast);
        let Ok(reports) = adoption::reports(record, &recast, &of_recast) else { return true };
        let reports: BTreeMap<_, _> = reports.into_iter().map(|(member, seen)| (member, seen.clone())).collect();
        let highest = views.values().chain(of_recast.values()).map(|view| view.revision.0).max().unwrap_or_default();
        let above = Revision(highest + adoption::LEAP);
        let raised = self.environment.store.raise_revision(above).await;
        if let Err(error) = raised {
            tracing::error!(error = %ErrorChain(&error), "the store's revision cannot be raised");
            return true;
        }
        if recast.members.is_empty() {
            self.forget(record).await;
            return true;
        }
        let forced = adoption::forced(record, &reports);
        let resource = record.name.resource();
        let unmade = adoption::is_unmade(record, &reports);
        let ended = if unmade { Ok(Transaction::default()) } else { self.end_of_operation(record).await };
        let transaction = match ended {
            Ok(transaction) => transaction,
            Err(error) => {
                tracing::error!(error = %ErrorChain(&*error), "the operation of before cannot be ended");
                return true;
            }
        };
        // In the same commit: each is written down once, and not at all only if nothing is adopted.
        let details: Vec<_> = forced.iter().map(|(_, detail)| format!("{resource}: {detail}")).collect();
        let written = self.environment.audit.with_own(transaction, "FORCED", &resource, "adopted", details).await;
        let (transaction, turn) = match written {
            Ok(written) => written,
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the end of the audit cannot be read");
                return true;
            }
        };
        let (mut said, now) = (String::new(), self.environment.clock.wall());
        let transaction = adoption::assignments(record, &recast, transaction);
        let adopted = self.cluster.change(|record| {
            (record.members, record.next_number) = (recast.members.clone(), recast.next_number);
            said = adoption::adopt(record, &reports);
            if record.phase == Phase::Active {
                record.ready_at.get_or_insert(now);
            }
            Ok(transaction)
        });
        let adopted = adopted.await;
        drop(turn);
        match adopted {
            Ok(_) => {
                self.adopted = above;
                tracing::warn!(said, "what the ledgers say is adopted");
                for (_, detail) in &forced {
                    self.tell("FORCED", &resource, detail, BTreeMap::new()).await;
                }
                self.write_down("ADOPTED", &resource, "decided", &said).await;
                self.tell("ADOPTED", &resource, &said, BTreeMap::new()).await;
                self.look_at = Duration::ZERO;
            }
            Err(error) => tracing::error!(error = %ErrorChain(&error), "what the ledgers say could not be adopted"),
        }
        true
    }

    /// Every node was released after the backup, which only the removal of the cluster does: its record goes.
    async fn forget(&mut self, record: &ClusterRecord) {
        let ended = match self.end_of_operation(record).await {
            Ok(ended) => ended,
            Err(error) => {
                return tracing::error!(error = %ErrorChain(&*error), "the operation of before cannot be ended");
            }
        };
        match self.cluster.remove(executor::dissolve(record, ended)).await {
            Ok(()) => {
                let said = "every node was released after this store's backup: the cluster was removed then, and its record goes";
                tracing::warn!(said);
                self.write_down("ADOPTED", &record.name.resource(), "decided", said).await;
                self.tell("ADOPTED", &record.name.resource(), said, BTreeMap::new()).await;
            }
            Err(error) => {
                tracing::error!(error = %ErrorChain(&error), "the record of a removed cluster could not be removed")
            }
        }
    }

    /// What ends the operation that the record names, in its log.
    async fn end_of_operation(
        &self,
        record: &ClusterRecord,
    ) -> Result<Transaction, Box<dyn std::error::Error + Send + Sync>> {
        let Some(id) = record.operation else { return Ok(Transaction::default()) };
        let stored = get_json::<OperationRecord>(self.environment.store.as_ref(), &keys::operation(&id)).await?;
        let Some(operation) = stored else { return Ok(Transaction::default()) };
        let message = "the store was older than the cluster: what the ledgers say was adopted instead".to_owned();
        let failure = Failure { reason: Reason::StepSuperseded.as_str().to_owned(), message };
        Ok(executor::end_in_log(&self.environment, &operation.value, &failure).await?)
    }
}
