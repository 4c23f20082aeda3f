//! Where a member's files are, and the marks that survive a power cut: what is the same for every engine.
//!
//! ```text
//! ROOT/regent-member       whose folder this is; nothing is ever removed in a folder without it
//! ROOT/data                the engine's data
//! ROOT/incoming            a clone in the making; complete only when ROOT/incoming-complete stands
//! ROOT/kept/data-N         what a swap put aside
//! ROOT/conf, ROOT/log      our configuration and the engine's log: outside the data, so that no clone or rewind brings them
//! ROOT/initializing        an initialization began and did not end
//! ROOT/dirty               the data must not be started
//! ROOT/swap                a swap is under way (see [`super::swap`])
//! ROOT/canary              written and flushed by the probe
//! ROOT/adopted             what has to be put back when an adopted instance is given back
//! ```
//! An engine adds what it has besides, by its [`Shape`] and by methods of its own on [`Layout`].
//!
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

use super::DriverError;

/// Name of the file that says whose a folder is.
const MARKER: &str = "regent-member";

/// What an engine's files have besides what all have.
#[derive(Debug)]
pub(in crate::engine) struct Shape {
    /// Whether a folder holds whole data of the engine.
    pub(in crate::engine) holds_data: fn(&Path) -> bool,
    /// More folders in ROOT that go with the member.
    pub(in crate::engine) folders: &'static [&'static str],
}

/// Whether a data directory is in a member's folder, of whatever agent.
pub(in crate::engine) fn is_in_a_members_folder(data: &Path) -> bool {
    data.parent().is_some_and(|root| root.join(MARKER).exists())
}

/// Owner of the engine's files and processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine) struct EngineUser {
    /// Name to become; `None` when we are that user already.
    pub(in crate::engine) name: Option<String>,
    pub(in crate::engine) uid: u32,
    pub(in crate::engine) gid: u32,
}

/// The member's files.
#[derive(Debug, Clone)]
pub(in crate::engine) struct Layout {
    pub(in crate::engine) root: PathBuf,
    pub(in crate::engine) user: EngineUser,
    cluster: ClusterName,
    member: MemberName,
    data_name: &'static str,
    shape: &'static Shape,
}

/// Whose folder it is.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    cluster: ClusterName,
    member: MemberName,
}

/// A file operation that failed, as the driver reports it.
pub(in crate::engine) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DriverError + use<> {
    let path = path.to_path_buf();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DriverError::DiskFull { path, detail: format!("could not {doing} it") }
        }
        _ => DriverError::Io { doing, path, source },
    }
}

/// Runs file operations on a thread that may wait for the disk.
pub(in crate::engine) async fn offload<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DriverError> + Send + 'static,
) -> Result<T, DriverError> {
    tokio::task::spawn_blocking(work).await.expect("file operations do not panic and are never aborted")
}

// === impl EngineUser ===

impl EngineUser {
    /// Who the engine runs as: `wanted`, or else `usual`, when we are root; else we ourselves.
    pub(in crate::engine) fn find(engine: &str, wanted: Option<&str>, usual: &str) -> Result<Self, DriverError> {
        let own = (nix::unistd::geteuid(), nix::unistd::getegid());
        if !own.0.is_root() {
            return Ok(Self { name: None, uid: own.0.as_raw(), gid: own.1.as_raw() });
        }
        let name = wanted.unwrap_or(usual).to_owned();
        let unfit = |problem: String| DriverError::InvalidSetting { name: format!("engine.{engine}.user"), problem };
        match nix::unistd::User::from_name(&name) {
            Ok(Some(user)) if !user.uid.is_root() => {
                Ok(Self { name: Some(name), uid: user.uid.as_raw(), gid: user.gid.as_raw() })
            }
            Ok(Some(_)) => Err(unfit(format!("{name} is root, as which the engine is not to run"))),
            Ok(None) | Err(_) => Err(unfit(format!("there is no user {name} on this machine"))),
        }
    }
}

// === impl Layout ===

impl Layout {
    pub(in crate::engine) fn new(
        root: PathBuf,
        user: EngineUser,
        cluster: ClusterName,
        member: MemberName,
        shape: &'static Shape,
    ) -> Self {
        Self { root, user, cluster, member, data_name: "data", shape }
    }

    /// The same member, whose data is what was copied into the side directory.
    pub(in crate::engine) fn with_data_in_incoming(self) -> Self {
        Self { data_name: "incoming", ..self }
    }

    pub(in crate::engine) fn data(&self) -> PathBuf {
        self.root.join(self.data_name)
    }
    pub(in crate::engine) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }
    pub(in crate::engine) fn incoming_complete(&self) -> PathBuf {
        self.root.join("incoming-complete")
    }
    pub(in crate::engine) fn kept(&self) -> PathBuf {
        self.root.join("kept")
    }
    pub(in crate::engine) fn conf(&self) -> PathBuf {
        self.root.join("conf")
    }
    pub(in crate::engine) fn log(&self) -> PathBuf {
        self.root.join("log")
    }
    pub(in crate::engine) fn upstream_conf(&self) -> PathBuf {
        self.conf().join("upstream.conf")
    }
    pub(in crate::engine) fn startup_log(&self) -> PathBuf {
        self.log().join("startup.log")
    }
    pub(in crate::engine) fn dirty(&self) -> PathBuf {
        self.root.join("dirty")
    }
    pub(in crate::engine) fn initializing(&self) -> PathBuf {
        self.root.join("initializing")
    }
    pub(in crate::engine) fn swap_journal(&self) -> PathBuf {
        self.root.join("swap")
    }
    pub(in crate::engine) fn canary(&self) -> PathBuf {
        self.root.join("canary")
    }
    pub(in crate::engine) fn adopted(&self) -> PathBuf {
        self.root.join("adopted")
    }
    fn marker(&self) -> PathBuf {
        self.root.join(MARKER)
    }

    pub(in crate::engine) fn is_dirty(&self) -> bool {
        self.dirty().exists() || self.initializing().exists()
    }

    /// Whether there is a data directory of this member that an initialization or a clone has finished.
    pub(in crate::engine) fn has_data(&self) -> bool {
        self.is_ours() && !self.initializing().exists() && self.holds_data()
    }

    /// Whether the data directory holds data, whoever's it is.
    pub(in crate::engine) fn holds_data(&self) -> bool {
        (self.shape.holds_data)(&self.data())
    }

    pub(in crate::engine) fn is_ours(&self) -> bool {
        self.read_marker().is_some_and(|marker| marker.cluster == self.cluster && marker.member == self.member)
    }

    /// True when it is ours, false when it is nobody's; another member's is refused.
    pub(in crate::engine) fn is_ours_or_nobodys(&self) -> Result<bool, DriverError> {
        if !self.is_ours() && self.marker().exists() {
            return Err(DriverError::ForeignData { path: self.root.clone(), member: self.member.clone() });
        }
        Ok(self.is_ours())
    }

    fn read_marker(&self) -> Option<Marker> {
        serde_json::from_slice(&fs::read(self.marker()).ok()?).ok()
    }

    /// Takes the folder for this member, or refuses: a folder that belongs to another member, or data of unknown origin.
    pub(in crate::engine) fn claim(&self) -> Result<(), DriverError> {
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
    pub(in crate::engine) fn make_folders(&self) -> Result<(), DriverError> {
        // Ours, so that the engine cannot change its own access rules; it may read them.
        self.make_folder(&self.conf(), 0o711, false)?;
        self.make_folder(&self.kept(), 0o711, false)?;
        self.make_folder(&self.log(), 0o700, true)
    }

    /// Makes a folder with a mode, for the engine's user or for us.
    pub(in crate::engine) fn make_folder(&self, path: &Path, mode: u32, for_engine: bool) -> Result<(), DriverError> {
        fs::create_dir_all(path).map_err(io_error("create", path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))?;
        if for_engine && self.user.name.is_some() {
            chown(path, Some(self.user.uid), Some(self.user.gid)).map_err(io_error("set the owner of", path))?;
        }
        Ok(())
    }

    /// Replaces a file of the engine's user by rename, flushed; only that user may read it.
    pub(in crate::engine) fn write_for_engine(&self, path: &Path, content: &[u8]) -> Result<(), DriverError> {
        let owner = self.user.name.is_some().then_some((self.user.uid, self.user.gid));
        replace(path, content, owner).map_err(io_error("write", path))
    }

    /// Replaces a file of our own by rename, flushed; only we may read it.
    pub(in crate::engine) fn write_ours(&self, path: &Path, content: &[u8]) -> Result<(), DriverError> {
        replace(path, content, None).map_err(io_error("write", path))
    }

    /// Marks the data as not to be started.
    pub(in crate::engine) fn mark_dirty(&self, why: &str) -> Result<(), DriverError> {
        self.write_ours(&self.dirty(), why.as_bytes())
    }

    /// Removes a mark; the directory is flushed.
    pub(in crate::engine) fn unmark(&self, mark: &Path) -> Result<(), DriverError> {
        match fs::remove_file(mark) {
            Ok(()) => sync_parent(mark).map_err(io_error("remove", mark)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(io_error("remove", mark)(error)),
        }
    }

    /// Renames within ROOT; both directories are flushed.
    pub(in crate::engine) fn rename(&self, from: &Path, to: &Path) -> Result<(), DriverError> {
        fs::rename(from, to).map_err(io_error("rename", from))?;
        sync_parent(to).and_then(|()| sync_parent(from)).map_err(io_error("rename", from))
    }

    /// Removes a tree of ours; it may be absent.
    pub(in crate::engine) fn remove_tree(&self, path: &Path) -> Result<(), DriverError> {
        if !self.is_ours() {
            return Err(DriverError::ForeignData { path: path.to_path_buf(), member: self.member.clone() });
        }
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// A name in `kept` that is not used yet.
    pub(in crate::engine) fn free_kept_name(&self) -> String {
        (1u32..).map(|n| format!("data-{n}")).find(|name| !self.kept().join(name).exists()).expect("numbers do not end")
    }

    /// Removes everything of the member, and at last the mark of whose folder it is; the data is left in `kept` if that is wanted.
    pub(in crate::engine) fn give_up(&self, keep_data: bool) -> Result<(), DriverError> {
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
        let more = self.shape.folders.iter().map(|name| self.root.join(name));
        for folder in [self.data(), self.incoming(), self.conf(), self.log()].into_iter().chain(more) {
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
        marks.iter().try_for_each(|mark| self.unmark(mark))?;
        self.disclaim()
    }

    /// Gives up the folder, after everything else in it is gone.
    pub(in crate::engine) fn disclaim(&self) -> Result<(), DriverError> {
        self.unmark(&self.marker())
    }

    /// Removes the folder itself, unless something was kept in it.
    pub(in crate::engine) fn remove_root_if_empty(&self) -> Result<(), DriverError> {
        for folder in [self.kept(), self.root.clone()] {
            match fs::remove_dir(&folder) {
                Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {}
                other => other.map_err(io_error("remove", &folder))?,
            }
        }
        Ok(())
    }

    /// Free bytes of the file system for the engine's user.
    pub(in crate::engine) fn free_bytes(&self) -> Result<u64, DriverError> {
        let facts = rustix::fs::statvfs(&self.root)
            .map_err(|error| io_error("look at the file system of", &self.root)(error.into()))?;
        Ok(facts.f_bavail.saturating_mul(facts.f_frsize))
    }
}

/// Bytes that the files of a tree occupy; what vanishes while we look does not count.
pub(in crate::engine) fn tree_bytes(path: &Path) -> u64 {
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

pub(in crate::engine) fn replace(path: &Path, content: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
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

pub(in crate::engine) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
}

/// The last few kilobytes of a file.
pub(in crate::engine) fn tail(path: &Path) -> std::io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(8192)))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
