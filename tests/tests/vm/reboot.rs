//! Every machine goes down at once: told to restart, or without its power. The cluster comes back by itself, as a boot starts
//! nothing but Regent's daemons, and those start one engine on each node, whose port is closed before it listens to whom the
//! allow-list does not name.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api::request_id,
    cluster::{COORDINATOR, CREATE},
    network::{HUB_ADDRESS, Knocking},
    scenario::{Bed, CLUSTER, Cast, Engine, NODES, Rig, Who, blackout},
    vm::{CLIENT, Installation},
    workload::now_nanos,
};

use crate::support::{PROFILE, inside};

/// How long a client may take to be let in where nothing keeps it out.
const OPEN: Duration = Duration::from_secs(2);

/// Each node has one engine, that which its agent started, and Debian knows of no other.
fn one_engine_on_each(bed: &Bed<Installation>, cast: &Cast) -> Result<()> {
    for actor in cast.members() {
        let system = bed.fleet.system(&actor.node)?;
        // Every other process of an engine is a child of its first one.
        let first = system.run(&["pgrep", "--exact", "--parent", "1", "postgres"])?;
        let known = system.host_pid(first.parse().with_context(|| format!("engines on {}: {first:?}", actor.node))?)?;
        ensure!(known == actor.engine, "the engine of {} is {}, and {known} runs", actor.node, actor.engine);
        let debian = system.run(&["pg_lsclusters", "--no-header"])?;
        ensure!(debian.is_empty(), "Debian knows of an instance on {}: {debian}", actor.node);
    }
    Ok(())
}

/// Names the test's own clients as the only ones that may connect.
async fn allow_only_the_test(bed: &Bed<Installation>) -> Result<()> {
    let request = wire::SetAllowListRequest {
        name: format!("clusters/{CLUSTER}"),
        change: wire::AllowListChange::Set.into(),
        ranges: vec![HUB_ADDRESS.to_owned()],
        request_id: request_id(),
        ..Default::default()
    };
    let begun = bed.fleet.api().clusters().set_allow_list(request).await?.into_inner();
    bed.fleet.api().succeed(&begun.name, CREATE).await.map(drop)
}

/// Where the engines listen. Members are known by the names of their machines.
fn doors(bed: &Bed<Installation>) -> Result<Vec<SocketAddr>> {
    let door = |member: &String| {
        let (node, port) = member.rsplit_once(':').context("a member is given as host:port")?;
        Ok(format!("{}:{port}", bed.fleet.system(node)?.machine().address()).parse()?)
    };
    bed.members.iter().map(door).collect()
}

/// All machines, by name, the coordinator's last.
fn everybody() -> Vec<&'static str> {
    [&NODES[..], &[COORDINATOR]].concat()
}

#[test]
fn machines_that_all_restart_or_lose_power_at_once_come_back_as_the_cluster_they_were() {
    inside(|| async {
        let mut bed = Installation::bed(Engine::Postgresql, PROFILE).await.unwrap();
        let (client, doors) = (bed.fleet.system(CLIENT).unwrap().machine(), doors(&bed).unwrap());
        for door in &doors {
            drop(client.connect(*door, OPEN).unwrap());
        }
        allow_only_the_test(&bed).await.unwrap();
        let knocking = doors.iter().map(|door| Knocking::start(Arc::clone(client), *door)).collect::<Vec<_>>();
        one_engine_on_each(&bed, &bed.cast().await.unwrap()).unwrap();

        let restarted = blackout(&mut bed, "restart", async |installation, _| {
            installation.systems().switch_off(&everybody())?;
            let down = now_nanos();
            installation.systems().switch_on(&everybody())?;
            Ok(down)
        });
        restarted.await.unwrap();
        one_engine_on_each(&bed, &bed.cast().await.unwrap()).unwrap();

        let cut = blackout(&mut bed, "cut", async |installation, cast| {
            for name in everybody() {
                installation.power_off(name)?;
            }
            let down = now_nanos();
            // The old primary first: it has to wait for those who know whether it is one still.
            for who in [Who::Primary, Who::FirstReplica, Who::SecondReplica, Who::Coordinator] {
                installation.power_on(cast.machine(who))?;
            }
            Ok(down)
        });
        cut.await.unwrap();
        one_engine_on_each(&bed, &bed.cast().await.unwrap()).unwrap();
        for knocking in knocking {
            let (let_in, tries) = knocking.end();
            assert!(let_in == 0 && tries > 100, "let in {let_in} times of {tries}");
        }
    });
}
