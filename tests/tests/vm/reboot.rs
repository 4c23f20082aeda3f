//! Every machine goes down at once: told to restart, or without its power. The cluster comes back by itself, as a boot starts
//! nothing but Regent's daemons, and those start one engine on each node.

use anyhow::{Context, Result, ensure};
use regent_tests::{
    cluster::COORDINATOR,
    scenario::{Bed, Cast, NODES, Rig, Who, blackout},
    vm::Installation,
    workload::now_nanos,
};

use crate::support::{PROFILE, inside};

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

/// All machines, by name, the coordinator's last.
fn everybody() -> Vec<&'static str> {
    [&NODES[..], &[COORDINATOR]].concat()
}

#[test]
fn machines_that_all_restart_or_lose_power_at_once_come_back_as_the_cluster_they_were() {
    inside(|| async {
        let mut bed = Installation::bed(PROFILE).await.unwrap();
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
    });
}
