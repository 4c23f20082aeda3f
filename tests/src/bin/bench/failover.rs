//! `bench failover`: one fault, many times in one cluster: how long clients cannot write, and what becomes of their rows.

use anyhow::{Context, Result, ensure};
use regent_tests::{
    folder::TestFolder,
    place::Site,
    profile::Profile,
    scenario::{self, Bed, Measured, Scenario},
    workload::pgbench::Load,
};
use serde::Serialize;

use crate::{
    arguments::Arguments,
    report::{Head, Percentiles, print, say},
};

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    fault: &'static str,
    profile: Profile,
    write_outage_ms: Percentiles,
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere_ms: Option<Percentiles>,
    acknowledged: u64,
    lost: usize,
    duplicated: usize,
    unexpected: usize,
    overlap_ms: f64,
    /// Everything that is not as it is promised.
    complaints: Vec<String>,
    runs: Vec<Measured>,
}

/// What several runs have in common.
pub(crate) struct Summary {
    pub(crate) write_outage_ms: Percentiles,
    pub(crate) elsewhere_ms: Option<Percentiles>,
    pub(crate) acknowledged: u64,
    pub(crate) lost: usize,
    pub(crate) overlap_ms: f64,
    pub(crate) complaints: Vec<String>,
}

/// Sums runs up. Limits of time hold for the median; everything else for each run.
pub(crate) fn summary(scenario: &Scenario, profile: Profile, runs: &[Measured]) -> Result<Summary> {
    let of = |values: Vec<f64>| Percentiles::of(&values);
    let write_outage_ms = of(runs.iter().map(|run| run.write_outage_ms).collect()).context("there was no run")?;
    let mut complaints: Vec<String> = runs.iter().flat_map(|run| run.complaints(scenario, f64::INFINITY)).collect();
    if let Some(limit) = scenario.expected.outage.limit(profile).map(|limit| limit.as_secs_f64() * 1e3)
        && write_outage_ms.p50 > limit
    {
        complaints.push(format!("the median outage is {:.0} ms; at most {limit:.0}", write_outage_ms.p50));
    }
    Ok(Summary {
        write_outage_ms,
        elsewhere_ms: of(runs.iter().filter_map(|run| run.elsewhere_ms).collect()),
        acknowledged: runs.iter().map(|run| run.acknowledged).sum(),
        lost: runs.iter().map(|run| run.lost.len()).sum(),
        overlap_ms: runs.iter().map(|run| run.overlap_ms).fold(0.0, f64::max),
        complaints,
    })
}

pub(crate) async fn run(arguments: &Arguments, scenario: &'static Scenario, profile: Profile) -> Result<()> {
    say("starting a coordinator and three agents");
    let mut bed = if arguments.loopback {
        Bed::start_at(TestFolder::new()?, Site::Loopback, profile).await?
    } else {
        Bed::start(profile).await?
    };
    let load = match arguments.load.as_str() {
        "pgbench" => Some(Load::start(&bed.login, &bed.members, None).await?),
        _ => None,
    };
    let mut runs = Vec::new();
    for number in 1..=arguments.repetitions {
        let run = scenario::run(&mut bed, scenario, number, &arguments.settings()).await?;
        say(&format!("run {number}: {} -> {}, {:.0} ms", run.old_primary, run.new_primary, run.write_outage_ms));
        runs.push(run);
    }
    drop(load);
    let summary = summary(scenario, profile, &runs)?;
    let report = Report {
        head: Head::of(if scenario.is_planned() { "switchover" } else { "failover" }, arguments),
        fault: scenario.name,
        profile,
        write_outage_ms: summary.write_outage_ms,
        elsewhere_ms: summary.elsewhere_ms,
        acknowledged: summary.acknowledged,
        lost: summary.lost,
        duplicated: runs.iter().map(|run| run.duplicated).sum(),
        unexpected: runs.iter().map(|run| run.unexpected).sum(),
        overlap_ms: summary.overlap_ms,
        complaints: summary.complaints,
        runs,
    };
    print(&report, arguments.json)?;
    let broken: Vec<_> = report.runs.iter().flat_map(Measured::violations).collect();
    ensure!(broken.is_empty(), "safety was violated: {}", broken.join("; "));
    Ok(())
}
