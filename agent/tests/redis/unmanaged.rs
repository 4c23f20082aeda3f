//! An instance of nobody's, as Debian's package makes one: its configuration is outside its data directory, who comes over loopback
//! and says no name may do everything, and an application has a user of its own.

use std::{
    fmt::Write as _,
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::world::{APPLICATION, APPLICATION_SECRET, RealWorld, ask, user_of};

/// How long it may take to start, and to get its data from an upstream.
const START: Duration = Duration::from_secs(30);

/// The instance on a member's node and port.
pub(crate) struct Unmanaged {
    folder: PathBuf,
    server: PathBuf,
    port: u16,
    owner: Option<nix::unistd::User>,
}

/// A password as a file of the engine has it, in which it cannot stand with its blanks.
fn digest(secret: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, secret.as_bytes());
    digest.as_ref().iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

// === impl Unmanaged ===

impl Unmanaged {
    pub(crate) fn of(world: &RealWorld, member: u32) -> Self {
        Self {
            folder: world.folder.path().join(format!("unmanaged{member}")),
            server: world.server.clone(),
            port: world.port(member),
            owner: user_of(world.factory),
        }
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("main")
    }

    /// Makes it, as a replica of the one on another port or new, and starts it; the folder of its data.
    pub(crate) async fn start(&self, upstream: Option<u16>) -> Result<PathBuf, String> {
        for folder in ["", "etc", "main"] {
            self.make_folder(&self.folder.join(folder));
        }
        let text = |name: &str| self.folder.join(name).display().to_string();
        let replicaof = upstream.map_or(String::new(), |port| format!("replicaof 127.0.0.1 {port}\n"));
        let conf = format!(
            "bind 127.0.0.1\nport {}\ndir {}\ndaemonize yes\nlogfile {}\npidfile {}\nmaxmemory 200mb\n{replicaof}\
             user {APPLICATION} on #{} ~* &* +@all\n",
            self.port,
            text("main"),
            text("log"),
            text("pid"),
            digest(APPLICATION_SECRET),
        );
        let file = self.folder.join("etc/redis.conf");
        fs::write(&file, conf).unwrap();
        self.give_to_owner(&file);
        let mut command = Command::new(&self.server);
        command.arg(&file).current_dir("/");
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        let ended = command.output().map_err(|error| error.to_string())?;
        if !ended.status.success() {
            return Err(format!("{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr)));
        }
        // It goes on by itself, and serves a little later.
        let wanted = if upstream.is_some() { "master_link_status:up" } else { "role:master" };
        let serving = async {
            loop {
                let info: Result<String, String> = ask(self.port, None, redis::cmd("INFO").arg("replication")).await;
                if info.is_ok_and(|info| info.lines().any(|line| line == wanted)) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(START, serving).await.map_err(|_| {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            format!("the instance does not serve within {START:?}: {log}")
        })?;
        Ok(self.data())
    }

    fn make_folder(&self, path: &Path) {
        fs::create_dir_all(path).unwrap();
        self.give_to_owner(path);
    }

    fn give_to_owner(&self, path: &Path) {
        if let Some(owner) = &self.owner {
            chown(path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
        }
    }
}
