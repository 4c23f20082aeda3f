//! How much the engine remembers of what it writes, for members that were away: by how much it writes.
//!
//! A member that finds its place in the backlog of its upstream goes on from there; one that does not is synchronized in full. A size
//! that is right for every rate of writing does not exist, and who writes ten times as much some day is not asked before a net is
//! cut. So the backlog grows with the rate, on replicas too, as each may be the primary next. It counts as used memory, and where there is a
//! `maxmemory` the engine evicts keys, or refuses writes, for it: so it never takes more than a share. A cluster that names a size in
//! its settings has that one.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Redis,
    info::Info,
    session::{BRIEF, SessionError},
};

/// Name of the setting.
pub(super) const SETTING: &str = "repl-backlog-size";
/// The size with which an engine starts, in bytes, as `config` has it.
const LEAST: u64 = 64 << 20;
/// For how long a member can be away at the present rate.
const AWAY: u64 = 300;
/// Over how many seconds the rate is averaged: a burst is no rate.
const AVERAGED: f64 = 60.0;
/// The share of the memory that it may take is one part in so many.
const SHARE: u64 = 10;
/// The engine takes no less, in bytes.
const FLOOR: u64 = 1 << 20;

/// How much is written.
#[derive(Debug, Default)]
pub(super) struct Rate {
    last: Option<(Instant, u64)>,
    average: f64,
}

// === impl Rate ===

impl Rate {
    /// Bytes per second since the last look, when there was one in the same history.
    pub(super) fn look(&mut self, now: Instant, offset: u64) -> Option<u64> {
        let (then, before) = self.last.replace((now, offset))?;
        let Some(written) = offset.checked_sub(before) else {
            self.average = 0.0;
            return None;
        };
        let seconds = (now - then).max(Duration::from_millis(1)).as_secs_f64();
        let rate = written as f64 / seconds;
        self.average += (rate - self.average) * (seconds / AVERAGED).min(1.0);
        Some(rate as u64)
    }

    /// The next look is the first.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

/// The size that an engine should have which has `present` now; it shrinks only when it has no room.
fn wanted(present: u64, average: f64, memory: u64) -> u64 {
    let room = (memory / SHARE).max(FLOOR);
    let needed = (average as u64).saturating_mul(AWAY).max(LEAST);
    // In few large steps.
    let needed = needed.checked_next_power_of_two().unwrap_or(u64::MAX);
    needed.max(present).min(room)
}

/// The memory that the engine may take, in bytes.
fn memory(info: &Info) -> Option<u64> {
    info.number("maxmemory").filter(|limit| *limit > 0).or_else(|| info.number("total_system_memory"))
}

// === impl Redis ===

impl Redis {
    /// Brings the running engine's backlog to the size for this rate.
    pub(super) async fn size_backlog(&self, rate: &Rate, info: &Info) {
        let Some(wanted_by_cluster) = self.known_wanted() else { return };
        // Before release 7 another size empties it.
        if self.server.release < (7, 0) || wanted_by_cluster.settings.contains_key(SETTING) {
            return;
        }
        let (Some(present), Some(memory)) = (info.number("repl_backlog_size"), memory(info)) else { return };
        let size = wanted(present, rate.average, memory);
        if size == present {
            return;
        }
        let Ok(session) = self.session().await else { return };
        match session.tell(&["CONFIG", "SET", SETTING, &size.to_string()]).await {
            Ok(()) => {
                tracing::info!(present, size, bytes_per_second = rate.average as u64, "the backlog has another size")
            }
            Err(error) => tracing::warn!(%error, size, "the backlog could not be given another size"),
        }
    }

    /// Has an engine that remembers nothing yet remember as much as it has room for: while it is filled the other side takes nothing of
    /// what it is passed.
    pub(super) async fn remember_much(&self) {
        if self.known_wanted().is_none_or(|wanted| wanted.settings.contains_key(SETTING)) {
            return;
        }
        let growing = async {
            let session = self.session().await?;
            let info = session.info("default", BRIEF).await?;
            let (Some(present), Some(memory)) = (info.number("repl_backlog_size"), memory(&info)) else {
                return Ok(());
            };
            let size = wanted(present, f64::MAX, memory);
            if size > present { session.tell(&["CONFIG", "SET", SETTING, &size.to_string()]).await } else { Ok(()) }
        };
        let grown: Result<(), SessionError> = growing.await;
        if let Err(error) = grown {
            tracing::warn!(%error, "the backlog could not be made larger for the time of the copy");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_backlog_grows_with_the_rate_within_its_share() {
        assert_eq!(wanted(LEAST, 0.0, 64 * GIB), LEAST);
        assert_eq!(wanted(LEAST, 200_000.0, 64 * GIB), LEAST, "five minutes of it fit");
        assert_eq!(wanted(LEAST, 1_000_000.0, 64 * GIB), 512 << 20);
        assert_eq!(wanted(512 << 20, 0.0, 64 * GIB), 512 << 20, "what was needed once may be needed again");
        assert_eq!(wanted(LEAST, 1e9, 64 * GIB), 64 * GIB / SHARE);
        assert_eq!(wanted(LEAST, 0.0, 100 << 20), 10 << 20, "it is no reason to evict keys");
        assert_eq!(wanted(LEAST, f64::MAX, 1 << 20), FLOOR);
    }

    #[test]
    fn a_rate_is_averaged_and_begins_anew_with_another_history() {
        let (mut rate, begin) = (Rate::default(), Instant::now());
        let at = |second| begin + Duration::from_secs(second);
        assert_eq!(rate.look(at(0), 1000), None);
        assert_eq!(rate.look(at(1), 61_000), Some(60_000));
        assert!((rate.average - 1000.0).abs() < 1.0, "{}", rate.average);
        for second in 2..600 {
            rate.look(at(second), 1000 + second * 60_000);
        }
        assert!(rate.average > 59_000.0, "{}", rate.average);
        assert_eq!(rate.look(at(600), 500), None, "less than before");
        assert_eq!(rate.look(at(601), 500), Some(0));
    }
}
