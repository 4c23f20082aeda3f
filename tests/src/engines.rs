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
    workload::{Client, Dialect, Login},
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

/// Server of an engine that is one program: what the environment names (`REGENT_REDIS_SERVER` and so on), else what is on the path.
pub fn find_server(engine: &str) -> Option<PathBuf> {
    let named = std::env::var_os(format!("REGENT_{}_SERVER", engine.to_uppercase())).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders = std::env::split_paths(&path).map(|folder| folder.join(format!("{engine}-server")));
    named.or_else(|| folders.find(|file| file.is_file()))
}

/// The same; what is missing, or what is wrong with the name.
pub fn server_of(engine: &str) -> Result<PathBuf> {
    let variable = format!("REGENT_{}_SERVER", engine.to_uppercase());
    let server = find_server(engine)
        .with_context(|| format!("there is no {engine}-server on the path, and {variable} names none"))?;
    ensure!(server.is_file(), "{variable}={} is no program", server.display());
    Ok(server)
}

/// Server of Redis, which has to be there.
pub fn redis_server() -> Result<PathBuf> {
    server_of("redis").context("Redis is not installed: apt-get install redis-server")
}

/// User as whom a root's engine of Redis's family runs: the engine's own, or Redis's where it came without a package.
pub fn redis_user(engine: &str) -> &str {
    let is_known = |name: &str| nix::unistd::User::from_name(name).is_ok_and(|user| user.is_some());
    if is_known(engine) { engine } else { "redis" }
}

/// An engine of its own, without Regent, that loses nothing when it is killed.
#[derive(Debug)]
pub struct Plain {
    /// Where it is reached, as host:port.
    pub member: String,
    /// How it is spoken to.
    pub client: Client,
    data: PathBuf,
    log: PathBuf,
    place: Place,
    port: u16,
    server: Option<Daemon>,
}

// === impl Plain ===

impl Plain {
    /// Makes the data and starts the server on loopback.
    pub async fn start(dialect: Dialect, folder: &TestFolder, name: &str) -> Result<Self> {
        Self::start_at(dialect, folder, name, Place::Loopback).await
    }

    /// The same somewhere else, on PostgreSQL's port.
    pub async fn start_at(dialect: Dialect, folder: &TestFolder, name: &str, place: Place) -> Result<Self> {
        let ([port], address) = (place.ports([5432])?, place.address());
        let (user, database) = match dialect {
            Dialect::Postgres => ("tester", "postgres"),
            Dialect::Redis => ("default", "0"),
        };
        let login = Login { user: user.into(), password: "plain".into(), database: database.into() };
        let home = folder.join(name);
        fs::create_dir(&home)?;
        let mut plain = Self {
            member: format!("{address}:{port}"),
            client: Client { dialect, login },
            data: home.join("data"),
            log: folder.join(&format!("{name}.log")),
            place,
            port,
            server: None,
        };
        if nix::unistd::geteuid().is_root() {
            let name = plain.owner();
            let user = nix::unistd::User::from_name(name)?.with_context(|| format!("there is no user {name}"))?;
            nix::unistd::chown(&home, Some(user.uid), Some(user.gid))?;
        }
        let mut make = match dialect {
            Dialect::Postgres => {
                let mut initdb = Command::new(postgres_bin()?.join("initdb"));
                initdb.args(["--no-sync", "--auth=trust", "--username=tester", "--encoding=UTF8", "--locale=C", "-D"]);
                initdb
            }
            Dialect::Redis => Command::new("mkdir"),
        };
        make.arg(&plain.data).current_dir(&home);
        as_user(&mut make, plain.owner())?;
        let made = make.output().with_context(|| format!("cannot run {make:?}"))?;
        ensure!(made.status.success(), "{make:?} failed: {}", String::from_utf8_lossy(&made.stderr));
        if dialect == Dialect::Postgres {
            // Whoever is in the same network, which is the test's own.
            fs::write(plain.data.join("pg_hba.conf"), "host all all samenet trust\n")?;
        }
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
        let mut command = match self.client.dialect {
            Dialect::Postgres => self.postgres()?,
            Dialect::Redis => self.redis()?,
        };
        command.current_dir(&self.data);
        self.server = Some(Daemon::start("the plain engine", command, &self.log)?);
        let serves = || async { self.client.takes_writes(&self.member).await.map(drop) };
        wait::until("the plain engine", Duration::from_secs(30), serves).await
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

    /// User of the system as whom it runs when the caller is root.
    fn owner(&self) -> &'static str {
        match self.client.dialect {
            Dialect::Postgres => "postgres",
            Dialect::Redis => "redis",
        }
    }

    fn postgres(&self) -> Result<Command> {
        let mut command = self.place.command_as(self.owner(), &postgres_bin()?.join("postgres"))?;
        command.arg("-D").arg(&self.data).args(["-c", "fsync=off", "-c", "unix_socket_directories="]);
        let listen = format!("listen_addresses={}", self.place.engine_addresses());
        command.args(["-c", &listen, "-p", &self.port.to_string()]);
        Ok(command)
    }

    fn redis(&self) -> Result<Command> {
        let mut command = self.place.command_as(self.owner(), &redis_server()?)?;
        command.args(["--port", &self.port.to_string(), "--requirepass", &self.client.login.password]);
        command.arg("--bind").args(self.place.engine_addresses().split(','));
        command.arg("--dir").arg(&self.data);
        // What was acknowledged has been handed to the kernel, which outlives the engine.
        command.args(["--appendonly", "yes", "--appendfsync", "no", "--save", ""]);
        Ok(command)
    }
}
