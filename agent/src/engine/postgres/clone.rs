//! Copying another member into the side directory, by `pg_basebackup`.
//!
//! The copy is made beside the data, so that the running engine goes on. A slot of its own (`MEMBER_clone`) holds the log
//! back on the source from before the first byte until the new copy streams: the member's own slot is in use by the running
//! engine, and may be ahead of what the copy needs. **Invariant:** `incoming-complete` stands only while `incoming` is a
//! whole, flushed copy.

use std::time::Duration;

use regent_common::topology::{Peer, Progress};
use tokio::{sync::watch, time};

use super::{
    Postgres, config,
    layout::Layout,
    lifecycle::strip_auto_conf,
    replication::{drop_slot, drop_slot_soon, make_slot},
    session::{Session, SqlError},
    tools::end_leftovers,
};
use crate::engine::{CloneOptions, Cloned, DriverError, Work};

/// Longest time that a clone may take.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// Free space that a clone leaves, for the log that is written meanwhile.
const HEADROOM: u64 = 256 << 20;

/// What is known of the source before the copy begins.
struct Source {
    data_bytes: u64,
}

// === impl Postgres ===

impl Postgres {
    pub(super) async fn copy_from(
        &self,
        source: &Peer,
        options: CloneOptions,
        work: &Work,
    ) -> Result<Cloned, DriverError> {
        self.on_disk(|layout| {
            layout.claim()?;
            layout.make_folders()?;
            // Of a rewind that did not end.
            layout.remove_tree(&layout.own_log())?;
            crate::engine::swap::conclude(layout)
        })
        .await?;
        self.wanted()?;
        end_leftovers(&self.target()).await;
        report(&work.progress, |progress| "preparing".clone_into(&mut progress.phase));
        let session = self.session_with(source).await?;
        let facts = self.look_at_source(&session, source).await?;
        self.make_room(facts.data_bytes, options).await?;
        let old_data_kept = self.on_disk(|layout| Ok(layout.data().join("PG_VERSION").exists())).await?;
        let slot = config::clone_slot_name(&self.member);
        let slot_failed = |error: SqlError| error.refused(format!("make a replication slot on {}", source.member));
        // Left by an attempt that did not end: what it holds back is of no use to this one.
        drop_slot_soon(&session, &slot).await.map_err(slot_failed)?;
        make_slot(&session, &slot).await.map_err(slot_failed)?;
        self.on_disk(|layout| {
            layout.unmark(&layout.incoming_complete())?;
            layout.remove_tree(&layout.incoming())?;
            layout.make_folder(&layout.incoming(), 0o700, true)
        })
        .await?;
        let copied = Box::pin(self.run_basebackup(source, options, facts.data_bytes, work)).await;
        let finished = match copied {
            Ok(bytes) => self.finish_copy(bytes).await,
            Err(error) => Err(error),
        };
        match finished {
            Ok(bytes) => Ok(Cloned { bytes, old_data_kept }),
            Err(error) => {
                let cleaned = self.on_disk(|layout| layout.remove_tree(&layout.incoming())).await;
                let dropped = match self.session_with(source).await {
                    Ok(session) => drop_slot(&session, &slot).await.map_err(|error| error.refused("drop a slot")),
                    Err(error) => Err(error),
                };
                for failure in [cleaned.err(), dropped.err()].into_iter().flatten() {
                    tracing::warn!(error = %failure, "after a failed clone something stayed behind; the next clone removes it");
                }
                Err(error)
            }
        }
    }

    /// Whether the source can be copied at all, and how large it is.
    async fn look_at_source(&self, session: &Session, source: &Peer) -> Result<Source, DriverError> {
        let sql = "SELECT current_setting('server_version_num')::int / 10000, \
                   (SELECT sum(pg_database_size(oid)) FROM pg_database), \
                   (SELECT string_agg(spcname, ', ') FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global'))";
        let rows = session.rows(sql, Duration::from_secs(60)).await;
        let row = rows.map_err(|error| error.refused(format!("look at {}", source.member)))?.into_iter().next();
        let row = row.unwrap_or_default();
        let column = |index: usize| row.get(index).and_then(Option::as_deref);
        let major = column(0).unwrap_or_default();
        if major != self.runner.tools.major.to_string() {
            return Err(DriverError::InvalidSetting {
                name: "version".to_owned(),
                problem: format!(
                    "{} runs version {major}, this node has {}: a copy needs the same major version",
                    source.member, self.runner.tools.version
                ),
            });
        }
        if let Some(tablespaces) = column(2) {
            return Err(DriverError::Refused {
                doing: format!("clone {}", source.member),
                detail: format!("it has tablespaces ({tablespaces}), which are outside its data directory"),
            });
        }
        Ok(Source { data_bytes: column(1).and_then(|bytes| bytes.parse().ok()).unwrap_or(0) })
    }

    /// Sees to it that there is space, removing the old data if that is allowed and needed.
    async fn make_room(&self, data_bytes: u64, options: CloneOptions) -> Result<(), DriverError> {
        self.on_disk(|layout| {
            layout.unmark(&layout.incoming_complete())?;
            layout.remove_tree(&layout.incoming())
        })
        .await?;
        let needed = data_bytes + HEADROOM;
        let missing = |free: u64| {
            (free < needed).then(|| DriverError::DiskFull {
                path: self.layout.root.clone(),
                detail: format!("the clone needs {needed} bytes, {free} are free"),
            })
        };
        let free = self.on_disk(|layout| layout.free_bytes()).await?;
        let Some(error) = missing(free) else { return Ok(()) };
        if !options.wipe_first_if_needed {
            return Err(error);
        }
        let own = self.on_disk(|layout| Ok(super::layout::tree_bytes(&layout.data()))).await?;
        if let Some(error) = missing(free + own) {
            return Err(error);
        }
        tracing::warn!(free, needed, own, "there is no space for two copies: the old data is removed first");
        let _control = self.begin().await;
        self.on_disk(|layout| layout.mark_dirty("the old data was removed to make room for a clone")).await?;
        self.kill().await?;
        self.on_disk(|layout| layout.remove_tree(&layout.data())).await
    }

    /// The argument by which the tool is told where the copy goes.
    pub(super) fn target(&self) -> String {
        format!("--pgdata={}", self.layout.incoming().display())
    }

    async fn run_basebackup(
        &self,
        source: &Peer,
        options: CloneOptions,
        data_bytes: u64,
        work: &Work,
    ) -> Result<u64, DriverError> {
        let host = &source.engine.host;
        let connection = config::connection_string(&self.layout, &self.member, host, source.engine.port, None);
        let mut arguments = vec![
            format!("--dbname={connection}"),
            self.target(),
            format!("--slot={}", config::clone_slot_name(&self.member)),
        ];
        let fixed = ["--wal-method=stream", "--checkpoint=fast", "--no-password", "--progress"];
        arguments.extend(fixed.map(str::to_owned));
        if options.max_bytes_per_second > 0 {
            // The tool knows rates from 32 kB/s to 1 GB/s; above that there is no limit to set.
            let kilobytes = (options.max_bytes_per_second / 1024).max(32);
            if kilobytes <= 1 << 20 {
                arguments.push(format!("--max-rate={kilobytes}k"));
            }
        }
        let mut rate = Rate::new();
        let progress = work.progress.clone();
        report(&progress, |progress| {
            *progress = Progress { phase: "copying".to_owned(), bytes_total: data_bytes, ..Progress::default() };
        });
        let on_line = |line: &str| {
            let Some(done) = copied_bytes(line) else { return };
            let per_second = rate.add(done);
            report(&progress, |progress| {
                progress.bytes_done = done;
                progress.bytes_total = progress.bytes_total.max(done);
                progress.bytes_per_second = per_second;
                let left = progress.bytes_total - done;
                progress.eta_seconds = left.checked_div(per_second);
            });
        };
        let ended = self.runner.run("pg_basebackup", &arguments, None, LONGEST, &work.cancel, on_line).await;
        match ended {
            Err(DriverError::Cancelled { .. }) => Err(DriverError::Cancelled { doing: "copying" }),
            Err(error) => Err(error),
            Ok(ended) if ended.success => {
                self.on_disk(|layout| Ok(super::layout::tree_bytes(&layout.incoming()))).await
            }
            Ok(ended) if ended.messages.contains("No space left on device") => {
                Err(DriverError::DiskFull { path: self.layout.incoming(), detail: ended.messages })
            }
            Ok(ended) => Err(ended.failure("pg_basebackup")),
        }
    }

    /// Makes the copy one of this member: a standby without the source's own settings; then marks it as whole.
    async fn finish_copy(&self, bytes: u64) -> Result<u64, DriverError> {
        self.on_disk(move |layout| {
            let copy = Layout::clone(layout).with_data_in_incoming();
            strip_auto_conf(&copy)?;
            copy.make_standby()?;
            layout.write_ours(&layout.incoming_complete(), b"")?;
            Ok(bytes)
        })
        .await
    }
}

fn report(progress: &watch::Sender<Progress>, change: impl FnOnce(&mut Progress)) {
    progress.send_modify(change);
}

/// Bytes copied so far, from a progress line such as `  23/45678 kB (100%), 0/1 tablespace`.
fn copied_bytes(line: &str) -> Option<u64> {
    let (done, _) = line.split_once(" kB")?;
    let done = done.split('/').next()?.trim();
    Some(done.parse::<u64>().ok()? * 1024)
}

/// Bytes per second, smoothed over the last reports.
struct Rate {
    last: Option<(time::Instant, u64)>,
    per_second: f64,
}

impl Rate {
    fn new() -> Self {
        Self { last: None, per_second: 0.0 }
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "for people"
    )]
    fn add(&mut self, done: u64) -> u64 {
        let now = time::Instant::now();
        if let Some((then, before)) = self.last {
            let seconds = (now - then).as_secs_f64().max(0.001);
            let current = done.saturating_sub(before) as f64 / seconds;
            self.per_second = if self.per_second == 0.0 { current } else { self.per_second * 0.7 + current * 0.3 };
        }
        self.last = Some((now, done));
        self.per_second as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_lines_are_read() {
        assert_eq!(copied_bytes("  23/45678 kB (0%), 0/1 tablespace"), Some(23 * 1024));
        assert_eq!(copied_bytes("22806 kB, 0/1 tablespace"), Some(22806 * 1024));
        assert_eq!(copied_bytes("22806 kB, 1/1 tablespace (/x/incoming/base/5/2619)"), Some(22806 * 1024));
        assert_eq!(copied_bytes("waiting for checkpoint"), None);
    }
}
