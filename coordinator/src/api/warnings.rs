//! What is not amiss now and takes a guarantee away, as members on the coordinator's own machine and failovers that pause do, and what
//! Regent tries by itself in vain. Pure.
//!
//! It decides nothing: who is left out of an electorate is decided in [`crate::planner::electorate`], when failovers pause in
//! [`crate::cluster::brake`]. Each sentence says what it is, what it means, and what to do.

use jiff::{SignedDuration, Timestamp};
use regent_common::{
    ids::{MemberName, NodeName},
    topology::{CERTIFICATE_UNTIL, REFUSES_WRITES, Role},
};

use super::view::{ClusterFacts, lets_in_others, view_of};
use crate::{environment::OwnMachine, model::Assignment, nodes::NodeView};

/// What to do about a member beside the coordinator.
const MOVE: &str = "run the coordinator on a machine of its own";

/// How long before its end a certificate is warned of: time for a person to have it renewed.
const RENEW_WITHIN: SignedDuration = SignedDuration::from_hours(14 * 24);

/// The warnings of a cluster.
pub fn of_cluster(facts: &ClusterFacts<'_>) -> Vec<String> {
    let paused = facts.paused.map(|pause| pause.sentence(facts.wall));
    let beside_us = facts.record.members.iter().filter_map(|(member, stored)| {
        let view = view_of(facts, member).filter(|view| facts.own_machine.holds(view))?;
        Some(beside_us(facts, member, &stored.node, view))
    });
    let by_hand = facts.record.policy.paused.then(|| {
        format!(
            "automatic decisions are paused: no failover happens and no member is brought back by itself before `regentctl cluster \
             resume {}`",
            facts.record.name
        )
    });
    let open = lets_in_others(facts).into_iter().map(|member| {
        format!("the allow-list is not in force on {member}; what it keeps out may be let in there until then")
    });
    let views = || facts.record.members.keys().filter_map(|member| Some((member, view_of(facts, member)?)));
    let full = views().filter_map(|(member, view)| refuses_writes(member, view));
    let ending = views().filter_map(|(member, view)| certificate_ends(member, view, facts.wall));
    // While it is paused nothing is tried again.
    let in_vain = facts.in_vain.iter().filter(|_| !facts.record.policy.paused).cloned();
    by_hand.into_iter().chain(paused).chain(in_vain).chain(beside_us).chain(open).chain(full).chain(ending).collect()
}

/// Its agent notices a renewed one by itself; nobody but a person renews it.
fn certificate_ends(member: &MemberName, view: &NodeView, now: Timestamp) -> Option<String> {
    let until: Timestamp = view.observation.as_ref()?.engine.details.get(CERTIFICATE_UNTIL)?.parse().ok()?;
    if until <= now {
        return Some(format!(
            "the certificate of {member}'s port ended at {until}: members and clients that check it do not connect; renew it"
        ));
    }
    let soon = until.duration_since(now) <= RENEW_WITHIN;
    soon.then(|| {
        format!(
            "the certificate of {member}'s port ends at {until}: renew it before, or members and clients that check it do not connect \
             afterwards"
        )
    })
}

/// Its engine answers, so that this is no reason for a failover: the next primary has the same data.
fn refuses_writes(member: &MemberName, view: &NodeView) -> Option<String> {
    let engine = &view.observation.as_ref()?.engine;
    let why =
        engine.details.get(REFUSES_WRITES).filter(|_| matches!(engine.role, Some(Role::Primary | Role::Active)))?;
    Some(format!("{member} refuses writes: {why}"))
}

fn beside_us(facts: &ClusterFacts<'_>, member: &MemberName, node: &NodeName, view: &NodeView) -> String {
    if facts.record.is_pair() {
        return format!(
            "{member} runs on this coordinator's machine (node {node}): losing that machine takes both at once, and the other side, which \
             goes on, is not watched until a coordinator is back; {MOVE}"
        );
    }
    if facts.record.primary.as_ref() == Some(member) {
        return format!(
            "{member}, the primary, runs on this coordinator's machine (node {node}): losing that machine takes both at once, \
             writes stop, and nobody takes over before a coordinator is back; {MOVE}"
        );
    }
    if facts.own_machine.leaves_out(view) {
        return format!(
            "{member} runs on this coordinator's machine (node {node}): losing that machine takes both at once, and would stop \
             writes if the primary needed {member}; so it is left out of the electorate and never takes over by itself; {MOVE}"
        );
    }
    format!(
        "{member} runs on this coordinator's machine (node {node}): losing that machine takes both at once and stops writes until \
         one of them is back; {MOVE}, or leave {member} out of the electorate with \"promote_on_this_machine = false\" in \
         coordinator.toml"
    )
}

/// The warnings of a node.
pub fn of_node(view: &NodeView, assignment: Option<&Assignment>, own_machine: &OwnMachine) -> Vec<String> {
    if !own_machine.holds(view) {
        return Vec::new();
    }
    let fate = if own_machine.promotes {
        "and writes stop until one of them is back"
    } else {
        "so that as a replica it is left out of the electorate and never takes over by itself"
    };
    let what = match assignment {
        Some(Assignment { cluster, member }) => format!("and so does {member} of cluster {cluster}"),
        None => "and so would a member that is made here".to_owned(),
    };
    vec![format!("the coordinator runs on this machine, {what}: losing it takes both at once, {fate}; {MOVE}")]
}

#[cfg(test)]
mod tests {
    use regent_common::topology::HostFacts;

    use super::*;
    use crate::planner::fixtures::observation;

    fn view(boot_id: &str) -> NodeView {
        NodeView {
            host: Some(HostFacts { boot_id: boot_id.to_owned(), ..HostFacts::default() }),
            ..NodeView::default()
        }
    }

    #[test]
    fn a_primary_that_refuses_writes_is_warned_of() {
        let member: MemberName = "db1".parse().unwrap();
        let mut seen = observation(member.clone());
        seen.engine.role = Some(Role::Primary);
        let view = |seen| NodeView { observation: Some(seen), ..NodeView::default() };
        assert_eq!(refuses_writes(&member, &view(seen.clone())), None);
        seen.engine.details.insert(REFUSES_WRITES.to_owned(), "its memory is full".to_owned());
        assert_eq!(refuses_writes(&member, &view(seen.clone())).unwrap(), "db1 refuses writes: its memory is full");
        seen.engine.role = Some(Role::Replica);
        assert_eq!(refuses_writes(&member, &view(seen)), None, "nobody writes to a replica");
    }

    #[test]
    fn a_certificate_is_warned_of_before_and_after_its_end() {
        let member: MemberName = "db1".parse().unwrap();
        let now: Timestamp = "2026-11-30T00:00:00Z".parse().unwrap();
        let said = |until: Option<&str>| {
            let mut seen = observation(member.clone());
            seen.engine.details.extend(until.map(|until| (CERTIFICATE_UNTIL.to_owned(), until.to_owned())));
            certificate_ends(&member, &NodeView { observation: Some(seen), ..NodeView::default() }, now)
        };
        assert_eq!((said(None), said(Some("soon")), said(Some("2026-12-14T00:00:01Z"))), (None, None, None));
        assert!(said(Some("2026-12-14T00:00:00Z")).unwrap().contains("ends at 2026-12-14T00:00:00Z: renew it before"));
        assert!(said(Some("2026-11-30T00:00:00Z")).unwrap().contains("ended at 2026-11-30T00:00:00Z"));
    }

    #[test]
    fn a_node_on_the_coordinators_machine_is_warned_of() {
        let own = |promotes| OwnMachine { boot_id: Some("ours".into()), promotes };
        let assignment = Assignment { cluster: "db".parse().unwrap(), member: "db2".parse().unwrap() };
        assert_eq!(of_node(&view("theirs"), Some(&assignment), &own(false)), Vec::<String>::new());
        assert_eq!(of_node(&view("ours"), Some(&assignment), &OwnMachine::default()), Vec::<String>::new());
        assert_eq!(of_node(&NodeView::default(), None, &own(false)), Vec::<String>::new(), "nothing was heard of it");
        for (assignment, promotes, parts) in [
            (Some(&assignment), false, ["db2 of cluster db", "left out of the electorate"]),
            (Some(&assignment), true, ["db2 of cluster db", "writes stop"]),
            (None, false, ["a member that is made here", "left out of the electorate"]),
        ] {
            let said = of_node(&view("ours"), assignment, &own(promotes));
            let [said] = said.as_slice() else { panic!("{said:?}") };
            assert!(said.starts_with("the coordinator runs on this machine") && said.ends_with(MOVE), "{said}");
            parts.iter().for_each(|part| assert!(said.contains(part), "{part:?} is not in {said:?}"));
        }
    }
}
