//! PostgreSQL's own tools: pg_basebackup of the cluster's primary, over the same connection as a member's clone, then a standby.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use regent_tests::{
    cluster::run as run_command,
    engines, ports,
    process::{Daemon, as_user},
    wait,
    workload::{Login, now_nanos, postgres},
};

use super::{Bench, CLUSTER, LONG, LOOK, RAW, owned_folder, since};

/// More than what any of our engines has of connections, streams, workers and locks.
const PLENTY: u32 = 250;

/// How the replica reaches its primary.
pub(super) struct Postgres {
    /// The role that members stream with: it sees who streams.
    replication: Login,
    connection: String,
}

// === impl Postgres ===

impl Postgres {
    /// From the configuration of the cluster's replica.
    pub(super) fn of(bench: &Bench) -> Result<Self> {
        let root = bench.fleet.agents["n2"].home.join("engines").join(CLUSTER);
        let connection = upstream(&root.join("conf/upstream.conf"))?;
        Ok(Self { replication: replication(&connection)?, connection })
    }

    /// Waits until the stream of this name has everything that was written when this began.
    pub(super) async fn caught_up(&self, bench: &Bench, name: &str) -> Result<()> {
        let (client, _) = postgres::connect(&self.replication, &bench.primary).await?;
        let target: String = client.query_one("SELECT pg_current_wal_flush_lsn()::text", &[]).await?.get(0);
        let sql = "SELECT count(*) FROM pg_stat_replication WHERE application_name = $1 AND state = 'streaming' \
                   AND flush_lsn >= $2::text::pg_lsn";
        let began = now_nanos();
        loop {
            if client.query_one(sql, &[&name, &target]).await?.get::<_, i64>(0) > 0 {
                return Ok(());
            }
            ensure!(since(began) < LONG, "{name} does not catch up");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Copy, start, catch up.
    pub(super) async fn copy(&self, bench: &Bench) -> Result<Duration> {
        let copy = bench.folder.join("n2/raw");
        let log = bench.folder.join("logs/raw.log");
        let connection = format!("{} application_name={RAW}", self.connection);
        let bin = engines::postgres_bin()?;
        let mut basebackup = Command::new(bin.join("pg_basebackup"));
        basebackup.arg(format!("--dbname={connection}")).arg("--pgdata").arg(&copy);
        basebackup.args(["--create-slot", "--slot", RAW, "--wal-method=stream", "--checkpoint=fast", "--no-password"]);
        owned_folder(&copy, "postgres")?;
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
            caught_up = self.caught_up(bench, RAW) => caught_up?,
            ended = engine.wait(LONG) => bail!("the raw engine ended: {}; see {}", ended?, log.display()),
        }
        let took = since(began);
        engine.signal(Signal::SIGINT)?;
        engine.wait(LONG).await?;
        fs::remove_dir_all(&copy)?;
        let (client, _) = postgres::connect(&self.replication, &bench.primary).await?;
        wait::until("the end of the raw stream", LONG, || async {
            Ok(client.execute("SELECT pg_drop_replication_slot($1)", &[&RAW]).await?)
        })
        .await?;
        Ok(took)
    }
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
