//! A pair of KeyDB: both sides take writes, one is lost and comes back, and what was deleted meanwhile comes back by nobody.
//!
//! The engine may be in no package registry: without its server these tests say so, and are not run.

#![allow(clippy::print_stdout, reason = "what a test does not run is said, and what clients have seen")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::redis::{aio::MultiplexedConnection, cmd};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use regent_common::error::{Reason, reason_of};
use regent_proto::{coordinator::v1 as wire, types::v1 as types};
use regent_tests::{
    api::{self, Api, request_id},
    cluster::{Fleet, create_request},
    engines::{find_server, server_of},
    folder::TestFolder,
    logcheck, process,
    profile::Profile,
    wait,
    workload::{Login, now_nanos, redis},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};

use crate::support::{CLUSTER, SOON, owned, refused};

const ENGINE: &str = "keydb";
const MODE: &str = "multi-master";
/// How long a side may take to be back, or to be shown as not ready.
const BACK: Duration = Duration::from_secs(30);
/// Keys that a client writes, again and again.
const KEYS: usize = 500;
/// Longest pause of a client of the side that was not touched, on a machine that does other things as well.
const NO_PAUSE: Duration = Duration::from_secs(1);

/// A fleet of two nodes with a pair on them.
pub(crate) struct Pair {
    fleet: Fleet,
    login: Login,
    /// host:port of the sides.
    sides: [String; 2],
    /// Dropped last: it ends what is left in the folder.
    folder: TestFolder,
}

/// Writes to one side until it is told to stop: how often that was acknowledged, and the longest pause between two acknowledgements.
struct Client {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(u64, Duration)>,
}

fn request(nodes: &[&str]) -> wire::CreateClusterRequest {
    wire::CreateClusterRequest { mode: MODE.to_owned(), ..create_request(CLUSTER, ENGINE, nodes, Profile::Fast) }
}

/// Whether the engine is there.
fn is_there() -> bool {
    let found = find_server(ENGINE).is_some();
    if !found {
        println!("not run: {:#}", server_of(ENGINE).unwrap_err());
    }
    found
}

// === impl Pair ===

impl Pair {
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with settings of the engine; `None` where the engine is missing.
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Option<Self> {
        if !is_there() {
            return None;
        }
        let folder = TestFolder::new().unwrap();
        let fleet = Fleet::start(&folder, &["n1", "n2"]).await.unwrap();
        let wanted = wire::CreateClusterRequest { settings: owned(settings), ..request(&["n1", "n2"]) };
        let cluster = fleet.api.create(wanted, SOON).await.unwrap();
        let sides = api::endpoints(&cluster).unwrap().try_into().unwrap();
        let login = fleet.api.login(CLUSTER).await.unwrap();
        Some(Self { fleet, login, sides, folder })
    }

    pub(crate) fn api(&self) -> &Api {
        &self.fleet.api
    }

    pub(crate) fn login(&self) -> &Login {
        &self.login
    }

    /// host:port of the sides.
    pub(crate) fn sides(&self) -> &[String; 2] {
        &self.sides
    }

    pub(crate) async fn healthy(&self) -> wire::Cluster {
        self.api().healthy(CLUSTER, SOON).await.unwrap()
    }

    pub(crate) async fn side(&self, number: usize) -> MultiplexedConnection {
        redis::connect(&self.login, &self.sides[number - 1]).await.unwrap()
    }

    pub(crate) async fn set(&self, number: usize, key: &str, value: &str) {
        cmd("SET").arg(key).arg(value).exec_async(&mut self.side(number).await).await.unwrap();
    }

    pub(crate) async fn delete(&self, number: usize, key: &str) {
        let gone: u64 = cmd("DEL").arg(key).query_async(&mut self.side(number).await).await.unwrap();
        assert_eq!(gone, 1, "{key}");
    }

    /// All keys with their values.
    pub(crate) async fn all(&self, number: usize) -> Result<BTreeMap<String, String>> {
        let mut connection = redis::connect(&self.login, &self.sides[number - 1]).await?;
        let keys: Vec<String> = cmd("KEYS").arg("*").query_async(&mut connection).await?;
        let mut found = BTreeMap::new();
        for key in keys {
            let value: Option<String> = cmd("GET").arg(&key).query_async(&mut connection).await?;
            found.extend(value.map(|value| (key, value)));
        }
        Ok(found)
    }

    /// Waits until both sides have the same, and returns it.
    pub(crate) async fn same(&self) -> BTreeMap<String, String> {
        wait::until("the same on both sides", SOON, || async {
            let (first, second) = (self.all(1).await?, self.all(2).await?);
            ensure!(first == second, "db1 has {first:?}, db2 has {second:?}");
            Ok(first)
        })
        .await
        .unwrap()
    }

    /// Writes to one side without pause.
    fn write(&self, number: usize, name: &'static str) -> Client {
        let (login, side, stop) =
            (self.login.clone(), self.sides[number - 1].clone(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (mut written, mut last, mut longest) = (0, now_nanos(), 0);
            let mut connection = redis::connect(&login, &side).await.unwrap();
            while !stopped.load(Ordering::Relaxed) {
                let done = cmd("SET")
                    .arg(format!("{name}:{}", written % KEYS as u64))
                    .arg(written)
                    .exec_async(&mut connection)
                    .await;
                done.unwrap_or_else(|error| panic!("the side that was not touched refused a write: {error}"));
                written += 1;
                let now = now_nanos();
                longest = longest.max(now - last);
                last = now;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            (written, Duration::from_nanos(longest))
        });
        Client { stop, task }
    }

    pub(crate) async fn pids(&self) -> Vec<u32> {
        self.healthy().await.members.iter().map(|member| api::engine_pid(member).unwrap()).collect()
    }

    /// Waits until the cluster names just these sides as those that take writes.
    pub(crate) async fn serving(&self, wanted: &[&str]) -> wire::Cluster {
        wait::until(&format!("{wanted:?} take writes"), SOON, || async {
            let cluster = self.api().cluster(CLUSTER).await?;
            ensure!(cluster.serving == wanted, "{:?}: {}", cluster.serving, cluster.situation);
            Ok(cluster)
        })
        .await
        .unwrap()
    }

    pub(crate) async fn pause(&self, paused: bool) {
        let request = wire::UpdateClusterRequest {
            name: format!("clusters/{CLUSTER}"),
            paused: Some(paused),
            request_id: request_id(),
            ..Default::default()
        };
        self.api().clusters().update_cluster(request).await.unwrap();
    }

    pub(crate) async fn begin_resync(&self, member: &str) -> wire::Operation {
        let request = wire::ResyncClusterRequest {
            name: format!("clusters/{CLUSTER}"),
            members: vec![member.to_owned()],
            confirm_name: member.to_owned(),
            request_id: request_id(),
            ..Default::default()
        };
        self.api().clusters().resync_cluster(request).await.unwrap().into_inner()
    }

    pub(crate) async fn resync(&self, member: &str) {
        let operation = self.begin_resync(member).await;
        self.api().succeed(&operation.name, SOON).await.unwrap();
    }

    /// db2 is killed; `meanwhile` db1 alone is written to. Then db2 is brought back.
    async fn part(&self, meanwhile: impl AsyncFnOnce(&Self)) {
        self.pause(true).await;
        process::signal(self.pids().await[1], Signal::SIGKILL).unwrap();
        self.serving(&["db1"]).await;
        meanwhile(self).await;
        self.pause(false).await;
    }

    /// Waits until the agent of db2 has seen a snapshot of all that it has, and that db1 has acknowledged more than that.
    async fn delivered(&self) {
        // One that has just begun is not told from one that has forgotten.
        wait::until("an engine of some age", SOON, || async {
            let told = redis::info(&self.login, &self.sides[0], "server").await?;
            let age = told.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:")?.trim().parse::<u64>().ok());
            ensure!(age.is_some_and(|age| age >= 5), "{age:?} s");
            Ok(())
        })
        .await
        .unwrap();
        let details = async || -> Result<BTreeMap<String, String>> {
            let cluster = self.api().cluster(CLUSTER).await?;
            Ok(api::member(&cluster, "db2")?.observation.clone().unwrap_or_default().details)
        };
        let offset =
            |details: &BTreeMap<String, String>| details.get("offset").and_then(|text| text.parse::<u64>().ok());
        let saved = wait::until("a snapshot of db2", SOON, || async {
            let details = details().await?;
            ensure!(details.get("changes_since_snapshot").is_some_and(|changes| changes == "0"), "{details:?}");
            offset(&details).context("no offset")
        });
        let saved = saved.await.unwrap();
        wait::until("all of db2 on db1, by its word", SOON, || async {
            let details = details().await?;
            // Also a stream of nothing has something on the way.
            let left = details.values().find_map(|text| {
                text.strip_prefix("streams, ")?.strip_suffix(" bytes not acknowledged")?.parse::<u64>().ok()
            });
            ensure!(
                left.zip(offset(&details)).is_some_and(|(left, offset)| offset > saved + left),
                "{saved}: {details:?}"
            );
            Ok(())
        })
        .await
        .unwrap();
    }

    /// Waits until a person is asked what becomes of what db2 has of its own.
    async fn person_asked(&self) -> wire::Cluster {
        wait::until("a word on what db2 has of its own", BACK, || async {
            let cluster = self.api().cluster(CLUSTER).await?;
            let state = api::member(&cluster, "db2")?.state();
            ensure!(state == wire::MemberState::NeedsResync, "{state:?}: {}", cluster.situation);
            Ok(cluster)
        })
        .await
        .unwrap()
    }

    /// What the agent of a side answers a load balancer that asks for a primary.
    async fn answers_as_primary(&self, node: &str) -> Result<bool> {
        let mut stream = TcpStream::connect(&self.fleet.agents[node].http).await?;
        stream.write_all(b"GET /primary HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer.lines().next().is_some_and(|line| line.contains(" 200 ")))
    }

    /// A node is lost: its agent, and then its engine, as nobody is to bring that back.
    async fn lose(&mut self, node: &str, number: usize) {
        let member = format!("db{number}");
        let cluster = self.api().cluster(CLUSTER).await.unwrap();
        let pid = api::engine_pid(api::member(&cluster, &member).unwrap()).unwrap();
        self.fleet.agent(node).daemon().unwrap().kill().unwrap();
        process::signal(pid, Signal::SIGKILL).unwrap();
        process::ended(pid, SOON).await.unwrap();
    }

    /// What was written down of who takes writes.
    async fn sides_changed(&self) -> Result<Vec<String>> {
        self.written_down("SIDES_CHANGED").await
    }

    /// The sentences that were written down of one kind of decision.
    pub(crate) async fn written_down(&self, action: &str) -> Result<Vec<String>> {
        let cluster = format!("clusters/{CLUSTER}");
        let request = wire::ListAuditRecordsRequest { cluster, page_size: 1000, ..Default::default() };
        let records = self.api().audit().list_audit_records(request).await?.into_inner().records;
        Ok(records.into_iter().filter(|record| record.action == action).map(|record| record.detail).collect())
    }

    async fn count(&self, kind: &str) -> usize {
        self.api().operations_of(CLUSTER, kind).await.unwrap().len()
    }

    /// Fails on a warning that is not expected, and ends.
    fn check_logs(&self, expected: &[&str]) {
        let logs = self.fleet.logs();
        logcheck::check(logs.iter().map(std::path::PathBuf::as_path), expected).unwrap();
        assert!(self.folder.path().exists());
    }
}

// === impl Client ===

impl Client {
    async fn stop(self) -> (u64, Duration) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

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
