//! `bench failover`: one fault, many times in one cluster: how long clients cannot write, and what becomes of their rows.

use anyhow::{Context, Result, ensure};
use regent_tests::{
    folder::TestFolder,
    place::Site,
    profile::Profile,
    scenario::{self, Bed, Engine, Measured, Outage, Scenario},
    workload::{Dialect, pgbench::Load},
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

/// How long clients may be unable to write, in milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Of the median.
    pub(crate) p50: f64,
    /// Of all but the slowest run of twenty, where there is such a limit.
    pub(crate) p95: Option<f64>,
}

/// What a scenario's outage is held to; `None` where the fault's own end is the limit.
pub(crate) fn limits(scenario: &Scenario, engine: Engine, profile: Profile) -> Option<Limits> {
    let outage = scenario.expected.outage;
    let usual = outage.limit(profile).map(|limit| Limits { p50: limit.as_secs_f64() * 1e3, p95: None });
    match (engine.dialect(), outage) {
        // Nothing has to reach a disk on the way.
        (Dialect::Redis, Outage::EngineDied) => Some(Limits { p50: 100.0, p95: Some(300.0) }),
        (Dialect::Redis, Outage::Planned) => Some(Limits { p50: 100.0, p95: None }),
        (Dialect::Postgres | Dialect::Redis, _) => usual,
    }
}

/// Sums runs up. Limits of time hold for the median, or for most; everything else for each run.
pub(crate) fn summary(scenario: &Scenario, limits: Option<Limits>, runs: &[Measured]) -> Result<Summary> {
    let of = |values: Vec<f64>| Percentiles::of(&values);
    let write_outage_ms = of(runs.iter().map(|run| run.write_outage_ms).collect()).context("there was no run")?;
    let mut complaints: Vec<String> = runs.iter().flat_map(|run| run.complaints(scenario, f64::INFINITY)).collect();
    let (p50, p95) = limits.map_or((None, None), |limits| (Some(limits.p50), limits.p95));
    let measured = [("the median", write_outage_ms.p50, p50), ("the 95th percentile", write_outage_ms.p95, p95)];
    for (which, outage, limit) in measured {
        if let Some(limit) = limit
            && outage > limit
        {
            complaints.push(format!("{which} of the outage is {outage:.0} ms; at most {limit:.0}"));
        }
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
        Bed::start_at(TestFolder::new()?, Site::Loopback, arguments.engine, profile).await?
    } else {
        Bed::start(arguments.engine, profile).await?
    };
    let load = match arguments.load.as_str() {
        "pgbench" => Some(Load::start(&bed.client.login, &bed.members, None).await?),
        _ => None,
    };
    let mut runs = Vec::new();
    for number in 1..=arguments.repetitions {
        let run = scenario::run(&mut bed, scenario, number, &arguments.settings()).await?;
        say(&format!("run {number}: {} -> {}, {:.0} ms", run.old_primary, run.new_primary, run.write_outage_ms));
        runs.push(run);
    }
    drop(load);
    let summary = summary(scenario, limits(scenario, arguments.engine, profile), &runs)?;
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
