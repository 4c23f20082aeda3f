//! What is known of a cluster's members right now, judged: the one look that the actor, the operations and the API share.

use std::{collections::BTreeMap, time::Duration};

use regent_common::ids::MemberName;

use crate::{
    detector::{Evidence, Expected, Judgement, Succession, Thresholds, judge, refine, succession},
    environment::Environment,
    model::cluster::{ClusterRecord, MemberState},
    nodes::NodeView,
};

/// The last word of every member's node.
pub fn views(environment: &Environment, record: &ClusterRecord) -> BTreeMap<MemberName, NodeView> {
    let view = |node| environment.agents.view(node);
    record.members.iter().map(|(member, stored)| (member.clone(), view(&stored.node))).collect()
}

/// The other side of a pair, where that one is whole: one that has to be brought back is not followed.
fn followed(record: &ClusterRecord, member: &MemberName) -> Option<MemberName> {
    let other = record.other_side(member)?;
    let ready = record.members.get(other).is_some_and(|stored| stored.state == MemberState::Ready);
    ready.then(|| other.clone())
}

/// Judges every member by what is known now, and gathers what is known of the primary's lease and of who could follow it.
pub fn judge_all(environment: &Environment, record: &ClusterRecord) -> (BTreeMap<MemberName, Judgement>, Succession) {
    let now = environment.clock.boottime();
    let timing = record.policy.profile.timing();
    // After a start nobody counts as lost sooner than at any other time; that no lease stands is judged apart (rule L2).
    let thresholds = Thresholds { suspect_after: timing.suspect_after, startup_grace: timing.suspect_after };
    let views = views(environment, record);
    let authority = environment.authority(record);
    let lease_left = authority.as_ref().map_or(Duration::ZERO, |authority| authority.lease_left());
    let mut succession = succession::gather(record, &views, lease_left, now);
    succession.handed_over = authority.map_or(Duration::ZERO, |authority| authority.handed_over_left());
    let suspect = record.primary.as_ref().or_else(|| record.reign.as_ref().map(|reign| &reign.primary));
    let judgements = views.into_iter().map(|(member, view)| {
        let expected = Expected {
            cluster_id: record.id,
            member: member.clone(),
            role: record.role_of(&member),
            primary: record.primary.clone(),
            other: followed(record, &member),
        };
        let evidence = Evidence {
            connected: view.connected,
            silent_for: view.last_contact.map(|last| now.saturating_sub(last)),
            listening_for: now.saturating_sub(environment.started_at),
            quarantine: view.quarantine().map(ToOwned::to_owned),
            observation: view.observation,
        };
        let mut judgement = judge(&expected, &evidence, &thresholds);
        if suspect == Some(&member) {
            judgement = refine(judgement, &member, &succession);
        }
        (member, judgement)
    });
    (judgements.collect(), succession)
}
