//! What is said of each state: who would take over, what is missing, what a person can do, and what is warned of.

use std::collections::BTreeMap;

use regent_common::{
    ids::{Epoch, NodeName},
    lease::HeardLease,
    position::{IntervalSet, Position},
    topology::{HostFacts, Observation, Role},
};

use super::*;
use crate::{
    api::{view, warnings},
    cluster::brake::Pause,
    detector::{Judgement, Succession},
    environment::OwnMachine,
    model::cluster::ClusterRecord,
    nodes::NodeView,
    planner::{
        self,
        fixtures::{cluster, name, observation},
    },
};

/// db1 reigns at epoch 1 and its lease stands; db2 is its electorate. It was heard 100 ms ago.
struct Scene {
    record: ClusterRecord,
    judgements: BTreeMap<MemberName, Judgement>,
    succession: Succession,
    views: BTreeMap<NodeName, NodeView>,
    frozen: Option<Frozen>,
    paused: Option<Pause>,
    in_vain: Vec<String>,
    own_machine: OwnMachine,
}

fn report(stands: bool, source: LeaseSource, remaining: u64) -> LeaseReport {
    let source = stands.then_some(source);
    LeaseReport { epoch: Epoch(1), stands, source, remaining: Duration::from_millis(remaining) }
}

fn view(seen: Observation) -> NodeView {
    let last_contact = Some(Duration::from_millis(9_900));
    NodeView { connected: true, last_contact, observation: Some(seen), ..NodeView::default() }
}

impl Scene {
    fn new() -> Self {
        let mut primary = observation(name(1));
        primary.authority.lease = Some(report(true, LeaseSource::Coordinator, 4000));
        let mut replica = observation(name(2));
        replica.engine.role = Some(Role::Replica);
        let healthy = Judgement { verdict: Verdict::Healthy, reason: String::new() };
        let node = |text: &str| text.parse().unwrap();
        Self {
            record: cluster(),
            judgements: [(name(1), healthy.clone()), (name(2), healthy)].into(),
            succession: Succession {
                gated: true,
                promotable: [name(2)].into(),
                reachable: [name(2)].into(),
                free: [name(2)].into(),
                ..Succession::default()
            },
            views: [(node("n1"), view(primary)), (node("n2"), view(replica))].into(),
            frozen: None,
            paused: None,
            in_vain: Vec::new(),
            own_machine: OwnMachine { boot_id: Some("ours".into()), promotes: false },
        }
    }

    fn judged(mut self, verdict: Verdict, reason: &str) -> Self {
        self.judgements.insert(name(1), Judgement { verdict, reason: reason.to_owned() });
        self
    }

    fn view(&mut self, number: u32) -> &mut NodeView {
        self.views.get_mut(&format!("n{number}").parse::<NodeName>().unwrap()).unwrap()
    }

    fn with<T>(&self, show: impl FnOnce(&ClusterFacts<'_>) -> T) -> T {
        show(&ClusterFacts {
            record: &self.record,
            version: 1,
            judgements: &self.judgements,
            succession: &self.succession,
            views: &self.views,
            nodes: &BTreeMap::new(),
            now: Duration::from_millis(10_000),
            frozen: self.frozen.clone(),
            paused: self.paused,
            in_vain: self.in_vain.clone(),
            wall: "2026-03-01T12:00:00Z".parse().unwrap(),
            own_machine: &self.own_machine,
        })
    }

    fn said(&self) -> String {
        let decision = planner::decide(&self.record, &self.judgements, &self.succession);
        self.with(|facts| sentence(facts, &decision))
    }
}

#[test]
fn a_healthy_cluster_says_who_would_take_over() {
    assert_eq!(Scene::new().said(), "db1 serves; if it is lost, db2 takes over by itself");
}

#[test]
fn what_keeps_a_healthy_cluster_from_a_failover_is_named_with_what_to_do() {
    type Change = fn(&mut Scene);
    let changes: [(Change, &str); 6] = [
        (|scene| scene.succession.gated = false, "`regentctl node show n1` says what to do"),
        (|scene| scene.succession.promotable.clear(), "how far db2 is behind is not known yet"),
        (
            |scene| {
                scene.succession.promotable.clear();
                scene.record.set_state(&name(2), MemberState::Resyncing);
            },
            "db2 is being resynced",
        ),
        (|scene| scene.succession.reachable.clear(), "nobody takes over before db2 is heard again"),
        (|scene| scene.record.policy.automatic_failover = false, "a person has to act"),
        (
            |scene| {
                scene.succession.promotable.insert(name(3));
            },
            "db3 is not heard: while that is so, losing this coordinator as well stops writes",
        ),
    ];
    for (change, expected) in changes {
        let mut scene = Scene::new();
        change(&mut scene);
        let said = scene.said();
        assert!(said.starts_with("db1 serves; ") && said.contains(expected), "{said}");
    }
}

#[test]
fn every_state_without_a_serving_primary_says_whether_it_ends_by_itself() {
    let mut waits = Scene::new().judged(Verdict::NodeUnreachable, "db1 is silent");
    waits.succession.lease_left = Duration::from_millis(800);
    let mut cut_off = Scene::new().judged(Verdict::Partitioned, "db1 is silent");
    cut_off.succession.reported_by = Some(name(2));
    let mut alone = Scene::new().judged(Verdict::NodeLost, "db1 is silent");
    alone.succession.promotable.clear();
    let mut ungated = Scene::new().judged(Verdict::NodeUnreachable, "db1 is silent");
    ungated.succession.gated = false;
    let mut paused = Scene::new().judged(Verdict::NodeLost, "db1 is silent");
    paused.paused = Some(Pause::Brake { failing: 6, clusters: 8, left: Duration::from_secs(40) });
    let mut frozen = Scene::new();
    frozen.frozen = Some(Frozen { why: "the store is old".to_owned(), missing: vec![name(2)] });
    let mut crowning = Scene::new();
    (crowning.record.primary, crowning.record.candidate) = (None, Some(name(2)));
    crowning.record.operation = Some(regent_common::ids::OperationId::generate());
    let mut preparing = Scene::new();
    preparing.record.primary = None;
    preparing.record.operation = crowning.record.operation;
    let states = [
        (preparing, "failing over: the other members are being prepared; `regentctl operation watch "),
        (waits, "failing over, and nothing is to be done: db1 is silent; its lease may stand for 800 ms yet"),
        (Scene::new().judged(Verdict::NodeLost, "db1 is silent"), "a failover is due and begins by itself"),
        (paused, "a failover is due: db1 is silent; automatic failover is paused: 6 of 8 clusters fail at once"),
        (alone, "no member may be promoted in its place: bring its node or its agent back"),
        (ungated, "its host has no gate that closes by itself"),
        (cut_off, "db2 reports that its lease stands, so that nobody takes over; mend the connection between this"),
        (Scene::new().judged(Verdict::WithoutLease, "-"), "check what is sent there"),
        (Scene::new().judged(Verdict::Suspect, "db1 is called"), "nothing is to be done"),
        (frozen, "bring back the agent of db2"),
        (crowning, "db2 is being made the primary; `regentctl operation watch "),
    ];
    for (scene, expected) in states {
        let said = scene.said();
        assert!(said.contains(expected), "{expected:?} is not in {said:?}");
    }
}

/// Lets a member run on the coordinator's machine.
fn beside_us(scene: &mut Scene, number: u32) {
    scene.view(number).host = Some(HostFacts { boot_id: "ours".to_owned(), ..HostFacts::default() });
}

#[test]
fn a_replica_on_the_coordinators_machine_is_why_nobody_takes_over() {
    let mut scene = Scene::new();
    for number in [1, 2] {
        let at = Position::new([("x".to_owned(), IntervalSet::from(vec![(0, 10)]))], "");
        let view = scene.view(number);
        let mut seen = view.observation.clone().unwrap();
        seen.engine.position = Some(at);
        view.heard(Duration::from_secs(1), Some(seen));
    }
    scene.succession.promotable.clear();
    assert!(scene.said().ends_with("no replica is in its electorate: db2 was not taken in yet"), "{}", scene.said());
    beside_us(&mut scene, 2);
    let said = scene.said();
    assert!(said.contains("db2 runs on this coordinator's machine and \"promote_on_this_machine\" is off"), "{said}");
}

#[test]
fn whoever_shares_the_coordinators_machine_is_warned_of_with_what_it_means_and_what_to_do() {
    let warnings = |scene: &Scene| scene.with(warnings::of_cluster);
    assert_eq!(warnings(&Scene::new()), Vec::<String>::new(), "machines of their own");
    let mut unknown = Scene::new();
    beside_us(&mut unknown, 2);
    unknown.own_machine.boot_id = None;
    assert_eq!(warnings(&unknown), Vec::<String>::new(), "nobody is suspected");
    let (mut primary, mut replica, mut allowed) = (Scene::new(), Scene::new(), Scene::new());
    beside_us(&mut primary, 1);
    beside_us(&mut replica, 2);
    beside_us(&mut allowed, 2);
    allowed.own_machine.promotes = true;
    let own = "run the coordinator on a machine of its own";
    for (scene, parts) in [
        (
            &primary,
            ["db1, the primary, runs on this coordinator's machine (node n1)", "both at once", "writes stop", own],
        ),
        (
            &replica,
            ["db2 runs on this coordinator's machine (node n2)", "both at once", "left out of the electorate", own],
        ),
        (&allowed, ["db2 runs on this coordinator's machine (node n2)", "both at once", "stops writes", own]),
    ] {
        let said = warnings(scene);
        assert_eq!(said.len(), 1, "{said:?}");
        parts.iter().for_each(|part| assert!(said[0].contains(part), "{part:?} is not in {said:?}"));
        let health = scene.with(view::cluster).health();
        assert_eq!(health, wire::Health::Healthy, "it is a warning: nothing is amiss now");
    }
    let shown = replica.with(view::cluster);
    assert_eq!(shown.warnings, warnings(&replica), "the page has them");
}

#[test]
fn a_pause_of_automatic_failovers_is_shown_also_while_nothing_is_amiss() {
    let mut scene = Scene::new();
    scene.paused = Some(Pause::Budget { failovers: 6, left: Duration::from_secs(90) });
    let shown = scene.with(view::cluster);
    assert_eq!(shown.health(), wire::Health::Healthy);
    assert!(shown.situation.ends_with("db2 takes over by itself, once automatic failover is no longer paused"));
    let [warning] = shown.warnings.as_slice() else { panic!("{:?}", shown.warnings) };
    assert!(warning.starts_with("automatic failover is paused: 6 failovers of this cluster"), "{warning}");
    assert!(warning.contains("ends by itself at 12:01:30 UTC (in 90 s)"), "{warning}");
    scene.paused = Some(Pause::Brake { failing: 6, clusters: 8, left: Duration::from_secs(40) });
    let warnings = scene.with(warnings::of_cluster);
    assert!(warnings[0].starts_with("automatic failover is paused: 6 of 8 clusters fail at once"), "{warnings:?}");
    scene.in_vain = vec!["bringing db2 back has failed 2 times in a row".to_owned()];
    assert_eq!(scene.with(warnings::of_cluster)[1..], scene.in_vain);
    scene.record.policy.paused = true;
    let warnings = scene.with(warnings::of_cluster);
    assert!(
        !warnings.iter().any(|warning| warning.contains("db2 back")),
        "nothing is tried while it is paused: {warnings:?}"
    );
}

#[test]
fn the_lease_is_shown_by_the_newest_word_and_ages_with_it() {
    let mut scene = Scene::new();
    let own = scene.with(lease).unwrap();
    assert_eq!((own.stands, own.source(), own.remaining_millis), (true, types::LeaseSource::Coordinator, 3900));
    assert_eq!((own.reported_by.as_str(), own.age_millis), ("db1", 100));

    // Cut off: the last own word is old, and what it told db2 is newer.
    scene.view(1).last_contact = Some(Duration::from_millis(5_000));
    let silent = scene.with(lease).unwrap();
    assert!(!silent.stands, "four seconds were left five seconds ago");
    let heard = HeardLease {
        member: name(1),
        lease: report(true, LeaseSource::Endorsement, 3000),
        position: None,
        age: Duration::from_millis(400),
    };
    let replica = scene.view(2);
    replica.observation.as_mut().unwrap().authority.heard = Some(heard);
    let reported = scene.with(lease).unwrap();
    assert_eq!((reported.stands, reported.source()), (true, types::LeaseSource::Endorsement));
    assert_eq!((reported.reported_by.as_str(), reported.age_millis), ("db2", 500));

    // A word about an earlier reign says nothing.
    scene.record.reign.as_mut().unwrap().epoch = Epoch(2);
    let unknown = scene.with(lease).unwrap();
    assert_eq!((unknown.stands, unknown.reported_by.as_str()), (false, ""));
}

#[test]
fn a_lease_without_an_end_stands() {
    let mut scene = Scene::new();
    let seen = scene.view(1).observation.as_mut().unwrap();
    seen.authority.lease = Some(report(true, LeaseSource::Alone, 0));
    let alone = scene.with(lease).unwrap();
    assert_eq!((alone.stands, alone.source(), alone.remaining_millis), (true, types::LeaseSource::Alone, 0));
}

#[test]
fn a_restart_of_the_primarys_agent_is_told_apart_from_a_node_that_is_lost() {
    let mut scene = Scene::new().judged(Verdict::NodeUnreachable, "the agent of db1 has not been heard for 4 s");
    scene.succession.lease_left = Duration::from_millis(24_900);
    assert!(scene.said().starts_with("failing over"), "{}", scene.said());
    scene.succession.handed_over = scene.succession.lease_left;
    assert!(scene.said().starts_with("failing over"), "its session stands: {}", scene.said());
    scene.view(1).connected = false;
    let said = scene.said();
    for part in [
        "db1 serves, and the agent of n1 is being restarted",
        "for at most 24 s more",
        "nothing is to be done if it is back by then, and another member takes over by itself then",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    assert_eq!(scene.with(|facts| lease(facts).unwrap().handed_over_millis), 24_900);
    let mut suspect = Scene::new().judged(Verdict::Suspect, "the agent of db1 is being called");
    suspect.view(1).connected = false;
    assert!(!suspect.said().contains("restarted"), "{}", suspect.said());
    suspect.succession.handed_over = Duration::from_secs(30);
    assert!(suspect.said().contains("is being restarted"), "{}", suspect.said());
    // What a person has to do is said all the same.
    scene.succession.gated = false;
    assert!(scene.said().contains("no gate that closes by itself"), "{}", scene.said());
}

/// db1 and db2 follow each other, and both are open.
fn pair(verdicts: [(Verdict, &str); 2]) -> Scene {
    let mut scene = Scene::new();
    scene.record.mode = "multi-master".to_owned();
    (scene.record.primary, scene.record.reign, scene.record.established) = (None, None, false);
    let judgement = |(verdict, reason): (Verdict, &str)| Judgement { verdict, reason: reason.to_owned() };
    scene.judgements = (1..).map(name).zip(verdicts.map(judgement)).collect();
    scene.succession = Succession::default();
    scene
}

#[test]
fn a_pair_says_who_takes_writes_and_what_becomes_of_the_other() {
    let down = || (Verdict::EngineDown, "the engine of db2 has ended by itself");
    let deaf = || (Verdict::NotStreaming, "db1 receives nothing from db2: refused");
    let well = || (Verdict::Healthy, "");
    let late = || (Verdict::Stale, "db1 cannot catch up: forgotten");
    let state = |state: MemberState, second: (Verdict, &'static str)| {
        let mut scene = pair([(Verdict::Healthy, ""), second]);
        scene.record.set_state(&name(2), state);
        scene
    };
    let mut paused = pair([deaf(), down()]);
    paused.record.policy.paused = true;
    let mut running = state(MemberState::NeedsRejoin, (Verdict::Astray, "db2 runs and lets nobody in"));
    running.record.operation = Some(regent_common::ids::OperationId::generate());
    let needs_resync = MemberState::NeedsResync { why: "db2 has 2 entries that db1 has not".to_owned() };
    let silent = || (Verdict::NodeUnreachable, "the agent of db2 is silent");
    let mut waits = pair([(Verdict::EngineDown, "the engine of db1 is stopped"), silent()]);
    waits.record.survivor = Some(name(2));
    let lost = (Verdict::Lost, "there is no data of db2 on its node");
    use wire::Health::{Degraded, Down, Healthy};
    for (scene, health, serving, expected) in [
        (pair([well(), well()]), Healthy, 2, "db1 and db2 both take writes; if one is lost, the other goes on"),
        (pair([deaf(), deaf()]), Degraded, 2, "do not hear each other"),
        (pair([late(), deaf()]), Degraded, 2, "db1 and db2 both take writes, and db1 cannot catch up: forgotten"),
        (pair([well(), late()]), Degraded, 2, "`regentctl cluster compare db`"),
        (pair([late(), late()]), Degraded, 2, "`regentctl cluster resync db db2 --confirm db2` all of db1's for db2"),
        (pair([deaf(), well()]), Degraded, 2, "what is written to db2 does not reach db1 now"),
        (
            pair([deaf(), down()]),
            Degraded,
            1,
            "db1 takes writes alone; the engine of db2 has ended by itself; it is joined again",
        ),
        (pair([deaf(), silent()]), Degraded, 1, "by itself when its agent is heard"),
        (pair([deaf(), lost]), Degraded, 1, "`regentctl cluster resync db db2 --confirm db2` fills it anew"),
        (paused, Degraded, 1, "`regentctl cluster resume db`"),
        (running, Degraded, 1, "it is being joined again: `regentctl operation watch "),
        (
            state(needs_resync, (Verdict::Astray, "-")),
            Degraded,
            1,
            "db1 takes writes alone; db2 has 2 entries that db1 has not",
        ),
        (state(MemberState::Resyncing, down()), Degraded, 1, "db2 is emptied and takes everything from it"),
        (
            pair([(Verdict::EngineDown, "db1 is down"), down()]),
            Down,
            0,
            "db1 is brought back by itself, and the other one after it",
        ),
        (waits, Down, 0, "db2 took writes last, and db1 lacks what it took alone"),
        (pair([(Verdict::Suspect, "-"), well()]), Degraded, 2, "both take writes"),
    ] {
        let said = scene.said();
        assert!(said.contains(expected), "{expected:?} is not in {said:?}");
        let shown = scene.with(view::cluster);
        assert_eq!((shown.health(), shown.serving.len(), shown.primary.as_str()), (health, serving, ""), "{said}");
        assert_eq!(shown.members[0].role(), types::Role::Active);
        for action in ["failover", "add-member"] {
            let action = shown.available_actions.iter().find(|found| found.action == action).unwrap();
            assert!(!action.available && action.reason.starts_with("it is a pair"), "{action:?}");
        }
    }
}
