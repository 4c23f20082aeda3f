//! Starting and stopping the engine.
//!
//! **Invariant:** the engine is started without `standby.signal` only by an order to be the primary; a start that a kill
//! overtook ends in a kill.

use std::{fs, path::Path, time::Duration};

use nix::sys::signal::Signal;
use tokio::time;

use super::{
    Postgres,
    bootstrap::Wanted,
    config::{
        self,
        access::{Applications, hba_conf},
    },
    layout::{Layout, io_error},
    refused,
    session::{SqlError, Who},
};
use crate::{
    engine::{DriverError, StartAs, check_port},
    supervisor::{Launch, Status},
};

/// How long a start may go on without any progress of recovery.
const STALL: Duration = Duration::from_secs(60);
/// So many looks, of ten a second, at which recovery was busy are progress: one that only looks again and again whether there is
/// log to replay is seen so once in two hundred.
const BUSY_LOOKS: u32 = 30;
/// How long a start may take in all; the engine goes on recovering after it.
const START: Duration = Duration::from_secs(300);
/// How long a clean stop may take.
const STOP: Duration = Duration::from_secs(60);
/// How long the engine may take to end when the machine goes down: a checkpoint, and what replicas still lack.
const SHUTDOWN: Duration = Duration::from_secs(120);
/// How long killed processes may take to vanish.
const KILL: Duration = Duration::from_secs(10);

/// Which marks a launch may pass over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Force {
    /// None.
    No,
    /// An initialization that is under way.
    Unfinished,
    /// A rewind or swap that is under way.
    Dirty,
}

// === impl Postgres ===

impl Postgres {
    /// Whether the engine runs as a primary.
    pub(super) async fn is_primary(&self) -> Result<bool, SqlError> {
        let limit = Duration::from_secs(5);
        Ok(self.session().await?.value("SELECT pg_is_in_recovery()", limit).await?.as_deref() == Some("f"))
    }

    pub(super) fn is_alive(&self) -> bool {
        matches!(self.supervisor.status(), Status::Alive { .. })
    }

    /// The data is there, is ours, and may be started.
    pub(super) async fn check_startable(&self, force: Force) -> Result<(), DriverError> {
        let (runner, member) = (self.runner.clone(), self.member.clone());
        self.on_disk(move |layout| {
            crate::engine::swap::settle(layout)?;
            let path = layout.data();
            if layout.initializing().exists() {
                return if force == Force::Unfinished { Ok(()) } else { Err(DriverError::Dirty { path }) };
            }
            if layout.dirty().exists() && force != Force::Dirty {
                return Err(DriverError::Dirty { path });
            }
            if !layout.has_data() {
                let foreign = path.join("PG_VERSION").exists();
                return Err(if foreign {
                    DriverError::ForeignData { path, member }
                } else {
                    DriverError::NoData { path }
                });
            }
            runner.check_version(&path, &member)
        })
        .await
    }

    pub(super) async fn start_as(&self, how: &StartAs) -> Result<(), DriverError> {
        self.check_startable(Force::No).await?;
        self.adopt_process()?;
        match how {
            StartAs::Primary => self.start_primary().await,
            StartAs::Replica(upstream) => self.follow_upstream(upstream).await,
            StartAs::Isolated => self.start_isolated().await,
        }
    }

    /// Takes over an engine that runs already, started by an earlier agent or by hand.
    pub(super) fn adopt_process(&self) -> Result<(), DriverError> {
        self.supervisor
            .adopt(self.layout.claimed_process())
            .map(drop)
            .map_err(|error| refused("adopt the engine's process", &error))
    }

    async fn start_primary(&self) -> Result<(), DriverError> {
        let standby = self.on_disk(|layout| Ok(layout.standby_signal().exists())).await?;
        if self.is_alive() {
            self.wait_accepting().await?;
            if self.is_primary().await.map_err(|error| error.refused("ask for its role"))? {
                return Ok(());
            }
        }
        if standby || self.is_alive() {
            // This copy was a replica, perhaps behind another branch: a promotion gives it a timeline of its own, so that
            // the two can always be told apart.
            self.start_isolated().await?;
            return self.become_primary().await.map(drop);
        }
        self.write_upstream(None).await?;
        self.launch(Force::No).await?;
        self.name_timeline().await?;
        self.apply_slots().await
    }

    /// As a standby without an upstream; a running primary is stopped first, a running replica is cut.
    pub(super) async fn start_isolated(&self) -> Result<(), DriverError> {
        self.write_upstream(None).await?;
        if self.is_alive() {
            self.wait_accepting().await?;
            if self.is_primary().await.map_err(|error| error.refused("ask for its role"))? {
                self.stop_fast().await?;
            } else {
                return self.reload();
            }
        }
        self.on_disk(Layout::make_standby).await?;
        self.launch(Force::No).await
    }

    pub(super) fn reload(&self) -> Result<(), DriverError> {
        match self.supervisor.signal(Signal::SIGHUP) {
            Ok(_) => Ok(()),
            Err(error) => Err(refused("reload the configuration", &error)),
        }
    }

    /// Starts the engine on the files as they are, and waits until it accepts connections.
    pub(super) async fn launch(&self, force: Force) -> Result<(), DriverError> {
        self.check_startable(force).await?;
        self.wanted()?;
        let overtaken = DriverError::Cancelled { doing: "starting: the engine was killed meanwhile" };
        if self.was_killed() {
            return Err(overtaken);
        }
        if !self.is_alive() {
            // What a dead postmaster left behind holds its shared memory and keeps a new one from starting.
            self.supervisor.kill_all(KILL).await.map_err(|error| refused("start", &error))?;
            check_port(self.section.listen_addresses.as_deref(), self.endpoint.port)?;
            let (wanted, socket) = (self.wanted()?, self.own_socket());
            self.on_disk(move |layout| prepare_files(layout, &socket, &wanted)).await?;
            let launch = Launch {
                program: self.runner.tools.bin.join("postgres"),
                arguments: ["-D".into(), self.layout.data().into(), "-c".into()]
                    .into_iter()
                    .chain([format!("config_file={}", self.layout.conf().join("postgresql.conf").display()).into()])
                    .collect(),
                user: self.runner.user.name.clone(),
                log: self.layout.startup_log(),
                // A fast shutdown: sessions are cut, and what is written goes to the replicas.
                stop_signal: Signal::SIGINT,
                stop_within: SHUTDOWN,
            };
            self.drop_session().await;
            self.supervisor.start(&launch).await.map_err(|error| refused("start", &error))?;
        }
        if self.was_killed() {
            self.kill().await?;
            return Err(overtaken);
        }
        self.wait_accepting().await
    }

    /// Waits until a new connection is accepted. As long as recovery makes progress the wait goes on.
    pub(super) async fn wait_accepting(&self) -> Result<(), DriverError> {
        let started = time::Instant::now();
        let (mut file, mut busy, mut progressed) = (String::new(), 0, started);
        let mut pause = Duration::from_millis(3);
        loop {
            let seen = match self.connect(Who::Agent, Duration::from_secs(2)).await {
                Ok(session) => {
                    self.session.lock().await.replace(std::sync::Arc::new(session));
                    return Ok(());
                }
                Err(SqlError::TooMany(_)) => return Ok(()),
                // The agent's role is made by the initialization that waits here.
                Err(SqlError::Refused { .. }) => match self.connect(Who::Superuser, Duration::from_secs(2)).await {
                    Ok(_) => return Ok(()),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            let Status::Alive { pid } = self.supervisor.status() else {
                let status = match self.supervisor.status() {
                    Status::Ended { how } => how,
                    Status::Absent | Status::Alive { .. } => "it ended".to_owned(),
                };
                return Err(DriverError::Program {
                    program: "postgres".to_owned(),
                    status,
                    stderr: self.last_log_lines().await,
                });
            };
            let (now, seen_of_it) = (time::Instant::now(), Recovery::of(pid));
            busy += u32::from(seen_of_it.busy);
            if seen_of_it.file != file || busy >= BUSY_LOOKS {
                (file, busy, progressed) = (seen_of_it.file, 0, now);
            }
            if now - progressed > STALL {
                return Err(DriverError::Refused {
                    doing: "start the engine".to_owned(),
                    detail: format!(
                        "recovery has not got on for {} s: {seen}; {}",
                        STALL.as_secs(),
                        self.last_log_lines().await
                    ),
                });
            }
            if now - started > START {
                return Err(DriverError::Deadline {
                    doing: "starting the engine".to_owned(),
                    seconds: (now - started).as_secs(),
                    last: format!("{seen}; {}", self.last_log_lines().await),
                });
            }
            time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(100));
        }
    }

    /// Stops cleanly: sessions are cut, data is flushed.
    pub(super) async fn stop_fast(&self) -> Result<(), DriverError> {
        self.adopt_process()?;
        if self.is_alive() {
            // Flushing first shortens the time in which clients are refused. It may fail: the stop flushes anyway.
            drop(time::timeout(Duration::from_secs(30), self.flush()).await);
            self.drop_session().await;
            self.supervisor.signal(Signal::SIGINT).map_err(|error| refused("stop", &error))?;
            if !self.supervisor.ended_within(STOP).await {
                return Err(DriverError::Deadline {
                    doing: "stopping the engine".to_owned(),
                    seconds: STOP.as_secs(),
                    last: self.last_log_lines().await,
                });
            }
        }
        // Helpers of a postmaster that was killed by others may still be there.
        self.supervisor.kill_all(KILL).await.map_err(|error| refused("stop", &error))?;
        self.drop_session().await;
        self.supervisor.forget().map_err(|error| refused("stop", &error))?;
        self.forget_pid_file().await;
        Ok(())
    }

    /// Kills everything that could acknowledge a write; takes no lock and needs no disk.
    pub(super) async fn kill(&self) -> Result<(), DriverError> {
        self.supervisor.kill_all(KILL).await.map_err(|error| refused("kill the engine", &error))?;
        self.supervisor.forget().map_err(|error| refused("kill the engine", &error))?;
        self.forget_pid_file().await;
        Ok(())
    }

    /// Removes the pid file that a killed postmaster leaves, which would tell of a crash. Not worth waiting for a hung disk.
    async fn forget_pid_file(&self) {
        let removed = self.on_disk(|layout| layout.unmark(&layout.pid_file()));
        drop(time::timeout(Duration::from_secs(1), removed).await);
    }

    pub(super) async fn flush(&self) -> Result<(), DriverError> {
        let limit = Duration::from_secs(300);
        let unlimited = "SET statement_timeout = 0; CHECKPOINT";
        let failed = |error: SqlError| error.refused("flush");
        if self.runner.tools.major >= 15 {
            let session = self.connect(Who::Agent, Duration::from_secs(5)).await.map_err(failed)?;
            return session.rows(unlimited, limit).await.map(drop).map_err(failed);
        }
        self.superuser().await?.rows(unlimited, limit).await.map(drop).map_err(failed)
    }

    /// The last lines that the engine logged: why it does not start, in its own words.
    pub(super) async fn last_log_lines(&self) -> String {
        self.on_disk(|layout| {
            let mut files: Vec<_> = fs::read_dir(layout.log())
                .map_err(io_error("read", &layout.log()))?
                .filter_map(Result::ok)
                .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
                .collect();
            files.sort();
            let Some((_, newest)) = files.pop() else { return Ok(String::new()) };
            let text = crate::engine::layout::tail(&newest).map_err(io_error("read", &newest))?;
            let told = ["FATAL", "PANIC", "ERROR", "WARNING", "LOG", "DETAIL", "HINT", "postgres:", "Error"];
            let mut lines: Vec<&str> =
                text.lines().filter(|line| told.iter().any(|word| line.contains(word))).collect();
            let surplus = lines.len().saturating_sub(6);
            Ok(lines.split_off(surplus).join("; "))
        })
        .await
        .unwrap_or_default()
    }
}

/// Makes the files ready for a start: no stale pid file or lock of the socket, nothing of ours in `postgresql.auto.conf`.
fn prepare_files(layout: &Layout, socket: &Path, wanted: &Wanted) -> Result<(), DriverError> {
    // No process works in the directory: a pid in these files belongs to somebody else by now, or to a killed postmaster that
    // the machine's first process has not buried yet, which the engine would take for a living one.
    layout.unmark(&layout.pid_file())?;
    let mut lock = socket.as_os_str().to_owned();
    lock.push(".lock");
    layout.unmark(Path::new(&lock))?;
    layout.write_for_engine(&layout.password_file(), config::password_file(&wanted.replication).as_bytes())?;
    // A start ends a drain, whatever became of it.
    layout.write_for_engine(&layout.hba_conf(), hba_conf(Applications::Admitted, &wanted.rules).as_bytes())?;
    strip_auto_conf(layout)
}

/// Removes from `postgresql.auto.conf` what would override our files.
pub(super) fn strip_auto_conf(layout: &Layout) -> Result<(), DriverError> {
    let path = layout.data().join("postgresql.auto.conf");
    let text = match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io_error("read", &path))?,
    };
    let stripped = config::without_owned(&text);
    if stripped == text { Ok(()) } else { layout.write_for_engine(&path, stripped.as_bytes()) }
}

/// What is seen of recovery while it cannot be asked. Others do not count: a receiver that is refused by its upstream begins anew
/// ten times a second, and gets nobody any further.
#[derive(Debug, Default, PartialEq, Eq)]
struct Recovery {
    /// Whether one of its processes computes or waits for the disk; one that waits for log does neither.
    busy: bool,
    /// The file of the log that it is at, as the process's title ends.
    file: String,
}

impl Recovery {
    fn of(postmaster: u32) -> Self {
        let Ok(processes) = procfs::process::all_processes() else { return Self::default() };
        let mut seen = Self::default();
        for process in processes.filter_map(Result::ok) {
            let Ok(stat) = process.stat() else { continue };
            if u32::try_from(stat.ppid) != Ok(postmaster) {
                continue;
            }
            let title = process.cmdline().unwrap_or_default().join(" ");
            let is_startup = title.contains(": startup");
            if is_startup || title.contains(": checkpointer") {
                seen.busy |= ['R', 'D'].contains(&stat.state);
            }
            if is_startup {
                seen.file = title.split_whitespace().last().unwrap_or_default().to_owned();
            }
        }
        seen
    }
}
