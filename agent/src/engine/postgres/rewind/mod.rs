//! Bringing a diverged copy back by `pg_rewind`.
//!
//! The checklist that makes it sound: the source was flushed after its promotion (a step of the operation does that); this
//! copy was shut down cleanly, which a crashed one is by recovering it isolated first; page checksums and hints are on; the
//! source holds its log back from here on; a dry run comes first; the data is marked as dirty before the first byte changes
//! and until it streams; the log of before the parting stays ([`own_log`]), and is whole before the start; settings of the
//! source that came along are removed. Our configuration is outside the data directory and stays.

mod own_log;

use std::{collections::BTreeSet, time::Duration};

use regent_common::topology::{Peer, Progress};

use self::own_log::Segments;
use super::{
    Postgres, config,
    lifecycle::{Force, strip_auto_conf},
    tools::{Ended, control_field},
};
use crate::engine::{DriverError, Work};

/// Longest time that a rewind may take.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

// === impl Postgres ===

impl Postgres {
    pub(super) async fn rewind_to(&self, source: &Peer, work: &Work) -> Result<String, DriverError> {
        if self.on_disk(|layout| Ok(layout.dirty().exists())).await? {
            // A half-done rewind cannot be told from a half-done anything; only a clone helps.
            return Err(DriverError::CannotRewind { reason: "an earlier rewind of it was interrupted".to_owned() });
        }
        let phase = |name: &str| {
            work.progress.send_replace(Progress { phase: name.to_owned(), ..Progress::default() });
        };
        phase("recovering");
        let own = self.recovered_place().await?;
        let theirs = self.identify(source).await?;
        if own.system_id != theirs.system_id {
            return Err(DriverError::CannotRewind { reason: own.can_follow(&theirs).err().unwrap_or_default() });
        }
        if let Some(timeline) = own.namesake(&theirs) {
            // The tool goes by numbers and would find nothing to do.
            let reason = format!("it and {} both have a timeline {timeline}, but not the same one", source.member);
            return Err(DriverError::CannotRewind { reason });
        }
        let Err(detail) = own.can_follow(&theirs) else {
            self.follow_upstream(source).await?;
            return Ok("this copy had nothing that the source has not: it follows without a rewind".to_owned());
        };
        let Some(parted) = own.parted_from(&theirs) else {
            return Err(DriverError::CannotRewind {
                reason: format!("it and {} never had a timeline in common", source.member),
            });
        };
        self.ensure_slot(source).await?;
        self.stop_fast().await?;
        let segments = self.check_stopped_cleanly().await?;
        phase("checking");
        let gone = segments.gone_from_source(&self.log_of(source).await?, parted, &theirs);
        gone.map_or(Ok(()), |name| Err(no_log(&name, source)))?;
        self.run_rewind(source, work, true).await?;
        let why = format!("rewinding to {}: {detail}", source.member);
        self.on_disk(move |layout| {
            layout.mark_dirty(&why)?;
            segments.set_aside(layout, parted)
        })
        .await?;
        phase("rewinding");
        self.run_rewind(source, work, false).await?;
        let brought = self.on_disk(move |layout| {
            strip_auto_conf(layout)?;
            layout.make_standby()?;
            segments.bring_back(layout, &theirs)
        });
        let brought = brought.await?.map_err(|name| no_log(&name, source))?;
        tracing::info!(files = brought, "log of before the parting that the source has no more was kept");
        // What it holds back may have been too much meanwhile; then it is made anew.
        self.ensure_slot(source).await?;
        phase("starting");
        self.write_upstream(Some(source)).await?;
        let started = match self.launch(Force::Dirty).await {
            Ok(()) => self.wait_streaming(source).await,
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            // What does not stream is not whole: it stays dirty, and does not go on running.
            self.kill().await?;
            return Err(error);
        }
        self.on_disk(|layout| layout.unmark(&layout.dirty())).await?;
        Ok(detail)
    }

    /// How far this copy has come, as a standby without an upstream.
    async fn recovered_place(&self) -> Result<super::position::Place, DriverError> {
        self.start_as(&crate::engine::StartAs::Isolated).await?;
        self.place().await
    }

    /// Names of the files of the source's log.
    async fn log_of(&self, source: &Peer) -> Result<BTreeSet<String>, DriverError> {
        let session = self.session_with(source).await?;
        let rows = session.rows("SELECT pg_ls_dir('pg_wal', true, false)", Duration::from_secs(30)).await;
        let rows = rows.map_err(|error| error.refused(format!("list the log of {}", source.member)))?;
        Ok(rows.into_iter().filter_map(|row| row.into_iter().next()?).collect())
    }

    /// Refuses data that was not shut down cleanly. Returns how its log is cut into files.
    async fn check_stopped_cleanly(&self) -> Result<Segments, DriverError> {
        let facts = self.runner.control_data(&self.layout.data()).await?;
        let field = |name| control_field(&facts, name).unwrap_or_default();
        let state = field("Database cluster state");
        if !["shut down", "shut down in recovery"].contains(&state) {
            return Err(DriverError::CannotRewind {
                reason: format!("it was not shut down cleanly, its state is {state:?}"),
            });
        }
        let size = field("Bytes per WAL segment");
        Segments::of_size(size)
            .ok_or_else(|| DriverError::CannotRewind { reason: format!("its segments of the log have {size:?} bytes") })
    }

    async fn run_rewind(&self, source: &Peer, work: &Work, dry: bool) -> Result<(), DriverError> {
        let host = &source.engine.host;
        let connection =
            config::connection_string(&self.layout, &self.member, host, source.engine.port, Some("postgres"));
        let mut arguments = vec![
            format!("--target-pgdata={}", self.layout.data().display()),
            format!("--source-server={connection}"),
            // It was recovered above, on our own configuration; the tool would do it on none.
            "--no-ensure-shutdown".to_owned(),
        ];
        if dry {
            arguments.push("--dry-run".to_owned());
        }
        let ended = self.runner.run("pg_rewind", &arguments, None, LONGEST, &work.cancel, |_| {}).await?;
        if ended.success && ended.messages.contains("no rewind required") {
            let reason = "the tool does not see that the two have parted".to_owned();
            return Err(DriverError::CannotRewind { reason });
        }
        if ended.success {
            return Ok(());
        }
        if ended.messages.contains("No space left on device") {
            return Err(DriverError::DiskFull { path: self.layout.data(), detail: ended.messages });
        }
        Err(if dry || cannot(&ended) {
            DriverError::CannotRewind { reason: ended.messages }
        } else {
            ended.failure("pg_rewind")
        })
    }
}

fn no_log(name: &str, source: &Peer) -> DriverError {
    DriverError::CannotRewind {
        reason: format!("it would have to recover with {name} of the log, which {} has no more", source.member),
    }
}

/// Whether the tool says that a rewind is impossible, rather than that something failed on the way.
fn cannot(ended: &Ended) -> bool {
    let reasons = [
        "could not find previous WAL record",
        "could not open file",
        "could not find common ancestor",
        "wal_log_hints",
        "different systems",
        "must be shut down cleanly",
        "not compatible",
    ];
    reasons.iter().any(|reason| ended.messages.contains(reason))
}
