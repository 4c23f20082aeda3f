//! The own full synchronization of Redis and its kin: between two plain servers with as much data, which Regent knows nothing of.
//!
//! What decides on how a full synchronization goes is set as Regent sets it for members.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use regent_tests::{
    engines::redis_user,
    ports,
    process::{Daemon, as_user},
    scenario::Engine,
    wait,
    workload::{Login, now_nanos, redis},
};

use super::{Bench, LONG, LOOK, RAW, owned_folder, since};
use crate::{arguments::Arguments, report::say};

/// Settings of both servers.
const SETTINGS: &str = "\
bind 127.0.0.1
repl-diskless-sync yes
repl-diskless-sync-delay 1
repl-diskless-load disabled
repl-backlog-size 64mb
client-output-buffer-limit replica 1gb 512mb 120
save \"\"
";
/// How long an empty server may take until it answers.
const UP: Duration = Duration::from_secs(30);

/// A plain primary with data, and where its replica is to be.
pub(super) struct Redis {
    engine: Engine,
    login: Login,
    primary: Server,
    /// Folder of the replica's data.
    copy: PathBuf,
    log: PathBuf,
}

/// A plain server.
struct Server {
    /// host:port.
    address: String,
    process: Daemon,
}

// === impl Redis ===

impl Redis {
    /// Starts the primary, fills it, and waits until the cluster's members have made the snapshots that so many new keys call for: a
    /// synchronization that is asked for meanwhile waits.
    pub(super) async fn start(arguments: &Arguments, bench: &Bench) -> Result<Self> {
        let login = Login { user: "default".to_owned(), password: RAW.to_owned(), database: "0".to_owned() };
        let (engine, log) = (arguments.engine, bench.folder.join("logs/raw.log"));
        let primary = Server::start(engine, &login, &bench.folder.join("n1/raw"), &log).await?;
        say("filling the plain primary");
        redis::add_ballast(&login, &primary.address, arguments.size_mib).await?;
        say("waiting for the members' snapshots");
        for member in [&bench.primary, &bench.replica] {
            wait::until("a snapshot of what was filled in", LONG, || async {
                let info = redis::info(&bench.client.login, member, "persistence").await?;
                let quiet = ["rdb_changes_since_last_save:0", "rdb_bgsave_in_progress:0"];
                ensure!(quiet.iter().all(|wanted| info.lines().any(|line| line == *wanted)), "{member}: {info}");
                Ok(())
            })
            .await?;
        }
        Ok(Self { engine, login, primary, copy: bench.folder.join("n2/raw"), log })
    }

    /// An empty server that runs is told to follow, and has caught up.
    pub(super) async fn copy(&self) -> Result<Duration> {
        let Server { address, mut process } = Server::start(self.engine, &self.login, &self.copy, &self.log).await?;
        let (host, port) = self.primary.address.rsplit_once(':').context("an address is host:port")?;
        let mut replica = redis::connect(&self.login, &address).await?;
        let began = now_nanos();
        ::redis::cmd("REPLICAOF").arg(host).arg(port).exec_async(&mut replica).await?;
        tokio::select! {
            caught_up = caught_up(&self.login, &self.primary.address, &address) => caught_up?,
            ended = process.wait(LONG) => bail!("the raw replica ended: {}; see {}", ended?, self.log.display()),
        }
        let took = since(began);
        process.kill()?;
        fs::remove_dir_all(&self.copy)?;
        Ok(took)
    }
}

// === impl Server ===

impl Server {
    /// Starts an empty one on loopback.
    async fn start(engine: Engine, login: &Login, data: &Path, log: &Path) -> Result<Self> {
        let user = redis_user(engine.name());
        owned_folder(data, user)?;
        let port = ports::free(1)?[0];
        let mut command = Command::new(engine.server()?);
        let password = &login.password;
        let own = format!("port {port}\ndir {}\nrequirepass {password}\nmasterauth {password}\n", data.display());
        // In a file: on its command line KeyDB takes a value of several words for one.
        let configuration = data.join("server.conf");
        fs::write(&configuration, [SETTINGS, &own].concat())?;
        fs::set_permissions(&configuration, fs::Permissions::from_mode(0o644))?;
        command.arg(&configuration).current_dir(data);
        as_user(&mut command, user)?;
        let server = Self { address: format!("127.0.0.1:{port}"), process: Daemon::start(RAW, command, log)? };
        wait::until("a plain server", UP, || redis::takes_writes(login, &server.address)).await?;
        Ok(server)
    }
}

/// Waits until a replica streams and has everything that was written when this began.
pub(super) async fn caught_up(login: &Login, primary: &str, replica: &str) -> Result<()> {
    let target: u64 = number(&redis::info(login, primary, "replication").await?, "master_repl_offset")?;
    let began = now_nanos();
    loop {
        // Until it has loaded its data it may refuse to be asked.
        let seen = redis::info(login, replica, "replication").await.unwrap_or_default();
        let streams = field(&seen, "master_link_status") == Some("up");
        if streams && number(&seen, "slave_repl_offset")? >= target {
            return Ok(());
        }
        ensure!(since(began) < LONG, "{replica} does not catch up: {seen}");
        tokio::time::sleep(LOOK).await;
    }
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
}

fn number(info: &str, name: &str) -> Result<u64> {
    Ok(field(info, name).with_context(|| format!("no {name} in {info}"))?.parse()?)
}
