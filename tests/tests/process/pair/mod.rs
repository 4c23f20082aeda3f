//! A pair of KeyDB for the tests: how it is made, written to, and parted.
//!
//! The engine may be in no package registry: without its server the tests say so, and are not run.

#![allow(clippy::print_stdout, reason = "what a test does not run is said")]

mod both_sides;
mod compared;
mod cut;
mod refilled;

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
use regent_proto::coordinator::v1 as wire;
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

use crate::support::{CLUSTER, SOON, owned};

const ENGINE: &str = "keydb";
const MODE: &str = "multi-master";
/// How long a side may take to be back, or to be shown as not ready.
const BACK: Duration = Duration::from_secs(30);
/// Keys that a client writes, again and again.
const KEYS: usize = 500;

/// A fleet of two nodes with a pair on them.
struct Pair {
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

/// To create a pair on two nodes.
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
    async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// The same with settings of the engine; `None` where the engine is missing.
    async fn start_with(settings: &[(&str, &str)]) -> Option<Self> {
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

    fn api(&self) -> &Api {
        &self.fleet.api
    }

    fn login(&self) -> &Login {
        &self.login
    }

    /// host:port of the sides.
    fn sides(&self) -> &[String; 2] {
        &self.sides
    }

    async fn healthy(&self) -> wire::Cluster {
        self.api().healthy(CLUSTER, SOON).await.unwrap()
    }

    async fn side(&self, number: usize) -> MultiplexedConnection {
        redis::connect(&self.login, &self.sides[number - 1]).await.unwrap()
    }

    async fn set(&self, number: usize, key: &str, value: &str) {
        cmd("SET").arg(key).arg(value).exec_async(&mut self.side(number).await).await.unwrap();
    }

    async fn delete(&self, number: usize, key: &str) {
        let gone: u64 = cmd("DEL").arg(key).query_async(&mut self.side(number).await).await.unwrap();
        assert_eq!(gone, 1, "{key}");
    }

    /// All keys with their values.
    async fn all(&self, number: usize) -> Result<BTreeMap<String, String>> {
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
    async fn same(&self) -> BTreeMap<String, String> {
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

    async fn pids(&self) -> Vec<u32> {
        self.healthy().await.members.iter().map(|member| api::engine_pid(member).unwrap()).collect()
    }

    /// Waits until the cluster names just these sides as those that take writes.
    async fn serving(&self, wanted: &[&str]) -> wire::Cluster {
        wait::until(&format!("{wanted:?} take writes"), SOON, || async {
            let cluster = self.api().cluster(CLUSTER).await?;
            ensure!(cluster.serving == wanted, "{:?}: {}", cluster.serving, cluster.situation);
            Ok(cluster)
        })
        .await
        .unwrap()
    }

    async fn pause(&self, paused: bool) {
        let request = wire::UpdateClusterRequest {
            name: format!("clusters/{CLUSTER}"),
            paused: Some(paused),
            request_id: request_id(),
            ..Default::default()
        };
        self.api().clusters().update_cluster(request).await.unwrap();
    }

    async fn begin_resync(&self, member: &str) -> wire::Operation {
        let request = wire::ResyncClusterRequest {
            name: format!("clusters/{CLUSTER}"),
            members: vec![member.to_owned()],
            confirm_name: member.to_owned(),
            request_id: request_id(),
            ..Default::default()
        };
        self.api().clusters().resync_cluster(request).await.unwrap().into_inner()
    }

    async fn resync(&self, member: &str) {
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
    async fn written_down(&self, action: &str) -> Result<Vec<String>> {
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
