//! The same for a pair, and what only a pair could get wrong: what was deleted while a side was away comes back by nobody but a person.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use regent_common::{error::Reason, ids::NodeName};
use serde_json::json;

use super::{
    Bench, Play, Scene, assemble, member, node,
    world::{Node, World},
};
use crate::{
    model::cluster::{ClusterRecord, MemberState},
    operation::{
        Kind, executor, kinds,
        log::{Outcome, Stage},
    },
};

/// What both sides have.
const SHARED: &str = "shared";
/// What was deleted, or what only one side ever had.
const STRAY: &str = "stray";

/// The kinds that a pair knows.
pub(super) fn plays() -> Vec<Play> {
    let kinds: [&'static dyn Kind; 7] = [
        &kinds::create_cluster::CreateCluster,
        &kinds::rejoin::Rejoin,
        &kinds::resync::Resync,
        &kinds::compare::Compare,
        &kinds::configure::Configure,
        &kinds::set_allow_list::SetAllowList,
        &kinds::delete_cluster::DeleteCluster,
    ];
    let on_a_pair = kinds.map(|kind| Play { kind, scene: Scene::Pair });
    let down = Play { kind: &kinds::rejoin::Rejoin, scene: Scene::Down };
    on_a_pair.into_iter().chain([down]).collect()
}

/// Two sides that follow each other; for a rejoin db2 is down, and for a resync it has something of its own.
pub(super) async fn bench(kind: &'static dyn Kind, scene: Scene) -> Bench {
    let creating = kind.name() == "create_cluster";
    let world = Arc::new(World::default());
    for n in 1..=2_u32 {
        let mut state = Node { epoch: u64::from(!creating), ..Node::default() };
        if !creating {
            state.member = Some(member(n).to_string());
            (state.has_data, state.running, state.active, state.open) = (true, true, true, true);
            (state.upstream, state.attached) = (Some(member(3 - n).to_string()), true);
            state.entries = [SHARED.to_owned()].into();
        }
        world.nodes.lock().unwrap().insert(node(n), state);
    }
    {
        let mut nodes = world.nodes.lock().unwrap();
        if kind.name() == "rejoin" {
            let served = nodes.get_mut(&node(1)).unwrap();
            served.entries.insert("new".to_owned());
            (served.running, served.open) = (scene != Scene::Down, scene != Scene::Down);
            let away = nodes.get_mut(&node(2)).unwrap();
            (away.running, away.open, away.attached) = (false, false, false);
        }
        if kind.name() == "resync" {
            let stray = nodes.get_mut(&node(2)).unwrap();
            stray.entries.insert(STRAY.to_owned());
            let other = nodes.get_mut(&node(1)).unwrap();
            (other.upstream, other.attached) = (None, false);
        }
    }
    let parameters = match kind.name() {
        "rejoin" => json!({ "member": member(if scene == Scene::Down { 1 } else { 2 }) }),
        "resync" => json!({ "members": [member(2)], "parallel": 1, "max_bytes_per_second": 0 }),
        "configure" => json!({ "member": member(2) }),
        "set_allow_list" => json!({ "change": "set", "ranges": ["192.0.2.0/24"], "open_to_all": false }),
        "delete_cluster" => json!({ "keep_data": false }),
        _ => json!({}),
    };
    assemble(kind, record(creating), world, parameters).await
}

fn record(creating: bool) -> ClusterRecord {
    let mut record = super::record(creating);
    record.mode = "multi-master".to_owned();
    (record.primary, record.reign, record.established) = (None, None, false);
    record.members.remove(&member(3));
    record
}

/// What must hold of a pair however an operation ended.
pub(super) fn check(record: &ClusterRecord, nodes: &BTreeMap<NodeName, Node>, outcome: Outcome, place: &str) {
    assert_eq!((&record.primary, &record.candidate, &record.reign), (&None, &None, &None), "{place}");
    assert!(nodes.values().all(|node| !node.writable), "{place}: a side was promoted");
    assert!(record.members.values().all(|stored| stored.state != MemberState::Resyncing), "{place}");
    assert!(!nodes[&node(1)].entries.contains(STRAY), "{place}: what was deleted is back");
    if outcome != Outcome::Succeeded {
        return;
    }
    let serves = |stored: &crate::model::cluster::MemberRecord| {
        let found = &nodes[&stored.node];
        stored.state == MemberState::Ready && found.running && found.open
    };
    let serving: Vec<_> = record.members.iter().filter(|(_, stored)| serves(stored)).collect();
    match serving.as_slice() {
        [(alone, _)] => {
            assert_eq!(record.survivor.as_ref(), Some(*alone), "{place}");
            let other = record.other_side(alone).unwrap();
            assert_eq!(record.members[other].state, MemberState::NeedsRejoin, "{place}");
        }
        [_, _] => {
            assert_eq!(record.survivor, None, "{place}");
            let (first, second) = (&nodes[&node(1)], &nodes[&node(2)]);
            let followed = [&first.upstream, &second.upstream].map(|upstream| upstream.clone().unwrap_or_default());
            assert_eq!(followed, [member(2).to_string(), member(1).to_string()], "{place}");
            assert_eq!(first.entries, second.entries, "{place}");
        }
        _ => panic!("{place}: nobody serves"),
    }
}

/// A rejoin of db2 before which its node is changed in this way.
async fn returning(change: impl FnOnce(&mut BTreeMap<NodeName, Node>)) -> Bench {
    let bench = bench(&kinds::rejoin::Rejoin, Scene::Pair).await;
    change(&mut bench.world.nodes.lock().unwrap());
    bench
}

fn has_stray(nodes: &mut BTreeMap<NodeName, Node>) {
    nodes.get_mut(&node(2)).unwrap().entries.insert(STRAY.to_owned());
}

#[tokio::test]
async fn a_side_that_has_something_of_its_own_lets_nobody_in_until_a_person_decides() {
    let bench = returning(has_stray).await;
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Failed);
    let record = bench.cluster.record().unwrap();
    let MemberState::NeedsResync { why } = &record.members[&member(2)].state else { panic!("{record:?}") };
    for part in [
        "db2 has 1 entry (such as stray) that db1 has not",
        "resync db db2 --confirm db2",
        "resync db db1 --confirm db1",
    ] {
        assert!(why.contains(part), "{part:?} is not in {why:?}");
    }
    let nodes = bench.world.nodes.lock().unwrap();
    let (served, back) = (&nodes[&node(1)], &nodes[&node(2)]);
    assert!(served.open && !served.entries.contains(STRAY) && served.upstream.is_none(), "{served:?}");
    assert!(!back.open && back.entries.contains(STRAY), "nothing of it is lost: {back:?}");
}

#[tokio::test]
async fn a_side_whose_data_had_all_been_passed_on_comes_back_without_what_was_deleted_since() {
    let bench = returning(|nodes| {
        has_stray(nodes);
        nodes.get_mut(&node(2)).unwrap().delivered = true;
    })
    .await;
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded);
    bench.check(Outcome::Succeeded, "all was delivered");
}

#[tokio::test]
async fn what_was_deleted_comes_back_by_no_failure_of_a_call() {
    // Detach, configure, activate, compare.
    for call in 1..=5 {
        let bench = returning(has_stray).await;
        *bench.world.fail_call.lock().unwrap() = Some(call);
        let operation = bench.begin().await;
        let outcome = bench.run(&operation, false).await;
        assert_eq!(outcome, Outcome::Failed, "call {call}");
        bench.check(outcome, &format!("call {call}"));
        assert!(
            bench.world.nodes.lock().unwrap()[&node(2)].entries.contains(STRAY),
            "call {call}: nor is it thrown away"
        );
    }
}

#[tokio::test]
async fn a_side_that_the_other_one_would_take_in_whole_stays_closed_and_waits_for_a_person() {
    // Detach, configure, activate, compare, activate of the other one, and the one that opens.
    let rejoin = (returning(|_| ()).await, 6);
    // Close, detach, assign, configure, activate of the other one, configure, refill, and the one that opens.
    let resync = (bench(&kinds::resync::Resync, Scene::Pair).await, 8);
    for (bench, call) in [rejoin, resync] {
        *bench.world.fail_call.lock().unwrap() = Some(call);
        *bench.world.fail_reason.lock().unwrap() = Some(Reason::HistoryForgotten);
        let operation = bench.begin().await;
        assert_eq!(bench.run(&operation, false).await, Outcome::Failed, "{}", operation.kind);
        let record = bench.cluster.record().unwrap();
        let MemberState::NeedsResync { why } = &record.members[&member(2)].state else { panic!("{record:?}") };
        for part in ["db2 lets nobody in", "write less", "resync db db2 --confirm db2"] {
            assert!(why.contains(part), "{part:?} is not in {why:?}");
        }
        let status = executor::status(&bench.environment, &operation).await.unwrap();
        let Stage::Ended(_, Some(failure)) = status.stage else { panic!("{status:?}") };
        assert_eq!(failure.reason, Reason::HistoryForgotten.as_str());
        assert!(failure.message.contains(why), "{why:?} is not in {:?}", failure.message);
        assert!(!bench.world.nodes.lock().unwrap()[&node(2)].open, "{}", operation.kind);
        bench.check(Outcome::Failed, &operation.kind);
    }
}

#[tokio::test]
async fn either_sides_data_is_taken_on_a_persons_word() {
    for (erased, kept) in [(2, 1), (1, 2)] {
        let mut bench = bench(&kinds::resync::Resync, Scene::Pair).await;
        bench.parameters = json!({ "members": [member(erased)], "parallel": 1, "max_bytes_per_second": 0 });
        {
            // As a rejoin leaves it: db1 serves alone, and db2 follows it and lets nobody in.
            let mut nodes = bench.world.nodes.lock().unwrap();
            let closed = nodes.get_mut(&node(2)).unwrap();
            (closed.open, closed.attached) = (false, false);
        }
        let change = |record: &mut ClusterRecord| {
            record.set_state(&member(2), MemberState::NeedsResync { why: "it has something of its own".to_owned() });
            record.survivor = Some(member(1));
            Ok(crate::store::Transaction::default())
        };
        bench.cluster.change(change).await.unwrap();
        let operation = bench.begin().await;
        assert_eq!(bench.cluster.record().unwrap().survivor, Some(member(kept)));
        assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded);
        let ready = |stored: &crate::model::cluster::MemberRecord| stored.state == MemberState::Ready;
        assert!(bench.cluster.record().unwrap().members.values().all(ready), "{kept} was kept");
        let nodes = bench.world.nodes.lock().unwrap();
        let wanted: BTreeSet<String> = match kept {
            1 => [SHARED.to_owned()].into(),
            _ => [SHARED.to_owned(), STRAY.to_owned()].into(),
        };
        assert_eq!([&nodes[&node(1)].entries, &nodes[&node(2)].entries], [&wanted, &wanted], "{kept} was kept");
        assert!(nodes.values().all(|node| node.open), "{kept} was kept");
    }
}

#[tokio::test]
async fn what_the_sides_do_not_have_alike_is_told_and_left_as_it_is() {
    for (stray_of, other) in [(1, 2), (2, 1)] {
        let bench = bench(&kinds::compare::Compare, Scene::Pair).await;
        {
            let mut nodes = bench.world.nodes.lock().unwrap();
            // What is written from here on reaches nobody else.
            nodes.values_mut().for_each(|node| node.attached = false);
            nodes.get_mut(&node(stray_of)).unwrap().entries.insert(STRAY.to_owned());
            nodes.get_mut(&node(1)).unwrap().otherwise.insert(SHARED.to_owned());
        }
        let before = bench.cluster.record().unwrap();
        let operation = bench.begin().await;
        assert_eq!(bench.run(&operation, false).await, Outcome::Failed);
        let status = executor::status(&bench.environment, &operation).await.unwrap();
        let Stage::Ended(_, Some(why)) = status.stage else { panic!("{status:?}") };
        assert_eq!(why.reason, Reason::Diverged.as_str());
        for part in [
            format!("db{stray_of} has 1 entry (such as stray) that db{other} has not"),
            "1 entry (such as shared) of both have other values on each".to_owned(),
            "resync db db1 --confirm db1".to_owned(),
        ] {
            assert!(why.message.contains(&part), "{part:?} is not in {:?}", why.message);
        }
        let states =
            |record: &ClusterRecord| record.members.values().map(|stored| stored.state.clone()).collect::<Vec<_>>();
        let after = bench.cluster.record().unwrap();
        assert_eq!((states(&after), &after.survivor), (states(&before), &before.survivor), "it changed something");
        assert!(bench.world.nodes.lock().unwrap().values().all(|node| node.open));
    }
}

#[tokio::test]
async fn a_side_that_hangs_is_ended_before_it_comes_back() {
    let bench = returning(|nodes| nodes.get_mut(&node(2)).unwrap().hangs = true).await;
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Succeeded);
    bench.check(Outcome::Succeeded, "it hung");
}

#[tokio::test]
async fn a_side_whose_other_one_is_not_heard_follows_it_if_it_can_and_else_goes_on_alone() {
    for (lives, survivor, outcome) in [
        (true, None, Outcome::Succeeded),
        (true, Some(1), Outcome::Succeeded),
        (false, None, Outcome::Succeeded),
        (false, Some(2), Outcome::Succeeded),
        (false, Some(1), Outcome::Failed),
    ] {
        let bench = returning(|nodes| {
            let other = nodes.get_mut(&node(1)).unwrap();
            (other.running, other.open) = (lives, lives);
        })
        .await;
        bench.world.away.lock().unwrap().insert(node(1));
        let change = |record: &mut ClusterRecord| {
            record.survivor = survivor.map(member);
            Ok(crate::store::Transaction::default())
        };
        bench.cluster.change(change).await.unwrap();
        let operation = bench.begin().await;
        let place = format!("db1 lives: {lives}, {survivor:?} served last");
        assert_eq!(bench.run(&operation, false).await, outcome, "{place}");
        let back = bench.world.nodes.lock().unwrap()[&node(2)].clone();
        assert_eq!(back.open, outcome == Outcome::Succeeded, "{place}");
        assert_eq!(back.entries.contains("new"), lives, "{place}");
    }
}

#[tokio::test]
async fn a_side_is_not_filled_from_one_that_is_not_there() {
    let bench = bench(&kinds::resync::Resync, Scene::Pair).await;
    bench.world.away.lock().unwrap().insert(node(1));
    let operation = bench.begin().await;
    assert_eq!(bench.run(&operation, false).await, Outcome::Failed);
    assert_eq!(*bench.world.calls.lock().unwrap(), 0);
    assert!(bench.cluster.record().unwrap().members.values().all(|stored| stored.state == MemberState::Ready));
}
