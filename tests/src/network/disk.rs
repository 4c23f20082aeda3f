//! A machine's disk: ext4 in a file of the test's folder, so that it can hang.
//!
//! Mounted in the test's own namespace: when the test has ended, however, the mount is gone with it. The file is left where
//! the test's folder is kept (`mount -o loop,ro FILE FOLDER` shows it).

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::words;
use crate::{cluster::run, folder::end_processes_in};

/// What the file system seems to have; the file grows only by what is written.
const BYTES: u64 = 2 << 30;

/// Names of the files that fill it begin so.
const FILLER: &str = "filler";

/// A disk.
#[derive(Debug)]
pub struct Disk {
    mount_point: PathBuf,
    frozen: bool,
}

// === impl Disk ===

impl Disk {
    /// Makes the file system and mounts it.
    pub(super) fn make(image: &Path, mount_point: &Path) -> Result<Self> {
        let file = File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
        file.set_len(BYTES)?;
        let mut format = words(&["mkfs.ext4", "-q", "-F", "-m", "0"]);
        format.arg(image);
        run(format)?;
        fs::create_dir_all(mount_point)?;
        let mut mount = words(&["mount", "-o", "loop,noatime"]);
        mount.arg(image).arg(mount_point);
        run(mount)?;
        fs::set_permissions(mount_point, fs::Permissions::from_mode(0o755))?;
        Ok(Self { mount_point: mount_point.to_owned(), frozen: false })
    }

    /// From now on who writes to it hangs, and cannot be killed.
    pub fn freeze(&mut self) -> Result<()> {
        self.fsfreeze("--freeze")?;
        self.frozen = true;
        Ok(())
    }

    /// Goes on.
    pub fn thaw(&mut self) -> Result<()> {
        if self.frozen {
            self.fsfreeze("--unfreeze")?;
            self.frozen = false;
        }
        Ok(())
    }

    /// From now on nothing more can be written to it.
    pub fn fill(&mut self) -> Result<()> {
        // More may be freed while it is being filled: what is left then is taken as well.
        for number in 0.. {
            let left = nix::sys::statvfs::statvfs(&self.mount_point)?;
            let left = left.blocks_available() * left.fragment_size();
            if left == 0 {
                break;
            }
            let mut fill = words(&["fallocate", "--length", &left.to_string()]);
            fill.arg(self.mount_point.join(format!("{FILLER}-{number}")));
            if run(fill).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// What filled it is taken away.
    pub fn empty(&mut self) -> Result<()> {
        for entry in fs::read_dir(&self.mount_point)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(FILLER) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn fsfreeze(&self, what: &str) -> Result<()> {
        let mut command = Command::new("fsfreeze");
        command.arg(what).arg(&self.mount_point);
        run(command).map(drop)
    }
}

impl Drop for Disk {
    #[expect(clippy::print_stderr, reason = "who reads a failed test has to learn what is left")]
    fn drop(&mut self) {
        let unmount = || {
            self.thaw()?;
            end_processes_in(&self.mount_point)?;
            let mut unmount = Command::new("umount");
            unmount.arg(&self.mount_point);
            run(unmount)
        };
        let result: Result<String> = { unmount }();
        if let Err(error) = result {
            // It goes with the test's namespace.
            eprintln!("the disk at {} stays until the test ends: {error:#}", self.mount_point.display());
        }
    }
}
