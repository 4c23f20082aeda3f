//! Debian's own Redis and a replica of it, as the package configures and starts them, become a cluster while clients write. Its unit
//! keeps it from most of the machine, and has to let it go on where Regent has put its data. From the next boot on nobody but the
//! agents starts an engine.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use regent_tests::{
    api,
    cluster::COORDINATOR,
    folder::TestFolder,
    process,
    scenario::{CLUSTER, NODES, Rig},
    vm::{Installation, System},
    wait,
    workload::{Client, Login, checker, client::Dialect, now_nanos, writers::Writers},
};

use crate::{
    runbooks::follow,
    support::{SOON, inside},
};

/// What Debian calls the instance, and where it has it.
const UNIT: &str = "redis-server";
const DATA: &str = "/var/lib/redis";
const CONFIGURATION: &str = "/etc/redis/redis.conf";
const SOCKET: &str = "/run/redis/redis-server.sock";
/// The instance's own password.
const PASSWORD: &str = "of-default";
/// Rows to see between two things that are done.
const ROWS: usize = 200;
/// What no client may wait for a row: half a second of a shared machine's noise counts as nothing, as everywhere.
const LATE: Duration = Duration::from_millis(500);

/// Asks the machine's instance as its administrator, over its socket.
fn ask(system: &System, words: &[&str]) -> Result<String> {
    let asked = ["redis-cli", "-s", SOCKET, "--no-auth-warning", "-a", PASSWORD];
    system.run(&[&asked[..], words].concat())
}

/// Adds to Debian's configuration what an administrator would, and has Debian's unit start it.
async fn start(system: &System, upstream: Option<&System>, application: &Login) {
    let Login { user, password, .. } = application;
    let upstream = upstream.map_or(String::new(), |upstream| format!("replicaof {} 6379\n", upstream.name()));
    let more = format!(
        "bind * -::*\nunixsocket {SOCKET}\nrequirepass {PASSWORD}\nmasterauth {PASSWORD}\nsave 1 1\n\
         user {user} on >{password} ~* &* +@all\n{upstream}"
    );
    system.shell(&format!("cat >>{CONFIGURATION} <<'END'\n{more}END")).unwrap();
    // The image's own folder cannot be renamed: on a machine's disk there is no layer below it.
    system
        .shell(&format!("rm -r {DATA} && install --directory --owner=redis --group=redis --mode=0750 {DATA}"))
        .unwrap();
    system.run(&["systemctl", "enable", "--now", UNIT]).unwrap();
    let wanted = if upstream.is_empty() { "role:master" } else { "master_link_status:up" };
    wait::until("Debian's instance", SOON, || async {
        let info = ask(system, &["INFO", "replication"])?;
        ensure!(info.lines().any(|line| line.trim_end() == wanted), "{info}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Host's id of the only engine of the machine; what it forks to write a snapshot is its child.
fn only_engine(system: &System) -> Result<u32> {
    let pids = system.run(&["pgrep", "--exact", "--parent", "1", "redis-server"])?;
    system.host_pid(pids.parse().with_context(|| format!("engines on {}: {pids:?}", system.name()))?)
}

/// Each node has one engine, that which its agent knows, and none of Debian's units runs.
async fn one_engine_on_each(installation: &Installation) -> Result<()> {
    let cluster = installation.api.cluster(CLUSTER).await?;
    for member in &cluster.members {
        let system = installation.system(api::plain(&member.node))?;
        let known = system.host_pid(api::engine_pid(member)?)?;
        ensure!(known == only_engine(system)?, "the engine of {} is another one", member.name);
        let debian = system.shell(&format!("systemctl is-active {UNIT} || true"))?;
        ensure!(debian != "active", "Debian's unit is {debian} on {}", member.node);
    }
    Ok(())
}

/// Waits until the machine's engine has written a snapshot since then (seconds since 1970), to where its data is now.
async fn a_snapshot_since(system: &System, since: u64, application: &Login) {
    let Login { user, password, .. } = application;
    let asked = ["redis-cli", "--no-auth-warning", "--user", user, "-a", password, "INFO", "persistence"];
    wait::until("a snapshot", SOON, || async {
        let info = system.run(&asked)?;
        let last = info.lines().find_map(|line| line.strip_prefix("rdb_last_save_time:")).context("no time")?;
        ensure!(last.trim().parse::<u64>()? > since && info.contains("rdb_last_bgsave_status:ok"), "{info}");
        Ok(())
    })
    .await
    .unwrap();
    let written = system.run(&["stat", "--format=%Y", &format!("/var/lib/regent/engines/{CLUSTER}/data/dump.rdb")]);
    assert!(written.unwrap().parse::<u64>().unwrap() > since, "it was written elsewhere");
}

#[test]
fn what_debian_has_started_is_adopted_under_load_and_is_a_cluster_also_after_a_boot() {
    inside(|| async {
        let folder = TestFolder::new().unwrap();
        let mut installation = Installation::start(&folder).await.unwrap();
        let login = Login { user: "writer".into(), password: "of-writer".into(), database: "0".into() };
        let client = Client { dialect: Dialect::Redis, login: login.clone() };
        let [primary, replica] = ["n1", "n2"].map(|node| installation.system(node).unwrap());
        start(primary, None, &login).await;
        start(replica, Some(primary), &login).await;
        let members = NODES.map(|node| format!("{node}:6379")).to_vec();
        client.make_room(&members[0]).await.unwrap();
        let before = [primary, replica].map(|system| only_engine(system).unwrap());
        let writers = Writers::start(&folder.join("writers"), &client, &members, true).unwrap();
        writers.acknowledged(0, ROWS, SOON).await.unwrap();

        let begin = now_nanos();
        let words = [("NAME", CLUSTER), ("PRIMARY", "n1"), ("REPLICA", "n2")];
        follow(&installation, "adopt.md", "Adopt", "", &words);
        let cluster = installation.api.healthy(CLUSTER, SOON).await.unwrap();
        writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
        let gaps = writers.unbroken(&["follower", "node-1"], LATE, begin, SOON).await.unwrap();
        println!("at most {gaps:.0?} ms without a row");
        assert_eq!((cluster.primary.as_str(), cluster.members.len()), ("db1", 2));
        for (system, before) in [primary, replica].into_iter().zip(before) {
            assert_eq!(only_engine(system).unwrap(), before, "{} was started anew", system.name());
            let data = system.run(&["readlink", "--canonicalize", DATA]).unwrap();
            assert_eq!(data, format!("/var/lib/regent/engines/{CLUSTER}/data"));
            follow(&installation, "adopt-redis.md", "What becomes of it", system.name(), &[]);
        }

        // The third is copied from the primary, whose process still is the one in Debian's unit.
        let add = ["regentctl", "cluster", "add-member", CLUSTER, "--node", "n3"];
        installation.system(COORDINATOR).unwrap().run(&add).unwrap();
        installation.api.complete(CLUSTER, SOON).await.unwrap();
        let adopted = primary.run(&["date", "+%s"]).unwrap().parse().unwrap();
        for system in [primary, replica] {
            a_snapshot_since(system, adopted, &login).await;
        }

        replica.run(&["systemctl", "stop", UNIT]).unwrap();
        installation.api.complete(CLUSTER, SOON).await.unwrap();
        replica.run(&["systemctl", "is-active", &format!("regent-engine-{CLUSTER}")]).unwrap();
        let killed = now_nanos();
        process::signal(before[0], Signal::SIGKILL).unwrap();
        installation.api.other_primary(CLUSTER, "db1", SOON).await.unwrap();
        writers.acknowledged_except(&members[0], killed, ROWS, SOON).await.unwrap();
        installation.api.complete(CLUSTER, SOON).await.unwrap();
        primary.run(&["systemctl", "is-active", &format!("regent-engine-{CLUSTER}")]).unwrap();

        let histories = writers.stop().await.unwrap();
        let account = checker::account(&histories, &client.same_on_all(&members, SOON).await.unwrap());
        assert!(account.is_consistent(), "{account:?}");
        // Asynchronous: what the dead primary had not yet sent.
        assert!(account.lost.len() <= 20, "{:?}", account.lost);
        assert_eq!(checker::overlaps(&histories, 0, u64::MAX), []);

        let everybody = [&NODES[..], &[COORDINATOR]].concat();
        installation.systems().switch_off(&everybody).unwrap();
        installation.systems().switch_on(&everybody).unwrap();
        installation.reconnect().await.unwrap();
        installation.api.complete(CLUSTER, SOON).await.unwrap();
        one_engine_on_each(&installation).await.unwrap();
        let after = client.same_on_all(&members, SOON).await.unwrap();
        let account = checker::account(&histories, &after);
        assert!(account.is_consistent() && account.lost.len() <= 20, "{account:?}");
    });
}
