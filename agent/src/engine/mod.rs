//! The interface between Regent and a database engine.
//!
//! **Adding an engine** is one folder beside this file with a [`Factory`], and one line in [`ENGINES`]. The conformance
//! suite (`conformance`) then runs over it. Nothing outside the folder may know the engine's name.
//!
//! A driver does as it is told, on one node, for one member. It keeps no epoch and decides nothing: the step executor
//! has checked the ledger before it calls. **Invariant:** every method is idempotent; a method that fails or is dropped
//! half-way leaves a state in which it can be called again, or in which [`Driver::is_dirty`] says that the data must not
//! be started.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use regent_common::{
    ids::{ClusterName, MemberName},
    position::Position,
    topology::{
        ClusterSpec, ConnectionFormat, Difference, Endpoint, EngineObservation, EngineOffer, HeardPosition, Mode, Peer,
        Progress,
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::supervisor::Backend;

/// The engines of this build. The one place that lists them.
pub const ENGINES: &[&dyn Factory] = &[&postgres::PostgresFactory, &redis::REDIS, &redis::VALKEY, &redis::KEYDB];

mod canary;
pub mod conformance;
pub mod fake;
mod foreign;
mod layout;
pub mod postgres;
pub mod redis;
mod swap;

/// Makes drivers of one engine.
#[async_trait]
pub trait Factory: Sync {
    /// Name of the engine, as it stands on the wire and in the store.
    fn name(&self) -> &'static str;

    /// What the engine can do on this node: capabilities of the driver and the versions that are installed.
    fn offer(&self, section: Option<&toml::Table>) -> EngineOffer;

    /// How clients connect to members on this node whose ports speak TLS only; `None` where the configuration has no certificate for
    /// that. An error says why the one that it has cannot be used, and what to do.
    fn connection_with_tls(
        &self,
        _section: Option<&toml::Table>,
        _advertise_host: &str,
    ) -> Result<Option<ConnectionFormat>, DriverError> {
        Ok(None)
    }

    /// Asks the engine's own program whether it would take these settings; changes nothing.
    async fn check_settings(&self, asked: &SettingsCheck<'_>) -> Result<(), DriverError>;

    /// Instances of this engine that run on the node and are no member's, for an adoption; changes nothing.
    async fn survey(&self, ground: &Ground<'_>) -> Result<Vec<FoundInstance>, DriverError>;

    /// Makes the driver of one member. Starts nothing; adopts a process that an earlier agent left running.
    fn open(&self, context: Context) -> Result<Arc<dyn Driver>, DriverError>;
}

/// Settings that a cluster is to have.
#[derive(Debug)]
pub struct SettingsCheck<'a> {
    /// The engine's section of the agent's configuration.
    pub section: Option<&'a toml::Table>,
    /// This program, for its helper subcommands.
    pub agent_program: &'a Path,
    /// Version of the engine; empty for the newest on the node.
    pub version: &'a str,
    /// The settings, by the engine's names.
    pub settings: &'a BTreeMap<String, String>,
}

/// Where instances are looked for.
#[derive(Debug)]
pub struct Ground<'a> {
    /// The engine's section of the agent's configuration.
    pub section: Option<&'a toml::Table>,
    /// This program, for its helper subcommands.
    pub agent_program: &'a Path,
    /// Folder of all members' data: what is in it is not looked for, and what is adopted moves into it.
    pub data_root: &'a Path,
}

/// An instance that runs and is no member's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FoundInstance {
    /// Version of the engine, as a cluster names it.
    pub version: String,
    /// Folder of its data.
    pub data_directory: PathBuf,
    /// Port on which it listens.
    pub port: u16,
    /// Whether it is a replica.
    pub replica: bool,
    /// Names its data's history: only instances with the same one are copies of each other.
    pub history: String,
    /// Where a replica's stream comes from.
    pub upstream: Option<Endpoint>,
    /// Replicas that stream from it, as "NAME at ADDRESS".
    pub replicas: Vec<String>,
    /// Settings that a cluster may have and that are not the engine's defaults.
    pub settings: BTreeMap<String, String>,
    /// Who may log in from where, see [`ClusterSpec::access_rules`].
    pub access_rules: String,
    /// Settings that an adoption changes.
    pub changes: Vec<SettingChange>,
    /// Why it cannot be adopted, a sentence each with what to do; empty when it can be.
    pub problems: Vec<String>,
    /// What it has and a cluster would not, a sentence each; a person has to accept that.
    pub losses: Vec<String>,
}

/// A setting that an adoption changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingChange {
    /// The engine's name for it.
    pub name: String,
    /// Its value now.
    pub now: String,
    /// Its value afterwards.
    pub then: String,
    /// Whether only a restart of the engine brings it into force.
    pub needs_restart: bool,
}

/// What a driver is given about its member and its node.
#[derive(Debug, Clone)]
pub struct Context {
    /// Cluster that the member belongs to.
    pub cluster: ClusterName,
    /// Member name.
    pub member: MemberName,
    /// Folder of the cluster on this node: `DATA_ROOT/CLUSTER`. The driver makes `data`, `incoming`, `kept` and `conf` in it.
    pub root: PathBuf,
    /// Folder for sockets and pid files, shorter than 80 bytes (a socket path has 107).
    pub run_directory: PathBuf,
    /// The engine's section of the agent's configuration, `[engine.NAME]`.
    pub section: Option<toml::Table>,
    /// Host under which clients and peers reach this node.
    pub advertise_host: String,
    /// Port wanted by the cluster; 0 for the node's own choice.
    pub port: u16,
    /// Version wanted by the cluster; empty for the newest.
    pub version: String,
    /// This program, for the helper subcommands that detach or limit a child process.
    pub agent_program: PathBuf,
    /// What the engine's process is started in.
    pub supervisor: Backend,
}

/// How an engine is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAs {
    /// As the primary: accepts writes. Only under a grant (rule L6).
    Primary,
    /// As a replica of an upstream.
    Replica(Peer),
    /// As a replica without an upstream: read-only, changes nothing but its own recovery.
    Isolated,
}

/// How an engine is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Sessions are cut, data is flushed, the engine ends cleanly.
    Fast,
    /// SIGKILL of every process that could acknowledge a write; returns when none is left.
    Kill,
}

/// What an engine is flushed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Copies of it are made, or compared with it.
    Copies,
    /// It hands over next: what it must come back from, to go on as a replica, is on its disk too.
    HandOver,
}

/// What of two sides is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Which entries there are.
    Presence,
    /// The values of those that both have, too.
    Values,
}

/// How a member is made an active side.
#[derive(Debug, Clone, Copy)]
pub struct Activation<'a> {
    /// The other side, which it follows; `None` for nobody: nothing of the other side reaches it any more.
    pub other: Option<&'a Peer>,
    /// Whether applications, and the other side, are let in.
    pub open: bool,
    /// Whether the first data is made where there is none.
    pub first: bool,
}

/// How a clone is made.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneOptions {
    /// Most bytes per second; 0 for no limit.
    pub max_bytes_per_second: u64,
    /// Remove the old data first when there is no space for both.
    pub wipe_first_if_needed: bool,
}

/// What a clone brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cloned {
    /// Bytes copied.
    pub bytes: u64,
    /// Whether the old data is still in place.
    pub old_data_kept: bool,
}

/// Long work: where its progress goes, and how it is told to stop.
#[derive(Debug, Clone)]
pub struct Work {
    /// Receives progress.
    pub progress: watch::Sender<Progress>,
    /// Cancelled when the work is to stop; the driver then ends its helpers and returns [`DriverError::Cancelled`].
    pub cancel: CancellationToken,
}

/// One engine on one node.
#[async_trait]
pub trait Driver: Send + Sync {
    /// Where the engine is reached.
    fn endpoint(&self) -> Endpoint;

    /// Version of the engine's programs.
    fn version(&self) -> String;

    /// Changes whenever the engine's process starts or ends, within milliseconds; the value only counts.
    fn process_changes(&self) -> watch::Receiver<u64>;

    /// Looks at the engine: process, new connection, trivial query, write canary, each with a deadline of its own.
    /// Never fails: what cannot be found out is unknown.
    async fn observe(&self) -> EngineObservation;

    /// How far the upstream had come by what the stream told, and which member that is (rule P3): not older than the last
    /// [`Driver::observe`] while the stream came in. Stays known when the stream has ended, until an upstream is followed anew;
    /// nothing is known of a stream to an earlier process of the agent.
    fn upstream_heard(&self) -> Option<HeardPosition>;

    /// Whether the data directory must not be started: a clone or rewind was interrupted.
    fn is_dirty(&self) -> bool;

    /// Whether there is data of this member.
    fn has_data(&self) -> bool;

    /// Applies members, settings, access rules; in force at once where the engine runs, else from its next start.
    async fn configure(&self, spec: &ClusterSpec) -> Result<(), DriverError>;

    /// Makes new data (refused when there is some that is not this member's own unfinished attempt) and starts as primary.
    async fn initialize(&self) -> Result<Position, DriverError>;

    /// Copies `source` into the side directory, from scratch; the running engine goes on serving where space allows.
    async fn clone_from(&self, source: &Peer, options: CloneOptions, work: &Work) -> Result<Cloned, DriverError>;

    /// Stops the engine, puts the side directory in the data directory's place by rename, starts as a replica of
    /// `upstream`, and returns when it streams. The old data stays in `kept` when `keep_old`. Undoes the rename when the
    /// new copy does not start.
    async fn swap(&self, upstream: &Peer, keep_old: bool) -> Result<(), DriverError>;

    /// Removes what a swap kept.
    async fn discard_kept(&self) -> Result<(), DriverError>;

    /// Starts the engine; returns when it accepts connections.
    async fn start(&self, how: StartAs) -> Result<(), DriverError>;

    /// Stops the engine.
    async fn stop(&self, how: Stop) -> Result<(), DriverError>;

    /// Ends whatever could still acknowledge a write (rule G5): the engine is killed, or goes on read-only, without an upstream and without
    /// the connections that it had, where that is airtight; then what it has in memory stays. Waits for no other method for long, and for
    /// no disk. Nobody runs beside it who could make a primary of it again.
    async fn fence(&self) -> Result<(), DriverError> {
        self.stop(Stop::Kill).await
    }

    /// Cuts the stream from the upstream, so that it also stays cut over a restart, and returns the final position.
    async fn cut(&self) -> Result<Position, DriverError>;

    /// Before a planned promotion (rule P6): ends the sessions of applications, lets nobody but replicas in any more, and returns the
    /// final position once `successor` has all of it. The engine goes on as a primary. It waits as long as it takes: the caller sets
    /// the deadline. Dropped half-way it leaves what [`Driver::undo_drain`] takes back.
    async fn drain(&self, successor: &MemberName) -> Result<Position, DriverError>;

    /// Lets applications in again. Does nothing where they are. Every start of the engine does the same.
    async fn undo_drain(&self) -> Result<(), DriverError>;

    /// Makes the replica a primary; returns when it accepts writes.
    async fn promote(&self) -> Result<Position, DriverError>;

    /// Follows `upstream`, restarting as a replica if need be; returns when it streams, or with
    /// [`DriverError::Diverged`] when this copy is no ancestor of it. How it has caught up, for people; empty where there is one way only.
    async fn follow(&self, upstream: &Peer) -> Result<String, DriverError>;

    /// Finds out the exact position of this copy, starting the engine isolated if it does not run.
    async fn examine(&self) -> Result<Position, DriverError>;

    /// Brings a diverged copy to the history of `source` and starts it as its replica. Marks the data dirty before the first byte
    /// changes. [`DriverError::CannotRewind`] when only a clone helps.
    async fn rewind(&self, source: &Peer, work: &Work) -> Result<String, DriverError>;

    /// Flushes, so that copies made from now on see the present history.
    async fn checkpoint(&self, flush: Flush) -> Result<(), DriverError>;

    /// Takes over the instance that runs on `data_directory` and is nobody's, without stopping it: as a replica of `upstream`, which it
    /// then follows as every member does, or as the primary, whose lease stands (rule L6). The member was configured before. Called
    /// again it goes on where it was broken off. What it changed, and only that, [`Driver::give_back`] puts back.
    async fn adopt(&self, data_directory: &Path, upstream: Option<&Peer>) -> Result<Position, DriverError>;

    /// The adopted instance goes on as it was found, under its own configuration; nothing of the member is left. False, with nothing
    /// changed, when none was adopted.
    async fn give_back(&self) -> Result<bool, DriverError>;

    /// Makes the engine an active side of a multi-master cluster, starting it if need be, and opens or closes it. Every start of the
    /// engine begins closed: what it has reaches neither applications nor the other side until this opens it. One that was started, and
    /// was not opened since, stays alone; to open it beside another side, it is brought to what that one has first, or refused where that
    /// would lose something ([`DriverError::Diverged`]). Any other returns when it streams from the other side, if that lets it in, and is
    /// not opened where the other one could not go on from what it has of this one ([`DriverError::Forgotten`]).
    async fn activate(&self, _: Activation<'_>) -> Result<(), DriverError> {
        Err(DriverError::NoSuchMode { mode: Mode::MultiMaster })
    }

    /// Counts the entries of this side that the other one does not have, or has otherwise, while both may be written to. Keeps nobody
    /// waiting for longer than some milliseconds. [`DriverError::Cancelled`] when the work is told to stop.
    async fn compare(&self, _other: &Peer, _: Comparison, _: &Work) -> Result<Difference, DriverError> {
        Err(DriverError::NoSuchMode { mode: Mode::MultiMaster })
    }

    /// Puts the data aside, starts with nothing, closed, and returns when everything of `source` is there and it streams. The old data
    /// stays in `kept` when `keep_old`, and is put back when this fails.
    async fn refill(&self, _source: &Peer, _keep_old: bool) -> Result<(), DriverError> {
        Err(DriverError::NoSuchMode { mode: Mode::MultiMaster })
    }

    /// Stops the engine and removes the member's data, or moves it to `kept`.
    async fn release(&self, keep_data: bool) -> Result<(), DriverError>;
}

/// Why an engine did not do as it was told. The text says what happened and to what; `unchanged` in a step's error says the rest.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// A program of the engine is not installed.
    #[error("{program} was not found in {searched}: install {package}, or set engine.{engine}.bin_dir in agent.toml")]
    MissingProgram {
        /// Name of the program.
        program: String,
        /// Where it was looked for.
        searched: String,
        /// Debian package that brings it.
        package: String,
        /// Engine name.
        engine: &'static str,
    },
    /// The directory has something in it that is not this member's.
    #[error("{path} is not empty and does not belong to member {member}: move it away, nothing was changed")]
    ForeignData {
        /// The directory.
        path: PathBuf,
        /// The member.
        member: MemberName,
    },
    /// Another process listens on the port.
    #[error("port {port} is in use by another process: choose another port or stop that process, nothing was changed")]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// The engine has no such setting.
    #[error("setting {name}: {engine} has no setting of this name")]
    UnknownSetting {
        /// Name of the setting.
        name: String,
        /// Engine name.
        engine: &'static str,
    },
    /// A setting of the agent's configuration or of the cluster is not valid.
    #[error("setting {name}: {problem}")]
    InvalidSetting {
        /// Name of the setting.
        name: String,
        /// What is wrong, and what is right.
        problem: String,
    },
    /// The file system is full.
    #[error("no space left in {path}: {detail}")]
    DiskFull {
        /// Where.
        path: PathBuf,
        /// What was being done and how much is missing.
        detail: String,
    },
    /// The instance cannot be adopted.
    #[error("the instance in {path} cannot be adopted: {problem}; it goes on as it was")]
    NotAdoptable {
        /// Its data.
        path: PathBuf,
        /// Why, and what to do.
        problem: String,
    },
    /// The member's data does not exist.
    #[error("there is no data in {path}")]
    NoData {
        /// The data directory.
        path: PathBuf,
    },
    /// The data directory must not be started.
    #[error("the data in {path} is half-copied or half-rewound and must not be started: resync this member")]
    Dirty {
        /// The data directory.
        path: PathBuf,
    },
    /// The engine does not have the cluster's mode.
    #[error("this engine has no mode {}: nothing was changed", mode.label())]
    NoSuchMode {
        /// The mode.
        mode: Mode,
    },
    /// The cluster's mode does not have what was asked for.
    #[error("a cluster of the mode {} knows no {doing}: nothing was changed", mode.label())]
    OtherMode {
        /// What was asked for.
        doing: &'static str,
        /// The cluster's mode.
        mode: Mode,
    },
    /// Members whose ports speak TLS only cannot be here.
    #[error("no member whose port speaks TLS can be on this node: {problem}; nothing was changed")]
    NoTls {
        /// Why, and what to do.
        problem: String,
    },
    /// This copy has changes that the upstream has not.
    #[error("this copy has diverged from {upstream}: {detail}")]
    Diverged {
        /// Member that was to be followed.
        upstream: MemberName,
        /// Where the histories part.
        detail: String,
    },
    /// The other side would take in everything that this one has, as less is remembered here than it lacks.
    #[error("{other} would take in everything anew, and what is deleted there meanwhile would be back: {detail}")]
    Forgotten {
        /// The other side.
        other: MemberName,
        /// How much it lacks, and how much is remembered.
        detail: String,
    },
    /// Only a clone brings this copy back.
    #[error("this copy cannot be rewound: {reason}")]
    CannotRewind {
        /// Why.
        reason: String,
    },
    /// The work was told to stop.
    #[error("cancelled while {doing}")]
    Cancelled {
        /// What was being done.
        doing: &'static str,
    },
    /// Something took longer than it may.
    #[error("{doing} did not end within {seconds} s: {last}")]
    Deadline {
        /// What was being done.
        doing: String,
        /// The deadline.
        seconds: u64,
        /// Last thing that was seen.
        last: String,
    },
    /// A program of the engine failed.
    #[error("{program} failed ({status}): {stderr}")]
    Program {
        /// Name of the program.
        program: String,
        /// How it ended.
        status: String,
        /// Last lines that it wrote, without secrets.
        stderr: String,
    },
    /// The engine refused a statement or a connection.
    #[error("the engine refused to {doing}: {detail}")]
    Refused {
        /// What was wanted.
        doing: String,
        /// The engine's own words, without secrets.
        detail: String,
    },
    /// A file or directory operation failed.
    #[error("cannot {doing} {path}")]
    Io {
        /// What was wanted, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// An error of the process or the kernel, as the driver reports it.
fn refused(doing: &str, error: &dyn std::error::Error) -> DriverError {
    let detail = match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    DriverError::Refused { doing: doing.to_owned(), detail }
}

/// Refuses a port that somebody else listens on; `addresses` are parted by commas, "*" is any. Only asked when our own engine does
/// not run.
fn check_port(addresses: Option<&str>, port: u16) -> Result<(), DriverError> {
    for address in addresses.unwrap_or("*").split(',').map(str::trim).filter(|address| !address.is_empty()) {
        let address = if address == "*" { "0.0.0.0" } else { address };
        match TcpListener::bind((address, port)) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Err(DriverError::PortInUse { port }),
            // Any other reason is the engine's to report.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}
