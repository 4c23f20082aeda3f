//! What the tests have in common: a fleet with a cluster, and the faults.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use nix::sys::signal::Signal;
use regent_common::error::{Reason, reason_of};
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, Api, request_id},
    cluster::{Fleet, create_request, run},
    engines::postgres_bin,
    folder::TestFolder,
    logcheck,
    process::{self, Daemon, as_user},
    profile::Profile,
    wait,
    workload::{
        Client, Login,
        checker::{self, Account},
        history::History,
        postgres,
        writers::Writers,
    },
};
use tonic::Status;

pub(crate) const ENGINE: &str = "postgresql";
pub(crate) const CLUSTER: &str = "db";
/// How long anything may take that a person would wait for.
pub(crate) const SOON: Duration = Duration::from_secs(90);

const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// A fleet of three nodes with one cluster on them.
pub(crate) struct Trio {
    pub(crate) fleet: Fleet,
    pub(crate) login: Login,
    /// The same login, with the protocol of the cluster's engine.
    pub(crate) client: Client,
    /// host:port of the engines.
    pub(crate) members: Vec<String>,
    /// Dropped last: it ends what is left in the folder.
    pub(crate) folder: TestFolder,
}

// === impl Trio ===

impl Trio {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with settings of the engine.
    pub(crate) async fn start_with(settings: &[(&str, &str)]) -> Self {
        Self::with(wire::CreateClusterRequest { settings: owned(settings), ..create(CLUSTER, &NODES) }).await
    }

    /// The same of another engine, whose loss is noticed the fastest.
    pub(crate) async fn of(engine: &str, settings: &[(&str, &str)]) -> Self {
        let request = create_request(CLUSTER, engine, &NODES, Profile::Fast);
        Self::with(wire::CreateClusterRequest { settings: owned(settings), ..request }).await
    }

    async fn with(request: wire::CreateClusterRequest) -> Self {
        let folder = TestFolder::new().unwrap();
        let fleet = Fleet::start(&folder, &NODES).await.unwrap();
        let cluster = fleet.api.create(request, SOON).await.unwrap();
        assert_eq!(cluster.primary, "db1", "the first node becomes the primary");
        Self::made(folder, fleet, &cluster).await
    }

    /// What a cluster on a fleet of three has become.
    pub(crate) async fn made(folder: TestFolder, fleet: Fleet, cluster: &wire::Cluster) -> Self {
        let (client, members) = (fleet.api.client(CLUSTER).await.unwrap(), api::endpoints(cluster).unwrap());
        client.make_room(&members[0]).await.unwrap();
        Self { fleet, login: client.login.clone(), client, members, folder }
    }

    pub(crate) fn api(&self) -> &Api {
        &self.fleet.api
    }

    /// Starts the writers: one that follows the primary and one for each member.
    pub(crate) fn write(&self) -> Writers {
        Writers::start(&self.folder.join("writers"), &self.client, &self.members, true).unwrap()
    }

    /// Ends the writers, and waits until all members have the same rows; what became of them. Nothing may be there that should not
    /// be, and no two members may have taken rows at once since then.
    pub(crate) async fn settle(&self, writers: Writers, since: u64) -> (Vec<History>, Account) {
        let histories = writers.stop().await.unwrap();
        let stored = self.client.same_on_all(&self.members, SOON).await.unwrap();
        let account = checker::account(&histories, &stored);
        assert!(account.is_consistent(), "{account:?}");
        assert_eq!(checker::overlaps(&histories, since, u64::MAX), [], "two primaries");
        (histories, account)
    }

    pub(crate) async fn healthy(&self) -> wire::Cluster {
        self.api().healthy(CLUSTER, SOON).await.unwrap()
    }

    /// SIGKILL for the first process of the primary's engine; the primary's member name and node.
    pub(crate) async fn kill_primary(&self) -> (String, String) {
        let cluster = self.healthy().await;
        let primary = api::member(&cluster, &cluster.primary).unwrap();
        process::signal(api::engine_pid(primary).unwrap(), Signal::SIGKILL).unwrap();
        (cluster.primary.clone(), api::plain(&primary.node).to_owned())
    }

    /// Process ids of all engines, by member in order.
    pub(crate) async fn engine_pids(&self) -> Vec<u32> {
        self.healthy().await.members.iter().map(|member| api::engine_pid(member).unwrap()).collect()
    }

    /// Resyncs members; the operation's name.
    pub(crate) async fn resync(&self, members: &[&str], bytes_per_second: u64) -> String {
        let request = wire::ResyncClusterRequest {
            name: format!("clusters/{CLUSTER}"),
            members: members.iter().map(|member| (*member).to_owned()).collect(),
            confirm_name: members.first().map_or(CLUSTER, |only| only).to_owned(),
            max_bytes_per_second: bytes_per_second,
            request_id: request_id(),
            ..Default::default()
        };
        self.api().clusters().resync_cluster(request).await.unwrap().into_inner().name
    }

    /// Fails on a warning that is not expected, and ends.
    pub(crate) fn check_logs(&self, expected: &[&str]) {
        let logs = self.fleet.logs();
        logcheck::check(logs.iter().map(std::path::PathBuf::as_path), expected).unwrap();
    }
}

/// Command line and folder of a running engine, so that a person's start by hand can be imitated.
pub(crate) fn how_it_was_started(pid: u32) -> (Vec<String>, PathBuf) {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let words = words.map(|word| String::from_utf8(word.to_vec()).unwrap()).collect();
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let mut words: Vec<String> = words;
    words[0] = program.to_str().unwrap().to_owned();
    (words, fs::read_link(format!("/proc/{pid}/cwd")).unwrap())
}

/// Runs statements as the owner of the engine's instance, over its socket; what they say.
pub(crate) fn as_superuser(pid: u32, sql: &str) -> String {
    let (_, data) = how_it_was_started(pid);
    // The fifth line of this file is the folder of the socket, the fourth the port.
    let facts = fs::read_to_string(data.join("postmaster.pid")).unwrap();
    let facts: Vec<&str> = facts.lines().collect();
    let mut psql = Command::new(postgres_bin().unwrap().join("psql"));
    psql.args(["-X", "-A", "-t", "-U", "postgres", "-d", "postgres", "-h", facts[4], "-p", facts[3], "-c", sql]);
    run(psql).unwrap().trim().to_owned()
}

/// Starts the dead engine of a node whose agent does not run, with nobody's leave, writes to it as `by hand`, and stops it.
pub(crate) async fn write_by_hand(trio: &mut Trio, node: &str, address: &str, command: &[String], data: &Path) {
    // The gate outlives the agent: what is started by hand reaches nobody until a person takes the gate away as well.
    trio.fleet.agent(node).command("remove-gate").and_then(run).unwrap();
    let mut by_hand = Command::new(&command[0]);
    by_hand.args(&command[1..]).current_dir(data);
    as_user(&mut by_hand, "postgres").unwrap();
    let mut engine = Daemon::start("by hand", by_hand, &trio.folder.join("by-hand.log")).unwrap();
    let login = trio.login.clone();
    let client = wait::until("the engine started by hand", Duration::from_secs(30), || async {
        let (client, _) = postgres::connect(&login, address).await?;
        let insert = format!("INSERT INTO {} VALUES ('by hand', 1, 'old')", postgres::TABLE);
        client.execute(&insert, &[]).await?;
        Ok(client)
    })
    .await
    .unwrap();
    for number in 2..200_i64 {
        let insert = format!("INSERT INTO {} VALUES ('by hand', $1, 'old')", postgres::TABLE);
        client.execute(&insert, &[&number]).await.unwrap();
    }
    // So much that the log goes on in other files: what is thrown away of it is not what the engine starts from.
    let more = "CREATE TABLE by_hand AS SELECT repeat('x', 1000) AS filler FROM generate_series(1, 60000)";
    client.batch_execute(more).await.unwrap();
    drop(client);
    engine.signal(Signal::SIGINT).unwrap();
    engine.wait(SOON).await.unwrap();
}

/// Checks that a call was refused with this reason and code, and that the message tells a person something.
#[track_caller]
pub(crate) fn refused<T: std::fmt::Debug>(answer: Result<tonic::Response<T>, Status>, reason: Reason) {
    let status = answer.expect_err("it should have been refused");
    assert_eq!(reason_of(&status), Some(reason), "{status:?}");
    assert_eq!(status.code(), reason.code(), "{status:?}");
    assert!(status.message().len() > 10, "{status:?}");
}

/// Settings as they are asked for.
pub(crate) fn owned(settings: &[(&str, &str)]) -> BTreeMap<String, String> {
    settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn create(cluster: &str, nodes: &[&str]) -> wire::CreateClusterRequest {
    wire::CreateClusterRequest {
        cluster: cluster.to_owned(),
        engine: ENGINE.to_owned(),
        nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        request_id: request_id(),
        ..Default::default()
    }
}
