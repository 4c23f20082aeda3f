//! `bench resync`: a replica that is wiped and restored from its primary, against the engine's own tools doing the same in the same
//! run: both from the request to a copy that streams and has caught up, on the same file system, over the same connection.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use regent_proto::coordinator::v1 as wire;
use regent_tests::{
    api,
    cluster::{Fleet, run as run_command},
    engines,
    folder::TestFolder,
    ports,
    process::{Daemon, as_user},
    wait,
    workload::{Login, now_nanos, pgbench::Load, postgres, readers::Readers},
};
use serde::Serialize;

use crate::{
    arguments::Arguments,
    report::{Head, Percentiles, print, say},
};

const CLUSTER: &str = "bench";
/// How long a copy may take.
const LONG: Duration = Duration::from_secs(1800);
/// More than what any of our engines has of connections, streams, workers and locks.
const PLENTY: u32 = 250;
/// What the engine's own copy is called among the streams of the primary.
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
    /// host:port of the primary.
    primary: String,
    /// host:port of the replica.
    replica: String,
    /// The role that members stream with: it sees who streams.
    replication: Login,
    /// How the replica reaches the primary.
    connection: String,
    folder: TestFolder,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    say("starting a coordinator and two agents");
    let bench = Bench::start(arguments).await?;
    let login = bench.fleet.api.login(CLUSTER).await?;
    let load = match arguments.load.as_str() {
        "pgbench" => Some(Load::start(&login, std::slice::from_ref(&bench.primary), None).await?),
        _ => None,
    };
    let mut runs = Vec::new();
    for number in 1..=arguments.repetitions {
        // What the run before has written and removed is not the next one's burden. The replica is read during either copy.
        nix::unistd::sync();
        let readers = Readers::start(&login, &[&bench.replica]).await?;
        let raw_seconds = bench.raw().await.context("the engine's own copy")?.as_secs_f64();
        readers.stop().await?;
        nix::unistd::sync();
        let readers = Readers::start(&login, &[&bench.replica]).await?;
        let (took, steps) = bench.resync().await.context("the resync")?;
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

// === impl Bench ===

impl Bench {
    async fn start(arguments: &Arguments) -> Result<Self> {
        let folder = TestFolder::new()?;
        let fleet = Fleet::start(&folder, &["n1", "n2"]).await?;
        let cluster = fleet.create(CLUSTER, &arguments.engine, &["n1", "n2"]).await?;
        let [primary, replica] = <[String; 2]>::try_from(api::endpoints(&cluster)?)
            .map_err(|members| anyhow::anyhow!("not two members: {members:?}"))?;
        let login = fleet.api.login(CLUSTER).await?;
        say(&format!("filling {} MiB", arguments.size_mib));
        postgres::create_table(&login, &primary).await?;
        postgres::add_ballast(&login, &primary, arguments.size_mib).await?;
        let root = fleet.agents["n2"].home.join("engines").join(CLUSTER);
        let connection = upstream(&root.join("conf/upstream.conf"))?;
        let replication = replication(&connection)?;
        let bench = Self { fleet, primary, replica, replication, connection, folder };
        bench.caught_up(&format!("{CLUSTER}2")).await?;
        Ok(bench)
    }

    /// Waits until a stream has everything that was written when this began.
    async fn caught_up(&self, name: &str) -> Result<()> {
        let (client, _) = postgres::connect(&self.replication, &self.primary).await?;
        let target: String = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?.get(0);
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming' \
                   AND flush_lsn >= $2::text::pg_lsn";
        let began = now_nanos();
        loop {
            if client.query_one(sql, &[&name, &target]).await?.get::<_, i64>(0) > 0 {
                return Ok(());
            }
            ensure!(since(began) < LONG, "{name} does not catch up");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// The engine's own tools: copy, start, catch up.
    async fn raw(&self) -> Result<Duration> {
        let copy = self.folder.join("n2/raw");
        let log = self.folder.join("logs/raw.log");
        let connection = format!("{} application_name={RAW}", self.connection);
        let bin = engines::postgres_bin()?;
        let mut basebackup = Command::new(bin.join("pg_basebackup"));
        basebackup.arg(format!("--dbname={connection}")).arg("--pgdata").arg(&copy);
        basebackup.args(["--create-slot", "--slot", RAW, "--wal-method=stream", "--checkpoint=fast", "--no-password"]);
        owned_folder(&copy)?;
        as_user(&mut basebackup, "postgres")?;
        let began = now_nanos();
        tokio::task::spawn_blocking(move || run_command(basebackup)).await??;
        fs::write(copy.join("standby.signal"), "")?;
        let mut engine = Command::new(bin.join("postgres"));
        engine.arg("-D").arg(&copy).args(["-c", &format!("primary_conninfo={connection}")]);
        engine.args(["-c", &format!("primary_slot_name={RAW}"), "-c", "listen_addresses="]);
        engine.args(["-c", &format!("unix_socket_directories={}", copy.display())]);
        engine.args(["-c", &format!("port={}", ports::free(1)?[0])]);
        // A standby needs as much of each as its primary has.
        for name in ["max_connections", "max_wal_senders", "max_worker_processes", "max_locks_per_transaction"] {
            engine.args(["-c", &format!("{name}={PLENTY}")]);
        }
        as_user(&mut engine, "postgres")?;
        let mut engine = Daemon::start(RAW, engine, &log)?;
        tokio::select! {
            caught_up = self.caught_up(RAW) => caught_up?,
            ended = engine.wait(LONG) => bail!("the raw engine ended: {}; see {}", ended?, log.display()),
        }
        let took = since(began);
        engine.signal(Signal::SIGINT)?;
        engine.wait(LONG).await?;
        fs::remove_dir_all(&copy)?;
        let (client, _) = postgres::connect(&self.replication, &self.primary).await?;
        wait::until("the end of the raw stream", LONG, || async {
            Ok(client.execute("SELECT pg_drop_replication_slot($1)", &[&RAW]).await?)
        })
        .await?;
        Ok(took)
    }

    async fn resync(&self) -> Result<(Duration, Vec<String>)> {
        let member = format!("{CLUSTER}2");
        let request = wire::ResyncClusterRequest {
            name: format!("clusters/{CLUSTER}"),
            members: vec![member.clone()],
            confirm_name: member.clone(),
            request_id: api::request_id(),
            ..Default::default()
        };
        let began = now_nanos();
        let operation = self.fleet.api.clusters().resync_cluster(request).await?.into_inner();
        let streams = async {
            wait::until("the swap", LONG, || async {
                let seen = self.fleet.api.operation(&operation.name).await?;
                let swap = seen.steps.iter().find(|step| step.name == "swap").context("no swap")?;
                ensure!(swap.state() == wire::StepState::Succeeded || seen.done, "{}", api::describe(&seen));
                Ok(())
            })
            .await?;
            self.caught_up(&member).await
        };
        streams.await?;
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

/// The connection string by which a replica follows its upstream.
fn upstream(conf: &Path) -> Result<String> {
    let text = fs::read_to_string(conf).with_context(|| format!("cannot read {}", conf.display()))?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("primary_conninfo = '")).context("no primary_conninfo")?;
    Ok(line.trim_end().strip_suffix('\'').context("no end of primary_conninfo")?.replace("''", "'"))
}

/// The role in a connection string, with its password from the file that it names.
fn replication(connection: &str) -> Result<Login> {
    let value = |name: &str| {
        let rest = connection.split_once(&format!("{name}="))?.1;
        Some(rest.split(' ').next()?.trim_matches('\'').to_owned())
    };
    let (user, passfile) = value("user").zip(value("passfile")).context("no user or passfile")?;
    let line = fs::read_to_string(&passfile)?;
    let password = line.trim_end().rsplit_once(':').context("no password")?.1.to_owned();
    Ok(Login { user, password, database: "postgres".to_owned() })
}

/// An empty folder of the engine's user.
fn owned_folder(folder: &PathBuf) -> Result<()> {
    fs::create_dir(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
    let mut chown = Command::new("chown");
    chown.arg("postgres:postgres").arg(folder);
    run_command(chown)?;
    Ok(())
}
