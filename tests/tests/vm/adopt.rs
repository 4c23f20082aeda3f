//! Debian's own instance and a replica of it, made and started as its packages do it, become a cluster by the commands of the runbook,
//! while clients write. From then on nobody but the agents starts an engine, also after a boot.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use regent_tests::{
    api,
    cluster::COORDINATOR,
    folder::TestFolder,
    process,
    profile::Profile,
    scenario::{Bed, CLUSTER, Cast, NODES, blackout},
    vm::{Installation, System},
    wait,
    workload::{Client, Login, checker, now_nanos, postgres, writers::Writers},
};

use crate::{
    runbooks::follow,
    support::{SOON, inside},
};

/// What Debian calls the instance, and where it has it.
const UNIT: &str = "postgresql@17-main";
const DATA: &str = "/var/lib/postgresql/17/main";
const ETC: &str = "/etc/postgresql/17/main";
/// Rows to see between two things that are done.
const ROWS: usize = 200;
/// What no client may wait for a row: half a second of a shared machine's noise counts as nothing, as everywhere.
const LATE: Duration = Duration::from_millis(500);

/// Makes an instance that is not started, which others of the network reach.
fn make(system: &System) {
    system.run(&["pg_createcluster", "17", "main"]).unwrap();
    system.run(&["pg_conftool", "17", "main", "set", "listen_addresses", "*"]).unwrap();
    let rule = "host all,replication all samenet scram-sha-256";
    system.shell(&format!("echo '{rule}' >>{ETC}/pg_hba.conf")).unwrap();
}

/// Runs statements as the owner of the machine's instance; what they say.
fn sql(system: &System, statements: &[&str]) -> Result<String> {
    let psql = ["runuser", "--user", "postgres", "--", "psql", "--no-psqlrc", "--tuples-only", "--no-align"];
    let mut words = psql.to_vec();
    words.extend(["--set", "ON_ERROR_STOP=1"]);
    words.extend(statements.iter().flat_map(|statement| ["--command", *statement]));
    system.run(&words)
}

/// Host's id of the first process of the machine's instance, as the path at which Debian has its data says.
fn first_process(system: &System) -> Result<u32> {
    let pid = system.run(&["head", "--lines=1", &format!("{DATA}/postmaster.pid")])?;
    system.host_pid(pid.parse()?)
}

/// What Debian has on two machines: an instance with an application's database, and a replica that streams from it.
async fn debians_own(primary: &System, replica: &System, application: &Login) {
    make(primary);
    primary.run(&["systemctl", "start", UNIT]).unwrap();
    let Login { user, password, database } = application;
    sql(
        primary,
        &[
            &format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'"),
            &format!("CREATE DATABASE {database} OWNER {user}"),
            "CREATE ROLE stream LOGIN REPLICATION PASSWORD 'streams'",
        ],
    )
    .unwrap();
    make(replica);
    let copy = format!(
        "rm -r {DATA} && runuser --user postgres -- /usr/lib/postgresql/17/bin/pg_basebackup --pgdata {DATA} \
         --write-recovery-conf --checkpoint=fast --create-slot --slot=standby \
         --dbname 'host={} user=stream password=streams'",
        primary.name()
    );
    replica.shell(&copy).unwrap();
    replica.run(&["systemctl", "start", UNIT]).unwrap();
    wait::until("the replica's stream", SOON, || async {
        let streams = sql(primary, &["SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"])?;
        ensure!(streams == "1", "{streams} streams");
        Ok(())
    })
    .await
    .unwrap();
}

/// Each node has one engine, that which its agent knows, and none of Debian's units runs.
fn one_engine_on_each(bed: &Bed<Installation>, cast: &Cast) -> Result<()> {
    for actor in cast.members() {
        let system = bed.fleet.system(&actor.node)?;
        // Every other process of an engine is a child of its first one.
        let first = system.run(&["pgrep", "--exact", "--parent", "1", "postgres"])?;
        let known = system.host_pid(first.parse().with_context(|| format!("engines on {}: {first:?}", actor.node))?)?;
        ensure!(known == actor.engine, "the engine of {} is {}, and {known} runs", actor.node, actor.engine);
        let debian = system.shell(&format!("systemctl is-active {UNIT} || true"))?;
        ensure!(debian == "inactive", "Debian's unit is {debian} on {}", actor.node);
    }
    Ok(())
}

#[test]
fn what_debian_has_started_is_adopted_under_load_and_is_a_cluster_also_after_a_boot() {
    inside(|| async {
        let folder = TestFolder::new().unwrap();
        let installation = Installation::start(&folder).await.unwrap();
        let [primary, replica] = ["n1", "n2"].map(|node| installation.system(node).unwrap());
        let login = Login { user: "writer".into(), password: "of writer".into(), database: "shop".into() };
        debians_own(primary, replica, &login).await;
        let members = NODES.map(|node| format!("{node}:5432")).to_vec();
        postgres::create_table(&login, &members[0]).await.unwrap();
        let before = [primary, replica].map(|system| first_process(system).unwrap());
        let writers = Writers::start(&folder.join("writers"), &login, &members, true).unwrap();
        writers.acknowledged(0, ROWS, SOON).await.unwrap();

        let begin = now_nanos();
        let typed = |heading: &str, node: &str, member: &str| {
            let words = [("NAME", CLUSTER), ("PRIMARY", "n1"), ("REPLICA", "n2"), ("MEMBER", member)];
            follow(&installation, "adopt.md", heading, node, &words);
        };
        typed("Look first", "n1", "");
        typed("Adopt", "", "");
        let cluster = installation.api.healthy(CLUSTER, SOON).await.unwrap();
        writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
        let gaps = writers.unbroken(&["follower", "node-1"], LATE, begin, SOON).await.unwrap();
        println!("at most {gaps:.0?} ms without a row");
        assert_eq!((cluster.primary.as_str(), cluster.members.len()), ("db1", 2));
        for ((system, member), before) in [primary, replica].into_iter().zip(&cluster.members).zip(before) {
            assert_eq!(first_process(system).unwrap(), before, "{} was not started anew", system.name());
            let known = system.host_pid(api::engine_pid(member).unwrap()).unwrap();
            assert_eq!(known, before, "{}", system.name());
            let data = system.run(&["readlink", "--canonicalize", DATA]).unwrap();
            assert_eq!(data, format!("/var/lib/regent/engines/{CLUSTER}/data"));
        }

        let add = ["regentctl", "cluster", "add-member", CLUSTER, "--node", "n3"];
        installation.system(COORDINATOR).unwrap().run(&add).unwrap();
        typed("Restart a replica", "n2", "");
        installation.api.healthy(CLUSTER, SOON).await.unwrap();
        replica.run(&["systemctl", "is-active", &format!("regent-engine-{CLUSTER}")]).unwrap();

        // The primary is still the process that Debian has started.
        let killed = now_nanos();
        process::signal(before[0], Signal::SIGKILL).unwrap();
        installation.api.other_primary(CLUSTER, "db1", SOON).await.unwrap();
        writers.acknowledged_except(&members[0], killed, ROWS, SOON).await.unwrap();
        installation.api.complete(CLUSTER, SOON).await.unwrap();
        primary.run(&["systemctl", "is-active", &format!("regent-engine-{CLUSTER}")]).unwrap();
        typed("Restart the primary", "", "db1");
        writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
        let histories = writers.stop().await.unwrap();

        let mut bed =
            Bed { fleet: installation, client: Client::from(&login), members, profile: Profile::Standard, folder };
        assert_eq!(bed.healthy().await.unwrap().primary, "db1");
        let account = checker::account(&histories, &bed.same_on_all().await.unwrap());
        assert!(account.is_consistent(), "{account:?}");
        let lost = checker::acknowledged(&histories, &account.lost);
        // Asynchronous: what the dead primary had not yet sent.
        let with_it = lost.iter().all(|(_, at, member)| *member == bed.members[0] && *at < killed + 1_000_000_000);
        assert!(with_it && lost.len() <= 20, "{lost:?}");
        assert_eq!(checker::overlaps(&histories, 0, u64::MAX), []);

        let restarted = blackout(&mut bed, "restart", async |installation, _| {
            let everybody = [&NODES[..], &[COORDINATOR]].concat();
            installation.systems().switch_off(&everybody)?;
            let down = now_nanos();
            installation.systems().switch_on(&everybody)?;
            Ok(down)
        });
        restarted.await.unwrap();
        one_engine_on_each(&bed, &bed.cast().await.unwrap()).unwrap();
        for node in ["n1", "n2"] {
            let start = fs::read_to_string(bed.fleet.system(node).unwrap().path(&format!("{ETC}/start.conf"))).unwrap();
            assert!(start.lines().any(|line| line == "disabled"), "{start}");
        }
    });
}
