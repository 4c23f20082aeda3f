//! Starting and stopping the engine.
//!
//! **Invariant:** the engine is started as a replica of nobody, whatever it is to become; a start that a kill overtook ends in a
//! kill.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;
use redis::Cmd;
use tokio::time;

use super::{
    Redis,
    config::NOBODY,
    refused,
    session::{BRIEF, Session, SessionError},
};
use crate::{
    engine::{DriverError, StartAs, check_port, layout::Layout},
    supervisor::{Launch, Status},
};

/// How long a start may go on without more of the data having been loaded.
const STALL: Duration = Duration::from_secs(60);
/// How long a clean stop may take: a snapshot is written.
const STOP: Duration = Duration::from_secs(300);
/// How long a snapshot may take.
const SAVE: Duration = Duration::from_secs(3600);
/// Between two looks at one.
const LOOK: Duration = Duration::from_millis(5);
/// How long the engine may take to end when the machine goes down.
const SHUTDOWN: Duration = Duration::from_secs(120);
/// How long killed processes may take to vanish.
const KILL: Duration = Duration::from_secs(10);
/// At which size of its log a start begins a new one.
const LOG: u64 = 64 << 20;

/// Which marks a launch may pass over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Force {
    /// None.
    No,
    /// An initialization that is under way.
    Unfinished,
    /// A swap that is under way.
    Dirty,
    /// That there is no data, which the engine is to get from the other side.
    Empty,
}

/// The process that the server's own file names.
pub(super) fn claimed_process(layout: &Layout) -> Option<u32> {
    fs::read_to_string(layout.server_pid()).ok()?.trim().parse().ok()
}

// === impl Redis ===

impl Redis {
    /// Whether the engine runs as a primary.
    pub(super) async fn is_primary(&self) -> Result<bool, SessionError> {
        Ok(self.look_at_replication().await?.is_primary())
    }

    pub(super) fn is_alive(&self) -> bool {
        matches!(self.supervisor.status(), Status::Alive { .. })
    }

    /// A session with the engine, if there is one. One that has been started just now, perhaps by an agent that is gone since, listens in a
    /// moment.
    pub(super) async fn session_if_alive(&self) -> Result<Option<Session>, SessionError> {
        let started = time::Instant::now();
        while self.is_alive() {
            match self.session().await {
                Err(SessionError::NobodyListens(_)) if started.elapsed() < BRIEF => time::sleep(LOOK).await,
                other => return other.map(Some),
            }
        }
        Ok(None)
    }

    /// The data is there, is ours, and may be started.
    pub(super) async fn check_startable(&self, force: Force) -> Result<(), DriverError> {
        let member = self.member.clone();
        self.on_disk(move |layout| {
            crate::engine::swap::settle(layout)?;
            let path = layout.data();
            if layout.initializing().exists() {
                return if force == Force::Unfinished { Ok(()) } else { Err(DriverError::Dirty { path }) };
            }
            if layout.dirty().exists() && force != Force::Dirty {
                return Err(DriverError::Dirty { path });
            }
            match (layout.has_data(), layout.holds_data()) {
                (true, _) => Ok(()),
                (false, true) => Err(DriverError::ForeignData { path, member }),
                (false, false) if force == Force::Empty => Ok(()),
                (false, false) => Err(DriverError::NoData { path }),
            }
        })
        .await
    }

    pub(super) async fn start_as(&self, how: &StartAs) -> Result<(), DriverError> {
        self.check_startable(Force::No).await?;
        self.adopt_process()?;
        match how {
            StartAs::Primary => self.become_primary().await.map(drop),
            StartAs::Replica(upstream) => self.follow_upstream(upstream).await.map(drop),
            StartAs::Isolated => self.start_isolated().await,
        }
    }

    /// Takes over an engine that runs already, started by an earlier agent or by hand.
    pub(super) fn adopt_process(&self) -> Result<(), DriverError> {
        self.supervisor
            .adopt(claimed_process(&self.layout))
            .map(drop)
            .map_err(|error| refused("adopt the engine's process", &error))
    }

    /// As a replica of nobody, whatever it is.
    pub(super) async fn start_isolated(&self) -> Result<(), DriverError> {
        self.write_upstream(None).await?;
        if !self.is_alive() {
            return self.launch(Force::No).await;
        }
        self.wait_accepting().await?;
        let failed = |error: SessionError| error.refused("stop being a primary or a replica");
        if self.flavor.is_demoted_by_a_start && self.is_primary().await.map_err(failed)? {
            self.stop_fast().await?;
            return self.launch(Force::No).await;
        }
        let session = self.session().await.map_err(failed)?;
        session.let_copy(false).await.map_err(failed)?;
        session.tell(&["REPLICAOF", NOBODY.0, &NOBODY.1.to_string()]).await.map_err(failed)?;
        // It takes no writes any more: a drain has nobody left to keep out.
        self.admit().await
    }

    /// Starts the engine on the files as they are, and waits until it accepts connections.
    pub(super) async fn launch(&self, force: Force) -> Result<(), DriverError> {
        self.check_startable(force).await?;
        let wanted = self.wanted()?;
        let overtaken = DriverError::Cancelled { doing: "starting: the engine was killed meanwhile" };
        if self.was_killed() {
            return Err(overtaken);
        }
        if !self.is_alive() {
            // A child that writes a snapshot outlives its server.
            self.supervisor.kill_all(KILL).await.map_err(|error| refused("start", &error))?;
            check_port(self.section.listen_addresses.as_deref(), self.endpoint.port)?;
            if wanted.tls {
                self.keep_credentials().await?;
            }
            // The data may be another copy than that of the last start.
            self.reload_line();
            let users = self.users_at_start(&wanted);
            self.on_disk(move |layout| {
                layout.unmark(&layout.server_pid())?;
                layout.turn_log_over(LOG)?;
                layout.write_for_engine(&layout.users_acl(), users.as_bytes())
            })
            .await?;
            let launch = Launch {
                program: self.server.program.clone(),
                arguments: vec![self.layout.server_conf().into()],
                user: self.layout.user.name.clone(),
                log: self.layout.startup_log(),
                stop_signal: Signal::SIGTERM,
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

    /// Waits until a new connection is accepted and the data is loaded. As long as more is loaded the wait goes on.
    pub(super) async fn wait_accepting(&self) -> Result<(), DriverError> {
        let (mut loaded, mut progressed) = (None, time::Instant::now());
        let mut pause = Duration::from_millis(2);
        loop {
            let seen = match self.connect(Duration::from_secs(2)).await {
                Ok(session) => match session.info("persistence", BRIEF).await {
                    Ok(info) if info.is("loading", "1") => {
                        let now = info.number("loading_loaded_bytes");
                        if now != loaded {
                            (loaded, progressed) = (now, time::Instant::now());
                        }
                        format!("{} bytes are loaded", now.unwrap_or_default())
                    }
                    Ok(_) => {
                        self.session.lock().await.replace(session);
                        return Ok(());
                    }
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            if let status @ (Status::Ended { .. } | Status::Absent) = self.supervisor.status() {
                let status = match status {
                    Status::Ended { how } => how,
                    Status::Absent | Status::Alive { .. } => "it ended".to_owned(),
                };
                let stderr = self.last_log_lines().await;
                return Err(DriverError::Program { program: self.flavor.program.to_owned(), status, stderr });
            }
            if progressed.elapsed() > STALL {
                return Err(DriverError::Deadline {
                    doing: "starting the engine".to_owned(),
                    seconds: STALL.as_secs(),
                    last: format!("{seen}; {}", self.last_log_lines().await),
                });
            }
            time::sleep(pause).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(100));
        }
    }

    /// Stops cleanly: a snapshot is written, and from release 7 on replicas are given time to take what they lack.
    pub(super) async fn stop_fast(&self) -> Result<(), DriverError> {
        self.adopt_process()?;
        if self.is_alive() {
            let session = self.session().await.map_err(|error| error.refused("stop"))?;
            let stopping = session.ask::<redis::Value>(Cmd::new().arg("SHUTDOWN").arg("SAVE"), STOP).await;
            // An answer is a refusal: an engine that ends says nothing.
            if let Err(error @ SessionError::Refused(_)) = stopping {
                let detail = format!("{error}; {}", self.last_log_lines().await);
                return Err(DriverError::Refused { doing: "stop with a snapshot".to_owned(), detail });
            }
            if !self.supervisor.ended_within(KILL).await {
                return Err(DriverError::Deadline {
                    doing: "stopping the engine".to_owned(),
                    seconds: KILL.as_secs(),
                    last: self.last_log_lines().await,
                });
            }
        }
        self.kill().await
    }

    /// Kills everything that could acknowledge a write; takes no lock and needs no disk.
    pub(super) async fn kill(&self) -> Result<(), DriverError> {
        self.supervisor.kill_all(KILL).await.map_err(|error| refused("kill the engine", &error))?;
        self.drop_session().await;
        self.supervisor.forget().map_err(|error| refused("kill the engine", &error))?;
        // A killed server leaves it, and it would tell of a crash. Not worth waiting for a hung disk.
        let removed = self.on_disk(|layout| layout.unmark(&layout.server_pid()));
        drop(time::timeout(Duration::from_secs(1), removed).await);
        Ok(())
    }

    /// Writes a snapshot of the present data, beside what the engine serves.
    pub(super) async fn save(&self) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused("write a snapshot");
        let session = self.session().await.map_err(failed)?;
        let started = time::Instant::now();
        let mut ours = false;
        while started.elapsed() < SAVE {
            let info = session.info("persistence", BRIEF).await.map_err(failed)?;
            let is_writing = info.is("rdb_bgsave_in_progress", "1") || info.is("aof_rewrite_in_progress", "1");
            if ours && !is_writing {
                if info.is("rdb_last_bgsave_status", "ok") {
                    return Ok(());
                }
                let detail = self.last_log_lines().await;
                return Err(DriverError::Refused { doing: "write a snapshot".to_owned(), detail });
            }
            // One that had begun already may lack the last writes.
            if !ours && !is_writing {
                session.tell(&["BGSAVE"]).await.map_err(failed)?;
                ours = true;
            }
            time::sleep(LOOK).await;
        }
        Err(DriverError::Deadline {
            doing: "writing a snapshot".to_owned(),
            seconds: SAVE.as_secs(),
            last: self.last_log_lines().await,
        })
    }

    /// The last lines that the engine logged: why it does not start, in its own words.
    pub(super) async fn last_log_lines(&self) -> String {
        let read = |layout: &Layout| {
            let log = layout.startup_log();
            let text = crate::engine::layout::tail(&log).map_err(crate::engine::layout::io_error("read", &log))?;
            let mut lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
            let surplus = lines.len().saturating_sub(4);
            Ok(lines.split_off(surplus).join("; "))
        };
        self.on_disk(read).await.unwrap_or_default()
    }
}
