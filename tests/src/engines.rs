//! Engines on this machine: where their programs are, and a plain one without Regent to try the workload on.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::{
    folder::{TestFolder, processes_in},
    place::Place,
    process::{Daemon, as_user},
    wait,
    workload::{Login, postgres},
};

/// Folder of PostgreSQL's programs: `REGENT_POSTGRES_BIN`, else the newest that Debian's packages brought.
pub fn postgres_bin() -> Result<PathBuf> {
    let named = std::env::var_os("REGENT_POSTGRES_BIN").map(PathBuf::from);
    let newest = || {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
        let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
        let mut found: Vec<_> = versions.map(|e| e.path()).filter(|path| path.join("bin/initdb").exists()).collect();
        found.sort_by_key(|path| number(path));
        found.pop().map(|path| path.join("bin"))
    };
    let folder = named.or_else(newest).context("PostgreSQL is not installed: apt-get install postgresql")?;
    ensure!(folder.join("initdb").exists(), "{} has no initdb", folder.display());
    Ok(folder)
}

/// A PostgreSQL of its own, without Regent.
#[derive(Debug)]
pub struct PlainPostgres {
    /// Where it is reached, as host:port.
    pub member: String,
    /// How to log in.
    pub login: Login,
    bin: PathBuf,
    data: PathBuf,
    log: PathBuf,
    place: Place,
    port: u16,
    server: Option<Daemon>,
}

// === impl PlainPostgres ===

impl PlainPostgres {
    /// Makes the data and starts the server on loopback.
    pub async fn start(folder: &TestFolder, name: &str) -> Result<Self> {
        Self::start_at(folder, name, Place::Loopback).await
    }

    /// The same somewhere else.
    pub async fn start_at(folder: &TestFolder, name: &str, place: Place) -> Result<Self> {
        let ([port], address) = (place.ports([5432])?, place.address());
        let home = folder.join(name);
        fs::create_dir(&home)?;
        if nix::unistd::geteuid().is_root() {
            let user = nix::unistd::User::from_name("postgres")?.context("there is no user postgres")?;
            nix::unistd::chown(&home, Some(user.uid), Some(user.gid))?;
        }
        let login = Login { user: "tester".into(), password: "plain".into(), database: "postgres".into() };
        let mut plain = Self {
            member: format!("{address}:{port}"),
            login,
            bin: postgres_bin()?,
            data: home.join("data"),
            log: folder.join(&format!("{name}.log")),
            place,
            port,
            server: None,
        };
        let mut initdb = Command::new(plain.bin.join("initdb"));
        initdb.args(["--no-sync", "--auth=trust", "--username=tester", "--encoding=UTF8", "--locale=C", "-D"]);
        initdb.arg(&plain.data).current_dir(&home);
        as_user(&mut initdb, "postgres")?;
        let made = initdb.output().context("cannot run initdb")?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        // Whoever is in the same network, which is the test's own.
        fs::write(plain.data.join("pg_hba.conf"), "host all all samenet trust\n")?;
        plain.run().await?;
        Ok(plain)
    }

    /// Starts the server on the data that is there.
    pub async fn run(&mut self) -> Result<()> {
        // After a kill the other processes of the old server end by themselves, and hold the data until then.
        wait::until("the end of the old server", Duration::from_secs(10), || async {
            let left = processes_in(&self.data)?;
            ensure!(left.is_empty(), "processes {left:?} are left");
            Ok(())
        })
        .await?;
        let mut command = self.place.command_as("postgres", &self.bin.join("postgres"))?;
        command.arg("-D").arg(&self.data).args(["-c", "fsync=off", "-c", "unix_socket_directories="]);
        let listen = format!("listen_addresses={}", self.place.engine_addresses());
        command.args(["-c", &listen, "-p", &self.port.to_string()]).current_dir(&self.data);
        self.server = Some(Daemon::start("postgres", command, &self.log)?);
        let connect = || async { postgres::connect(&self.login, &self.member).await.map(drop) };
        wait::until("the plain PostgreSQL", Duration::from_secs(30), connect).await
    }

    /// Kills the server's first process.
    pub fn kill(&mut self) -> Result<()> {
        self.server.take().context("it does not run")?.kill()?;
        Ok(())
    }

    /// Stops or goes on (SIGSTOP, SIGCONT): the first process only.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.server.as_ref().context("it does not run")?.signal(signal)
    }
}
