//! Writers as processes, and the account when they have ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::{
    Client, checker,
    history::{History, Outcome},
    now_nanos,
};
use crate::{
    place::Place,
    process::{Daemon, program},
    wait,
};

/// Environment variable with the password; never an argument, which everybody could read.
pub const PASSWORD: &str = "REGENT_WORKLOAD_PASSWORD";

/// Pause after each row of the writers that only watch: they must not take the engine from the one that is measured.
const WATCHERS_PAUSE: &str = "10";
/// How long the patient ones wait for an answer: to see one that comes long after it may.
const PATIENCE: &str = "60000";

/// Running writers: one that follows the primary, and others that never stop trying.
#[derive(Debug)]
pub struct Writers {
    folder: PathBuf,
    client: Client,
    /// Before each writer's name in its rows: rows of two sets of writers in one table are not taken for each other.
    prefix: String,
    running: BTreeMap<String, Daemon>,
    /// Those that run on a machine and end with it.
    mortal: BTreeSet<String>,
}

// === impl Writers ===

impl Writers {
    /// Starts a follower over `members` and, with `each`, one writer for each of them. Logs go to `folder`.
    pub fn start(folder: &Path, client: impl Into<Client>, members: &[String], each: bool) -> Result<Self> {
        Self::start_called("", folder, client, members, each)
    }

    /// The same for a table in which others have written before: `prefix` stands before each writer's name there.
    pub fn start_called(
        prefix: &str,
        folder: &Path,
        client: impl Into<Client>,
        members: &[String],
        each: bool,
    ) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let mut writers = Self {
            folder: folder.to_owned(),
            client: client.into(),
            prefix: prefix.to_owned(),
            running: BTreeMap::new(),
            mortal: BTreeSet::new(),
        };
        writers.add("follower", &["follow", "--members", &members.join(",")])?;
        for (number, member) in members.iter().enumerate().filter(|_| each) {
            writers.add(&format!("node-{}", number + 1), &["node", "--member", member])?;
        }
        Ok(writers)
    }

    /// Starts one more for a member that waits very long for each answer.
    pub fn add_patient(&mut self, name: &str, member: &str) -> Result<()> {
        let pace = ["--pause-millis", WATCHERS_PAUSE, "--patience-millis", PATIENCE];
        self.add(name, &[&["node", "--member", member], &pace[..]].concat())
    }

    /// Starts one more for a member, at the given place, such as the member's own machine; it may end with that machine.
    pub fn add_at(&mut self, name: &str, member: &str, place: &Place) -> Result<()> {
        self.mortal.insert(name.to_owned());
        self.add_in(name, &["node", "--member", member, "--pause-millis", WATCHERS_PAUSE], place)
    }

    /// Sends one transaction from a place that commits only after a wait in the engine.
    pub fn add_commit(&mut self, name: &str, member: &str, wait: Duration, place: &Place) -> Result<()> {
        self.add_in(name, &["commit", "--member", member, "--wait-millis", &wait.as_millis().to_string()], place)
    }

    fn add(&mut self, name: &str, what: &[&str]) -> Result<()> {
        self.add_in(name, what, &Place::Loopback)
    }

    fn add_in(&mut self, name: &str, what: &[&str], place: &Place) -> Result<()> {
        let (Client { dialect, login }, history) = (&self.client, self.history(name));
        let mut command = place.command(&program("regent-workload")?)?;
        let writer = format!("{}{name}", self.prefix);
        command.args(what).args(["--writer", &writer, "--engine", dialect.engine()]);
        command.args(["--user", &login.user, "--database", &login.database]);
        command.arg("--log").arg(history).env(PASSWORD, &login.password);
        let log = self.folder.join(format!("{name}.out"));
        self.running.insert(name.to_owned(), Daemon::start(name, command, &log)?);
        Ok(())
    }

    fn history(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.history"))
    }

    /// The histories so far.
    pub fn histories(&self) -> Result<Vec<History>> {
        self.running.keys().map(|name| self.of(name)).collect()
    }

    /// One writer's history so far; empty while it has not begun.
    pub fn of(&self, name: &str) -> Result<History> {
        let path = self.history(name);
        if !path.exists() {
            return Ok(History { writer: name.to_owned(), attempts: Vec::new() });
        }
        History::read(&path)
    }

    /// The follower's history so far.
    pub fn follower(&self) -> Result<History> {
        self.of("follower")
    }

    /// Waits until the follower has `count` acknowledgements received after `since` (nanoseconds).
    pub async fn acknowledged(&self, since: u64, count: usize, deadline: Duration) -> Result<()> {
        self.acknowledged_except("", since, count, deadline).await
    }

    /// The same for rows that another member than `except` (host:port) acknowledged.
    pub async fn acknowledged_except(&self, except: &str, since: u64, count: usize, deadline: Duration) -> Result<()> {
        wait::until(&format!("{count} acknowledged rows"), deadline, || async {
            let history = self.follower()?;
            let seen = history.acknowledgements().filter(|(at, by)| *at > since && *by != except).count();
            if seen >= count {
                return Ok(());
            }
            let reason = history.attempts.iter().rev().find_map(|attempt| match &attempt.outcome {
                Outcome::Acknowledged(..) => None,
                Outcome::Refused(reason) | Outcome::Unknown(reason) => Some(reason.as_str()),
            });
            bail!("{seen} so far; the last trouble was: {}", reason.unwrap_or("none"))
        })
        .await
    }

    /// Fails when a row that one of these writers has sent since `from` was not acknowledged, or it had to wait for longer than
    /// `limit`, for a row or between two; the longest time between two of each, in milliseconds. They have to go on.
    pub async fn unbroken(&self, names: &[&str], limit: Duration, from: u64, deadline: Duration) -> Result<Vec<f64>> {
        let (until, mut gaps) = (now_nanos(), Vec::new());
        for name in names {
            // What is under way now has an end then.
            let on = wait::until(name, deadline, || async {
                let history = self.of(name)?;
                let later = history.acknowledgements().filter(|(at, _)| *at > until).count();
                ensure!(later > 1, "it was to go on, and has {later} rows more");
                Ok(history)
            });
            let history = [on.await?];
            let trouble = checker::failed_or_late(&history, limit, from, until);
            ensure!(trouble.is_empty(), "{trouble:?}");
            let gap = checker::longest_gap(&history, from, until);
            ensure!(Duration::from_nanos(gap.nanos()) <= limit, "{name} had no row for {} ms", gap.millis());
            gaps.push(gap.millis());
        }
        Ok(gaps)
    }

    /// Asks all writers to stop, waits, and reads what they did.
    pub async fn stop(mut self) -> Result<Vec<History>> {
        for daemon in self.running.values_mut() {
            // All at once: each may still wait for a last answer.
            if daemon.ended()?.is_none() {
                daemon.signal(Signal::SIGTERM)?;
            }
        }
        for (name, daemon) in &mut self.running {
            let status = daemon.stop().await.with_context(|| format!("writer {name}"))?;
            let died_with_machine = self.mortal.contains(name) && status.signal() == Some(Signal::SIGKILL as i32);
            if !status.success() && !died_with_machine {
                bail!("writer {name} ended with {status}; see {}", daemon.log().display());
            }
        }
        self.histories()
    }
}
