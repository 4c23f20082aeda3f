//! A start in a transient unit of systemd's: a control group of its own, in which nothing of the agent's limits, sandbox or
//! life reaches the engine.
//!
//! A unit that is transient vanishes with its processes and is never started at boot: only the agent starts engines. When the
//! machine goes down systemd ends the engine as its driver would, by [`Launch::stop_signal`], and the network after it.
//!
//! **Invariant:** the control group is `system.slice/NAME`, asked for by name at every start, so that an agent which was
//! started anew finds what is left of an engine without asking anybody: systemd itself may be slow when a disk hangs.

use std::{
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
    time::Duration,
};

use tokio::{process::Command, time};

use super::{
    super::{Launch, SupervisorError},
    proc::{self, Found},
};

/// Folder of the control groups in which systemd keeps units that ask for no other place.
const SLICE: &str = "/sys/fs/cgroup/system.slice";
/// How long systemd may take to forget the unit of an engine that has ended.
const FORGETS_WITHIN: Duration = Duration::from_secs(10);
/// Time between two attempts meanwhile.
const ATTEMPT_PERIOD: Duration = Duration::from_millis(20);
/// How long systemd may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

/// The unit of one engine.
#[derive(Debug)]
pub(super) struct Unit {
    name: String,
}

// === impl Unit ===

impl Unit {
    /// The unit of the engine with this name, which is a DNS label and so needs no escaping.
    pub(super) fn of(name: &str) -> Self {
        Self { name: format!("regent-engine-{name}.service") }
    }

    /// Starts `command`, a program and its arguments; returns its process id.
    pub(super) async fn start(&self, command: &[OsString], launch: &Launch) -> io::Result<u32> {
        let began = time::Instant::now();
        loop {
            let answer = ask("systemd-run", &self.properties(command, launch)).await;
            match answer {
                Ok(_) => break,
                // The unit of the engine before, whose processes have ended a moment ago.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && began.elapsed() < FORGETS_WITHIN => {
                    time::sleep(ATTEMPT_PERIOD).await;
                }
                Err(error) => return Err(error),
            }
        }
        let asked = ["show", "--property=MainPID", "--value", &self.name].map(OsString::from);
        let pid = ask("systemctl", &asked).await?;
        match pid.trim().parse() {
            Ok(0) | Err(_) => Err(io::Error::other(format!("it ended at once; see \"journalctl -u {}\"", self.name))),
            Ok(pid) => Ok(pid),
        }
    }

    /// Kills all that is in the unit's control group, in one go of the kernel's; returns what was in it.
    pub(super) fn kill_all(&self) -> Result<Vec<Found>, SupervisorError> {
        let group = self.group();
        let found = proc::in_group(&group);
        if found.is_empty() {
            return Ok(found);
        }
        match fs::write(group.join("cgroup.kill"), "1") {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(SupervisorError::Kernel { doing: "kill the control group of", pid: found[0].pid, source })
            }
            Ok(()) | Err(_) => Ok(found),
        }
    }

    fn group(&self) -> PathBuf {
        PathBuf::from(SLICE).join(&self.name)
    }

    fn properties(&self, command: &[OsString], launch: &Launch) -> Vec<OsString> {
        let Launch { stop_signal, stop_within, .. } = launch;
        let mut asked: Vec<OsString> = [
            format!("--unit={}", self.name),
            "--slice=system.slice".to_owned(),
            "--description=Database engine, started by regent-agent".to_owned(),
            // Forgotten as soon as it has ended, also when it failed, so that its name is free for the next start.
            "--collect".to_owned(),
            "--service-type=exec".to_owned(),
            "--quiet".to_owned(),
            "--no-ask-password".to_owned(),
            // The engine ends before the network does, so that its replicas get what it wrote last.
            "--property=After=network-online.target".to_owned(),
            "--property=KillMode=mixed".to_owned(),
            format!("--property=KillSignal={stop_signal}"),
            format!("--property=TimeoutStopSec={}", stop_within.as_secs()),
            // One process that the kernel ended for want of memory is the engine's own affair.
            "--property=OOMPolicy=continue".to_owned(),
            "--property=TasksMax=infinity".to_owned(),
            "--property=LimitNOFILE=524288".to_owned(),
            "--".to_owned(),
        ]
        .map(OsString::from)
        .into();
        asked.extend(command.iter().map(|word| literally(word)));
        asked
    }
}

/// The word with nothing in it that systemd would replace.
fn literally(word: &OsStr) -> OsString {
    let mut bytes = Vec::with_capacity(word.len());
    for byte in word.as_bytes() {
        bytes.push(*byte);
        if *byte == b'$' {
            bytes.push(b'$');
        }
    }
    OsString::from_vec(bytes)
}

/// What one of systemd's programs answers.
async fn ask(program: &'static str, arguments: &[OsString]) -> io::Result<String> {
    let running = Command::new(program).args(arguments).env("LC_ALL", "C").kill_on_drop(true).output();
    let answer = time::timeout(ANSWERS_WITHIN, running)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("{program} gave no answer")))??;
    if answer.status.success() {
        return Ok(String::from_utf8_lossy(&answer.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
    let kind = if said.contains("already loaded") || said.contains("already exists") {
        io::ErrorKind::AlreadyExists
    } else {
        io::ErrorKind::Other
    };
    Err(io::Error::new(kind, format!("{program}: {said}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_word_is_replaced() {
        assert_eq!(literally(OsStr::new("/data/$HOME/%n")), "/data/$$HOME/%n");
    }
}
