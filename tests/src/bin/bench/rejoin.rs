//! `bench rejoin`: the primary's engine is killed; how long until the former primary is in service again, and by which way: as
//! a replica that follows, is rewound or cloned, or restarted as the primary, where no replica was near enough to take over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::Fleet,
    folder::TestFolder,
    process, wait,
    workload::{now_nanos, pgbench::Load},
};
use serde::Serialize;

use crate::{
    arguments::Arguments,
    report::{Head, Percentiles, print, say},
};

const CLUSTER: &str = "bench";
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// How long the cluster is left alone, and loaded, before the next run.
const AT_REST: Duration = Duration::from_secs(5);
/// How long a member may take to be back.
const LONG: Duration = Duration::from_secs(300);

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    /// From the death of the engine until its copy is in service again.
    back_ms: Percentiles,
    /// What of that the operation took.
    operation_ms: Percentiles,
    /// How often by which way.
    ways: BTreeMap<String, u32>,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    back_ms: f64,
    operation_ms: f64,
    /// Each step of it.
    steps_ms: Vec<(String, f64)>,
    report: Vec<String>,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    say("starting a coordinator and three agents");
    let folder = TestFolder::new()?;
    let fleet = Fleet::start(&folder, &NODES).await?;
    let cluster = fleet.create(CLUSTER, arguments.engine.name(), &NODES).await?;
    let load = match arguments.load.as_str() {
        "pgbench" => Some(Load::start(&fleet.api.login(CLUSTER).await?, &api::endpoints(&cluster)?, None).await?),
        _ => None,
    };
    let mut runs = Vec::new();
    for number in 1..=arguments.repetitions {
        let run = once(&fleet).await?;
        say(&format!("run {number}: back after {:.0} ms: {}", run.back_ms, run.report.join("; ")));
        runs.push(run);
    }
    drop(load);
    let of = |value: fn(&Run) -> f64| Percentiles::of(&runs.iter().map(value).collect::<Vec<_>>()).context("no run");
    let mut ways = BTreeMap::new();
    for run in &runs {
        let said = |word: &&str| run.report.iter().any(|line| line.contains(*word));
        let way = ["cloned", "rewound", "followed", "restarted"].into_iter().find(said).unwrap_or("unknown");
        *ways.entry(way.to_owned()).or_default() += 1;
    }
    let report = Report {
        head: Head::of("rejoin", arguments),
        back_ms: of(|run| run.back_ms)?,
        operation_ms: of(|run| run.operation_ms)?,
        ways,
        runs,
    };
    print(&report, arguments.json)
}

async fn once(fleet: &Fleet) -> Result<Run> {
    tokio::time::sleep(AT_REST).await;
    let cluster = wait::until("everybody fit to take over", LONG, || async {
        let cluster = fleet.api.healthy(CLUSTER, LONG).await?;
        let electorate = cluster.electorate.clone().unwrap_or_default().members;
        ensure!(electorate.len() + 1 == NODES.len() && cluster.electorate_acknowledged, "it is {electorate:?}");
        Ok(cluster)
    })
    .await?;
    let before: BTreeSet<_> = names(fleet, "failover").await?.union(&names(fleet, "rejoin").await?).cloned().collect();
    let old = &cluster.primary;
    let began = now_nanos();
    process::signal(api::engine_pid(api::member(&cluster, old)?)?, Signal::SIGKILL)?;
    // The last operation that brought it back: a failover that found no better copy restarts it in place.
    let last = wait::until("the former primary in service", LONG, || async {
        let newest = async |kind: &str| {
            let all = fleet.api.operations_of(CLUSTER, kind).await?;
            let new = all.into_iter().find(|seen| !before.contains(&seen.name));
            anyhow::Ok(new.filter(|seen| seen.done && seen.error.is_empty()))
        };
        let failover = newest("failover").await?.context("the failover has not ended")?;
        let now = fleet.api.cluster(CLUSTER).await?;
        let member = api::member(&now, old)?;
        ensure!(member.state() == wire::MemberState::Ready, "{}", member.reason);
        match now.primary == *old {
            true => Ok(failover),
            false => newest("rejoin").await?.context("the rejoin has not ended"),
        }
    })
    .await?;
    let back_ms = Duration::from_nanos(now_nanos() - began).as_secs_f64() * 1e3;
    let at =
        |time: Option<prost_types::Timestamp>| time.map_or(0.0, |t| t.seconds as f64 * 1e3 + f64::from(t.nanos) / 1e6);
    let steps_ms: Vec<_> =
        last.steps.iter().map(|step| (step.name.clone(), at(step.end_time) - at(step.start_time))).collect();
    let operation_ms = steps_ms.iter().map(|(_, took)| took).sum();
    Ok(Run { back_ms, operation_ms, steps_ms, report: last.report })
}

/// Names of the cluster's operations of one kind.
async fn names(fleet: &Fleet, kind: &str) -> Result<BTreeSet<String>> {
    Ok(fleet.api.operations_of(CLUSTER, kind).await?.into_iter().map(|seen| seen.name).collect())
}
