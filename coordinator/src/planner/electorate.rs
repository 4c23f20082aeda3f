//! Who belongs to the electorate: a pure function of the record, the judgements and what was heard (rule M3).
//!
//! Lag is judged only by a primary whose lease stands: while it is silent or suspect nobody is removed for it, and a broken
//! stream counts only through its lag.

use std::collections::{BTreeMap, BTreeSet};

use regent_common::{
    ids::MemberName,
    mutation::{self, Rule},
};

use crate::{
    detector::{Judgement, Verdict},
    environment::OwnMachine,
    model::cluster::{ClusterRecord, MemberRecord, MemberState, Priority},
    nodes::NodeView,
};

/// The electorate that the cluster should have now; `None` while there is no primary that could be told.
///
/// Members on the coordinator's `own_machine` are left out, unless the policy allows them: with that machine the coordinator
/// and they would be lost together.
pub fn wanted(
    record: &ClusterRecord,
    judgements: &BTreeMap<MemberName, Judgement>,
    views: &BTreeMap<MemberName, NodeView>,
    own_machine: &OwnMachine,
) -> Option<BTreeSet<MemberName>> {
    let primary = record.primary.as_ref()?;
    let reign = record.reign.as_ref().filter(|reign| reign.epoch == record.epoch && reign.primary == *primary)?;
    let primary_is_sure = judgements.get(primary).is_some_and(|judgement| judgement.verdict == Verdict::Healthy)
        && views.get(primary).and_then(|view| view.observation.as_ref()).is_some_and(|seen| {
            seen.epoch == record.epoch && seen.authority.lease.as_ref().is_some_and(|lease| lease.stands)
        });
    let lag = |member: &MemberName| views.get(member)?.lag_behind(views.get(primary)?);
    let within = |member: &MemberName| lag(member).map(|lag| lag <= record.policy.max_lag_on_failover);
    let belongs = |member: &MemberName, MemberRecord { state, priority, .. }: &MemberRecord| {
        let view = views.get(member);
        let dirty = view.and_then(|view| view.observation.as_ref()).is_some_and(|seen| seen.dirty);
        let beside_us = view.is_some_and(|view| own_machine.leaves_out(view));
        if mutation::broken(Rule::M3Resync) && reign.newest().members.contains(member) {
            return true;
        }
        // What it has promised nobody knows (rule T5); it leaves when that is stored.
        let quarantined = view.is_some_and(|view| view.quarantine().is_some());
        if *state != MemberState::Ready || *priority == Priority::NEVER || dirty || beside_us || quarantined {
            return false;
        }
        let healthy = judgements.get(member).is_some_and(|judgement| judgement.verdict == Verdict::Healthy);
        if reign.newest().members.contains(member) {
            !primary_is_sure || within(member) != Some(false)
        } else {
            primary_is_sure && healthy && within(member) == Some(true)
        }
    };
    Some(record.replicas().filter(|(member, stored)| belongs(member, stored)).map(|(m, _)| m.clone()).collect())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use regent_common::{
        ids::Epoch,
        lease::LeaseReport,
        position::{IntervalSet, Position},
        topology::{HostFacts, Observation, Role},
    };

    use super::*;
    use crate::{
        model::reign::Reign,
        nodes::identity::KeptOut,
        planner::fixtures::{cluster, name, observation},
    };

    fn at(end: u64) -> Position {
        Position::new([("x".to_owned(), IntervalSet::from(vec![(0, end)]))], "")
    }

    const HEARD: Duration = Duration::from_secs(100);

    fn view(seen: Observation) -> NodeView {
        let host = Some(HostFacts { boot_id: "theirs".to_owned(), ..HostFacts::default() });
        let mut view = NodeView { host, ..NodeView::default() };
        view.heard(HEARD, Some(seen));
        view
    }

    struct Scene {
        record: ClusterRecord,
        views: BTreeMap<MemberName, NodeView>,
        judgements: BTreeMap<MemberName, Judgement>,
    }

    /// db1 reigns at 1000; db2 is as far; the electorate is what the test says.
    fn scene(members: &[MemberName]) -> Scene {
        let mut record = cluster();
        record.policy.max_lag_on_failover = 100;
        record.reign = Some(Reign::new(Epoch(1), name(1), members.iter().cloned().collect(), true));
        let mut primary = observation(name(1));
        primary.engine.position = Some(at(1000));
        let lease = LeaseReport { epoch: Epoch(1), stands: true, source: None, remaining: Default::default() };
        primary.authority.lease = Some(lease);
        let mut replica = observation(name(2));
        (replica.engine.role, replica.engine.position) = (Some(Role::Replica), Some(at(1000)));
        let healthy = Judgement { verdict: Verdict::Healthy, reason: String::new() };
        Scene {
            record,
            views: [(name(1), view(primary)), (name(2), view(replica))].into(),
            judgements: [(name(1), healthy.clone()), (name(2), healthy)].into(),
        }
    }

    impl Scene {
        fn has_second(&self) -> bool {
            self.has_second_where(false)
        }

        fn has_second_where(&self, promotes: bool) -> bool {
            let own_machine = OwnMachine { boot_id: Some("ours".into()), promotes };
            wanted(&self.record, &self.judgements, &self.views, &own_machine).unwrap().contains(&name(2))
        }

        fn seen(&mut self, member: u32) -> &mut Observation {
            self.views.get_mut(&name(member)).unwrap().observation.as_mut().unwrap()
        }

        fn verdict(&mut self, member: u32, verdict: Verdict) {
            self.judgements.get_mut(&name(member)).unwrap().verdict = verdict;
        }
    }

    #[test]
    fn who_streams_and_is_near_joins_and_who_falls_behind_leaves() {
        let mut joining = scene(&[]);
        assert!(joining.has_second());
        joining.seen(2).engine.position = Some(at(850));
        assert!(!joining.has_second());
        let mut staying = scene(&[name(2)]);
        staying.verdict(2, Verdict::NodeUnreachable);
        assert!(staying.has_second(), "a silent member stays as long as its lag is small");
        staying.seen(2).engine.position = Some(at(850));
        assert!(!staying.has_second());
    }

    #[test]
    fn what_the_primary_wrote_since_a_member_was_heard_is_no_lag_of_it() {
        let mut busy = scene(&[name(2)]);
        for beat in 1..=4 {
            let primary = busy.views.get_mut(&name(1)).unwrap();
            let mut seen = primary.observation.clone().unwrap();
            seen.engine.position = Some(at(1000 + 500 * beat));
            primary.heard(HEARD + Duration::from_secs(beat), Some(seen));
            assert!(busy.has_second(), "it had everything when it was heard");
        }
        // It is heard again, and lacks what the primary had before that.
        let second = busy.views.get_mut(&name(2)).unwrap();
        let mut seen = second.observation.clone().unwrap();
        seen.engine.position = Some(at(2300));
        second.heard(HEARD + Duration::from_millis(3500), Some(seen.clone()));
        assert!(!busy.has_second());
        seen.engine.position = Some(at(2450));
        busy.views.get_mut(&name(2)).unwrap().heard(HEARD + Duration::from_millis(3600), Some(seen));
        assert!(busy.has_second(), "no more than the policy allows");
    }

    #[test]
    fn one_that_is_silent_for_long_is_behind_by_what_was_written_since() {
        let mut silent = scene(&[name(2)]);
        for second in 1..=20 {
            let primary = silent.views.get_mut(&name(1)).unwrap();
            let mut seen = primary.observation.clone().unwrap();
            seen.engine.position = Some(at(1000 + 500 * second));
            primary.heard(HEARD + Duration::from_secs(second), Some(seen));
        }
        assert!(!silent.has_second());
    }

    #[test]
    fn nobody_joins_or_leaves_for_lag_while_the_primary_is_not_sure() {
        let unsure: [fn(&mut Scene); 3] = [
            |scene| scene.verdict(1, Verdict::Suspect),
            |scene| scene.seen(1).authority.lease.as_mut().unwrap().stands = false,
            |scene| scene.seen(1).epoch = Epoch(0),
        ];
        for unsure in unsure {
            let mut staying = scene(&[name(2)]);
            staying.seen(2).engine.position = Some(at(1));
            unsure(&mut staying);
            assert!(staying.has_second());
            let mut joining = scene(&[]);
            unsure(&mut joining);
            assert!(!joining.has_second());
        }
    }

    #[test]
    fn who_is_dirty_or_being_replaced_or_beside_the_coordinator_is_no_part_of_it() {
        let out: [fn(&mut Scene); 6] = [
            |scene| scene.record.members.get_mut(&name(2)).unwrap().priority = Priority::NEVER,
            |scene| scene.views.get_mut(&name(2)).unwrap().quarantine = "no ledger".to_owned(),
            |scene| {
                let why = "its ledger was put back".to_owned();
                scene.views.get_mut(&name(2)).unwrap().kept_out = Some(KeptOut { mark: None, why });
            },
            |scene| scene.seen(2).dirty = true,
            |scene| scene.record.set_state(&name(2), MemberState::Resyncing),
            |scene| scene.views.get_mut(&name(2)).unwrap().host.as_mut().unwrap().boot_id = "ours".to_owned(),
        ];
        for out in out {
            let mut scene = scene(&[name(2)]);
            scene.verdict(1, Verdict::Suspect);
            out(&mut scene);
            assert!(!scene.has_second());
        }
    }

    #[test]
    fn who_is_beside_the_coordinator_belongs_to_it_where_the_policy_says_so() {
        let mut scene = scene(&[name(2)]);
        scene.views.get_mut(&name(2)).unwrap().host.as_mut().unwrap().boot_id = "ours".to_owned();
        assert!(!scene.has_second_where(false));
        assert!(scene.has_second_where(true));
        // Known by its hello before the first heartbeat has brought the facts of its machine.
        let view = scene.views.get_mut(&name(2)).unwrap();
        (view.host, view.boot_id) = (None, "ours".to_owned());
        assert!(!scene.has_second_where(false));
    }
}
