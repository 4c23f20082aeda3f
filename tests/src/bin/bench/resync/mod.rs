//! `bench resync`: a replica that is wiped and restored from its primary, against the engine's own means doing the same in the same
//! run: both from the request to a copy that streams and has caught up, on the same file system.

mod postgres;
mod redis;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::{Fleet, run as run_command},
    folder::TestFolder,
    wait,
    workload::{Client, Dialect, now_nanos, pgbench::Load, readers::Readers},
};
use serde::Serialize;

use self::{postgres::Postgres, redis::Redis};
use crate::{
    arguments::Arguments,
    report::{Head, Percentiles, print, say},
};

const CLUSTER: &str = "bench";
/// How long a copy may take.
const LONG: Duration = Duration::from_secs(1800);
/// Between two looks at a stream.
const LOOK: Duration = Duration::from_millis(5);
/// What the engine's own copy is called.
const RAW: &str = "raw";

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    head: Head,
    size_mib: u32,
    raw_seconds: Percentiles,
    seconds: Percentiles,
    /// For how long the replica could not be read.
    read_outage_ms: Percentiles,
    /// The engine's own time by ours, of the medians.
    ratio_to_raw: f64,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    raw_seconds: f64,
    seconds: f64,
    /// For how long the replica could not be read meanwhile.
    read_outage_ms: f64,
    /// What the operation took step by step.
    steps: Vec<String>,
}

/// A cluster of two with much data.
struct Bench {
    fleet: Fleet,
    client: Client,
    /// host:port of the primary.
    primary: String,
    /// host:port of the replica.
    replica: String,
    folder: TestFolder,
}

/// What an engine does by itself, and how its streams are watched.
enum Raw {
    Postgres(Postgres),
    Redis(Redis),
}

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    say("starting a coordinator and two agents");
    let bench = Bench::start(arguments).await?;
    let raw = Raw::start(arguments, &bench).await?;
    let load = match arguments.load.as_str() {
        "pgbench" => Some(Load::start(&bench.client.login, std::slice::from_ref(&bench.primary), None).await?),
        _ => None,
    };
    let mut runs = Vec::new();
    for number in 1..=arguments.repetitions {
        // What the run before has written and removed is not the next one's burden. The replica is read during either copy.
        nix::unistd::sync();
        let readers = Readers::start(&bench.client, &[&bench.replica]).await?;
        let raw_seconds = raw.copy(&bench).await.context("the engine's own copy")?.as_secs_f64();
        readers.stop().await?;
        nix::unistd::sync();
        let readers = Readers::start(&bench.client, &[&bench.replica]).await?;
        let (took, steps) = bench.resync(&raw).await.context("the resync")?;
        let seconds = took.as_secs_f64();
        let read = readers.stop().await?.into_iter().next().context("there was a reader")?;
        let read_outage_ms = read.longest_gap.as_secs_f64() * 1e3;
        say(&format!(
            "run {number}: raw {raw_seconds:.2} s, resync {seconds:.2} s, not read for {read_outage_ms:.0} ms"
        ));
        runs.push(Run { raw_seconds, seconds, read_outage_ms, steps });
    }
    drop(load);
    let of = |value: fn(&Run) -> f64| Percentiles::of(&runs.iter().map(value).collect::<Vec<_>>()).context("no run");
    let (raw_seconds, seconds) = (of(|run| run.raw_seconds)?, of(|run| run.seconds)?);
    let report = Report {
        head: Head::of("resync", arguments),
        size_mib: arguments.size_mib,
        read_outage_ms: of(|run| run.read_outage_ms)?,
        ratio_to_raw: raw_seconds.p50 / seconds.p50,
        raw_seconds,
        seconds,
        runs,
    };
    print(&report, arguments.json)
}

// === impl Raw ===

impl Raw {
    async fn start(arguments: &Arguments, bench: &Bench) -> Result<Self> {
        let raw = match arguments.engine.dialect() {
            Dialect::Postgres => Self::Postgres(Postgres::of(bench)?),
            Dialect::Redis => Self::Redis(Redis::start(arguments, bench).await?),
        };
        raw.caught_up(bench).await?;
        Ok(raw)
    }

    /// The engine's own copy, to its end; how long it took.
    async fn copy(&self, bench: &Bench) -> Result<Duration> {
        match self {
            Self::Postgres(raw) => raw.copy(bench).await,
            Self::Redis(raw) => raw.copy().await,
        }
    }

    /// Waits until the replica streams and has everything that was written when this began.
    async fn caught_up(&self, bench: &Bench) -> Result<()> {
        match self {
            Self::Postgres(raw) => raw.caught_up(bench, &bench.replica_name()).await,
            Self::Redis(_) => redis::caught_up(&bench.client.login, &bench.primary, &bench.replica).await,
        }
    }
}

// === impl Bench ===

impl Bench {
    async fn start(arguments: &Arguments) -> Result<Self> {
        let folder = TestFolder::new()?;
        let fleet = Fleet::start(&folder, &["n1", "n2"]).await?;
        let cluster = fleet.create(CLUSTER, arguments.engine.name(), &["n1", "n2"]).await?;
        let [primary, replica] = <[String; 2]>::try_from(api::endpoints(&cluster)?)
            .map_err(|members| anyhow::anyhow!("not two members: {members:?}"))?;
        let client = fleet.api.client(CLUSTER).await?;
        say(&format!("filling {} MiB", arguments.size_mib));
        client.make_room(&primary).await?;
        client.add_ballast(&primary, arguments.size_mib).await?;
        Ok(Self { fleet, client, primary, replica, folder })
    }

    fn replica_name(&self) -> String {
        format!("{CLUSTER}2")
    }

    async fn resync(&self, raw: &Raw) -> Result<(Duration, Vec<String>)> {
        let member = self.replica_name();
        let request = wire::ResyncClusterRequest {
            name: format!("clusters/{CLUSTER}"),
            members: vec![member.clone()],
            confirm_name: member,
            request_id: api::request_id(),
            ..Default::default()
        };
        let began = now_nanos();
        let operation = self.fleet.api.clusters().resync_cluster(request).await?.into_inner();
        wait::until("the swap", LONG, || async {
            let seen = self.fleet.api.operation(&operation.name).await?;
            let swap = seen.steps.iter().find(|step| step.name == "swap").context("no swap")?;
            ensure!(swap.state() == wire::StepState::Succeeded || seen.done, "{}", api::describe(&seen));
            Ok(())
        })
        .await?;
        raw.caught_up(self).await?;
        let took = since(began);
        let ended = self.fleet.api.succeed(&operation.name, LONG).await?;
        let steps = ended.steps.iter().map(|step| {
            let at = |time: Option<prost_types::Timestamp>| {
                time.map_or(0.0, |t| t.seconds as f64 + f64::from(t.nanos) / 1e9)
            };
            format!("{} {:.2} s", step.name, at(step.end_time) - at(step.start_time))
        });
        Ok((took, steps.collect()))
    }
}

/// The time since then, in nanoseconds of CLOCK_MONOTONIC.
fn since(began: u64) -> Duration {
    Duration::from_nanos(now_nanos() - began)
}

/// Makes an empty folder of the user as whom an engine runs.
fn owned_folder(folder: &Path, user: &str) -> Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    if nix::unistd::geteuid().is_root() {
        let mut chown = Command::new("chown");
        chown.arg(format!("{user}:")).arg(folder);
        run_command(chown)?;
    }
    Ok(())
}
