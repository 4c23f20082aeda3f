//! Facts of the machine: processors, memory, disk, kernel. Read from /proc and /etc, cheaply, on a period.
//!
//! What cannot be read is 0 or empty, which means unknown; a machine without a fact is no reason to stop.

mod cpu;
mod memory;
pub mod ports;

use std::{fs, path::Path, path::PathBuf, time::Duration};

use cpu::CpuTimes;
use regent_common::topology::HostFacts;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Time between two measurements.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Boot id of the kernel; another one after every boot.
pub fn boot_id() -> String {
    read_line("/proc/sys/kernel/random/boot_id")
}

/// Size and free bytes of the file system that a folder is on, or will be on.
pub fn disk(folder: &Path) -> Option<(u64, u64)> {
    let existing = folder.ancestors().find(|folder| folder.exists())?;
    let facts = rustix::fs::statvfs(existing).ok()?;
    Some((facts.f_blocks * facts.f_frsize, facts.f_bavail * facts.f_frsize))
}

/// How long the init system is asked whether the machine goes down.
const ASKED_FOR: Duration = Duration::from_millis(500);

/// Whether the whole machine is being stopped, by systemd's word; false where there is none.
pub async fn goes_down() -> bool {
    let asked = tokio::process::Command::new("systemctl").arg("is-system-running").kill_on_drop(true).output();
    match tokio::time::timeout(ASKED_FOR, asked).await {
        Ok(Ok(answer)) => answer.stdout.trim_ascii() == b"stopping",
        // Whether it is stopped is not known: then it is not.
        Ok(Err(_)) | Err(_) => false,
    }
}

/// Measures on the period until told to stop.
pub async fn run(facts: watch::Sender<HostFacts>, data_root: PathBuf, period: Duration, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let root = data_root.clone();
        // A hung file system must not take a thread of the runtime with it.
        let Ok((measured, times)) = tokio::task::spawn_blocking(move || measure(&root, before)).await else { return };
        before = times;
        facts.send_replace(measured);
    }
}

fn measure(data_root: &Path, before: Option<CpuTimes>) -> (HostFacts, Option<CpuTimes>) {
    let times = fs::read_to_string("/proc/stat").ok().and_then(|text| CpuTimes::parse(&text));
    let memory = fs::read_to_string("/proc/meminfo").map(|text| memory::parse(&text)).unwrap_or_default();
    let (disk_bytes, disk_free_bytes) = disk(data_root).unwrap_or_default();
    let cpu_percent = match (before, times) {
        (Some(before), Some(now)) => now.busy_percent_since(before),
        (None, Some(now)) => now.busy_percent_since(CpuTimes::default()),
        (_, None) => 0.0,
    };
    let facts = HostFacts {
        cpus: std::thread::available_parallelism().map_or(0, |count| count.get().try_into().unwrap_or(u32::MAX)),
        cpu_percent,
        memory_bytes: memory.total,
        memory_available_bytes: memory.available,
        disk_bytes,
        disk_free_bytes,
        kernel: read_line("/proc/sys/kernel/osrelease"),
        distribution: fs::read_to_string("/etc/os-release").map(|text| distribution(&text)).unwrap_or_default(),
        boot_id: boot_id(),
    };
    (facts, times)
}

fn read_line(path: &str) -> String {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default()
}

/// The distribution's name for people, out of os-release.
fn distribution(text: &str) -> String {
    text.lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let (facts, times) = measure(Path::new("/"), None);
        assert!(facts.cpus > 0 && facts.memory_bytes > 0 && facts.memory_available_bytes > 0);
        assert!(facts.memory_available_bytes <= facts.memory_bytes);
        assert!(facts.disk_bytes > 0 && facts.disk_free_bytes <= facts.disk_bytes);
        assert!((0.0..=100.0).contains(&facts.cpu_percent));
        assert!(!facts.kernel.is_empty() && !facts.boot_id.is_empty());
        assert!(times.is_some());
    }

    #[test]
    fn a_folder_that_does_not_exist_yet_has_the_disk_of_its_parent() {
        assert_eq!(
            disk(Path::new("/no/such/folder")).map(|(size, _)| size),
            disk(Path::new("/")).map(|(size, _)| size)
        );
    }

    #[test]
    fn the_distribution_is_named_for_people() {
        assert_eq!(distribution("ID=x\nPRETTY_NAME=\"Some Linux 1 (one)\"\n"), "Some Linux 1 (one)");
        assert_eq!(distribution(""), "");
    }
}
