//! An actor's care for members that are not what the topology says: whom to mend, how, and who rests from an attempt that failed.

use std::collections::BTreeMap;

use regent_common::{error::ErrorChain, ids::MemberName};

use super::{Actor, Subject};
use crate::{
    model::cluster::{ClusterRecord, MemberState},
    nodes::NodeView,
    operation::{
        executor::NewOperation,
        kinds::{configure, rejoin, remove_member},
    },
    planner::{self, Mend, Upkeep},
    store::Transaction,
};

// === impl Actor ===

impl Actor {
    /// Keeps that a member needs a resync, and says so.
    pub(super) async fn mark(&self, record: &ClusterRecord, member: MemberName, why: String) {
        let state = MemberState::NeedsResync { why: why.clone() };
        let change = self.cluster.change(|record| {
            if record.operation.is_none() {
                record.set_state(&member, state);
            }
            Ok(Transaction::default())
        });
        match change.await {
            Ok(changed) if changed.operation.is_none() => {
                self.tell_of_a_resync(record, &member, &why).await;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "that {member} needs a resync could not be stored")
            }
        }
    }

    /// Tells the platform that a member has to be filled anew.
    pub(super) async fn tell_of_a_resync(&self, record: &ClusterRecord, member: &MemberName, why: &str) {
        let resource = format!("{}/members/{member}", record.name.resource());
        self.write_down("NEEDS_RESYNC", &resource, "decided", why).await;
        self.tell("NEEDS_RESYNC", &resource, why, BTreeMap::new()).await;
    }

    /// Whether what is known of a member is of before the end of the last operation: while it is connected it says in a moment what it
    /// is after that.
    pub(super) fn is_word_of_before(&self, views: &BTreeMap<MemberName, NodeView>, member: &MemberName) -> bool {
        let view = views.get(member).filter(|view| view.connected);
        view.is_some_and(|view| view.last_contact.is_some_and(|last| last <= self.ended_at))
    }

    /// Who may have to be mended, and who rests from that.
    pub(super) fn upkeep(&self, record: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>) -> Upkeep {
        let now = self.environment.clock.boottime();
        let mends = |member: &MemberName| {
            let all = [Mend::Rejoin, Mend::Configure, Mend::Remove { keep_data: false, allow_single: false }];
            all.map(|how| mending(member.clone(), how, String::new()))
                .map(|new| Subject::new(new.kind.name(), &new.parameters))
        };
        let rests = |subject| self.backoff.rests_until(&subject, now).is_some();
        // Its word of before, that its data is half-copied say, is no reason to mend it.
        let rests =
            |member: &&MemberName| self.is_word_of_before(views, member) || mends(member).into_iter().any(rests);
        let resting = record.members.keys().filter(rests).cloned().collect();
        let fingerprint = self.environment.fingerprint(record);
        let drifted = fingerprint.map(|fingerprint| planner::drifted(record, views, &fingerprint)).unwrap_or_default();
        Upkeep { resting, drifted }
    }
}

/// The operation that mends a member.
pub(super) fn mending(member: MemberName, how: Mend, why: String) -> NewOperation {
    match how {
        Mend::Rejoin => NewOperation::automatic(&rejoin::Rejoin, &rejoin::Parameters { member }, why),
        Mend::Configure => NewOperation::automatic(&configure::Configure, &configure::Parameters { member }, why),
        Mend::Remove { keep_data, allow_single } => {
            let parameters = remove_member::Parameters { member, keep_data, allow_single };
            NewOperation::automatic(&remove_member::RemoveMember, &parameters, why)
        }
    }
}
