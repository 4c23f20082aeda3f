//! A Redis that runs is taken under management with its replicas: its clients notice nothing, nothing of it is restarted, and it is a
//! cluster like every other from then on. What cannot be adopted is refused, and what fails on the way goes on as it was found.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, chown},
    path::PathBuf,
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use redis::{Cmd, FromRedisValue};
use regent_common::error::Reason;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::{self, request_id},
    cluster::{Agent, Fleet, run},
    engines::redis_server,
    folder::TestFolder,
    place::Place,
    ports, process, wait,
    workload::{Client, Login, checker, client::Dialect, now_nanos, redis::connect, writers::Writers},
};

use crate::{
    adoption::{first_seed, moment},
    members::complete,
    support::{CLUSTER, SOON, refused},
};

/// As Debian's package has it.
const OWNER: &str = "redis";
/// Rows to see between two things that are done.
const ROWS: usize = 200;
/// What no client may wait for a row.
const LATE: Duration = Duration::from_millis(500);
/// How long the instance answers nobody, in milliseconds, so that its adoption does not get on.
const PAUSE: u64 = 3000;
/// How often an agent is killed in the middle.
const TIMES: u32 = 8;
/// Who may do everything, by the instance's configuration.
const ADMINISTRATOR: (&str, &str) = ("default", "of default");

/// An instance of nobody's.
struct Instance {
    node: String,
    member: String,
    client: Client,
    port: u16,
    data: PathBuf,
    configuration: PathBuf,
    home: PathBuf,
    place: Place,
}

/// What an instance is before anything is done to it.
struct Before {
    state: BTreeMap<String, String>,
    pid: u32,
}

/// A fleet of spares, and instances of nobody's on them.
struct Bed {
    fleet: Fleet,
    /// Dropped last: it ends what is left in the folder.
    folder: TestFolder,
}

// === impl Instance ===

impl Instance {
    /// Makes an instance on the place of an agent, on a port that is not the agent's choice, and waits until it serves; `name` is its
    /// folder's, `more` are lines of its configuration.
    async fn start(folder: &TestFolder, name: &str, agent: &Agent, upstream: Option<&Self>, more: &str) -> Self {
        let place = agent.place().clone();
        let ([port], address) = (place.ports([6379]).unwrap(), place.address());
        let home = folder.join("foreign").join(name);
        let login = Login { user: "writer".into(), password: "of-writer".into(), database: "0".into() };
        let instance = Self {
            node: agent.node.clone(),
            member: format!("{address}:{port}"),
            client: Client { dialect: Dialect::Redis, login },
            port,
            data: home.join("data"),
            configuration: home.join("etc/redis.conf"),
            home,
            place,
        };
        for made in [&instance.home, &instance.home.join("etc"), &instance.data] {
            fs::create_dir_all(made).unwrap();
            instance.give_to_owner(made);
        }
        let upstream = upstream.map_or(String::new(), |upstream| format!("replicaof {address} {}\n", upstream.port));
        let (user, password) = (&instance.client.login.user, &instance.client.login.password);
        let text = format!(
            "# Of nobody's.\nbind {address}\nport {port}\ndir {data}\ndaemonize yes\nset-proc-title no\nunixsocket {home}/socket\n\
             logfile {home}/log\npidfile {home}/pid\nmaxmemory 200mb\nrequirepass \"{secret}\"\nmasterauth \"{secret}\"\n\
             user {user} on >{password} ~* &* +@all\n{upstream}{more}",
            data = instance.data.display(),
            home = instance.home.display(),
            secret = ADMINISTRATOR.1,
        );
        fs::write(&instance.configuration, text).unwrap();
        instance.give_to_owner(&instance.configuration);
        run(instance.server(&[])).unwrap();
        wait::until("an instance that serves", SOON, || async {
            let info: String = instance.ask(redis::cmd("INFO").arg("replication")).await?;
            let wanted = if upstream.is_empty() { "role:master" } else { "master_link_status:up" };
            ensure!(info.lines().any(|line| line.trim_end() == wanted), "{info}");
            Ok(())
        })
        .await
        .unwrap();
        instance
    }

    /// The server with the instance's configuration, as its owner.
    fn server(&self, arguments: &[&str]) -> Command {
        let mut command = self.place.command_as(OWNER, &redis_server().unwrap()).unwrap();
        command.arg(&self.configuration).args(arguments).current_dir("/");
        command
    }

    fn give_to_owner(&self, path: &std::path::Path) {
        let user = nix::unistd::User::from_name(OWNER).unwrap().expect("redis-server is installed");
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }

    /// Asks as its administrator, who is one as long as it is nobody's.
    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let (user, password) = ADMINISTRATOR;
        let login = Login { user: user.into(), password: password.into(), database: "0".into() };
        Ok(command.query_async(&mut connect(&login, &self.member).await?).await?)
    }

    async fn field(&self, section: &str, name: &str) -> Result<String> {
        let info: String = self.ask(redis::cmd("INFO").arg(section)).await?;
        Ok(info
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .unwrap_or_default()
            .trim()
            .to_owned())
    }

    /// What it is and how it is configured: its configuration byte for byte, what stands at the path of its data and what is in there,
    /// its settings, its users, and whom it follows. Where two are the same nothing was changed.
    async fn state(&self) -> Result<BTreeMap<String, String>> {
        let mut state: BTreeMap<String, String> = self.ask(redis::cmd("CONFIG").arg("GET").arg("*")).await?;
        let mut users: Vec<String> = self.ask(redis::cmd("ACL").arg("LIST")).await?;
        users.sort();
        // What a user is without this word too, and whose rights were ever set says it.
        state.insert("users".to_owned(), users.join("\n").replace(" sanitize-payload", ""));
        for name in ["role", "master_host", "master_port"] {
            state.insert(format!("info {name}"), self.field("replication", name).await?);
        }
        let (text, facts) = (fs::read_to_string(&self.configuration)?, fs::metadata(&self.configuration)?);
        state.insert("file".to_owned(), format!("{} {:o} {}\n{text}", facts.uid(), facts.mode(), facts.ino()));
        for folder in [self.configuration.parent().expect("it is in a folder"), &self.data] {
            let mut names = Vec::new();
            for entry in fs::read_dir(folder)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            // When it writes a snapshot is its own affair.
            names.retain(|name| !name.contains(".rdb"));
            names.sort();
            let kind = fs::symlink_metadata(folder)?.file_type();
            state.insert(folder.display().to_string(), format!("{kind:?} with {names:?}"));
        }
        Ok(state)
    }

    async fn before(&self) -> Before {
        let pid = self.field("server", "process_id").await.unwrap().parse().unwrap();
        Before { state: self.state().await.unwrap(), pid }
    }

    /// The path at which the instance had its data leads to where the member has it, and nobody but the agent starts it.
    fn leads_to_the_member(&self, fleet: &Fleet) {
        let place = fleet.agents[&self.node].home.join("engines").join(CLUSTER).join("data");
        assert!(place.symlink_metadata().unwrap().is_dir(), "{} is no folder", place.display());
        assert_eq!(self.data.canonicalize().unwrap(), place.canonicalize().unwrap());
        let started = self.server(&["--daemonize", "no"]).output().unwrap();
        assert!(!started.status.success(), "its configuration starts a server");
    }
}

// === impl Before ===

impl Before {
    /// What is not as it was.
    async fn differs(&self, instance: &Instance) -> Result<()> {
        ensure!(process::lives(self.pid), "process {} of {} has ended", self.pid, instance.node);
        let state = instance.state().await?;
        let names = self.state.keys().chain(state.keys());
        let changed: Vec<_> = names
            .filter(|name| self.state.get(*name) != state.get(*name))
            .map(|name| format!("{name} was {:?}, now {:?}", self.state.get(name), state.get(name)))
            .collect();
        ensure!(changed.is_empty(), "of {}:\n{}", instance.node, changed.join("\n"));
        Ok(())
    }
}

// === impl Bed ===

impl Bed {
    async fn start(nodes: &[&str]) -> Self {
        let folder = TestFolder::new().unwrap();
        let fleet = Fleet::start(&folder, nodes).await.unwrap();
        Self { fleet, folder }
    }

    /// An instance on a node, and with an upstream a replica of that.
    async fn instance(&self, node: &str, upstream: Option<&Instance>, more: &str) -> Instance {
        Instance::start(&self.folder, node, &self.fleet.agents[node], upstream, more).await
    }

    /// Writers in the place of the clients of these instances, of which the first is the primary.
    async fn write(&self, instances: &[&Instance]) -> Writers {
        instances[0].client.make_room(&instances[0].member).await.unwrap();
        let members: Vec<_> = instances.iter().map(|instance| instance.member.clone()).collect();
        let writers = Writers::start(&self.folder.join("writers"), &instances[0].client, &members, true).unwrap();
        writers.acknowledged(0, ROWS, SOON).await.unwrap();
        writers
    }
}

/// What is asked to adopt these instances as one cluster. Agents that share a machine all see all of them: the folders are named.
fn adopt_request(instances: &[&Instance]) -> wire::AdoptClusterRequest {
    let folder = |instance: &&Instance| (instance.node.clone(), instance.data.display().to_string());
    wire::AdoptClusterRequest {
        cluster: CLUSTER.to_owned(),
        nodes: instances.iter().map(|instance| instance.node.clone()).collect(),
        data_directories: instances.iter().map(folder).collect(),
        request_id: request_id(),
        ..Default::default()
    }
}

/// Waits until nobody's instances are nobody's, as they were, and the nodes are spares.
async fn as_it_was(fleet: &Fleet, instances: &[(&Instance, &Before)]) {
    wait::until("everything as it was found", SOON, || async {
        let clusters = fleet.api.clusters().list_clusters(wire::ListClustersRequest::default()).await?.into_inner();
        ensure!(clusters.clusters.is_empty(), "{:?}", clusters.clusters[0].reasons);
        for (instance, before) in instances {
            before.differs(instance).await?;
            let left: Vec<_> = fs::read_dir(fleet.agents[&instance.node].home.join("engines"))?.flatten().collect();
            ensure!(left.is_empty(), "{left:?}");
        }
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_with_two_replicas_is_adopted_unnoticed_and_fails_over() {
    let bed = Bed::start(&["n1", "n2", "n3"]).await;
    let fleet = &bed.fleet;
    let found = bed.instance("n3", None, "").await;
    let (one, two) = (bed.instance("n1", Some(&found), "").await, bed.instance("n2", Some(&found), "").await);
    let all = [&found, &one, &two];
    let before = [found.before().await, one.before().await, two.before().await];
    let writers = bed.write(&all).await;
    let begin = now_nanos();

    // What would be changed is told, and nothing is.
    let planned = wire::AdoptClusterRequest { validate_only: true, ..adopt_request(&all) };
    let planned = fleet.api.clusters().adopt_cluster(planned).await.unwrap().into_inner();
    let says = |words: &[&str]| planned.report.iter().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(says(&["db1 on node n3", "the primary"]) && says(&["unixsocket", "after a restart"]), "{planned:#?}");
    let with_state: Vec<_> = all.into_iter().zip(&before).collect();
    as_it_was(fleet, &with_state).await;

    let cluster = fleet.api.adopt(adopt_request(&all), SOON).await.unwrap();
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    let gaps = writers.unbroken(&["follower", "node-1"], LATE, begin, SOON).await.unwrap();
    println!("at most {gaps:.0?} ms without a row");
    assert_eq!((cluster.primary.as_str(), cluster.epoch), ("db1", 1));
    let pids: Vec<u32> = cluster.members.iter().map(|member| api::engine_pid(member).unwrap()).collect();
    assert_eq!(pids, before.each_ref().map(|before| before.pid), "no restart");
    for instance in all {
        instance.leads_to_the_member(fleet);
    }
    refused(
        fleet.api.clusters().get_credentials(wire::GetCredentialsRequest { name: format!("clusters/{CLUSTER}") }).await,
        Reason::NoCredentials,
    );

    complete(fleet).await;
    let at = now_nanos();
    process::signal(before[0].pid, Signal::SIGKILL).unwrap();
    let after = fleet.api.other_primary(CLUSTER, "db1", SOON).await.unwrap();
    assert_eq!(after.epoch, 2);
    writers.acknowledged_except(&found.member, at, ROWS, SOON).await.unwrap();
    // The instance's engine is started by its agent now, as a replica.
    complete(fleet).await;
    let histories = writers.stop().await.unwrap();
    let members: Vec<_> = all.iter().map(|instance| instance.member.clone()).collect();
    let stored = found.client.same_on_all(&members, SOON).await.unwrap();
    let account = checker::account(&histories, &stored);
    assert!(account.is_consistent(), "{account:?}");
    // Asynchronous: what the dead primary had not yet sent is lost.
    assert!(account.lost.len() <= 5, "{:?}", account.lost);
    assert_eq!(checker::overlaps(&histories, begin, u64::MAX), [], "two primaries");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_sentinels_watch_or_that_would_lose_something_is_refused() {
    let bed = Bed::start(&["n1"]).await;
    let fleet = &bed.fleet;
    let found = bed.instance("n1", None, "appendonly yes\n").await;
    let before = found.before().await;
    let answer = fleet.api.clusters().adopt_cluster(adopt_request(&[&found])).await;
    assert!(answer.as_ref().unwrap_err().message().contains("appendonly"), "{answer:?}");
    refused(answer, Reason::NotAdoptable);
    as_it_was(fleet, &[(&found, &before)]).await;

    let watcher = found.home.join("watcher");
    fs::create_dir(&watcher).unwrap();
    found.give_to_owner(&watcher);
    let file = watcher.join("sentinel.conf");
    let port = ports::free(1).unwrap()[0];
    let (host, _) = found.member.rsplit_once(':').unwrap();
    let text = format!(
        "port {port}\ndir {}\ndaemonize yes\nlogfile {}\nsentinel monitor shop {host} {} 1\nsentinel auth-pass shop \"{}\"\n",
        watcher.display(),
        watcher.join("log").display(),
        found.port,
        ADMINISTRATOR.1,
    );
    fs::write(&file, text).unwrap();
    found.give_to_owner(&file);
    let mut sentinel = found.place.command_as(OWNER, &redis_server().unwrap()).unwrap();
    sentinel.arg(&file).arg("--sentinel").current_dir(&watcher);
    run(sentinel).unwrap();
    let accepting =
        || wire::AdoptClusterRequest { accept_losses: true, validate_only: true, ..adopt_request(&[&found]) };
    wait::until("a Sentinel that is seen", SOON, || async {
        let error = fleet.api.clusters().adopt_cluster(accepting()).await.err();
        ensure!(error.is_some_and(|error| error.message().contains("Sentinel")), "it would be adopted");
        Ok(())
    })
    .await
    .unwrap();
    let answer =
        fleet.api.clusters().adopt_cluster(wire::AdoptClusterRequest { validate_only: false, ..accepting() }).await;
    refused(answer, Reason::NotAdoptable);
    as_it_was(fleet, &[(&found, &before)]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_adoption_of_a_redis_that_fails_half_way_gives_everything_back_and_can_be_tried_again() {
    let mut bed = Bed::start(&["n1", "n2"]).await;
    let found = bed.instance("n1", None, "").await;
    let replica = bed.instance("n2", Some(&found), "").await;
    let (primary_before, replica_before) = (found.before().await, replica.before().await);
    let writers = bed.write(&[&found, &replica]).await;

    let asked = bed.fleet.api.clusters().adopt_cluster(adopt_request(&[&found, &replica])).await.unwrap().into_inner();
    // It answers nobody for a while, its agent neither.
    found.ask::<()>(redis::cmd("CLIENT").arg("PAUSE").arg(PAUSE)).await.unwrap();
    wait::until("the primary's step", SOON, || async {
        let seen = bed.fleet.api.operation(&asked.name).await?;
        let begun = seen.steps.iter().any(|step| step.name == "adopt" && step.start_time.is_some());
        ensure!(begun, "{}", api::describe(&seen));
        Ok(())
    })
    .await
    .unwrap();
    bed.fleet.agent("n2").daemon().unwrap().kill().unwrap();
    let ended = bed.fleet.api.finish(&asked.name, SOON).await.unwrap();
    assert_eq!(ended.state(), wire::OperationState::Failed, "{}", api::describe(&ended));
    let adopted = ended.steps.iter().find(|step| step.name == "adopt").unwrap();
    assert!(adopted.end_time.is_some(), "the primary was adopted first: {}", api::describe(&ended));
    bed.fleet.agent("n2").start().unwrap();
    as_it_was(&bed.fleet, &[(&found, &primary_before), (&replica, &replica_before)]).await;
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    wait::until("the replica's stream", SOON, || async {
        let status = replica.field("replication", "master_link_status").await?;
        ensure!(status == "up", "{status}");
        Ok(())
    })
    .await
    .unwrap();

    let cluster = bed.fleet.api.adopt(adopt_request(&[&found, &replica]), SOON).await.unwrap();
    let pids: Vec<_> = cluster.members.iter().map(|member| api::engine_pid(member).unwrap()).collect();
    assert_eq!(pids, [primary_before.pid, replica_before.pid]);
    writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
    let histories = writers.stop().await.unwrap();
    let members = [found.member.clone(), replica.member.clone()];
    let account = checker::account(&histories, &found.client.same_on_all(&members, SOON).await.unwrap());
    assert!(account.lost.is_empty() && account.is_consistent(), "{account:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_killed_anywhere_in_the_adoption_of_a_redis_leaves_it_adopted_or_as_it_was() {
    let mut bed = Bed::start(&["n1"]).await;
    let (mut seed, mut given_back) = (first_seed(), 0);
    for round in 0..TIMES {
        let name = format!("n1-{round}");
        let found = Instance::start(&bed.folder, &name, &bed.fleet.agents["n1"], None, "").await;
        let before = found.before().await;
        found.client.make_room(&found.member).await.unwrap();
        let folder = bed.folder.join(&format!("writers/{round}"));
        let members = std::slice::from_ref(&found.member);
        let writers = Writers::start(&folder, &found.client, members, false).unwrap();
        writers.acknowledged(0, ROWS, SOON).await.unwrap();
        let operation = bed.fleet.api.clusters().adopt_cluster(adopt_request(&[&found])).await.unwrap().into_inner();
        // The first change is that of its configuration, before which the lease is waited for.
        wait::until("a change of the instance", SOON, || async {
            let text = fs::read_to_string(&found.configuration)?;
            ensure!(!text.starts_with("# Of nobody's."), "it is as it was");
            Ok(())
        })
        .await
        .unwrap();
        tokio::time::sleep(moment(&mut seed, Duration::from_millis(60))).await;
        bed.fleet.agent("n1").daemon().unwrap().kill().unwrap();
        bed.fleet.agent("n1").start().unwrap();
        let ended = bed.fleet.api.finish(&operation.name, SOON).await.unwrap();
        let adopted = ended.state() == wire::OperationState::Succeeded;
        println!("round {round}: {:?} {}", ended.state(), ended.error);
        if adopted {
            let cluster = bed.fleet.api.healthy(CLUSTER, SOON).await.unwrap();
            assert_eq!(api::engine_pid(api::member(&cluster, "db1").unwrap()).unwrap(), before.pid, "round {round}");
            found.leads_to_the_member(&bed.fleet);
        } else {
            assert_eq!(ended.state(), wire::OperationState::Failed, "{}", api::describe(&ended));
            as_it_was(&bed.fleet, &[(&found, &before)]).await;
            given_back += 1;
        }
        writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
        let histories = writers.stop().await.unwrap();
        let account = checker::account(&histories, &found.client.read_rows(&found.member).await.unwrap());
        assert!(account.lost.is_empty() && account.is_consistent(), "round {round}: {account:?}");
        if adopted {
            let request = wire::DeleteClusterRequest {
                name: format!("clusters/{CLUSTER}"),
                confirm_name: CLUSTER.to_owned(),
                request_id: request_id(),
                ..Default::default()
            };
            let operation = bed.fleet.api.clusters().delete_cluster(request).await.unwrap().into_inner();
            bed.fleet.api.succeed(&operation.name, SOON).await.unwrap();
        } else {
            process::signal(before.pid, Signal::SIGKILL).unwrap();
        }
    }
    println!("{given_back} of {TIMES} were given back");
}
