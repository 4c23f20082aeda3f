//! Writers as processes, and the account when they have ended.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    Login,
    history::{History, Outcome},
};
use crate::{
    process::{Daemon, program},
    wait,
};

/// Environment variable with the password; never an argument, which everybody could read.
pub const PASSWORD: &str = "REGENT_WORKLOAD_PASSWORD";

/// Running writers: one that follows the primary, and one for each member that never stops trying.
#[derive(Debug)]
pub struct Writers {
    folder: PathBuf,
    running: BTreeMap<String, Daemon>,
}

// === impl Writers ===

impl Writers {
    /// Starts a follower over `members` and, with `each`, one writer for each of them. Logs go to `folder`.
    pub fn start(folder: &Path, login: &Login, members: &[String], each: bool) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut writers = Self { folder: folder.to_owned(), running: BTreeMap::new() };
        writers.add("follower", login, &["follow", "--members", &members.join(",")])?;
        for (number, member) in members.iter().enumerate().filter(|_| each) {
            writers.add(&format!("node-{}", number + 1), login, &["node", "--member", member])?;
        }
        Ok(writers)
    }

    fn add(&mut self, name: &str, login: &Login, what: &[&str]) -> Result<()> {
        let mut command = Command::new(program("regent-workload")?);
        command.args(what).args(["--writer", name, "--user", &login.user, "--database", &login.database]);
        command.arg("--log").arg(self.history(name)).env(PASSWORD, &login.password);
        let log = self.folder.join(format!("{name}.out"));
        self.running.insert(name.to_owned(), Daemon::start(name, command, &log)?);
        Ok(())
    }

    fn history(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.history"))
    }

    /// The histories so far.
    pub fn histories(&self) -> Result<Vec<History>> {
        self.running.keys().map(|name| History::read(&self.history(name))).collect()
    }

    /// The follower's history so far.
    pub fn follower(&self) -> Result<History> {
        History::read(&self.history("follower"))
    }

    /// Waits until the follower has `count` acknowledgements received after `since` (nanoseconds).
    pub async fn acknowledged(&self, since: u64, count: usize, deadline: Duration) -> Result<()> {
        wait::until(&format!("{count} acknowledged rows"), deadline, || async {
            let history = self.follower()?;
            let seen = history.acknowledgements().filter(|(at, _)| *at > since).count();
            if seen >= count {
                return Ok(());
            }
            let reason = history.attempts.iter().rev().find_map(|attempt| match &attempt.outcome {
                Outcome::Acknowledged(_) => None,
                Outcome::Refused(reason) | Outcome::Unknown(reason) => Some(reason.as_str()),
            });
            bail!("{seen} so far; the last trouble was: {}", reason.unwrap_or("none"))
        })
        .await
    }

    /// Asks all writers to stop, waits, and reads what they did.
    pub async fn stop(mut self) -> Result<Vec<History>> {
        for (name, daemon) in &mut self.running {
            let status = daemon.stop().await.with_context(|| format!("writer {name}"))?;
            if !status.success() {
                bail!("writer {name} ended with {status}; see {}", daemon.log().display());
            }
        }
        self.histories()
    }
}
