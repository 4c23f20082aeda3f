//! `bench idle`: what the daemons use of the machine while nothing happens: memory and processor time.

use std::{fs, time::Duration};

use anyhow::{Context, Result};
use regent_tests::{cluster::Fleet, folder::TestFolder, scenario::Engine, workload::now_nanos};
use serde::Serialize;

use crate::{
    arguments::Arguments,
    report::{print, say},
};

/// After the creation of the cluster, until everything has calmed down.
const CALM: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    engine: Engine,
    build: &'static str,
    seconds: u64,
    /// The largest of the agents.
    agent_rss_mib: f64,
    coordinator_rss_mib: f64,
    /// The busiest of the agents, in percent of one processor.
    agent_cpu_percent: f64,
    coordinator_cpu_percent: f64,
}

/// Processor time of a process so far, in ticks (user and system).
fn ticks(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in brackets, in which anything can stand.
    let (_, rest) = stat.rsplit_once(") ").context("not a stat line")?;
    let field = |number: usize| -> Result<u64> { Ok(rest.split(' ').nth(number).context("a short line")?.parse()?) };
    Ok(field(11)? + field(12)?)
}

/// Resident memory in MiB.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let folder = TestFolder::new()?;
    say("starting a coordinator and three agents");
    let fleet = Fleet::start(&folder, &["n1", "n2", "n3"]).await?;
    fleet.create("bench", arguments.engine.name(), &["n1", "n2", "n3"]).await?;
    tokio::time::sleep(CALM).await;
    say(&format!("measuring over {} s", arguments.seconds));
    let coordinator = fleet.coordinator.pid()?;
    let agents = fleet.agents.values().map(|agent| agent.pid()).collect::<Result<Vec<_>>>()?;
    let pids: Vec<u32> = [coordinator].into_iter().chain(agents).collect();
    let (from, before) = (now_nanos(), pids.iter().map(|pid| ticks(*pid)).collect::<Result<Vec<_>>>()?);
    tokio::time::sleep(Duration::from_secs(arguments.seconds)).await;
    let after = pids.iter().map(|pid| ticks(*pid)).collect::<Result<Vec<_>>>()?;
    let seconds = Duration::from_nanos(now_nanos() - from).as_secs_f64();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("Linux has ticks")?;
    #[expect(clippy::cast_precision_loss, reason = "a minute's ticks are few")]
    let percent: Vec<f64> = before
        .iter()
        .zip(&after)
        .map(|(before, after)| (after - before) as f64 / per_second as f64 / seconds * 100.0)
        .collect();
    let memory = pids.iter().map(|pid| resident(*pid)).collect::<Result<Vec<_>>>()?;
    let largest = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let report = Report {
        bench: "idle",
        engine: arguments.engine,
        build: if cfg!(debug_assertions) { "debug" } else { "release" },
        seconds: arguments.seconds,
        agent_rss_mib: largest(&memory[1..]),
        coordinator_rss_mib: memory[0],
        agent_cpu_percent: largest(&percent[1..]),
        coordinator_cpu_percent: percent[0],
    };
    print(&report, arguments.json)
}
