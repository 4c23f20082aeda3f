//! A pair of KeyDB: both sides take writes, one is lost and comes back, and what was deleted meanwhile comes back by nobody.

#![allow(clippy::print_stdout, reason = "what clients have seen")]

use std::{collections::BTreeMap, time::Duration};

use ::redis::cmd;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use regent_common::error::{Reason, reason_of};
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regent_tests::{
    api::request_id,
    cluster::Fleet,
    folder::TestFolder,
    process, wait,
    workload::{now_nanos, redis},
};

use super::{BACK, KEYS, MODE, Pair, is_there, request};
use crate::support::{CLUSTER, SOON, owned, refused};

/// Longest pause of a client of the side that was not touched, on a machine that does other things as well.
const NO_PAUSE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_take_writes_and_have_the_same() {
    let Some(pair) = Pair::start().await else { return };
    let cluster = pair.healthy().await;
    assert_eq!(
        (cluster.primary.as_str(), cluster.serving.as_slice()),
        ("", ["db1".to_owned(), "db2".to_owned()].as_slice())
    );
    assert!(cluster.members.iter().all(|member| member.role() == types::Role::Active), "{cluster:?}");
    assert_eq!(cluster.situation, "db1 and db2 both take writes; if one is lost, the other goes on");
    for node in ["n1", "n2"] {
        assert!(pair.answers_as_primary(node).await.unwrap(), "{node}");
    }
    let request = wire::GetCredentialsRequest { name: format!("clusters/{CLUSTER}") };
    let told = pair.api().clusters().get_credentials(request).await.unwrap().into_inner();
    for side in &pair.sides {
        assert!(told.connection_strings["any"].contains(side.as_str()), "{:?}", told.connection_strings);
    }

    pair.set(1, "of db1", "1").await;
    pair.set(2, "of db2", "2").await;
    let same = pair.same().await;
    assert_eq!(same.into_iter().collect::<Vec<_>>(), [("of db1".into(), "1".into()), ("of db2".into(), "2".into())]);
    pair.delete(1, "of db2").await;
    assert_eq!(pair.same().await.len(), 1);

    // Where two writes of one key cross, each side carries out the other's after its own: the engine has no word for which was the last.
    // Whoever writes it next, or a resync, ends that.
    let mut both = [pair.side(1).await, pair.side(2).await];
    for round in 0..200 {
        let [first, second] = &mut both;
        let (mut one, mut other) = (cmd("SET"), cmd("SET"));
        let key = format!("both:{}", round % 10);
        let (one, other) = (one.arg(&key).arg(format!("1 {round}")), other.arg(&key).arg(format!("2 {round}")));
        let (one, other) = tokio::join!(one.exec_async(first), other.exec_async(second));
        one.and(other).unwrap();
    }
    for key in 0..5 {
        pair.set(1 + key % 2, &format!("both:{key}"), "agreed").await;
    }
    let keys = wait::until("all keys on both sides", SOON, || async {
        let (first, second) = (pair.all(1).await?, pair.all(2).await?);
        let agreed = |side: &BTreeMap<String, String>| side.values().filter(|value| *value == "agreed").count();
        ensure!(first.keys().eq(second.keys()) && agreed(&first) == 5 && agreed(&second) == 5, "{first:?} {second:?}");
        Ok(first.len())
    });
    assert_eq!(keys.await.unwrap(), 11);
    let on_first = pair.all(1).await.unwrap();
    pair.resync("db2").await;
    pair.healthy().await;
    assert_eq!(pair.same().await, on_first, "what db1 has is on both");
    pair.check_logs(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_side_goes_on_when_one_is_killed_and_that_one_is_back_within_seconds() {
    let Some(pair) = Pair::start().await else { return };
    pair.set(1, "before", "x").await;
    pair.same().await;
    for (number, other) in [(1, 2), (2, 1)] {
        let client = pair.write(other, if number == 1 { "first" } else { "second" });
        let (returns, pid) = (pair.count("rejoin").await, pair.pids().await[number - 1]);
        let at = now_nanos();
        process::signal(pid, Signal::SIGKILL).unwrap();
        pair.serving(&[format!("db{other}").as_str()]).await;
        pair.set(other, &format!("while db{number} was away"), "y").await;
        let back = pair.api().healthy(CLUSTER, BACK).await.unwrap();
        println!("db{number} was back after {} ms", (now_nanos() - at) / 1_000_000);
        assert_eq!(back.serving, ["db1", "db2"]);
        let (written, pause) = client.stop().await;
        println!("db{other} acknowledged {written} writes meanwhile, with a pause of {pause:?} at most");
        assert!(written > 100 && pause < NO_PAUSE, "{written} {pause:?}");
        assert_eq!(pair.count("rejoin").await, returns + 1, "one crash, one return");
        let same = pair.same().await;
        assert!(same.contains_key("before") && same.contains_key(&format!("while db{number} was away")), "{same:?}");
    }
    assert_eq!(pair.count("failover").await, 0);
    let told = pair.sides_changed().await.unwrap();
    assert_eq!(told.len(), 4, "{told:#?}");
    assert!(told.iter().any(|detail| detail.contains("db2 takes writes alone")), "{told:#?}");
    pair.check_logs(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_while_a_side_was_away_is_deleted_there_when_it_had_passed_everything_on() {
    let Some(pair) = Pair::start_with(&[("save", "1 1")]).await else { return };
    for key in ["stays", "deleted"] {
        pair.set(1, key, "x").await;
    }
    pair.set(2, "of db2", "x").await;
    pair.same().await;
    pair.delivered().await;
    pair.part(async |pair: &Pair| {
        pair.delete(1, "deleted").await;
        pair.delete(1, "of db2").await;
        pair.set(1, "new", "x").await;
    })
    .await;
    let back = pair.api().healthy(CLUSTER, BACK).await.unwrap();
    assert_eq!(back.serving, ["db1", "db2"]);
    let same: Vec<_> = pair.same().await.into_keys().collect();
    assert_eq!(same, ["new", "stays"]);
    pair.check_logs(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deleted_while_a_side_was_away_comes_back_by_nobody_but_a_person() {
    let Some(mut pair) = Pair::start().await else { return };
    for (survivor, erased) in [(1, "db2"), (2, "db1")] {
        for key in ["stays", "deleted:1", "deleted:2"] {
            pair.set(1, key, "x").await;
        }
        pair.same().await;
        let pid = pair.pids().await[1];
        // Another process of the agent knows nothing of what its engine had passed on.
        pair.fleet.agent("n2").daemon().unwrap().kill().unwrap();
        process::signal(pid, Signal::SIGTERM).unwrap();
        process::ended(pid, SOON).await.unwrap();
        for key in ["deleted:1", "deleted:2"] {
            pair.delete(1, key).await;
        }
        pair.set(1, &format!("new {survivor}"), "x").await;
        pair.fleet.agent("n2").start().unwrap();
        let parted = pair.person_asked().await;
        for part in
            ["db1 takes writes alone", "db2 has 2 entries", "deleted:1", "resync db db2 --confirm db2", "resync db db1"]
        {
            assert!(parted.situation.contains(part), "{part:?} is not in {:?}", parted.situation);
        }
        assert_eq!(
            (parted.health(), parted.serving.as_slice()),
            (wire::Health::Degraded, ["db1".to_owned()].as_slice())
        );
        let on_first = pair.all(1).await.unwrap();
        assert!(!on_first.keys().any(|key| key.starts_with("deleted")), "{on_first:?}");
        assert!(redis::connect(&pair.login, &pair.sides[1]).await.is_err(), "db2 lets applications in");
        assert!(pair.answers_as_primary("n1").await.unwrap() && !pair.answers_as_primary("n2").await.unwrap());

        pair.resync(erased).await;
        let whole = pair.api().healthy(CLUSTER, SOON).await.unwrap();
        assert_eq!(whole.serving, ["db1", "db2"]);
        let same = pair.same().await;
        let came_back = same.keys().filter(|key| key.starts_with("deleted")).count();
        assert_eq!(came_back, if survivor == 1 { 0 } else { 2 }, "{same:?}");
        // What db1 alone was told meanwhile is given up with db1's data.
        let new = same.contains_key(&format!("new {survivor}"));
        assert!(same.contains_key("stays") && new == (survivor == 1), "{same:?}");
    }
    pair.check_logs(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_side_is_filled_anew_under_writers() {
    let Some(pair) = Pair::start().await else { return };
    let client = redis::add_ballast(&pair.login, &pair.sides[0], 16);
    client.await.unwrap();
    let client = pair.write(1, "writer");
    let engines = pair.pids().await;
    pair.resync("db2").await;
    let whole = pair.healthy().await;
    assert_eq!(whole.serving, ["db1", "db2"]);
    let (written, pause) = client.stop().await;
    println!("db1 acknowledged {written} writes meanwhile, with a pause of {pause:?} at most");
    assert!(written > 100, "{written}");
    assert_eq!(pair.pids().await[0], engines[0], "the side that survives was not touched");
    let sizes = wait::until("as many keys on both sides", SOON, || async {
        let size = async |number| -> Result<u64> { Ok(cmd("DBSIZE").query_async(&mut pair.side(number).await).await?) };
        let sizes = (size(1).await?, size(2).await?);
        ensure!(sizes.0 == sizes.1, "{sizes:?}");
        Ok(sizes)
    });
    assert!(sizes.await.unwrap().0 > 16_000);
    pair.check_logs(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_comes_back_when_both_sides_are_killed_at_once() {
    let Some(pair) = Pair::start().await else { return };
    for round in 0..2 {
        pair.set(1, &format!("round {round}"), "x").await;
        pair.same().await;
        for pid in pair.pids().await {
            process::signal(pid, Signal::SIGKILL).unwrap();
        }
        pair.serving(&[]).await;
        let back = pair.api().healthy(CLUSTER, SOON).await.unwrap();
        assert_eq!(back.serving, ["db1", "db2"], "{}", back.situation);
        pair.same().await;
    }
    pair.set(2, "after", "x").await;
    assert!(pair.same().await.contains_key("after"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_that_lacks_what_the_other_one_took_alone_waits_for_it_or_for_a_person() {
    let Some(mut pair) = Pair::start().await else { return };
    pair.set(1, "of both", "x").await;
    pair.same().await;
    // The node of db2 is lost, db1 goes on, and its node is lost as well.
    pair.lose("n2", 2).await;
    wait::until("a word that db1 goes on alone", SOON, || async {
        let told = pair.sides_changed().await?;
        ensure!(told.iter().any(|detail| detail.contains("db1 takes writes alone")), "{told:?}");
        Ok(())
    })
    .await
    .unwrap();
    pair.set(1, "of db1 alone", "x").await;
    pair.lose("n1", 1).await;
    pair.serving(&[]).await;
    pair.fleet.agent("n2").start().unwrap();
    wait::until("a word on who took writes last", SOON, || async {
        let cluster = pair.api().cluster(CLUSTER).await?;
        let said = ["db1 took writes last", "`regentctl cluster resync db db1 --confirm db1`"];
        ensure!(said.iter().all(|part| cluster.situation.contains(part)), "{}", cluster.situation);
        assert_eq!((cluster.health(), cluster.serving.len()), (wire::Health::Down, 0));
        Ok(())
    })
    .await
    .unwrap();
    assert!(redis::connect(&pair.login, &pair.sides[1]).await.is_err(), "db2 serves without what db1 took");

    // A person gives up what db1 took: db2 serves at once, and db1 is filled when its node is back.
    let resync = pair.begin_resync("db1").await;
    pair.serving(&["db2"]).await;
    pair.set(2, "of db2 alone", "x").await;
    pair.fleet.agent("n1").start().unwrap();
    pair.api().succeed(&resync.name, SOON).await.unwrap();
    assert_eq!(pair.healthy().await.serving, ["db1", "db2"]);
    let same: Vec<_> = pair.same().await.into_keys().collect();
    assert!(same.contains(&"of db2 alone".to_owned()) && !same.contains(&"of db1 alone".to_owned()), "{same:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_and_the_coordinator_come_and_go_and_leave_both_sides_alone() {
    let Some(mut pair) = Pair::start().await else { return };
    let engines = pair.pids().await;
    let clients = [pair.write(1, "first"), pair.write(2, "second")];
    for node in ["n1", "n2"] {
        pair.fleet.agent(node).daemon().unwrap().kill().unwrap();
    }
    pair.fleet.coordinator.daemon().unwrap().kill().unwrap();
    pair.fleet.coordinator.start().unwrap();
    for node in ["n1", "n2"] {
        pair.fleet.agent(node).start().unwrap();
    }
    pair.fleet.all_connected().await.unwrap();
    let cluster = pair.healthy().await;
    assert_eq!(cluster.serving, ["db1", "db2"]);
    assert_eq!(pair.pids().await, engines);
    assert_eq!(pair.count("rejoin").await, 0, "nothing had to be mended");
    let mut keys = 0;
    for client in clients {
        let (written, pause) = client.stop().await;
        assert!(written > 100 && pause < NO_PAUSE, "{written} {pause:?}");
        keys += usize::try_from(written).unwrap().min(KEYS);
    }
    assert_eq!(pair.same().await.len(), keys);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_a_primarys_is_refused_and_what_a_pair_knows_is_done() {
    let Some(pair) = Pair::start().await else { return };
    let (api, name) = (pair.api(), format!("clusters/{CLUSTER}"));
    let before = pair.healthy().await;
    let promote = wire::PromoteMemberRequest { name: name.clone(), member: "db2".into(), ..Default::default() };
    refused(api.clusters().promote_member(promote).await, Reason::NotInThisMode);
    let failover = wire::FailoverClusterRequest { name: name.clone(), ..Default::default() };
    refused(api.clusters().failover_cluster(failover).await, Reason::NotInThisMode);
    let add = wire::AddMemberRequest { name: name.clone(), ..Default::default() };
    refused(api.clusters().add_member(add).await, Reason::NotInThisMode);
    let remove = wire::RemoveMemberRequest { name: name.clone(), member: "db2".into(), ..Default::default() };
    refused(api.clusters().remove_member(remove).await, Reason::NotInThisMode);
    let all = wire::ResyncClusterRequest { name: name.clone(), confirm_name: CLUSTER.into(), ..Default::default() };
    refused(api.clusters().resync_cluster(all).await, Reason::NotInThisMode);
    let policy =
        wire::UpdateClusterRequest { name: name.clone(), automatic_failover: Some(false), ..Default::default() };
    refused(api.clusters().update_cluster(policy).await, Reason::NotInThisMode);
    let token = wire::CreateTokenRequest { cluster: name.clone(), request_id: request_id(), ..Default::default() };
    refused(api.identities().create_token(token).await, Reason::NotInThisMode);
    assert_eq!(pair.healthy().await.etag, before.etag, "nothing was changed");

    let profile = wire::UpdateClusterRequest { name: name.clone(), profile: "standard".into(), ..Default::default() };
    assert_eq!(api.clusters().update_cluster(profile).await.unwrap().into_inner().profile, "standard");
    let allow = wire::SetAllowListRequest {
        name: name.clone(),
        change: wire::AllowListChange::Set.into(),
        ranges: vec!["192.0.2.0/24".into()],
        request_id: request_id(),
        ..Default::default()
    };
    let allow = api.clusters().set_allow_list(allow).await.unwrap().into_inner();
    api.succeed(&allow.name, SOON).await.unwrap();
    pair.healthy().await;
    pair.set(1, "this machine is always let in", "x").await;
    pair.same().await;
    let engines = pair.pids().await;
    let delete = wire::DeleteClusterRequest {
        name,
        confirm_name: CLUSTER.into(),
        request_id: request_id(),
        ..Default::default()
    };
    let delete = api.clusters().delete_cluster(delete).await.unwrap().into_inner();
    api.finish(&delete.name, SOON).await.unwrap();
    for engine in engines {
        process::ended(engine, SOON).await.unwrap();
    }
    let nodes = api.all_nodes().await.unwrap();
    assert!(nodes.iter().all(|node| node.cluster.is_empty()), "{nodes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_cannot_be_is_refused_before_anything_is_changed() {
    if !is_there() {
        return;
    }
    let folder = TestFolder::new().unwrap();
    let fleet = Fleet::start(&folder, &["n1", "n2", "n3"]).await.unwrap();
    let two = ["n1", "n2"];
    let of = |engine: &str| wire::CreateClusterRequest { engine: engine.to_owned(), ..request(&two) };
    let with = |settings: &[(&str, &str)]| wire::CreateClusterRequest { settings: owned(settings), ..request(&two) };
    let replicas =
        |replicas| wire::CreateClusterRequest { replicas: Some(replicas), nodes: Vec::new(), ..request(&[]) };
    for (wanted, reason) in [
        (of("redis"), Reason::UnknownMode),
        (of("postgresql"), Reason::UnknownMode),
        (with(&[("appendonly", "yes")]), Reason::InvalidField),
        (with(&[("active-replica", "no")]), Reason::InvalidField),
        (request(&["n1"]), Reason::InvalidField),
        (request(&["n1", "n2", "n3"]), Reason::InvalidField),
        (replicas(2), Reason::InvalidField),
    ] {
        let told = format!("{wanted:?}");
        let status = fleet.api.clusters().create_cluster(wanted).await.expect_err(&told);
        assert_eq!(reason_of(&status), Some(reason), "{told}: {status:?}");
    }
    let nodes = fleet.api.all_nodes().await.unwrap();
    assert!(nodes.iter().all(|node| node.cluster.is_empty()), "{nodes:?}");
    // Of three spares two are taken.
    let made = fleet.api.create(replicas(1), SOON).await.unwrap();
    assert_eq!((made.members.len(), made.mode.as_str()), (2, MODE));
}
