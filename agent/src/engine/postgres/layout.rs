//! Where a member's files are, and the marks that survive a power cut.
//!
//! ```text
//! ROOT/regent-member       whose folder this is; nothing is ever removed in a folder without it
//! ROOT/data                PGDATA
//! ROOT/incoming            a clone in the making; complete only when ROOT/incoming-complete stands
//! ROOT/kept/data-N         what a swap put aside
//! ROOT/own-log             log of the engine that a rewind under way must not lose (see `rewind/own_log.rs`)
//! ROOT/conf, ROOT/log      our configuration and the engine's log: outside PGDATA, so that no clone or rewind brings them
//! ROOT/initializing        an initialization began and did not end
//! ROOT/dirty               the data must not be started
//! ROOT/swap                a swap is under way (see `swap.rs`)
//! ROOT/adopted             what has to be put back when an adopted instance is given back (see `adoption`)
//! ROOT/canary              written and flushed by the probe
//! ```
//! **Invariant:** a mark is flushed, with its directory, before what it marks begins, and removed only after the result is
//! flushed. Marks stand outside `data`, because tools that copy a data directory copy every file in it.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

use regent_common::ids::{ClusterName, MemberName};
use serde::{Deserialize, Serialize};

use crate::engine::DriverError;

/// Name of the file that says whose a folder is.
const MARKER: &str = "regent-member";

/// Whether a data directory is in a member's folder, of whatever agent.
pub(super) fn is_in_a_members_folder(data: &Path) -> bool {
    data.parent().is_some_and(|root| root.join(MARKER).exists())
}

/// Owner of the engine's files and processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EngineUser {
    /// Name to become; `None` when we are that user already.
    pub(super) name: Option<String>,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The member's files.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) root: PathBuf,
    pub(super) user: EngineUser,
    cluster: ClusterName,
    member: MemberName,
    data_name: &'static str,
}

/// Whose folder it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    cluster: ClusterName,
    member: MemberName,
}

/// What a `postmaster.pid` says; its lines are the engine's own (`miscadmin.h`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) pid: u32,
    pub(super) port: Option<u16>,
    pub(super) socket_folder: Option<PathBuf>,
}

impl Claimed {
    pub(super) fn read(data: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(data.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The process, the data directory, the start, the port, the first folder of sockets. The last ones come a little later.
        let line = |number: usize| text.lines().nth(number).map(str::trim).filter(|line| !line.is_empty());
        Some(Self {
            pid: line(0)?.parse().ok()?,
            port: line(3).and_then(|port| port.parse().ok()),
            socket_folder: line(4).map(PathBuf::from),
        })
    }
}

/// A file operation that failed, as the driver reports it.
pub(super) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DriverError + use<> {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DriverError::DiskFull { path, detail: format!("could not {doing} it") }
        }
        _ => DriverError::Io { doing, path, source },
    }
}

/// Runs file operations on a thread that may wait for the disk.
pub(super) async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(work).await.expect("file operations do not panic and are never aborted")
}

// === impl Layout ===

impl Layout {
    pub(super) fn new(root: PathBuf, user: EngineUser, cluster: ClusterName, member: MemberName) -> Self {
        Self { root, user, cluster, member, data_name: "data" }
    }

    /// The same member, whose data is what was copied into the side directory.
    pub(super) fn with_data_in_incoming(self) -> Self {
        Self { data_name: "incoming", ..self }
    }

    pub(super) fn data(&self) -> PathBuf {
        self.root.join(self.data_name)
    }
    pub(super) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }
    pub(super) fn incoming_complete(&self) -> PathBuf {
        self.root.join("incoming-complete")
    }
    pub(super) fn log_segments(&self) -> PathBuf {
        self.data().join("pg_wal")
    }
    pub(super) fn own_log(&self) -> PathBuf {
        self.root.join("own-log")
    }
    pub(super) fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }
    pub(super) fn conf(&self) -> PathBuf {
        self.root.join("conf")
    }
    pub(super) fn log(&self) -> PathBuf {
        self.root.join("log")
    }
    pub(super) fn upstream_conf(&self) -> PathBuf {
        self.conf().join("upstream.conf")
    }
    pub(super) fn main_conf(&self) -> PathBuf {
        self.conf().join("postgresql.conf")
    }
    pub(super) fn ident_conf(&self) -> PathBuf {
        self.conf().join("pg_ident.conf")
    }
    pub(super) fn hba_conf(&self) -> PathBuf {
        self.conf().join("pg_hba.conf")
    }
    pub(super) fn password_file(&self) -> PathBuf {
        self.conf().join("pgpass")
    }
    pub(super) fn startup_log(&self) -> PathBuf {
        self.log().join("startup.log")
    }
    pub(super) fn standby_signal(&self) -> PathBuf {
        self.data().join("standby.signal")
    }
    pub(super) fn pid_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }
    pub(super) fn dirty(&self) -> PathBuf {
        self.root.join("dirty")
    }
    pub(super) fn initializing(&self) -> PathBuf {
        self.root.join("initializing")
    }
    pub(super) fn swap_journal(&self) -> PathBuf {
        self.root.join("swap")
    }
    pub(super) fn canary(&self) -> PathBuf {
        self.root.join("canary")
    }
    fn marker(&self) -> PathBuf {
        self.root.join(MARKER)
    }

    pub(super) fn adopted(&self) -> PathBuf {
        self.root.join("adopted")
    }

    /// What the data directory says of its postmaster.
    pub(super) fn claimed(&self) -> Option<Claimed> {
        Claimed::read(&self.data())
    }

    /// The process that the data directory names as its postmaster.
    pub(super) fn claimed_process(&self) -> Option<u32> {
        Some(self.claimed()?.pid)
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.dirty().exists() || self.initializing().exists()
    }

    /// Whether there is a data directory of this member that an initialization or a clone has finished.
    pub(super) fn has_data(&self) -> bool {
        self.is_ours() && !self.initializing().exists() && self.data().join("PG_VERSION").exists()
    }

    pub(super) fn is_ours(&self) -> bool {
        self.read_marker().is_some_and(|marker| marker.cluster == self.cluster && marker.member == self.member)
    }

    /// True when it is ours, false when it is nobody's; another member's is refused.
    pub(super) fn is_ours_or_nobodys(&self) -> Result<bool, DriverError> {
        if !self.is_ours() && self.marker().exists() {
            return Err(DriverError::ForeignData { path: self.root.clone(), member: self.member.clone() });
        }
        Ok(self.is_ours())
    }

    fn read_marker(&self) -> Option<Marker> {
        serde_json::from_slice(&fs::read(self.marker()).ok()?).ok()
    }

    /// Takes the folder for this member, or refuses: a folder that belongs to another member, or data of unknown origin.
    pub(super) fn claim(&self) -> Result<(), DriverError> {
        if self.is_ours() {
            return Ok(());
        }
        let foreign = |path: PathBuf| DriverError::ForeignData { path, member: self.member.clone() };
        if self.marker().exists() {
            return Err(foreign(self.root.clone()));
        }
        for path in [self.data(), self.incoming(), self.kept()] {
            if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(foreign(path));
            }
        }
        // The engine's user passes through to its own folders and sees nothing else.
        self.make_folder(&self.root, 0o711, false)?;
        let marker = Marker { cluster: self.cluster.clone(), member: self.member.clone() };
        let text = serde_json::to_vec(&marker).expect("two names are JSON");
        self.write_ours(&self.marker(), &text)
    }

    /// Makes the folders of configuration, log and kept copies.
    pub(super) fn make_folders(&self) -> Result<(), DriverError> {
        // Ours, so that the engine cannot change its own access rules; it may read them.
        self.make_folder(&self.conf(), 0o711, false)?;
        self.make_folder(&self.kept(), 0o711, false)?;
        self.make_folder(&self.log(), 0o700, true)
    }

    /// Makes a folder with a mode, for the engine's user or for us.
    pub(super) fn make_folder(&self, path: &Path, mode: u32, for_engine: bool) -> Result<(), DriverError> {
        fs::create_dir_all(path).map_err(io_error("create", path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))?;
        if for_engine && self.user.name.is_some() {
            chown(path, Some(self.user.uid), Some(self.user.gid)).map_err(io_error("set the owner of", path))?;
        }
        Ok(())
    }

    /// Replaces a file of the engine's user by rename, flushed; only that user may read it.
    pub(super) fn write_for_engine(&self, path: &Path, content: &[u8]) -> Result<(), DriverError> {
        let owner = self.user.name.is_some().then_some((self.user.uid, self.user.gid));
        replace(path, content, owner).map_err(io_error("write", path))
    }

    /// Replaces a file of our own by rename, flushed; only we may read it.
    pub(super) fn write_ours(&self, path: &Path, content: &[u8]) -> Result<(), DriverError> {
        replace(path, content, None).map_err(io_error("write", path))
    }

    /// Marks the data as not to be started.
    pub(super) fn mark_dirty(&self, why: &str) -> Result<(), DriverError> {
        self.write_ours(&self.dirty(), why.as_bytes())
    }

    /// Removes a mark; the directory is flushed.
    pub(super) fn unmark(&self, mark: &Path) -> Result<(), DriverError> {
        match fs::remove_file(mark) {
            Ok(()) => sync_parent(mark).map_err(io_error("remove", mark)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("remove", mark)(error)),
        }
    }

    /// Renames within ROOT; both directories are flushed.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), DriverError> {
        fs::rename(from, to).map_err(io_error("rename", from))?;
        sync_parent(to).and_then(|()| sync_parent(from)).map_err(io_error("rename", from))
    }

    /// Removes a tree of ours; it may be absent.
    pub(super) fn remove_tree(&self, path: &Path) -> Result<(), DriverError> {
        if !self.is_ours() {
            return Err(DriverError::ForeignData { path: path.to_path_buf(), member: self.member.clone() });
        }
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A name in `kept` that is not used yet.
    pub(super) fn free_kept_name(&self) -> String {
        (1u32..).map(|n| format!("data-{n}")).find(|name| !self.kept().join(name).exists()).expect("numbers do not end")
    }

    /// Removes everything of the member, and at last the mark of whose folder it is; the data is left in `kept` if that is wanted.
    pub(super) fn give_up(&self, keep_data: bool) -> Result<(), DriverError> {
        if keep_data && self.has_data() {
            self.make_folder(&self.kept(), 0o711, false)?;
            self.rename(&self.data(), &self.kept().join(self.free_kept_name()))?;
        } else if !keep_data {
            self.remove_tree(&self.kept())?;
        }
        // The power may go half-way: what is left then must not be started. A full disk does not stop a release.
        if self.has_data()
            && let Err(error) = self.mark_dirty("its member was being released")
        {
            tracing::warn!(%error, "the data that is being removed could not be marked");
        }
        for folder in [self.data(), self.incoming(), self.own_log(), self.conf(), self.log()] {
            self.remove_tree(&folder)?;
        }
        let marks = [
            self.incoming_complete(),
            self.swap_journal(),
            self.dirty(),
            self.initializing(),
            self.canary(),
            self.adopted(),
        ];
        for mark in marks {
            self.unmark(&mark)?;
        }
        self.disclaim()
    }

    /// Gives up the folder, after everything else in it is gone.
    pub(super) fn disclaim(&self) -> Result<(), DriverError> {
        self.unmark(&self.marker())
    }

    /// Removes the folder itself, unless something was kept in it.
    pub(super) fn remove_root_if_empty(&self) -> Result<(), DriverError> {
        for folder in [self.kept(), self.root.clone()] {
            match fs::remove_dir(&folder) {
                Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
                other => other.map_err(io_error("remove", &folder))?,
            }
        }
        Ok(())
    }

    /// Makes `standby.signal`, with which the engine never starts as a primary.
    pub(super) fn make_standby(&self) -> Result<(), DriverError> {
        if self.standby_signal().exists() {
            return Ok(());
        }
        self.write_for_engine(&self.standby_signal(), b"")
    }

    /// Free bytes of the file system for the engine's user.
    pub(super) fn free_bytes(&self) -> Result<u64, DriverError> {
        let facts = rustix::fs::statvfs(&self.root)
            .map_err(|error| io_error("look at the file system of", &self.root)(error.into()))?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }
}

/// Bytes that the files of a tree occupy; what vanishes while we look does not count.
pub(super) fn tree_bytes(path: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(path) else { return 0 };
    entries
        .filter_map(Result::ok)
        .map(|entry| match entry.metadata() {
            Ok(facts) if facts.is_dir() => tree_bytes(&entry.path()),
            Ok(facts) => facts.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}

pub(super) fn replace(path: &Path, content: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // Made anew, never written through a link that somebody left there.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = File::options().create_new(true).write(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    if let Some((uid, gid)) = owner {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    file.sync_all()?;
    fs::rename(&new, path)?;
    sync_parent(path)
}

pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
}
