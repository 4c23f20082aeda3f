//! One whole machine, from the inside: its commands, its files, its journal.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use super::body::{News, Whole};
use crate::{
    cluster::run,
    network::{Machine, Network},
};

/// What is the same in every shell of its root, so that nothing of the test's own environment gets in.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LANG", "C.UTF-8"),
    ("DEBIAN_FRONTEND", "noninteractive"),
];

/// How long a machine may take to stop everything on it.
const DOWN: Duration = Duration::from_secs(120);

/// A whole machine. Its clones are the same machine.
#[derive(Debug, Clone)]
pub struct System {
    machine: Arc<Machine>,
    root: PathBuf,
    packages: PathBuf,
    news: News,
}

// === impl System ===

impl System {
    /// Makes a machine with a disk of its own, switched off. `hosts` are the names that it knows, as in /etc/hosts.
    pub(super) fn make(
        network: &Network,
        name: &str,
        layers: &[PathBuf],
        packages: &Path,
        folder: &Path,
        hosts: &str,
    ) -> Result<Self> {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        network.give_disk(name, &folder.join("disk"))?;
        let news = News::new(folder.join("news"));
        let mut addresses = Vec::new();
        let machine = network.add(name, |given| {
            addresses.extend(given);
            Ok(Box::new(Whole::new(name, layers, packages, &folder, news.clone())?))
        })?;
        let system = Self { machine, root: folder.join("root"), packages: packages.to_owned(), news };
        system.write("/etc/hostname", &format!("{name}\n"))?;
        system.write("/etc/hosts", hosts)?;
        system.write("/etc/machine-id", &fs::read_to_string("/proc/sys/kernel/random/uuid")?.replace('-', ""))?;
        // Nobody else has these addresses: nothing is to be found out before they can be used.
        let sections = addresses.iter().zip([24, 64]).map(|(address, prefix)| {
            format!("[Address]\nAddress={address}/{prefix}\nDuplicateAddressDetection=none\n")
        });
        let sections: String = sections.collect();
        system.write("/etc/systemd/network/10-eth0.network", &format!("[Match]\nName=eth0\n\n{sections}"))?;
        Ok(system)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.machine.name()
    }

    /// The machine in the network.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Where a file of its root is on the host.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Writes a file of its root, as somebody does who edits it there.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a file is in a folder")?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// A program of its own, in a shell of root on it.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.args(["--all", "--target", &self.machine.first()?.to_string(), "--", program]);
        command.env_clear().envs(ENVIRONMENT);
        Ok(command)
    }

    /// Runs a program of its own to its end; what it wrote.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = self.command(words[0])?;
        command.args(&words[1..]);
        run(command).with_context(|| format!("on {}", self.name()))
    }

    /// Runs a line of a shell on it, as it stands in a runbook.
    pub fn shell(&self, line: &str) -> Result<String> {
        self.run(&["bash", "-euo", "pipefail", "-c", line])
    }

    /// Waits until it has booted, and sees to it that nothing failed.
    pub fn booted(&self) -> Result<()> {
        self.news.booted().with_context(|| format!("the boot of {}", self.name()))?;
        let failed = self.run(&["systemctl", "list-units", "--failed", "--plain", "--no-legend"])?;
        ensure!(failed.is_empty(), "{} has booted, and these units have failed: {failed}", self.name());
        Ok(())
    }

    /// Switches it off by its own command, which tells everything on it to end; returns when it is off.
    pub fn switch_off(&self) -> Result<()> {
        self.run(&["systemctl", "--no-block", "poweroff"])?;
        self.machine.switched_itself_off(DOWN)
    }

    /// Where the packages that it sees are on the host.
    pub fn packages(&self) -> &Path {
        &self.packages
    }

    /// Host's id of a process by the id that it has on the machine.
    pub fn host_pid(&self, pid: u32) -> Result<u32> {
        // Of every namespace that a process is in, from the host's to its own.
        let ids = |pid: u32| -> Option<Vec<u32>> {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
            line.split_whitespace().map(|id| id.parse().ok()).collect()
        };
        let mut processes = self.machine.processes()?.into_iter();
        let found =
            processes.find(|process| ids(*process).is_some_and(|ids| ids.len() > 1 && ids.last() == Some(&pid)));
        found.with_context(|| format!("there is no process {pid} on {}", self.name()))
    }

    /// Its whole journal, of all boots, or that of one unit: every line with the time when it was written. Also when it is
    /// switched off.
    pub fn journal(&self, unit: Option<&str>) -> Result<String> {
        self.read_journal(unit, "short-iso-precise")
    }

    /// What a unit has written, as it wrote it.
    pub fn output(&self, unit: &str) -> Result<String> {
        self.read_journal(Some(unit), "cat")
    }

    fn read_journal(&self, unit: Option<&str>, form: &str) -> Result<String> {
        // The tool of the image reads what the image's journal wrote.
        let mut command = Command::new("chroot");
        command.arg(&self.root).args(["journalctl", "--directory=/var/log/journal", "--no-pager", "--quiet"]);
        command.args(["--output", form]).env_clear().envs(ENVIRONMENT);
        if let Some(unit) = unit {
            command.args(["--unit", unit]);
        }
        run(command)
    }
}
