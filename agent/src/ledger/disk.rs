//! The seam between the ledger and the disk: whole files, read at once and replaced durably.
//!
//! [`RealDisk`] is the operating system's. A simulated disk stands in for it where a power cut has to drop what was not
//! flushed. **Invariant:** when [`Disk::write_durably`] returns `Ok`, a reader after a power cut sees the new content;
//! when it fails, such a reader sees the old content or the new one, whole in either case.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Reads and replaces whole files. Blocking: call it where blocking is allowed, that is in [`Disk::offload`].
pub trait Disk: Send + Sync + 'static {
    /// Carries out work that blocks, where it keeps nothing else from running. The work begins without being waited for, and
    /// goes on when nobody waits for it.
    fn offload(&self, work: Box<dyn FnOnce() + Send>);

    /// The content of a file; `None` when there is no such file.
    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;

    /// Replaces a file's content, readable by its owner alone. Durable when it returns.
    fn write_durably(&self, path: &Path, content: &[u8]) -> io::Result<()>;

    /// Removes a file, durably; one that does not exist is removed already.
    fn remove_durably(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's file systems.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

/// Whose content only the owner may read.
const OWNER_ONLY: u32 = 0o600;

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

// === impl RealDisk ===

impl Disk for RealDisk {
    fn offload(&self, work: Box<dyn FnOnce() + Send>) {
        drop(tokio::task::spawn_blocking(work));
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(path) {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Temporary file, fsync, rename, fsync of the directory: the rename makes it whole, the two flushes make it durable.
    fn write_durably(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let temporary = path.with_extension("new");
        // A leftover of a crash may have other permissions than those asked for here: it goes first.
        match fs::remove_file(&temporary) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(OWNER_ONLY).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        drop(file);
        fs::rename(&temporary, path)?;
        File::open(parent_of(path))?.sync_all()
    }

    fn remove_durably(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Ok(()) => File::open(parent_of(path))?.sync_all(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_only_its_owner_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ledger.json");
        assert_eq!(RealDisk.read(&path).unwrap(), None);
        RealDisk.write_durably(&path, b"one").unwrap();
        fs::write(path.with_extension("new"), b"left by a crash").unwrap();
        RealDisk.write_durably(&path, b"two").unwrap();
        assert_eq!(RealDisk.read(&path).unwrap().as_deref(), Some(&b"two"[..]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, OWNER_ONLY);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn removing_what_does_not_exist_is_done_already() {
        let directory = tempfile::tempdir().unwrap();
        RealDisk.remove_durably(&directory.path().join("nothing")).unwrap();
    }
}
