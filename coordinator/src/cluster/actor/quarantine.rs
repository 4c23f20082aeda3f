//! An actor's word on members whose node is in quarantine, or for which two agents speak (rule T5): audit and events, once each.
//! What that means for leases, electorate and failover is decided where those are.

use std::collections::BTreeMap;

use regent_common::ids::MemberName;

use super::Actor;
use crate::{model::cluster::ClusterRecord, nodes::NodeView};

/// What there is to tell of a member's node: its kind, and a sentence that stays the same as long as it is so.
fn word(
    member: &MemberName,
    stored: &crate::model::cluster::MemberRecord,
    view: &NodeView,
) -> Option<(&'static str, String)> {
    if let Some(why) = view.quarantine().filter(|_| view.connected) {
        return Some(("QUARANTINED", format!("{member} on node {} is in quarantine: {why}", stored.node)));
    }
    let rival = view.rival.as_ref()?;
    Some(("IDENTITY_TWICE", rival.twice.sentence(&stored.node)))
}

// === impl Actor ===

impl Actor {
    /// Writes down and tells what is new.
    pub(super) async fn tell_of_quarantine(&mut self, record: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>) {
        for (member, stored) in &record.members {
            let word = views.get(member).and_then(|view| word(member, stored, view));
            let Some((kind, said)) = word else {
                if views.get(member).is_some_and(|view| view.connected) {
                    self.quarantined.remove(member);
                }
                continue;
            };
            if self.quarantined.get(member) == Some(&said) {
                continue;
            }
            tracing::warn!(%member, said, "a member's node is not who it was");
            let resource = format!("{}/members/{member}", record.name.resource());
            let facts = BTreeMap::from([
                ("member".to_owned(), member.to_string()),
                ("node".to_owned(), stored.node.to_string()),
            ]);
            self.write_down(kind, &resource, "decided", &said).await;
            self.tell(kind, &resource, &said, facts).await;
            self.quarantined.insert(member.clone(), said);
        }
    }
}
