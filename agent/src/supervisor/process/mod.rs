//! The engine's process: started so that it survives the agent, adopted by pidfd after a restart of the agent.
//!
//! The process is started through `helper detach` of our own program, so that it has its own session: in a transient
//! [`mod@unit`] of systemd's where that runs, else as our child ([`detached`]). Its end is seen through its pidfd, in milliseconds,
//! whoever its parent is. What belongs to the engine is told by the unit's control group, and by the working directory: an
//! engine's processes make sessions and groups of their own, but all work in the data directory.
//!
//! **Invariant:** at most one process is watched; a process is only taken over when its start time and boot are those on
//! record, or when it works in the data directory. How it was started does not matter for that: an agent that uses units
//! takes over what one without them has started.

use std::{
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use nix::sys::signal::Signal;
use rustix::{
    fd::OwnedFd,
    process::{self as kernel, Pid, PidfdFlags, WaitId, WaitIdOptions},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::watch,
    task::JoinHandle,
    time,
};

use self::{
    record::{Record, RecordFile},
    unit::Unit,
};
use super::{Backend, Launch, Status, Supervisor, SupervisorError};

mod detached;
mod proc;
mod record;
mod unit;

/// How long a round of killing waits before it looks again.
const ROUND: Duration = Duration::from_millis(2);

/// Looks after one engine's process.
#[derive(Debug)]
pub struct EngineProcess {
    /// This program, for `helper detach`.
    agent_program: PathBuf,
    /// Where it is started; `None` for a child of ours.
    unit: Option<Unit>,
    /// Directory that the engine's processes work in, without symbolic links.
    directory: PathBuf,
    record: RecordFile,
    shared: Arc<Shared>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
struct Shared {
    watched: Mutex<Watched>,
    changes: watch::Sender<u64>,
}

#[derive(Debug)]
enum Watched {
    Nothing,
    Alive { pid: u32, pidfd: Arc<OwnedFd> },
    Ended { how: String },
}

// === impl EngineProcess ===

impl EngineProcess {
    /// Looks after the process that works in `directory`, with its record in `record`. Starts and adopts nothing yet. `name`
    /// tells it from every other engine of this machine.
    pub fn new(agent_program: PathBuf, backend: Backend, name: &str, directory: PathBuf, record: PathBuf) -> Self {
        Self {
            agent_program,
            unit: match backend {
                Backend::Systemd => Some(Unit::of(name)),
                Backend::Process => None,
            },
            directory,
            record: RecordFile(record),
            shared: Arc::new(Shared { watched: Mutex::new(Watched::Nothing), changes: watch::Sender::new(0) }),
            watcher: Mutex::new(None),
        }
    }

    /// Takes the pidfd of a process and watches it. Needs the runtime: the pidfd is registered with its reactor.
    fn watch(&self, pid: u32, start_time: Option<u64>) -> Result<bool, SupervisorError> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
        let Ok(pidfd) = kernel::pidfd_open(raw, PidfdFlags::NONBLOCK) else { return Ok(false) };
        // Only now does the id belong to the pidfd for sure: an id that was used again shows another start time.
        let seen = proc::start_time(pid);
        if seen.is_none() || start_time.is_some_and(|wanted| seen != Some(wanted)) {
            return Ok(false);
        }
        if has_exited(&pidfd) {
            let how = how_it_ended(&pidfd);
            tracing::info!(pid, how, "the process has ended before it could be watched");
            return Ok(false);
        }
        let failed = |source| SupervisorError::Kernel { doing: "watch", pid, source };
        let readiness = pidfd.try_clone().map_err(failed)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for types that may lie about their fd; OwnedFd does not"
        )]
        let readiness = AsyncFd::with_interest(readiness, Interest::READABLE).map_err(failed)?;
        *self.shared.watched() = Watched::Alive { pid, pidfd: Arc::new(pidfd) };
        self.shared.changed();
        let shared = Arc::clone(&self.shared);
        let task = tokio::spawn(async move {
            // An error here would mean that the pidfd is no pidfd; the process is then looked at by status() anyway.
            drop(readiness.readable().await);
            shared.has_ended(pid);
        });
        let previous = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).replace(task);
        if let Some(previous) = previous {
            previous.abort();
        }
        Ok(true)
    }

    fn alive(&self) -> Option<(u32, Arc<OwnedFd>)> {
        match &*self.shared.watched() {
            Watched::Alive { pid, pidfd } => Some((*pid, Arc::clone(pidfd))),
            Watched::Nothing | Watched::Ended { .. } => None,
        }
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        if let Some(task) = self.watcher.lock().unwrap_or_else(PoisonError::into_inner).take() {
            task.abort();
        }
    }
}

#[async_trait]
impl Supervisor for EngineProcess {
    fn status(&self) -> Status {
        if let Some((pid, pidfd)) = self.alive()
            && has_exited(&pidfd)
        {
            self.shared.has_ended(pid);
        }
        match &*self.shared.watched() {
            Watched::Nothing if self.record.load().is_some() => {
                Status::Ended { how: "it ended while no agent was watching".to_owned() }
            }
            Watched::Nothing => Status::Absent,
            Watched::Alive { pid, .. } => Status::Alive { pid: *pid },
            Watched::Ended { how } => Status::Ended { how: how.clone() },
        }
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    fn adopt(&self, claimed: Option<u32>) -> Result<Option<u32>, SupervisorError> {
        if let Some((pid, pidfd)) = self.alive()
            && !has_exited(&pidfd)
        {
            return Ok(Some(pid));
        }
        if let Some(record) = self.record.load()
            && record.boot_id == proc::boot_id()
            && self.watch(record.pid, Some(record.start_time))?
        {
            return Ok(Some(record.pid));
        }
        // Not any process of the directory: what a dead engine left behind must not pass for a living one.
        let Some(pid) = claimed.filter(|pid| proc::works_in(*pid, &self.directory)) else { return Ok(None) };
        let Some(start_time) = proc::start_time(pid) else { return Ok(None) };
        if !self.watch(pid, Some(start_time))? {
            return Ok(None);
        }
        self.keep_record(pid, start_time)?;
        Ok(Some(pid))
    }

    async fn start(&self, launch: &Launch) -> Result<u32, SupervisorError> {
        if let Status::Alive { pid } = self.status() {
            return Err(SupervisorError::AlreadyRuns(pid));
        }
        let command = self.command(launch);
        let started = match &self.unit {
            Some(unit) => unit.start(&command, launch).await,
            None => detached::start(&command),
        };
        let pid = started.map_err(|source| SupervisorError::Spawn { program: launch.program.clone(), source })?;
        let start_time = proc::start_time(pid);
        if !self.watch(pid, start_time)? {
            *self.shared.watched() = Watched::Ended { how: "it ended at once".to_owned() };
            self.shared.changed();
        }
        self.keep_record(pid, start_time.unwrap_or_default())?;
        Ok(pid)
    }

    fn signal(&self, signal: Signal) -> Result<bool, SupervisorError> {
        let Some((pid, pidfd)) = self.alive() else { return Ok(false) };
        send(&pidfd, signal).map_err(|source| SupervisorError::Kernel { doing: "signal", pid, source })
    }

    async fn ended_within(&self, limit: Duration) -> bool {
        let mut changes = self.changes();
        let ended = async {
            while matches!(self.status(), Status::Alive { .. }) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        time::timeout(limit, ended).await.is_ok()
    }

    async fn kill_all(&self, limit: Duration) -> Result<(), SupervisorError> {
        let started = time::Instant::now();
        // A process that was just forked may hide behind one look at /proc; it cannot hide when its parents are gone.
        let mut empty_looks = 0;
        while empty_looks < 2 {
            let watched = self.alive().filter(|(_, pidfd)| !has_exited(pidfd));
            if let Some((pid, pidfd)) = &watched {
                send(pidfd, Signal::SIGKILL).map_err(|source| SupervisorError::Kernel {
                    doing: "kill",
                    pid: *pid,
                    source,
                })?;
            }
            let mut found = proc::working_in(&self.directory);
            for process in &found {
                kill_if_in(process.pid, &self.directory)?;
            }
            if let Some(unit) = &self.unit {
                found.extend(
                    unit.kill_all()?.into_iter().filter(|process| !found.contains(process)).collect::<Vec<_>>(),
                );
            }
            if watched.is_none() && found.is_empty() {
                empty_looks += 1;
                continue;
            }
            empty_looks = 0;
            if started.elapsed() > limit {
                let mut processes: Vec<String> = found
                    .iter()
                    .map(|process| format!("{} ({}, state {})", process.pid, process.name, process.state))
                    .collect();
                if let Some((pid, _)) = &watched
                    && !found.iter().any(|process| process.pid == *pid)
                {
                    processes.push(pid.to_string());
                }
                return Err(SupervisorError::Unkillable { seconds: limit.as_secs(), processes: processes.join(", ") });
            }
            time::sleep(ROUND).await;
        }
        // Makes the end known before we return, and reaps our own child.
        self.status();
        Ok(())
    }

    fn forget(&self) -> Result<(), SupervisorError> {
        self.record.remove().map_err(|source| SupervisorError::Record { path: self.record.0.clone(), source })?;
        let mut watched = self.shared.watched();
        if let Watched::Ended { .. } = &*watched {
            *watched = Watched::Nothing;
        }
        Ok(())
    }
}

impl EngineProcess {
    /// What becomes the engine: by way of the helper, so that no code of ours runs between fork and exec.
    fn command(&self, launch: &Launch) -> Vec<OsString> {
        let mut command: Vec<OsString> = vec![self.agent_program.clone().into()];
        command.extend(["helper", "detach", "--log"].map(OsString::from));
        command.push(launch.log.clone().into());
        if let Some(user) = &launch.user {
            command.extend(["--user".into(), user.into()]);
        }
        command.extend(["--".into(), launch.program.clone().into()]);
        command.extend(launch.arguments.iter().cloned());
        command
    }

    fn keep_record(&self, pid: u32, start_time: u64) -> Result<(), SupervisorError> {
        let record = Record { pid, start_time, boot_id: proc::boot_id() };
        self.record.store(&record).map_err(|source| SupervisorError::Record { path: self.record.0.clone(), source })
    }
}

// === impl Shared ===

impl Shared {
    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Notes the end of `pid`, once, and reaps it when it was our child.
    fn has_ended(&self, pid: u32) {
        {
            let mut watched = self.watched();
            let Watched::Alive { pid: watched_pid, pidfd } = &*watched else { return };
            if *watched_pid != pid {
                return;
            }
            let how = how_it_ended(pidfd);
            tracing::info!(pid, how, "the engine's process has ended");
            *watched = Watched::Ended { how };
        }
        self.changed();
    }
}

fn how_it_ended(pidfd: &OwnedFd) -> String {
    use std::os::fd::AsFd;
    match kernel::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "it ended".to_owned(),
        },
        // Not our child: the agent was restarted since, and only its parent may know.
        Ok(None) | Err(_) => "it ended".to_owned(),
    }
}

/// Whether the process has exited; a zombie has.
fn has_exited(pidfd: &OwnedFd) -> bool {
    let mut poll = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    let at_once = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(rustix::event::poll(&mut poll, Some(&at_once)), Ok(ready) if ready > 0)
}

fn send(pidfd: &OwnedFd, signal: Signal) -> std::io::Result<bool> {
    let signal = kernel::Signal::from_named_raw(signal as i32)
        .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    match kernel::pidfd_send_signal(pidfd, signal) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::SRCH) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Kills the process if it still works in the directory: its id may be another's by now.
fn kill_if_in(pid: u32, directory: &std::path::Path) -> Result<(), SupervisorError> {
    let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    let Ok(pidfd) = kernel::pidfd_open(raw, PidfdFlags::empty()) else { return Ok(()) };
    if proc::works_in(pid, directory) {
        send(&pidfd, Signal::SIGKILL).map_err(|source| SupervisorError::Kernel { doing: "kill", pid, source })?;
    }
    Ok(())
}
