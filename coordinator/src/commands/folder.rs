//! The state directory as a whole: copied, and given to its owner.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, lchown, symlink},
    path::{Path, PathBuf},
};

/// A file or a folder that could not be worked on.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

pub(super) fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

/// A folder that a package made belongs to the user that the coordinator runs as: then so does what root has made in it.
pub(super) fn give_to_owner(folder: &Path) -> Result<(), FileError> {
    let owner = fs::metadata(folder).map_err(failed("look at", folder))?;
    if owner.uid() == nix::unistd::geteuid().as_raw() {
        return Ok(());
    }
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(failed("read", &folder))? {
            let path = entry.map_err(failed("read", &folder))?.path();
            let kind = match fs::symlink_metadata(&path) {
                Ok(kind) => kind,
                // The store's journal comes and goes.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(failed("look at", &path)(error)),
            };
            lchown(&path, Some(owner.uid()), Some(owner.gid())).map_err(failed("give away", &path))?;
            if kind.is_dir() {
                folders.push(path);
            }
        }
    }
    Ok(())
}

/// Makes a folder that nobody else can look into; one that is there is left as it is.
pub(super) fn make_private(folder: &Path) -> Result<(), FileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("make", folder))
}

/// Copies the files and links of a folder, and of the folders in it, with their permissions, durably; not those at its top that
/// `skip` names. Links of an identity directory point within it, and still do so in the copy.
pub(super) fn copy(from: &Path, to: &Path, skip: &dyn Fn(&str) -> bool) -> Result<(), FileError> {
    make_private(to)?;
    for entry in fs::read_dir(from).map_err(failed("read", from))? {
        let entry = entry.map_err(failed("read", from))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(failed("look at", &source))?;
        if skip(&entry.file_name().to_string_lossy()) {
            continue;
        }
        if kind.is_dir() {
            copy(&source, &target, &|_| false)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).map_err(failed("copy", &source))?;
            sync(&target)?;
        } else if kind.is_symlink() {
            match fs::remove_file(&target) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("replace", &target)(error)),
                Ok(()) | Err(_) => {}
            }
            let points = fs::read_link(&source).map_err(failed("read", &source))?;
            symlink(points, &target).map_err(failed("link", &target))?;
        }
    }
    sync(to)
}

/// Makes what was written to a file, or to the entries of a folder, durable.
pub(super) fn sync(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed("sync", path))
}
