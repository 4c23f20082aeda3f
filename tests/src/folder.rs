//! The folder of one test: everything that its daemons and engines write, and every process that still lives in it.
//!
//! **Invariant:** when the test has passed, neither the folder nor a process in it is left. When it has failed (or
//! `REGENT_TEST_KEEP` is set) the processes go, the folder stays, and its path is printed.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A folder of a test.
#[derive(Debug)]
pub struct TestFolder {
    path: PathBuf,
    keep: bool,
}

/// Processes that work in `folder` or were started with a path in it, by /proc. Not the caller.
pub fn processes_in(folder: &Path) -> io::Result<Vec<i32>> {
    let needle = folder.as_os_str().as_encoded_bytes();
    let own = i32::try_from(std::process::id()).expect("a process id fits");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // A process that ends meanwhile is no process in the folder.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let named = command.windows(needle.len()).any(|part| part == needle);
        let inside = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
        let ended = fs::read_to_string(entry.path().join("stat")).is_ok_and(|stat| stat.contains(") Z "));
        if pid != own && !ended && (named || inside) {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Ends every process in `folder` with SIGKILL and waits until none is left.
pub fn end_processes_in(folder: &Path) -> io::Result<()> {
    for _ in 0..500 {
        let left = processes_in(folder)?;
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            // It may just have ended: then there is nothing to kill, and that is well.
            let _gone = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(io::Error::other(format!("processes in {} do not end", folder.display())))
}

// === impl TestFolder ===

impl TestFolder {
    /// Makes a folder with a short path (a socket's path has 107 bytes) that every user may enter.
    pub fn new() -> io::Result<Self> {
        let path = tempfile::Builder::new().prefix("regent-").tempdir()?.keep();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self { path, keep: false })
    }

    /// Keeps it, whether or not the test fails.
    pub fn keep(&mut self) {
        self.keep = true;
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TestFolder {
    #[expect(clippy::print_stderr, reason = "who reads a failed test has to learn where its logs are")]
    fn drop(&mut self) {
        if let Err(error) = end_processes_in(&self.path) {
            eprintln!("{error}");
        }
        if self.keep || thread::panicking() || std::env::var_os("REGENT_TEST_KEEP").is_some() {
            eprintln!("the folder of this test is kept: {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}
