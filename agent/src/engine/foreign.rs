//! Moving the files of an instance that was there before Regent, and putting them back: what is the same for every engine.
//!
//! The data directory and `ROOT/data` are exchanged in one step of the kernel's: the old place is a link to the new one from then on.
//! An engine that runs meanwhile goes on: its files are the same, and it works in the same directory. A file of its configuration that
//! is replaced stays beside itself, as [`ASIDE`] says.
//!
//! **Invariant:** every change can be made, and taken back, again.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Serialize, de::DeserializeOwned};

use super::{
    DriverError,
    layout::{Layout, io_error, replace, sync_parent},
};

/// Ends the name of what a file was before.
const ASIDE: &str = ".before-regent";

/// What was noted of the instance before the first change, in `ROOT/adopted`, if something was.
pub(in crate::engine) fn noted<T: DeserializeOwned>(layout: &Layout) -> Result<Option<T>, DriverError> {
    let path = layout.adopted();
    match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", &path)(error)),
        Ok(text) => {
            let parsed = serde_json::from_slice(&text);
            parsed.map(Some).map_err(|error| io_error("read", &path)(io::Error::other(error)))
        }
    }
}

/// Notes it, flushed.
pub(in crate::engine) fn note<T: Serialize>(layout: &Layout, found: &T) -> Result<(), DriverError> {
    let text = serde_json::to_vec(found).expect("paths, names and settings of an engine are text");
    layout.write_ours(&layout.adopted(), &text)
}

/// Why data cannot become a member's by an exchange of places: a sentence with what to do.
pub(in crate::engine) fn unfit_place(data: &Path, data_root: &Path) -> Option<String> {
    let device = |path: &Path| fs::metadata(path).ok().map(|facts| facts.dev());
    let root = data_root.ancestors().find(|path| path.exists()).unwrap_or(data_root);
    (device(data) != device(root) || device(data) != data.parent().and_then(device)).then(|| {
        format!(
            "its data is on another file system than {}, or is one by itself: let data_root in agent.toml name a folder on the same one",
            data_root.display()
        )
    })
}

/// The data becomes the member's.
pub(in crate::engine) fn move_in(data: &Path, layout: &Layout) -> Result<(), DriverError> {
    let ours = layout.data();
    if is_directory(&ours) && leads_to(data, &ours) {
        return Ok(());
    }
    if !is_directory(data) {
        return Err(DriverError::NoData { path: data.to_owned() });
    }
    // What takes the old place: at its own it leads nowhere.
    remove_link(&ours)?;
    remove_empty(&ours)?;
    symlink(&ours, &ours).map_err(io_error("create", &ours))?;
    exchange(data, &ours)
}

/// The data goes back to where it was.
pub(in crate::engine) fn move_out(data: &Path, layout: &Layout) -> Result<(), DriverError> {
    let ours = layout.data();
    if is_directory(&ours) && leads_to(data, &ours) {
        exchange(data, &ours)?;
    }
    remove_link(&ours)
}

/// What would lead to data that is no more goes.
pub(in crate::engine) fn forget_old_place(data: &Path, layout: &Layout) -> Result<(), DriverError> {
    if leads_to(data, &layout.data()) { remove_link(data) } else { Ok(()) }
}

fn exchange(data: &Path, ours: &Path) -> Result<(), DriverError> {
    let refused = |problem: String| DriverError::NotAdoptable { path: data.to_owned(), problem };
    renameat_with(CWD, data, CWD, ours, RenameFlags::EXCHANGE).map_err(|errno| match errno {
        rustix::io::Errno::XDEV | rustix::io::Errno::BUSY => refused(format!(
            "it is on another file system than {}, or one of its own: let data_root in agent.toml name a folder on the same one",
            ours.display()
        )),
        other => io_error("exchange", ours)(other.into()),
    })?;
    sync_parent(ours).and_then(|()| sync_parent(data)).map_err(io_error("exchange", ours))
}

/// A file is what it was before, whether it was replaced or not.
pub(in crate::engine) fn put_back(path: &Path) -> Result<(), DriverError> {
    match fs::rename(aside(path), path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.and_then(|()| sync_parent(path)).map_err(io_error("put back", path)),
    }
}

pub(in crate::engine) fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|facts| facts.is_dir())
}

fn leads_to(link: &Path, place: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target == place)
}

pub(in crate::engine) fn remove_link(path: &Path) -> Result<(), DriverError> {
    match fs::symlink_metadata(path) {
        Ok(facts) if facts.is_symlink() => {
            fs::remove_file(path).and_then(|()| sync_parent(path)).map_err(io_error("remove", path))
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("look at", path)(error)),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Removes a folder that nothing is in; it may be absent.
fn remove_empty(path: &Path) -> Result<(), DriverError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Where a file stands that was replaced.
pub(in crate::engine) fn aside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ASIDE);
    PathBuf::from(name)
}

/// Keeps what a file is beside it; what an earlier attempt kept is what it was.
fn put_aside(path: &Path) -> Result<(), DriverError> {
    match fs::hard_link(path, aside(path)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.and_then(|()| sync_parent(path)).map_err(io_error("put aside", path)),
    }
}

/// The file becomes a link to ours.
pub(in crate::engine) fn link_aside(path: &Path, ours: &Path) -> Result<(), DriverError> {
    put_aside(path)?;
    if leads_to(path, ours) {
        return Ok(());
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    remove_link(&new)?;
    let placed = symlink(ours, &new).and_then(|()| fs::rename(&new, path)).and_then(|()| sync_parent(path));
    placed.map_err(io_error("link", path))
}

/// The file's text becomes what is made of the one that it had before.
pub(in crate::engine) fn replace_aside(path: &Path, make: impl FnOnce(&str) -> String) -> Result<(), DriverError> {
    put_aside(path)?;
    let failed = || io_error("change", path);
    let before = aside(path);
    let text = fs::read_to_string(&before).map_err(failed())?;
    let facts = fs::metadata(&before).map_err(failed())?;
    replace(path, make(&text).as_bytes(), Some((facts.uid(), facts.gid()))).map_err(failed())?;
    fs::set_permissions(path, fs::Permissions::from_mode(facts.mode() & 0o7777)).map_err(failed())
}
