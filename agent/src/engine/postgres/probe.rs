//! Looks at the engine: process, new connection, kept session, write canary.
//!
//! An agent looks about once a second, all day, on every node: the kept session answers one statement per look; a *new*
//! connection, which alone shows a wedged listener, is made every few seconds and at once when anything changed; the size of
//! the data is asked for once a minute. **Invariants:** every part has its own deadline; nothing here waits for the disk
//! without one; at most one canary is under way; what cannot be found out is unknown.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use regent_common::{
    position::Position,
    topology::{EngineObservation, EngineState, HeardPosition, Role, Ternary},
};
use tokio::time;

use super::{
    Postgres,
    config::{AGENT, REPLICATOR, SUPERUSER},
    position::{Lsn, Names, Place, parse_lsn},
    replication::{REPLAYED_ALL, timeline_names},
    session::{Row, Session, SqlError, Who},
    wire::{self, Identified, Target},
};
use crate::{
    engine::canary::{self, Canary},
    supervisor::Status,
};

/// For a new connection, and for a statement.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two new connections while nothing changes.
const NEW_CONNECTION: Duration = Duration::from_secs(5);
/// Between two looks at the size of the data.
const SIZE: Duration = Duration::from_secs(60);
/// Finished files of the log that wait for the archiver; nothing where none is archived.
const TO_ARCHIVE: &str = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready' \
                          HAVING current_setting('archive_mode') <> 'off'";
/// Streams that can still be fed.
const STREAMS_FREE: &str = "SELECT current_setting('max_wal_senders')::int - count(*) FROM pg_stat_replication";
/// What a replica logs, in the language that its configuration has, when its upstream has not kept the log for it.
const LOG_GONE: &str = "has already been removed";

/// What the looks remember.
#[derive(Debug, Default)]
pub(super) struct Eyes {
    connection: Option<Connection>,
    canary: Canary,
    size: Option<(time::Instant, u64)>,
    /// Facts for people that change seldom, as of the last look at the size.
    seldom: BTreeMap<String, String>,
    identified: Option<(Identified, Names)>,
    /// Place and time of the last look at a primary, for its rate of writing.
    written: Option<(time::Instant, Lsn)>,
}

/// What the last new connection told.
#[derive(Debug)]
struct Connection {
    at: time::Instant,
    /// Count of process changes then.
    changes: u64,
    answer: Answer,
}

/// What a new connection told.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Accepts,
    TooMany,
    Starting(String),
    ShuttingDown,
    Nothing(String),
}

/// What the kept session told.
#[derive(Debug, Default)]
struct Facts {
    role: Option<Role>,
    position: Option<Position>,
    streaming: Ternary,
    replay_lag_bytes: Option<u64>,
    sender: Option<String>,
}

// === impl Postgres ===

impl Postgres {
    pub(super) async fn look(&self) -> EngineObservation {
        let mut eyes = self.eyes.lock().await;
        let eyes = &mut *eyes;
        let (storage_writable, mut reason) = self.look_at_storage(eyes).await;
        let claimed = self.facts.claimed_process.load(Ordering::Acquire);
        if claimed != 0
            && !self.is_alive()
            && let Err(error) = self.supervisor.adopt(Some(claimed))
        {
            tracing::warn!(%error, "an engine that somebody else started could not be taken over");
        }
        let mut details = BTreeMap::new();
        let mut facts = Facts::default();
        let mut state = self.state_of_process();
        let mut pid = None;
        if let Status::Alive { pid: alive } = self.supervisor.status()
            && eyes.canary.is_out()
        {
            // Its sessions may wait for the same disk; what it answered while the disk did is all there is to say.
            pid = Some(alive);
            if eyes.connection.as_ref().is_some_and(|last| last.answer == Answer::Accepts) {
                state = EngineState::Running;
            }
        } else if let Status::Alive { pid: alive } = self.supervisor.status() {
            pid = Some(alive);
            let mut sql = self.look_inside(eyes, &mut details).await;
            let answer = self.new_connection(eyes, sql.is_none()).await;
            if sql.is_none() && answer == Answer::Accepts {
                // The kept session was of an earlier life of the engine, or was cut.
                sql = self.look_inside(eyes, &mut details).await;
            }
            let (seen, why) = match answer {
                Answer::Accepts => (EngineState::Running, String::new()),
                Answer::TooMany => (EngineState::Running, "all its connections are in use".to_owned()),
                Answer::Starting(text) => (EngineState::Starting, text),
                Answer::ShuttingDown => (EngineState::Stopping, "it is shutting down".to_owned()),
                Answer::Nothing(why) => (EngineState::Hung, why),
            };
            state = seen;
            reason = [why, reason].into_iter().find(|text| !text.is_empty()).unwrap_or_default();
            facts = sql.unwrap_or_default();
        } else {
            eyes.connection = None;
            if state == EngineState::Crashed {
                let how = match self.supervisor.status() {
                    Status::Ended { how } => how,
                    Status::Absent | Status::Alive { .. } => "it was not stopped by the agent".to_owned(),
                };
                reason = format!("the engine's process ended: {how}");
            }
        }
        let mut stale = String::new();
        if facts.role == Some(Role::Replica)
            && facts.streaming == Ternary::No
            && self.last_log_lines().await.contains(LOG_GONE)
        {
            stale = "its upstream has already removed the log that comes next".to_owned();
            reason.clone_from(&stale);
        }
        let upstream = self.following();
        if let Some(sender) = facts.sender {
            details.insert("upstream_address".to_owned(), sender);
        }
        EngineObservation {
            state,
            role: facts.role,
            storage_writable,
            position: facts.position,
            streaming: facts.streaming,
            upstream,
            replay_lag_bytes: facts.replay_lag_bytes,
            pid,
            version: self.runner.tools.version.clone(),
            reason,
            details,
            data_bytes: eyes.size.map_or(0, |(_, bytes)| bytes),
            stale,
        }
    }

    /// The state as far as the process tells it.
    fn state_of_process(&self) -> EngineState {
        let has_data = self.facts.has_data.load(Ordering::Acquire);
        let pid_file = self.facts.claimed_process.load(Ordering::Acquire) != 0;
        match self.supervisor.status() {
            Status::Alive { .. } => EngineState::Starting,
            Status::Ended { .. } => EngineState::Crashed,
            Status::Absent if !has_data => EngineState::Absent,
            Status::Absent if pid_file => EngineState::Crashed,
            Status::Absent => EngineState::Stopped,
        }
    }

    /// Whether the disk takes a write. Also refreshes what is known of the files.
    async fn look_at_storage(&self, eyes: &mut Eyes) -> (Ternary, String) {
        let (layout, facts) = (self.layout.clone(), Arc::clone(&self.facts));
        let write = move || {
            facts.refresh(&layout);
            if layout.is_ours() { canary::write(&layout.canary()) } else { Ok(()) }
        };
        eyes.canary.send(write).await
    }

    /// What a new connection tells, from the last one when nothing changed since.
    async fn new_connection(&self, eyes: &mut Eyes, now: bool) -> Answer {
        let changes = *self.supervisor.changes().borrow();
        if let Some(last) = &eyes.connection
            && !now
            && last.changes == changes
            && last.at.elapsed() < NEW_CONNECTION
            && last.answer == Answer::Accepts
        {
            return Answer::Accepts;
        }
        let before = eyes.connection.take().filter(|last| last.changes == changes);
        let accepted_before = before.is_some_and(|last| !matches!(last.answer, Answer::Starting(_)));
        let answer = match self.connect(Who::Agent, ANSWER).await {
            Ok(session) => match session.value("SELECT 1", ANSWER).await {
                Ok(_) => Answer::Accepts,
                Err(error) => Answer::Nothing(format!("a new connection gets no answer: {error}")),
            },
            Err(SqlError::TooMany(_)) => Answer::TooMany,
            Err(SqlError::Starting(text)) => Answer::Starting(text),
            Err(SqlError::ShuttingDown(_)) => Answer::ShuttingDown,
            // A process that does not listen yet is about to; one that listened before hangs.
            Err(SqlError::NobodyListens(text)) if !accepted_before => Answer::Starting(text),
            // The agent's role comes with the instance's initialization, or with its adoption.
            Err(SqlError::Refused { .. })
                if self.facts.dirty.load(Ordering::Acquire) || self.taking_over.load(Ordering::Acquire) =>
            {
                Answer::Starting("its roles are being made".to_owned())
            }
            Err(error) => Answer::Nothing(format!("a new connection is not accepted: {error}")),
        };
        eyes.connection = Some(Connection { at: time::Instant::now(), changes, answer: answer.clone() });
        answer
    }

    /// Asks the kept session; `None` when it does not answer.
    async fn look_inside(&self, eyes: &mut Eyes, details: &mut BTreeMap<String, String>) -> Option<Facts> {
        let session = time::timeout(ANSWER, self.session()).await.ok()?.ok()?;
        // Applications by their sessions, the agents' own and the streams of members left out.
        let sql = format!(
            "SELECT s.standby, \
                   CASE WHEN s.standby THEN NULL ELSE pg_current_wal_flush_lsn() END, \
                   pg_last_wal_replay_lsn(), coalesce(r.flushed_lsn, pg_last_wal_receive_lsn()), \
                   (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup' AND s.standby), \
                   r.status, \
                   CASE WHEN s.standby THEN r.received_tli \
                   ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END, \
                   r.sender_host || ':' || r.sender_port, r.latest_end_lsn, a.sessions, a.oldest \
                   FROM (SELECT pg_is_in_recovery() AS standby) s LEFT JOIN pg_stat_wal_receiver r ON true, \
                   (SELECT count(*) AS sessions, \
                   extract(epoch FROM clock_timestamp() - min(xact_start))::bigint AS oldest FROM pg_stat_activity \
                   WHERE backend_type = 'client backend' AND usename NOT IN ('{AGENT}', '{SUPERUSER}', '{REPLICATOR}')) a"
        );
        let rows = match session.rows(&sql, ANSWER).await {
            Ok(rows) => rows,
            Err(_) => {
                self.drop_session().await;
                return None;
            }
        };
        let row = rows.into_iter().next()?;
        let column = |index: usize| row.get(index).and_then(Option::as_deref);
        let place = |index| column(index).and_then(parse_lsn);
        let standby = column(0) == Some("t");
        let mut facts = Facts::default();
        let lsn = if standby {
            facts.role = Some(Role::Replica);
            let (replayed, received) = (place(2).unwrap_or_default(), place(3).unwrap_or_default());
            let done = column(4).is_some_and(|event| REPLAYED_ALL.contains(&event));
            facts.replay_lag_bytes = Some(if done { 0 } else { received.0.saturating_sub(replayed.0) });
            facts.streaming = if column(5) == Some("streaming") { Ternary::Yes } else { Ternary::No };
            facts.sender = column(7).map(str::to_owned);
            if done { replayed } else { replayed.max(received) }
        } else {
            facts.role = Some(Role::Primary);
            place(1)?
        };
        // A standby's is sure only while it receives.
        let sure = !standby || column(5) == Some("streaming");
        let current = column(6).and_then(|timeline| timeline.parse().ok()).filter(|_| sure);
        if let Some((identified, names)) = self.timeline(eyes, &session, current).await {
            let place = Place {
                system_id: identified.system_id,
                timeline: identified.timeline,
                lsn,
                history: identified.history.clone(),
                names: names.clone(),
            };
            facts.position = Some(place.position());
            // A timeline whose name has not come in yet would look like another history than the one that it is.
            let named = place.timeline == 1 || place.names.contains_key(&place.timeline);
            if let Some(end) = column(8).and_then(parse_lsn).filter(|_| sure && standby && named)
                && let Some(member) = self.following()
            {
                let position = Place { lsn: end.max(lsn), ..place }.position();
                let heard = Some(HeardPosition { member, position });
                *self.upstream_heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
            }
            details.insert("timeline".to_owned(), identified.timeline.to_string());
            details.insert("system_identifier".to_owned(), identified.system_id.to_string());
        }
        details.insert("lsn".to_owned(), lsn.to_string());
        for (name, index) in [("sessions", 9), ("oldest_transaction_seconds", 10)] {
            details.extend(column(index).map(|value| (name.to_owned(), value.to_owned())));
        }
        if standby {
            eyes.written = None;
        } else {
            details.extend(writing_rate(eyes, lsn));
            details.extend(self.look_at_replicas(&session, lsn).await);
        }
        if eyes.size.is_none_or(|(at, _)| at.elapsed() > SIZE) {
            let size = "SELECT sum(pg_database_size(oid)) FROM pg_database";
            if let Ok(Some(bytes)) = session.value(size, ANSWER).await {
                eyes.size = Some((time::Instant::now(), bytes.parse().unwrap_or(0)));
            }
            let asked = [
                ("checksum_failures", "SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database"),
                ("log_files_to_archive", TO_ARCHIVE),
                ("streams_free", STREAMS_FREE),
                ("pending_restart", "SELECT string_agg(name, ', ') FROM pg_settings WHERE pending_restart"),
            ];
            for (name, sql) in asked {
                match session.value(sql, ANSWER).await {
                    Ok(Some(value)) => drop(eyes.seldom.insert(name.to_owned(), value)),
                    Ok(None) => drop(eyes.seldom.remove(name)),
                    Err(_) => {}
                }
            }
            if !standby {
                self.drop_former_slots(&session).await;
            }
        }
        details.extend(eyes.seldom.clone());
        Some(facts)
    }

    /// The timeline and its history: the remembered one when it cannot have changed, else by the replication protocol.
    async fn timeline<'a>(
        &self,
        eyes: &'a mut Eyes,
        session: &Session,
        current: Option<u32>,
    ) -> Option<&'a (Identified, Names)> {
        let still = eyes.identified.as_ref().is_some_and(|(known, names)| {
            current == Some(known.timeline) && (known.timeline == 1 || names.contains_key(&known.timeline))
        });
        if !still {
            let local = Target::Local { socket: self.socket(), user: AGENT };
            let names = timeline_names(session).await.ok()?;
            eyes.identified = wire::identify(&local, ANSWER).await.ok().map(|identified| (identified, names));
        }
        eyes.identified.as_ref()
    }

    async fn look_at_replicas(&self, session: &Session, lsn: Lsn) -> Vec<(String, String)> {
        let sql = "SELECT application_name, state, flush_lsn, replay_lsn FROM pg_stat_replication \
                   WHERE application_name <> 'regent-agent'";
        let Ok(rows) = session.rows(sql, ANSWER).await else { return Vec::new() };
        let describe = |row: &Row| {
            let column = |index: usize| row.get(index).and_then(Option::as_deref);
            let behind = |index| column(index).and_then(parse_lsn).map(|place| lsn.0.saturating_sub(place.0));
            let (flushed, replayed) = (behind(2)?, behind(3)?);
            let text = format!("{}, {flushed} bytes not flushed, {replayed} bytes not replayed", column(1)?);
            Some((format!("replica.{}", column(0)?), text))
        };
        rows.iter().filter_map(describe).collect()
    }
}

/// Bytes of log per second since the last look.
fn writing_rate(eyes: &mut Eyes, lsn: Lsn) -> Option<(String, String)> {
    let now = time::Instant::now();
    let (then, before) = eyes.written.replace((now, lsn))?;
    let milliseconds = u64::try_from((now - then).as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = lsn.0.saturating_sub(before.0).saturating_mul(1000) / milliseconds;
    Some(("log_bytes_per_second".to_owned(), rate.to_string()))
}
