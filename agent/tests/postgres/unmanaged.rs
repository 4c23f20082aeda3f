//! An instance of nobody's, as Debian makes one: its configuration is outside its data directory, its owner is let in over the socket.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use crate::world::{APPLICATION_SECRET, RealWorld};

/// The instance on a member's node and port.
pub(crate) struct Unmanaged {
    folder: PathBuf,
    port: u16,
}

/// User and group of the engine: postgres where we are root, else our own.
fn owner() -> (u32, u32) {
    let (own, group) = (nix::unistd::geteuid(), nix::unistd::getegid());
    match nix::unistd::User::from_name("postgres") {
        Ok(Some(user)) if own.is_root() => (user.uid.as_raw(), user.gid.as_raw()),
        _ => (own.as_raw(), group.as_raw()),
    }
}

/// Folder of the engine's programs: the newest.
fn programs() -> PathBuf {
    if let Ok(folder) = std::env::var("REGENT_POSTGRES_BIN") {
        return folder.into();
    }
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap().map(|entry| entry.unwrap().path());
    let number = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().parse::<u32>().unwrap_or(0);
    versions.max_by_key(number).unwrap().join("bin")
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let (user, group) = owner();
    let mut command = Command::new(programs().join(program));
    command.args(arguments).current_dir("/").uid(user).gid(group);
    let ended = command.output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&ended.stderr);
    if ended.status.success() { Ok(()) } else { Err(format!("{program}: {said}")) }
}

fn make_folder(path: &Path) {
    fs::create_dir_all(path).unwrap();
    let (user, group) = owner();
    chown(path, Some(user), Some(group)).unwrap();
}

// === impl Unmanaged ===

impl Unmanaged {
    pub(crate) fn of(world: &RealWorld, member: u32) -> Self {
        Self { folder: world.folder.path().join(format!("unmanaged{member}")), port: world.port(member) }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("main")
    }

    fn text(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Makes it, as a replica of another one or new, and starts it; the folder of its data.
    pub(crate) fn start(&self, upstream: Option<Self>) -> Result<PathBuf, String> {
        for folder in ["", "etc", "socket"] {
            make_folder(&self.folder.join(folder));
        }
        let (data, etc) = (self.text("main"), self.text("etc"));
        match &upstream {
            Some(upstream) => {
                let (socket, port) = (upstream.text("socket"), upstream.port.to_string());
                let source = ["--host", &socket, "--port", &port, "--username", "postgres"];
                run(
                    "pg_basebackup",
                    &[&["--pgdata", &data, "--write-recovery-conf", "--checkpoint", "fast"], &source[..]].concat(),
                )?;
                for name in ["pg_hba.conf", "pg_ident.conf"] {
                    fs::copy(upstream.folder.join("etc").join(name), self.folder.join("etc").join(name)).unwrap();
                }
            }
            None => {
                let peer = if nix::unistd::geteuid().is_root() { "--auth-local=peer" } else { "--auth-local=trust" };
                run("initdb", &["--pgdata", &data, "--username", "postgres", peer, "--auth-host=scram-sha-256"])?;
                for name in ["pg_hba.conf", "pg_ident.conf"] {
                    fs::rename(self.data().join(name), self.folder.join("etc").join(name)).unwrap();
                }
                fs::remove_file(self.data().join("postgresql.conf")).unwrap();
            }
        }
        let conf = format!(
            "data_directory = '{data}'\nhba_file = '{etc}/pg_hba.conf'\nident_file = '{etc}/pg_ident.conf'\nport = {}\n\
             listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nshared_buffers = 16MB\nmax_connections = 40\n",
            self.port,
            self.text("socket")
        );
        fs::write(self.folder.join("etc/postgresql.conf"), conf).unwrap();
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            let (user, group) = owner();
            chown(self.folder.join("etc").join(name), Some(user), Some(group)).unwrap();
        }
        let options = format!("-c config_file={etc}/postgresql.conf");
        run(
            "pg_ctl",
            &["start", "--wait", "--pgdata", &data, "--options", &options, "--log", &self.text("main/startup.log")],
        )?;
        if upstream.is_none() {
            let secret = APPLICATION_SECRET.replace('\'', "''");
            self.psql(&format!("CREATE ROLE app LOGIN PASSWORD '{secret}'"))?;
            self.psql("CREATE DATABASE app OWNER app")?;
        }
        Ok(self.data())
    }

    fn psql(&self, sql: &str) -> Result<(), String> {
        let (socket, port) = (self.text("socket"), self.port.to_string());
        run("psql", &["--no-psqlrc", "--host", &socket, "--port", &port, "--username", "postgres", "--command", sql])
    }
}
