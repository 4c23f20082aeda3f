//! What `/proc` says: identity of a process, which processes work in a directory, and which are in a control group.
//!
//! **Invariant:** nothing here touches the file system that the directory is on. Paths are compared as text, because a
//! `stat` on a hung disk would never return, and this is needed most when the disk hangs.

use std::{fs, path::Path};

use procfs::process::Process;

/// A process that works in the directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) state: char,
}

/// When the process started, in clock ticks since boot: with the id it names a process for ever (until reboot).
pub(super) fn start_time(pid: u32) -> Option<u64> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(stat.starttime)
}

/// Id of this boot of the kernel.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Whether the process works in the directory. Zombies do not: they have no working directory any more.
pub(super) fn works_in(pid: u32, directory: &Path) -> bool {
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == directory)
}

/// All processes that work in the directory, by id.
pub(super) fn working_in(directory: &Path) -> Vec<Found> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut all: Vec<Found> = entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| works_in(*pid, directory))
        .filter_map(found)
        .collect();
    all.sort_by_key(|process| process.pid);
    all
}

/// All processes in a control group but zombies; none where there is no such group.
pub(super) fn in_group(group: &Path) -> Vec<Found> {
    let Ok(listed) = fs::read_to_string(group.join("cgroup.procs")) else { return Vec::new() };
    let pids = listed.lines().filter_map(|line| line.parse().ok());
    pids.filter_map(found).filter(|process| !matches!(process.state, 'Z' | 'X')).collect()
}

fn found(pid: u32) -> Option<Found> {
    let stat = Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()?;
    Some(Found { pid, name: stat.comm, state: stat.state })
}
