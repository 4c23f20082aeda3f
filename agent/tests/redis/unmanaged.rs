//! An instance of nobody's, as Debian's package makes one: its configuration is outside its data directory, who comes over loopback
//! and says no name may do everything, and an application has a user of its own. It has a socket, which Debian's has when it is told so.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    os::unix::{
        fs::{MetadataExt, chown},
        process::CommandExt,
    },
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

    pub(crate) fn configuration(&self) -> PathBuf {
        self.folder.join("etc/redis.conf")
    }

    /// Makes it, as a replica of the one on another port or new, and starts it; the folder of its data.
    pub(crate) async fn start(&self, upstream: Option<u16>) -> Result<PathBuf, String> {
        let socket = format!("unixsocket {}\n", self.folder.join("socket").display());
        self.start_with(upstream, &socket).await
    }

    /// The same without a socket, and with more lines of configuration.
    pub(crate) async fn start_with(&self, upstream: Option<u16>, more: &str) -> Result<PathBuf, String> {
        for folder in ["", "etc", "main"] {
            self.make_folder(&self.folder.join(folder));
        }
        let text = |name: &str| self.folder.join(name).display().to_string();
        let replicaof = upstream.map_or(String::new(), |port| format!("replicaof 127.0.0.1 {port}\n"));
        let conf = format!(
            "bind 127.0.0.1\nport {}\ndir {}\ndaemonize yes\nlogfile {}\npidfile {}\nmaxmemory 200mb\n{replicaof}\
             user {APPLICATION} on #{} ~* &* +@all\n{more}",
            self.port,
            text("main"),
            text("log"),
            text("pid"),
            digest(APPLICATION_SECRET),
        );
        let file = self.configuration();
        fs::write(&file, conf).unwrap();
        self.give_to_owner(&file);
        self.run(&[&file.display().to_string()])?;
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

    /// Runs the server as the instance's owner until it has gone into the background, or ended with what it says.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(&self.server);
        command.args(arguments).current_dir("/");
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        let ended = command.output().map_err(|error| error.to_string())?;
        if ended.status.success() {
            return Ok(());
        }
        Err(format!("{}: {}", ended.status, String::from_utf8_lossy(&ended.stderr)))
    }

    /// A Sentinel that watches the instance, on a port of its own; it works in its own folder.
    pub(crate) fn watch(&self, port: u16) -> PathBuf {
        let folder = self.folder.join("sentinel");
        self.make_folder(&folder);
        let file = folder.join("sentinel.conf");
        let conf = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\ndaemonize yes\nlogfile {}\npidfile {}\nsentinel monitor shop 127.0.0.1 {} 1\n",
            folder.display(),
            folder.join("log").display(),
            folder.join("pid").display(),
            self.port,
        );
        fs::write(&file, conf).unwrap();
        self.give_to_owner(&file);
        self.run(&[&file.display().to_string(), "--sentinel"]).unwrap();
        folder
    }

    /// What it is and how it is configured, by name: its configuration byte for byte, what stands at the path of its data, and what is in
    /// there by name; its settings, its users and whom it follows. Where two are the same nothing was changed.
    pub(crate) async fn state(&self) -> BTreeMap<String, String> {
        let mut state = BTreeMap::new();
        let facts = fs::metadata(self.configuration()).unwrap();
        let text = fs::read_to_string(self.configuration()).unwrap();
        state.insert("file".to_owned(), format!("{} {:o} {} {text}", facts.ino(), facts.mode(), facts.uid()));
        for folder in [self.configuration().parent().unwrap(), &self.data()] {
            let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
            // Whether it has written a snapshot meanwhile is its own affair.
            let mut names: Vec<_> = names.filter(|name| !name.contains(".rdb")).collect();
            names.sort();
            let kind = fs::symlink_metadata(folder).unwrap().file_type();
            state.insert(folder.display().to_string(), format!("{kind:?} with {names:?}"));
        }
        let settings: BTreeMap<String, String> =
            ask(self.port, None, redis::cmd("CONFIG").arg("GET").arg("*")).await.unwrap();
        state.extend(settings);
        let mut users: Vec<String> = ask(self.port, None, redis::cmd("ACL").arg("LIST")).await.unwrap();
        users.sort();
        // What a user is without this word too, and whose rights were ever set says it.
        state.insert("users".to_owned(), users.join("\n").replace(" sanitize-payload", ""));
        let info: String = ask(self.port, None, redis::cmd("INFO").arg("default")).await.unwrap();
        let kept = ["role:", "process_id:", "master_host:", "master_port:"];
        state.extend(
            info.lines()
                .filter(|line| kept.iter().any(|name| line.starts_with(name)))
                .filter_map(|line| line.split_once(':'))
                .map(|(name, value)| (format!("info {name}"), value.to_owned())),
        );
        state
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
