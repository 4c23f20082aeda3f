//! `bench failover`: how long clients cannot write when the primary fails, and what becomes of their rows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use regent_tests::{
    api,
    cluster::Fleet,
    folder::TestFolder,
    process,
    workload::{
        checker::{self, Row},
        now_nanos, postgres,
        writers::Writers,
    },
};
use serde::Serialize;

use crate::{
    arguments::Arguments,
    report::{Percentiles, print, say},
};

const CLUSTER: &str = "bench";
const DEADLINE: Duration = Duration::from_secs(120);
/// Rows to see before and after each fault.
const ROWS: usize = 300;
/// Acknowledgements from so long before the fault count for the outage.
const BEFORE: Duration = Duration::from_millis(200);

#[derive(Debug, Serialize)]
struct Report {
    bench: &'static str,
    engine: String,
    fault: String,
    profile: String,
    load: String,
    repetitions: u32,
    write_outage_ms: Percentiles,
    acknowledged: u64,
    lost: usize,
    lost_rows: Vec<Row>,
    duplicated: usize,
    unexpected: usize,
    overlap_ms: f64,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    old_primary: String,
    new_primary: String,
    write_outage_ms: f64,
    overlap_ms: f64,
    /// From the fault until the old primary was a healthy replica again.
    back_to_full_strength_ms: f64,
}

pub(crate) async fn run(arguments: &Arguments, fault: &str) -> Result<()> {
    let folder = TestFolder::new()?;
    say("starting a coordinator and three agents");
    let fleet = Fleet::start(&folder, &["n1", "n2", "n3"]).await?;
    let cluster = fleet.create(CLUSTER, &arguments.engine, &["n1", "n2", "n3"]).await?;
    let (login, members) = (fleet.api.login(CLUSTER).await?, api::endpoints(&cluster)?);
    postgres::create_table(&login, &postgres::find_primary(&login, &members).await?).await?;
    let writers = Writers::start(&folder.join("writers"), &login, &members, true)?;
    let mut windows = Vec::new();
    for number in 1..=arguments.repetitions {
        writers.acknowledged(now_nanos(), ROWS, DEADLINE).await?;
        let cluster = fleet.api.healthy(CLUSTER, DEADLINE).await?;
        let old = cluster.primary.clone();
        let pid = api::engine_pid(api::member(&cluster, &old)?)?;
        let at = now_nanos();
        process::signal(pid, Signal::SIGKILL)?;
        let new = fleet.api.other_primary(CLUSTER, &old, DEADLINE).await?.primary;
        writers.acknowledged(now_nanos(), ROWS, DEADLINE).await?;
        fleet.api.healthy(CLUSTER, DEADLINE).await?;
        let until = now_nanos();
        let gap = checker::longest_gap(&[writers.follower()?], at - nanos(BEFORE), until);
        say(&format!("run {number}: {old} -> {new}, {:.0} ms", gap.millis()));
        windows.push((old, new, at, until));
    }
    let histories = writers.stop().await?;
    let stored = postgres::read_rows(&login, &postgres::find_primary(&login, &members).await?).await?;
    let account = checker::account(&histories, &stored);
    let follower: Vec<_> = histories.iter().filter(|history| history.writer == "follower").cloned().collect();
    let millis = |from: u64, until: u64| checker::Gap { from, until }.millis();
    let runs: Vec<Run> = windows
        .into_iter()
        .map(|(old_primary, new_primary, at, until)| Run {
            old_primary,
            new_primary,
            write_outage_ms: checker::longest_gap(&follower, at - nanos(BEFORE), until).millis(),
            overlap_ms: checker::overlaps(&histories, at - nanos(BEFORE), until)
                .first()
                .map_or(0.0, |o| millis(0, o.nanos)),
            back_to_full_strength_ms: millis(at, until),
        })
        .collect();
    let outages: Vec<f64> = runs.iter().map(|run| run.write_outage_ms).collect();
    let report = Report {
        bench: "failover",
        engine: arguments.engine.clone(),
        fault: fault.to_owned(),
        profile: arguments.profile.clone(),
        load: arguments.load.clone(),
        repetitions: arguments.repetitions,
        write_outage_ms: Percentiles::of(&outages).context("there was a run")?,
        acknowledged: account.acknowledged,
        lost: account.lost.len(),
        duplicated: account.duplicated.len(),
        unexpected: account.unexpected.len(),
        lost_rows: account.lost,
        overlap_ms: runs.iter().map(|run| run.overlap_ms).fold(0.0, f64::max),
        runs,
    };
    print(&report, arguments.json)?;
    ensure!(report.overlap_ms == 0.0, "two members acknowledged writes at the same time");
    ensure!(report.duplicated == 0 && report.unexpected == 0, "rows are there that nobody was told of");
    Ok(())
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a short time fits")
}
