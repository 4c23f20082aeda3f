//! Runs the engine's process so that the agent's end, restart or upgrade never touches it.
//!
//! A supervisor looks after one engine: it starts it, adopts the one that an earlier agent left running, reports its end
//! within milliseconds, and kills everything that belongs to it. It knows nothing about databases.
//!
//! [`process`] does so, in one of two ways ([`Backend`]).

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use async_trait::async_trait;
use nix::{sys::signal::Signal, unistd};
use tokio::sync::watch;

pub mod process;

/// What the engine's process is started in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    /// A transient unit of systemd's, with a control group of its own.
    Systemd,
    /// A session of its own.
    Process,
}

/// What is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The program, with its full path.
    pub program: PathBuf,
    /// Its arguments; never secrets, as everybody on the machine can read them.
    pub arguments: Vec<OsString>,
    /// User that it runs as; `None` for our own.
    pub user: Option<String>,
    /// File that its output is appended to.
    pub log: PathBuf,
    /// By which it ends soon and cleanly; sent by systemd when the machine goes down.
    pub stop_signal: Signal,
    /// How long it may take for that; then systemd kills it.
    pub stop_within: Duration,
}

/// What is known of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// None was started, or it was forgotten after an ordered stop.
    Absent,
    /// It lives.
    Alive {
        /// Its process id.
        pid: u32,
    },
    /// It ended without being told to.
    Ended {
        /// How, as far as is known.
        how: String,
    },
}

// === impl Backend ===

impl Backend {
    /// Systemd where it runs this machine and takes orders from us, else a process.
    pub fn of_this_machine() -> Self {
        // The folder's presence is the documented sign, sd_booted(3).
        let booted = Path::new("/run/systemd/system").is_dir();
        if booted && unistd::geteuid().is_root() { Self::Systemd } else { Self::Process }
    }
}

/// Looks after the process of one engine.
#[async_trait]
pub trait Supervisor: Send + Sync {
    /// What is known of the process, without asking the disk.
    fn status(&self) -> Status;

    /// Counts starts and ends of the process.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Looks for a process that an earlier agent left running, and takes it over; else `claimed`, which the engine's own
    /// files name, when it works in the directory: one that a person started, or whose record was lost.
    fn adopt(&self, claimed: Option<u32>) -> Result<Option<u32>, SupervisorError>;

    /// Starts the process; returns its id. Refused while one lives.
    async fn start(&self, launch: &Launch) -> Result<u32, SupervisorError>;

    /// Sends a signal; false when no process lives.
    fn signal(&self, signal: Signal) -> Result<bool, SupervisorError>;

    /// Waits for the end of the process; false when it still lives after `limit`.
    async fn ended_within(&self, limit: Duration) -> bool;

    /// Kills the process and everything that belongs to the engine; returns when none of it is left.
    async fn kill_all(&self, limit: Duration) -> Result<(), SupervisorError>;

    /// Forgets an ended process: its end was wanted.
    fn forget(&self) -> Result<(), SupervisorError>;
}

/// Why a supervisor did not do as it was told.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// One lives already.
    #[error("process {0} runs already")]
    AlreadyRuns(u32),
    /// The helper could not be spawned.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The process record could not be kept.
    #[error("cannot keep the process record {path}")]
    Record {
        /// The record.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused.
    #[error("cannot {doing} process {pid}")]
    Kernel {
        /// What was wanted.
        doing: &'static str,
        /// The process.
        pid: u32,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Killed processes are still there.
    #[error("after {seconds} s these killed processes are still there: {processes}")]
    Unkillable {
        /// The deadline.
        seconds: u64,
        /// Their ids, names and states; state D waits for the disk.
        processes: String,
    },
}
