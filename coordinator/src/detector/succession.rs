//! What is known about a primary's lease and about who could follow it: the evidence of rule P1, gathered from what was heard.
//! Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use regent_common::{
    ids::MemberName,
    mutation::{self, Rule},
    position::Position,
};

use crate::{model::cluster::ClusterRecord, nodes::NodeView};

/// The evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Succession {
    /// How long a lease that this coordinator granted may still stand.
    pub lease_left: Duration,
    /// How long one may still stand that was granted for a restart of the primary's agent (rule L7); zero for none.
    pub handed_over: Duration,
    /// A member that reports that the primary's lease stands (rule E4).
    pub reported_by: Option<MemberName>,
    /// Whether the primary's host closes its gate by itself (rule G6).
    pub gated: bool,
    /// Who may be promoted (rule M2).
    pub promotable: BTreeSet<MemberName>,
    /// Of these, who was heard just now.
    pub reachable: BTreeSet<MemberName>,
    /// Of these, who has no standing promise.
    pub free: BTreeSet<MemberName>,
    /// What the best of the reachable ones is known to lack of the primary's data; `None` while that is not known.
    pub known_loss: Option<u64>,
}

/// Gathers it. `views` are by member; `now` is this coordinator's CLOCK_BOOTTIME.
pub fn gather(
    record: &ClusterRecord,
    views: &BTreeMap<MemberName, NodeView>,
    lease_left: Duration,
    now: Duration,
) -> Succession {
    let timing = record.policy.profile.timing();
    let Some(reign) = &record.reign else { return Succession { lease_left, ..Succession::default() } };
    let fresh = |view: &NodeView, within: Duration| {
        view.connected && view.last_contact.is_some_and(|last| now.saturating_sub(last) <= within)
    };
    // What one in quarantine says counts for nothing (rule T5).
    let ours = |view: &&NodeView| {
        view.quarantine().is_none() && view.observation.as_ref().is_some_and(|seen| seen.cluster_id == record.id)
    };
    let heard: BTreeMap<&MemberName, &NodeView> =
        views.iter().filter(|(_, view)| fresh(view, timing.ttl) && ours(view)).collect();
    let promotable = reign.promotable();
    let reachable: BTreeSet<MemberName> = promotable
        .iter()
        .filter(|member| heard.get(member).is_some_and(|view| fresh(view, timing.suspect_after)))
        .cloned()
        .collect();
    let since = |view: &NodeView| view.last_contact.map_or(Duration::MAX, |last| now.saturating_sub(last));
    let free = reachable.iter().filter(|member| {
        let view = heard[*member];
        let promised = view.observation.as_ref().map_or(Duration::MAX, |seen| seen.authority.prepare_in);
        promised <= since(view)
    });
    let reported_by = heard.iter().find(|(member, view)| {
        let report = view.observation.as_ref().and_then(|seen| seen.authority.heard.as_ref());
        **member != &reign.primary
            && report.is_some_and(|report| {
                report.member == reign.primary
                    && report.lease.epoch == reign.epoch
                    && (report.lease.stands || mutation::broken(Rule::E4Alive))
                    && report.age + since(view) < timing.ttl
            })
    });
    Succession {
        lease_left,
        // The authority's, which the caller adds.
        handed_over: Duration::ZERO,
        reported_by: reported_by.map(|(member, _)| (*member).clone()),
        gated: reign.gated,
        free: free.cloned().collect(),
        known_loss: known_loss(record, views, &reachable),
        promotable,
        reachable,
    }
}

fn known_loss(
    record: &ClusterRecord,
    views: &BTreeMap<MemberName, NodeView>,
    reachable: &BTreeSet<MemberName>,
) -> Option<u64> {
    let position = |member: &MemberName| -> Option<&Position> {
        let (cluster, position) = views.get(member)?.last_position.as_ref()?;
        (*cluster == record.id).then_some(position)
    };
    let primary = position(record.primary.as_ref()?)?;
    reachable.iter().filter_map(position).map(|own| primary.minus(own).amount()).min()
}

#[cfg(test)]
mod tests {
    use regent_common::{
        ids::{ClusterId, Epoch},
        lease::{HeardLease, LeaseReport},
        topology::Observation,
    };

    use super::*;
    use crate::{
        model::reign::Reign,
        planner::fixtures::{cluster, name, observation},
    };

    fn view(member: u32, last: u64, change: impl FnOnce(&mut Observation)) -> (MemberName, NodeView) {
        let mut seen = observation(name(member));
        change(&mut seen);
        let view = NodeView {
            connected: true,
            last_contact: Some(Duration::from_millis(last)),
            observation: Some(seen),
            ..NodeView::default()
        };
        (name(member), view)
    }

    fn gathered(views: Vec<(MemberName, NodeView)>) -> Succession {
        let mut record = cluster();
        record.reign = Some(Reign::new(Epoch(1), name(1), [name(2), name(3)].into(), true));
        gather(&record, &views.into_iter().collect(), Duration::ZERO, Duration::from_millis(10_000))
    }

    #[test]
    fn who_was_heard_just_now_and_has_no_promise_is_free() {
        let promise = |seen: &mut Observation| seen.authority.prepare_in = Duration::from_millis(900);
        let succession = gathered(vec![view(2, 9900, promise), view(3, 5000, |_| ())]);
        assert_eq!(succession.promotable, [name(2), name(3)].into());
        assert_eq!(succession.reachable, [name(2)].into());
        assert!(succession.free.is_empty());
        let over = gathered(vec![view(2, 9000, promise)]);
        assert_eq!(over.free, [name(2)].into(), "the promise ended since it was reported");
    }

    #[test]
    fn who_is_in_quarantine_is_not_reachable_whatever_it_says() {
        let (member, mut kept_out) = view(2, 9900, |_| ());
        kept_out.quarantine = "its ledger was put back".to_owned();
        let succession = gathered(vec![(member, kept_out), view(3, 9900, |_| ())]);
        assert_eq!((succession.reachable, succession.free), ([name(3)].into(), [name(3)].into()));
    }

    #[test]
    fn only_a_fresh_report_that_the_lease_stands_counts() {
        let report = |stands, age| {
            move |seen: &mut Observation| {
                seen.authority.heard = Some(HeardLease {
                    member: name(1),
                    lease: LeaseReport { epoch: Epoch(1), stands, source: None, remaining: Duration::ZERO },
                    position: None,
                    age: Duration::from_millis(age),
                });
            }
        };
        assert_eq!(gathered(vec![view(2, 9900, report(true, 100))]).reported_by, Some(name(2)));
        assert_eq!(gathered(vec![view(2, 9900, report(false, 100))]).reported_by, None);
        assert_eq!(gathered(vec![view(2, 9900, report(true, 5000))]).reported_by, None);
        let foreign = |seen: &mut Observation| {
            report(true, 0)(seen);
            seen.cluster_id = ClusterId::from_parts(9, 9);
        };
        assert_eq!(gathered(vec![view(2, 9900, foreign)]).reported_by, None);
    }
}
