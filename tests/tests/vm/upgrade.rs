//! The agent's package is installed anew on every member while clients write: engines run on, nobody takes over, and clients
//! notice nothing.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use regent_tests::{
    api,
    cluster::run,
    scenario::{Bed, Cast, Engine, NODES, Rig},
    vm::{Installation, PACKAGES, System},
    workload::{checker, now_nanos, writers::Writers},
};

use crate::support::{PROFILE, SOON, inside};

/// What no client may wait for a row: half a second of a shared machine's noise counts as nothing, as everywhere. What it comes to is
/// printed, and is well below 200 ms on a machine with nothing else to do.
const LONGEST_PAUSE_MS: f64 = 500.0;
/// Rows that are to be seen after each installation.
const ROWS: usize = 200;
/// Version of the newer package: the same programs under a higher number.
const NEWER: &str = "0.1.0-1+newer";

/// Makes the newer package in a folder, from the one that is installed.
fn newer_package(folder: &Path, package: &Path) -> Result<()> {
    let content = folder.join("content");
    let dpkg = |words: &[&Path]| {
        let mut command = Command::new("dpkg-deb");
        command.args(words);
        run(command)
    };
    dpkg(&["--raw-extract".as_ref(), package, &content])?;
    let control = content.join("DEBIAN/control");
    let lines = fs::read_to_string(&control)?;
    let lines = lines
        .lines()
        .map(|line| if line.starts_with("Version:") { format!("Version: {NEWER}") } else { line.to_owned() });
    fs::write(&control, lines.map(|line| line + "\n").collect::<String>())?;
    dpkg(&["-Zgzip".as_ref(), "--build".as_ref(), &content, &folder.join("newer.deb")]).map(drop)
}

/// Process ids of all agents, on their machines.
fn agents(bed: &Bed<Installation>) -> Vec<u32> {
    NODES.map(|node| bed.fleet.daemon_pid(node).unwrap()).to_vec()
}

fn version(system: &System) -> String {
    system.run(&["dpkg-query", "--show", "--showformat", "${Version} ${Status}", "regent-agent"]).unwrap()
}

/// Nothing happened to the cluster: the same members in the same parts, with the same engines.
async fn nothing_happened(bed: &Bed<Installation>, before: &Cast) -> Result<()> {
    let after = bed.cast().await?;
    ensure!(after == *before, "before {before:?}\nafter {after:?}");
    let failovers = bed.fleet.api.operations_of(regent_tests::scenario::CLUSTER, "failover").await?;
    ensure!(failovers.is_empty(), "{}", failovers.iter().map(api::describe).collect::<String>());
    Ok(())
}

#[test]
fn a_package_installed_anew_under_load_is_noticed_by_nobody() {
    inside(|| async {
        let bed = Installation::bed(Engine::Postgresql, PROFILE).await.unwrap();
        let before = bed.cast().await.unwrap();
        let package = fs::read_dir(bed.fleet.system(NODES[0]).unwrap().packages()).unwrap().flatten().map(|e| e.path());
        let package = package.filter(|path| path.display().to_string().contains("regent-agent_")).max().unwrap();
        newer_package(bed.folder.path(), &package).unwrap();
        for node in NODES {
            let newer = bed.fleet.system(node).unwrap().path("/root/newer.deb");
            fs::copy(bed.folder.join("newer.deb"), newer).unwrap();
        }
        let mut writers = Writers::start(&bed.folder.join("writers"), &bed.client, &bed.members, true).unwrap();
        for actor in before.members() {
            writers.add_patient(&format!("patient-{}", actor.node), &actor.endpoint).unwrap();
        }
        writers.acknowledged(0, ROWS, SOON).await.unwrap();

        let installed = format!("{PACKAGES}/{}", package.file_name().unwrap().to_string_lossy());
        let again = format!("apt-get install --yes --quiet --reinstall {installed}");
        let upgrade = "apt-get install --yes --quiet /root/newer.deb".to_owned();
        let downgrade = format!("apt-get install --yes --quiet --allow-downgrades {installed}");
        for (what, line) in [("again", again), ("upgrade", upgrade), ("downgrade", downgrade)] {
            let old = agents(&bed);
            let begin = now_nanos();
            for actor in [&before.first, &before.second, &before.primary] {
                bed.fleet.system(&actor.node).unwrap().shell(&line).unwrap();
                bed.fleet.all_connected().await.unwrap();
                writers.acknowledged(now_nanos(), ROWS, SOON).await.unwrap();
            }
            let end = now_nanos();
            nothing_happened(&bed, &before).await.with_context(|| what).unwrap();
            let new = agents(&bed);
            assert!(old.iter().zip(&new).all(|(old, new)| old != new), "{what}: the same agents run: {old:?} {new:?}");
            let expected = if what == "upgrade" { NEWER } else { "0.1.0-1" };
            for node in NODES {
                assert_eq!(version(bed.fleet.system(node).unwrap()), format!("{expected} install ok installed"));
            }
            let pause = checker::longest_gap(&writers.histories().unwrap(), begin, end).millis();
            println!("{what}: at most {pause:.0} ms without an acknowledged row");
            assert!(pause <= LONGEST_PAUSE_MS, "{what}: no writes for {pause:.0} ms");
        }

        let histories = writers.stop().await.unwrap();
        let account = checker::account(&histories, &bed.same_on_all().await.unwrap());
        assert!(account.lost.is_empty() && account.is_consistent(), "{account:?}");
        assert_eq!(checker::overlaps(&histories, 0, u64::MAX), []);
    });
}
