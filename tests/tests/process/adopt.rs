//! A PostgreSQL that runs is taken under management: its clients notice nothing, nothing of it is restarted, and it is a cluster like
//! every other from then on. What cannot be adopted is refused, and what fails on the way goes on as it was found.

use std::{collections::BTreeMap, fs, time::Duration};

use anyhow::ensure;
use nix::sys::signal::Signal;
use regent_common::error::Reason;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::Fleet,
    folder::TestFolder,
    foreign::{Foreign, adopt_request},
    logcheck, process, wait,
    workload::{Login, checker, now_nanos, postgres, writers::Writers},
};
use tokio_postgres::Client;
use tonic::Status;

use crate::{
    adoption::{first_seed, moment},
    members::{add, complete, promote},
    support::{CLUSTER, SOON, refused},
};

/// Rows to see between two things that are done.
const ROWS: usize = 200;
/// Said of a primary of two that was promoted a moment ago, before its next heartbeat.
const JUST_PROMOTED: &str = "is the stored primary and its engine runs read-only";
/// What no client may wait for a row: what a busy machine does to any client counts as nothing, as everywhere.
const LATE: Duration = Duration::from_millis(500);
/// How often an agent is killed in the middle.
const TIMES: u32 = 20;
/// About as long as it takes to change an instance, once it has begun.
const CHANGES: Duration = Duration::from_millis(150);

/// Settings that the instance has of its own, from its file, a file beside it, and `ALTER SYSTEM`.
const KEPT: [(&str, &str); 4] =
    [("max_connections", "60"), ("work_mem", "7MB"), ("maintenance_work_mem", "97MB"), ("random_page_cost", "1.7")];

/// A fleet of spares, and an instance of nobody's on one of them, with the table of rows.
struct Bed {
    fleet: Fleet,
    found: Foreign,
    /// Dropped last: it ends what is left in the folder.
    folder: TestFolder,
}

/// What an instance is before anything is done to it.
struct Before {
    state: BTreeMap<String, String>,
    pid: u32,
}

// === impl Bed ===

impl Bed {
    /// The instance is on the last of the nodes.
    async fn start(nodes: &[&str], settings: &str) -> Self {
        let folder = TestFolder::new().unwrap();
        let fleet = Fleet::start(&folder, nodes).await.unwrap();
        let node = nodes.last().unwrap();
        let found = Foreign::start(&folder, node, &fleet.agents[*node], settings).unwrap();
        postgres::create_table(&found.login, &found.member).await.unwrap();
        Self { fleet, found, folder }
    }

    /// Where the engine of a node is reached that gets its port from its agent.
    fn engine_of(&self, node: &str) -> String {
        let agent = &self.fleet.agents[node];
        format!("{}:{}", agent.place().address(), agent.engine_port)
    }

    /// A replica of the instance on another node.
    async fn replica(&self, node: &str) -> Foreign {
        self.found.replica(&self.folder, node, &self.fleet.agents[node]).await.unwrap()
    }

    /// Writers in the place of the instance's clients.
    async fn write(&self, members: &[String]) -> Writers {
        let writers = Writers::start(&self.folder.join("writers"), &self.found.login, members, true).unwrap();
        writers.acknowledged(0, ROWS, SOON).await.unwrap();
        writers
    }

    fn check_logs(&self, expected: &[&str]) {
        let logs = self.fleet.logs();
        logcheck::check(logs.iter().map(std::path::PathBuf::as_path), expected).unwrap();
    }
}

// === impl Before ===

impl Before {
    fn of(instance: &Foreign) -> Self {
        Self { state: instance.state().unwrap(), pid: instance.pid().unwrap() }
    }

    /// What is not as it was.
    fn differs(&self, instance: &Foreign) -> anyhow::Result<()> {
        let (pid, state) = (instance.pid()?, instance.state()?);
        ensure!(pid == self.pid && process::lives(pid), "{} was process {}, now {pid}", instance.node, self.pid);
        let paths = self.state.keys().chain(state.keys());
        let changed: Vec<_> = paths
            .filter(|path| self.state.get(*path) != state.get(*path))
            .map(|path| format!("{path} was {:?}, now {:?}", self.state.get(path), state.get(path)))
            .collect();
        ensure!(changed.is_empty(), "of {}:\n{}", instance.node, changed.join("\n"));
        Ok(())
    }
}

/// Asks for adoption; the operation's name.
async fn asked(fleet: &Fleet, request: wire::AdoptClusterRequest) -> String {
    fleet.api.clusters().adopt_cluster(request).await.unwrap().into_inner().name
}

/// Waits until nobody's instance is nobody's, as it was, and the nodes are spares.
async fn as_it_was(fleet: &Fleet, instances: &[(&Foreign, &Before)]) {
    wait::until("everything as it was found", SOON, || async {
        let clusters = fleet.api.clusters().list_clusters(wire::ListClustersRequest::default()).await?.into_inner();
        ensure!(clusters.clusters.is_empty(), "{:?}", clusters.clusters[0].reasons);
        let nodes = fleet.api.all_nodes().await?;
        for (instance, before) in instances {
            before.differs(instance)?;
            let node = nodes.iter().find(|node| api::plain(&node.name) == instance.node).unwrap();
            let spare = node.connected && node.cluster.is_empty() && node.reason.is_empty();
            ensure!(spare, "{} is {:?} {:?}", instance.node, node.cluster, node.reason);
            let left: Vec<_> = fs::read_dir(fleet.agents[&instance.node].home.join("engines"))?.flatten().collect();
            ensure!(left.is_empty(), "{left:?}");
        }
        Ok(())
    })
    .await
    .unwrap();
}

/// These writers have noticed nothing since `from`.
#[expect(clippy::print_stdout, reason = "how near a run comes to the limit is worth knowing")]
async fn unbroken(writers: &Writers, names: &[&str], from: u64) {
    let gaps = writers.unbroken(names, LATE, from, SOON).await.unwrap();
    println!("at most {gaps:.0?} ms without a row for {names:?}");
}

/// What the engine at a place says of the settings that are to be kept.
async fn kept(login: &Login, member: &str) -> Vec<(&'static str, String)> {
    let (client, _) = postgres::connect(login, member).await.unwrap();
    let mut found = Vec::new();
    for (name, _) in KEPT {
        found.push((name, client.query_one(&format!("SHOW {name}"), &[]).await.unwrap().get(0)));
    }
    found
}

/// The settings and the access rules of the instance hold at a place.
async fn is_its_own(found: &Foreign, member: &str) {
    let wanted = KEPT.map(|(name, value)| (name, value.to_owned()));
    assert_eq!(kept(&found.login, member).await, wanted, "{member}");
    let login = |user: &str, password: &str| Login {
        user: user.to_owned(),
        password: password.to_owned(),
        database: found.login.database.clone(),
    };
    // Who needs no password, whom the right one does not help, and who has to have the right one.
    postgres::connect(&login("reader", ""), member).await.unwrap();
    let barred = postgres::connect(&login("barred", "barred"), member).await.expect_err("it is barred");
    assert!(format!("{barred:#}").contains("rejects"), "{barred:#}");
    let wrong = postgres::connect(&login(&found.login.user, "wrong"), member).await.expect_err("it is wrong");
    assert!(format!("{wrong:#}").contains("password"), "{wrong:#}");
}

/// The path at which the instance had its data leads to where the member has it, and nobody but the agent starts it.
fn leads_to_the_member(fleet: &Fleet, found: &Foreign) {
    let place = fleet.agents[&found.node].home.join("engines").join(CLUSTER).join("data");
    assert!(place.symlink_metadata().unwrap().is_dir(), "{} is no folder", place.display());
    assert_eq!(found.data.canonicalize().unwrap(), place.canonicalize().unwrap());
    assert!(found.data.join("PG_VERSION").exists());
    let start = fs::read_to_string(found.etc.join("start.conf")).unwrap();
    assert_eq!(start.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(), ["disabled"]);
}

fn says(operation: &wire::Operation, words: &[&str]) -> bool {
    operation.report.iter().any(|line| words.iter().all(|word| line.contains(word)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_adopted_unnoticed_grows_and_fails_over() {
    let bed = Bed::start(&["n2", "n1"], "max_connections = 60\nwork_mem = '7MB'").await;
    let (fleet, found) = (&bed.fleet, &bed.found);
    found.sql(&["ALTER SYSTEM SET random_page_cost = 1.7", "SELECT pg_reload_conf()"]).unwrap();
    let members = [found.member.clone(), bed.engine_of("n2")];
    let before = Before::of(found);
    let writers = bed.write(&members).await;

    // What would be changed is told, and nothing is.
    let begin = now_nanos();
    let planned = wire::AdoptClusterRequest { validate_only: true, ..adopt_request(CLUSTER, &[found]) };
    let planned = fleet.api.clusters().adopt_cluster(planned).await.unwrap().into_inner();
    assert!(planned.validate_only && says(&planned, &["n1", "primary"]), "{planned:#?}");
    assert!(says(&planned, &["wal_log_hints: off -> on", "after a restart"]), "{planned:#?}");
    as_it_was(fleet, &[(found, &before)]).await;

    let cluster = fleet.api.adopt(adopt_request(CLUSTER, &[found]), SOON).await.unwrap();
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    unbroken(&writers, &["follower", "node-1"], begin).await;
    assert_eq!((cluster.primary.as_str(), cluster.epoch), ("db1", 1));
    let member = api::member(&cluster, "db1").unwrap();
    assert_eq!((api::engine_pid(member).unwrap(), found.pid().unwrap()), (before.pid, before.pid), "no restart");
    assert_eq!(api::endpoints(&cluster).unwrap(), std::slice::from_ref(&found.member), "it keeps its port");
    leads_to_the_member(fleet, found);
    is_its_own(found, &found.member).await;
    assert_eq!(found.sql(&["SELECT current_user"]).unwrap(), "postgres", "its owner logs in on its machine as before");
    // There is no role of which Regent knows a password.
    let credentials = wire::GetCredentialsRequest { name: format!("clusters/{CLUSTER}") };
    refused(fleet.api.clusters().get_credentials(credentials).await, Reason::NoCredentials);
    let unknown = found.sql(&["SELECT count(*) FROM pg_roles WHERE rolname = 'app'"]).unwrap();
    assert_eq!(unknown, "0");
    bed.check_logs(&[]);

    // A cluster like every other: it grows, and the new member has what the instance had.
    let grown = fleet.api.clusters().add_member(add("n2")).await.unwrap().into_inner();
    fleet.api.succeed(&grown.name, SOON).await.unwrap();
    let grown = complete(fleet).await;
    assert_eq!(api::endpoints(&grown).unwrap(), members);
    is_its_own(found, &members[1]).await;

    let at = now_nanos();
    process::signal(before.pid, Signal::SIGKILL).unwrap();
    let after = fleet.api.other_primary(CLUSTER, "db1", SOON).await.unwrap();
    assert_eq!((after.primary.as_str(), after.epoch), ("db2", 2));
    writers.acknowledged_except(&found.member, at, ROWS, SOON).await.unwrap();
    // The instance's engine is started by the agent now, with all that the cluster has.
    complete(fleet).await;
    leads_to_the_member(fleet, found);
    for member in &members {
        is_its_own(found, member).await;
    }
    // No gate is in front of a socket: from a start by the agent on nobody else has one.
    assert!(found.sql(&["SELECT 1"]).is_err(), "its old socket leads to it still");
    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&found.login, &members[1]).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.is_consistent(), "{account:?}");
    // Asynchronous: what the dead primary had not yet sent is lost; at a millisecond's pause that is a row or two.
    assert!(account.lost.len() <= 5, "{:?}", account.lost);
    let lost = checker::acknowledged(&histories, &account.lost);
    assert!(lost.iter().all(|(_, _, member)| *member == found.member), "{lost:?}");
    assert_eq!(checker::overlaps(&histories, begin, u64::MAX), [], "two primaries");
    bed.check_logs(&[JUST_PROMOTED]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_is_adopted_with_its_replica_and_they_change_places_by_plan() {
    let bed = Bed::start(&["n1", "n2"], "").await;
    let (fleet, found) = (&bed.fleet, &bed.found);
    let replica = bed.replica("n1").await;
    let (primary_before, replica_before) = (Before::of(found), Before::of(&replica));
    let members = [found.member.clone(), replica.member.clone()];
    let writers = bed.write(&members).await;
    let begin = now_nanos();

    // A replica alone makes no cluster, and one that would be left behind is told of.
    let alone = fleet.api.clusters().adopt_cluster(adopt_request(CLUSTER, &[&replica])).await;
    refused(alone, Reason::NotAdoptable);
    let without = wire::AdoptClusterRequest { validate_only: true, ..adopt_request(CLUSTER, &[found]) };
    let without = fleet.api.clusters().adopt_cluster(without).await.unwrap().into_inner();
    assert!(says(&without, &["streams from db1", "no member"]), "{without:#?}");
    as_it_was(fleet, &[(found, &primary_before), (&replica, &replica_before)]).await;

    // Named in any order: what is the primary is known.
    let cluster = fleet.api.adopt(adopt_request(CLUSTER, &[&replica, found]), SOON).await.unwrap();
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    unbroken(&writers, &["follower", "node-1"], begin).await;
    assert_eq!(cluster.primary, "db1");
    assert_eq!(api::member(&cluster, "db1").unwrap().node, "nodes/n2");
    for (instance, name, before) in [(found, "db1", &primary_before), (&replica, "db2", &replica_before)] {
        let pid = api::engine_pid(api::member(&cluster, name).unwrap()).unwrap();
        assert_eq!((pid, instance.pid().unwrap()), (before.pid, before.pid), "{name}: no restart");
        leads_to_the_member(fleet, instance);
    }
    let streams = found.sql(&["SELECT usename || ' ' || application_name FROM pg_stat_replication"]).unwrap();
    assert_eq!(streams, "regent_replicator db2", "it streams as a member");
    let slots = found.sql(&["SELECT slot_name, active FROM pg_replication_slots"]).unwrap();
    assert_eq!(slots, "db2|t", "nothing holds the log back for a stream that is no more");

    for member in ["db2", "db1"] {
        complete(fleet).await;
        promote(fleet, member).await;
        let now = complete(fleet).await;
        assert_eq!(now.primary, member);
        writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    }
    assert!(fleet.api.operations_of(CLUSTER, "failover").await.unwrap().is_empty(), "nothing has failed");
    let histories = writers.stop().await.unwrap();
    let stored = postgres::read_rows(&found.login, &found.member).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.is_consistent() && account.lost.is_empty(), "{account:?}");
    assert_eq!(checker::overlaps(&histories, begin, u64::MAX), [], "two primaries");
    bed.check_logs(&[JUST_PROMOTED]);
}

/// What else may manage an instance, with the statements or the file by which it is known.
enum Mark {
    /// A file in the data directory.
    File(&'static str),
    /// An extension in a database of its own.
    Extension(&'static str),
}

const MANAGERS: [(&str, Mark); 3] = [
    ("Patroni", Mark::File("patroni.dynamic.json")),
    ("repmgr", Mark::Extension("repmgr")),
    ("pg_auto_failover", Mark::File("postgresql-auto-failover.conf")),
];

impl Mark {
    fn leave(&self, found: &Foreign) {
        match self {
            Self::File(name) => fs::write(found.data.join(name), "").unwrap(),
            Self::Extension(name) => {
                found.sql(&[&format!("CREATE DATABASE {name}")]).unwrap();
                // The extension itself is not installed here; that it is known to the database is all that is looked at.
                let known = format!(
                    "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion) \
                     VALUES (99999, '{name}', 10, 'public'::regnamespace, false, '1')"
                );
                found.sql_in(name, &["SET allow_system_table_mods = on", &known]).unwrap();
            }
        }
    }

    fn take(&self, found: &Foreign) {
        match self {
            Self::File(name) => fs::remove_file(found.data.join(name)).unwrap(),
            Self::Extension(name) => drop(found.sql(&[&format!("DROP DATABASE {name}")]).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_adopted_is_refused_and_goes_on_as_it_is() {
    let bed = Bed::start(&["n1"], "archive_mode = on\narchive_command = '/bin/true'").await;
    let (fleet, found) = (&bed.fleet, &bed.found);
    let accepting = || wire::AdoptClusterRequest { accept_losses: true, ..adopt_request(CLUSTER, &[found]) };
    let named = |answer: &Result<tonic::Response<wire::Operation>, Status>, word: &str| {
        let message = answer.as_ref().expect_err("it should have been refused").message();
        assert!(message.contains(word) && message.contains("n1"), "{message}");
    };
    for (name, mark) in MANAGERS {
        mark.leave(found);
        let before = Before::of(found);
        for request in [accepting(), wire::AdoptClusterRequest { validate_only: true, ..accepting() }] {
            let answer = fleet.api.clusters().adopt_cluster(request).await;
            named(&answer, name);
            refused(answer, Reason::NotAdoptable);
        }
        as_it_was(fleet, &[(found, &before)]).await;
        mark.take(found);
    }

    // What a cluster would not have is named, and refused until somebody accepts that.
    let before = Before::of(found);
    let planned = wire::AdoptClusterRequest { validate_only: true, ..adopt_request(CLUSTER, &[found]) };
    let planned = fleet.api.clusters().adopt_cluster(planned).await.unwrap().into_inner();
    assert!(says(&planned, &["archive_mode"]), "{planned:#?}");
    let answer = fleet.api.clusters().adopt_cluster(adopt_request(CLUSTER, &[found])).await;
    named(&answer, "archive_mode");
    refused(answer, Reason::NotAdoptable);
    let elsewhere = wire::AdoptClusterRequest {
        data_directories: [("n1".to_owned(), "/var/lib/nowhere".to_owned())].into(),
        ..accepting()
    };
    refused(fleet.api.clusters().adopt_cluster(elsewhere).await, Reason::InvalidField);
    as_it_was(fleet, &[(found, &before)]).await;
    let cluster = fleet.api.adopt(accepting(), SOON).await.unwrap();
    assert_eq!(api::engine_pid(api::member(&cluster, "db1").unwrap()).unwrap(), before.pid);
    bed.check_logs(&[]);
}

/// Waits until a step of an operation is under way, or over.
async fn begun(fleet: &Fleet, operation: &str, name: &str) -> wire::Step {
    wait::until(&format!("the step {name}"), SOON, || async {
        let seen = fleet.api.operation(operation).await?;
        let step = seen.steps.iter().find(|step| step.name == name && step.start_time.is_some());
        ensure!(step.is_some() || !seen.done, "it never came: {}", api::describe(&seen));
        step.cloned().ok_or_else(|| anyhow::anyhow!("{}", api::describe(&seen)))
    })
    .await
    .unwrap()
}

/// Begins an adoption that does not get on: the primary's step makes roles, and waits for whoever makes others. The operation, and the
/// session for whose end it waits.
async fn held_up(fleet: &Fleet, found: &Foreign, request: wire::AdoptClusterRequest) -> (String, Client) {
    let (holder, _) = postgres::connect(&found.administrator, &found.member).await.unwrap();
    holder.batch_execute("BEGIN; LOCK TABLE pg_authid IN SHARE MODE").await.unwrap();
    let operation = asked(fleet, request).await;
    wait::until("a step that waits for the roles", SOON, || async {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'pg_authid'::regclass";
        let waiting: i64 = holder.query_one(waiting, &[]).await?.get(0);
        ensure!(waiting > 0, "{}", api::describe(&fleet.api.operation(&operation).await?));
        Ok(())
    })
    .await
    .unwrap();
    (operation, holder)
}

/// In the instance itself there is nothing of Regent's; `slots` are those that it had.
fn nothing_is_left(found: &Foreign, slots: &str) {
    let roles = "SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolname LIKE 'regent%'";
    assert_eq!(found.sql(&[roles]).unwrap(), "", "roles");
    let known = "SELECT string_agg(slot_name, ' ') FROM pg_replication_slots";
    assert_eq!(found.sql(&[known]).unwrap(), slots, "slots");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adoption_that_fails_half_way_gives_everything_back_and_can_be_tried_again() {
    let mut bed = Bed::start(&["n2", "n1"], "").await;
    let replica = bed.replica("n2").await;
    let found = bed.found.clone();
    let (primary_before, replica_before) = (Before::of(&found), Before::of(&replica));
    let writers = bed.write(&[found.member.clone(), replica.member.clone()]).await;
    let begin = now_nanos();

    let (operation, holder) = held_up(&bed.fleet, &found, adopt_request(CLUSTER, &[&found, &replica])).await;
    bed.fleet.agent("n2").daemon().unwrap().kill().unwrap();
    holder.batch_execute("ROLLBACK").await.unwrap();
    let ended = bed.fleet.api.finish(&operation, SOON).await.unwrap();
    assert_eq!(ended.state(), wire::OperationState::Failed, "{}", api::describe(&ended));
    let adopted = ended.steps.iter().find(|step| step.name == "adopt").unwrap();
    assert!(adopted.end_time.is_some(), "the primary was adopted first: {}", api::describe(&ended));
    wait::until("the primary as it was found", SOON, || async { primary_before.differs(&found) }).await.unwrap();
    bed.fleet.agent("n2").start().unwrap();
    as_it_was(&bed.fleet, &[(&found, &primary_before), (&replica, &replica_before)]).await;
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    unbroken(&writers, &["follower", "node-1"], begin).await;
    let streams = found.sql(&["SELECT usename || ' ' || state FROM pg_stat_replication"]).unwrap();
    assert_eq!(streams, "stream streaming", "the replica streams as it did");
    nothing_is_left(&found, "n2");

    let cluster = bed.fleet.api.adopt(adopt_request(CLUSTER, &[&found, &replica]), SOON).await.unwrap();
    let pids: Vec<_> = cluster.members.iter().map(|member| api::engine_pid(member).unwrap()).collect();
    assert_eq!(pids, [primary_before.pid, replica_before.pid]);
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    unbroken(&writers, &["follower", "node-1"], begin).await;
    let histories = writers.stop().await.unwrap();
    let account = checker::account(&histories, &postgres::read_rows(&found.login, &found.member).await.unwrap());
    assert!(account.lost.is_empty() && account.is_consistent(), "{account:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_dies_in_the_middle_and_stays_away_gives_the_instance_back_when_it_returns() {
    let mut bed = Bed::start(&["n1"], "").await;
    let found = bed.found.clone();
    let before = Before::of(&found);
    let writers = bed.write(std::slice::from_ref(&found.member)).await;
    let begin = now_nanos();
    let (operation, holder) = held_up(&bed.fleet, &found, adopt_request(CLUSTER, &[&found])).await;
    unbroken(&writers, &["follower", "node-1"], begin).await;
    bed.fleet.agent("n1").daemon().unwrap().kill().unwrap();
    assert!(before.differs(&found).is_err(), "it was changed by then");
    drop(holder);
    let ended = bed.fleet.api.finish(&operation, SOON).await.unwrap();
    assert_eq!(ended.state(), wire::OperationState::Failed, "{}", api::describe(&ended));
    assert!(process::lives(before.pid), "nobody ends the engine");

    // The gate that the lease has left behind is closed by now: its agent opens it.
    bed.fleet.agent("n1").start().unwrap();
    as_it_was(&bed.fleet, &[(&found, &before)]).await;
    nothing_is_left(&found, "");
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let account = checker::account(&histories, &postgres::read_rows(&found.login, &found.member).await.unwrap());
    assert!(account.lost.is_empty() && account.is_consistent(), "{account:?}");
}

/// How long a step took that has ended.
fn took(step: &wire::Step) -> Duration {
    let nanos = |time: &Option<prost_types::Timestamp>| {
        let time = time.as_ref().expect("it has ended");
        i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)
    };
    Duration::from_nanos(u64::try_from(nanos(&step.end_time) - nanos(&step.start_time)).unwrap())
}

/// Deletes the cluster, whose node is a spare again.
async fn delete(fleet: &Fleet) {
    let request = wire::DeleteClusterRequest {
        name: format!("clusters/{CLUSTER}"),
        confirm_name: CLUSTER.to_owned(),
        request_id: api::request_id(),
        ..Default::default()
    };
    let operation = fleet.api.clusters().delete_cluster(request).await.unwrap().into_inner();
    fleet.api.succeed(&operation.name, SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_anywhere_in_the_adoption_leaves_the_instance_adopted_or_as_it_was() {
    let mut bed = Bed::start(&["n1"], "").await;
    let operation = asked(&bed.fleet, adopt_request(CLUSTER, &[&bed.found])).await;
    let whole = bed.fleet.api.succeed(&operation, SOON).await.unwrap();
    let length = took(whole.steps.iter().find(|step| step.name == "adopt").unwrap());
    println!("the step takes {length:?}");
    bed.fleet.api.healthy(CLUSTER, SOON).await.unwrap();
    delete(&bed.fleet).await;

    let (mut seed, mut struck, mut adopted) = (first_seed(), 0, true);
    for round in 0..TIMES {
        if adopted {
            // The last one went with its cluster.
            let name = format!("n1-{round}");
            bed.found = Foreign::start(&bed.folder, &name, &bed.fleet.agents["n1"], "").unwrap();
        }
        let found = bed.found.clone();
        postgres::create_table(&found.login, &found.member).await.unwrap();
        let before = Before::of(&found);
        let folder = bed.folder.join(&format!("writers/{round}"));
        let writers = Writers::start(&folder, &found.login, std::slice::from_ref(&found.member), false).unwrap();
        writers.acknowledged(0, ROWS, SOON).await.unwrap();
        let begin = now_nanos();
        let operation = asked(&bed.fleet, adopt_request(CLUSTER, &[&found])).await;
        begun(&bed.fleet, &operation, "adopt").await;
        let within = if round % 2 == 0 {
            length
        } else {
            // After the first change, before which the lease is waited for.
            wait::until("a change of the instance", SOON, || async {
                ensure!(before.differs(&found).is_err(), "it is as it was");
                Ok(())
            })
            .await
            .unwrap();
            CHANGES
        };
        tokio::time::sleep(moment(&mut seed, within)).await;
        bed.fleet.agent("n1").daemon().unwrap().kill().unwrap();
        // What has not ended now will not end without the next agent.
        struck += u32::from(begun(&bed.fleet, &operation, "adopt").await.end_time.is_none());
        bed.fleet.agent("n1").start().unwrap();
        let ended = bed.fleet.api.finish(&operation, SOON).await.unwrap();
        adopted = ended.state() == wire::OperationState::Succeeded;
        assert!(adopted || ended.state() == wire::OperationState::Failed, "{}", api::describe(&ended));
        let step = ended.steps.iter().find(|step| step.name == "adopt").unwrap();
        println!("round {round}: {:?} {}, the step took {:?}", ended.state(), ended.error, took(step));
        if adopted {
            let cluster = bed.fleet.api.healthy(CLUSTER, SOON).await.unwrap();
            assert_eq!(api::engine_pid(api::member(&cluster, "db1").unwrap()).unwrap(), before.pid, "round {round}");
            leads_to_the_member(&bed.fleet, &found);
        } else {
            as_it_was(&bed.fleet, &[(&found, &before)]).await;
        }
        assert!(process::lives(before.pid), "round {round}: the engine has ended");
        writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
        unbroken(&writers, &["follower"], begin).await;
        let histories = writers.stop().await.unwrap();
        let account = checker::account(&histories, &postgres::read_rows(&found.login, &found.member).await.unwrap());
        assert!(account.lost.is_empty() && account.is_consistent(), "round {round}: {account:?}");
        if adopted {
            delete(&bed.fleet).await;
        }
    }
    println!("{struck} of {TIMES} agents were killed in the middle of the step");
    assert!(struck > 0);
}
