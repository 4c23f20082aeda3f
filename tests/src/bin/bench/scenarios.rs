//! `bench scenarios`: the table of everything that can happen, for each profile: what clients felt, and what is wrong.

use std::io::Write;

use anyhow::{Result, ensure};
use regent_tests::{
    profile::Profile,
    scenario::{self, Bed, Measured, Scenario},
};
use serde::Serialize;

use crate::{
    arguments::Arguments,
    failover::{limits, summary},
    report::{Head, Percentiles, print, say},
};

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    scenarios: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    fault: &'static str,
    about: &'static str,
    profile: Profile,
    /// Whether another member is to become the primary.
    failover_expected: bool,
    /// What the median outage may be; absent where the fault's own end is the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    write_outage_ms: Option<Percentiles>,
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere_ms: Option<Percentiles>,
    acknowledged: u64,
    lost: usize,
    overlap_ms: f64,
    complaints: Vec<String>,
    runs: Vec<Measured>,
}

/// Runs one scenario as often as is wanted; a bed that does not get well again is replaced.
async fn repeat(
    arguments: &Arguments,
    bed: &mut Option<Bed>,
    scenario: &'static Scenario,
    profile: Profile,
) -> Result<(Vec<Measured>, Vec<String>)> {
    let (mut runs, mut broken) = (Vec::new(), Vec::new());
    for number in 1..=arguments.repetitions {
        let mut used = match bed.take() {
            Some(used) => used,
            None => Bed::start(arguments.engine, profile).await?,
        };
        match scenario::run(&mut used, scenario, number, &arguments.settings()).await {
            Ok(run) => {
                runs.push(run);
                *bed = Some(used);
            }
            Err(error) => broken.push(format!("run {number} did not get well again: {error:#}")),
        }
    }
    Ok((runs, broken))
}

pub(crate) async fn run(arguments: &Arguments, wanted: &[&'static Scenario]) -> Result<()> {
    let mut rows = Vec::new();
    for profile in &arguments.profile {
        let mut bed = None;
        for scenario in wanted {
            say(&format!("{}, {}: {}", scenario.name, profile.name(), scenario.about));
            let (runs, mut complaints) = repeat(arguments, &mut bed, scenario, *profile).await?;
            let limits = limits(scenario, arguments.engine, *profile);
            let mut row = Row {
                fault: scenario.name,
                about: scenario.about,
                profile: *profile,
                failover_expected: scenario.expected.failover,
                limit_ms: limits.map(|limits| limits.p50),
                write_outage_ms: None,
                elsewhere_ms: None,
                acknowledged: 0,
                lost: 0,
                overlap_ms: 0.0,
                complaints: Vec::new(),
                runs: Vec::new(),
            };
            if !runs.is_empty() {
                let summary = summary(scenario, limits, &runs)?;
                complaints.extend(summary.complaints);
                row.write_outage_ms = Some(summary.write_outage_ms);
                row.elsewhere_ms = summary.elsewhere_ms;
                row.acknowledged = summary.acknowledged;
                row.lost = summary.lost;
                row.overlap_ms = summary.overlap_ms;
            }
            rows.push(Row { complaints, runs, ..row });
        }
    }
    let report = Report { head: Head::of("scenarios", arguments), scenarios: rows };
    if arguments.json {
        print(&report, true)?
    } else {
        table(&report)?
    }
    let wrong: usize = report.scenarios.iter().map(|row| row.complaints.len()).sum();
    ensure!(wrong == 0, "{wrong} things are not as they are promised");
    Ok(())
}

/// The table for people.
fn table(report: &Report) -> Result<()> {
    let mut out = std::io::stdout();
    let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.0}"));
    writeln!(
        out,
        "{:<29} {:<9} {:>8} {:>7} {:>7} {:>7} {:>9} {:>8} {:>6} {:>7}  result",
        "fault", "profile", "failover", "p50 ms", "max ms", "limit", "elsewhere", "written", "lost", "overlap"
    )?;
    for row in &report.scenarios {
        let failovers = row.runs.iter().filter(|run| run.new_primary != run.old_primary).count();
        let line = format!(
            "{:<29} {:<9} {:>8} {:>7} {:>7} {:>7} {:>9} {:>8} {:>6} {:>7.1}  {}",
            row.fault,
            row.profile.name(),
            format!("{failovers}/{}", row.runs.len()),
            cell(row.write_outage_ms.map(|of| of.p50)),
            cell(row.write_outage_ms.map(|of| of.max)),
            cell(row.limit_ms),
            cell(row.elsewhere_ms.map(|of| of.p50)),
            row.acknowledged,
            row.lost,
            row.overlap_ms,
            if row.complaints.is_empty() { "ok" } else { "WRONG" },
        );
        writeln!(out, "{line}")?;
        for complaint in &row.complaints {
            writeln!(out, "    {complaint}")?;
        }
    }
    Ok(())
}
