//! Looks at the engine: process, new connection, kept connection, write canary.
//!
//! An agent looks about once a second, all day, on every node: the kept connection answers one INFO per look; a *new* connection,
//! which alone shows a wedged listener, is made every few seconds and at once when anything changed. **Invariants:** every part
//! has its own deadline; nothing here waits for the disk without one; what cannot be found out is unknown.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use regent_common::topology::{
    CERTIFICATE_UNTIL, EngineObservation, EngineState, HeardPosition, REFUSES_WRITES, Role, Ternary,
};
use tokio::time;

use super::{
    Redis,
    backlog::Rate,
    config::canonical,
    info::Info,
    pair::place_of_side,
    position::{Place, end_of},
    session::SessionError,
    tls::Renewal,
    wire,
};
use crate::{
    engine::canary::{self, Canary},
    supervisor::Status,
};

/// For a new connection, and for an answer.
const ANSWER: Duration = Duration::from_secs(1);
/// Between two new connections while nothing changes.
const NEW_CONNECTION: Duration = Duration::from_secs(5);

/// So much of a processor's time, in clock ticks (of which a second has a hundred), while it says nothing for a second or two: it is
/// at work. One that hangs has none, or as much as KeyDB has for a thread that only keeps the time: while another runs a command, or
/// hangs in it, that one wakes ten thousand times a second and takes a tenth of a processor.
const BUSY_TICKS: u64 = 20;
/// How long such threads are watched.
const WATCH: Duration = Duration::from_millis(300);
/// A thread at work waits less often than so many times for each tick: not every tenth of a millisecond.
const WAITS_PER_TICK: u64 = 100;

/// Bytes that clients and their commands take while they are looked at, which count as used. What is left of the memory is less than
/// that: full.
const SENT: u64 = 256 << 10;

/// The setting by which a primary takes writes only while so many replicas are there, by its present name.
const LEAST_REPLICAS: &str = "min-replicas-to-write";

/// What the looks remember.
#[derive(Default)]
pub(super) struct Eyes {
    connection: Option<Connection>,
    canary: Canary,
    written: Rate,
    renewal: Renewal,
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
    Busy(String),
    Starting(String),
    Nothing(String),
}

/// What the kept connection told.
#[derive(Debug, Default)]
struct Seen {
    info: Info,
    place: Option<Place>,
    /// Whether one of two sides is open; `None` for all others.
    is_open: Option<bool>,
}

// === impl Redis ===

impl Redis {
    pub(super) async fn look(&self) -> EngineObservation {
        let mut eyes = self.eyes.lock().await;
        let eyes = &mut *eyes;
        let (storage_writable, storage_reason) = self.look_at_storage(eyes).await;
        let claimed = self.facts.claimed_process.load(Ordering::Acquire);
        if claimed != 0
            && !self.is_alive()
            && let Err(error) = self.supervisor.adopt(Some(claimed))
        {
            tracing::warn!(%error, "an engine that somebody else started could not be taken over");
        }
        let mut state = self.state_of_process();
        let (mut pid, mut reason, mut seen) = (None, String::new(), None);
        if let Status::Alive { pid: alive } = self.supervisor.status() {
            pid = Some(alive);
            let spent = processor_time(alive);
            seen = self.look_inside().await;
            let mut answer = self.new_connection(eyes, seen.is_none()).await;
            let mut is_busy =
                matches!(answer, Answer::Nothing(_)) && processor_time(alive).saturating_sub(spent) >= BUSY_TICKS;
            if is_busy && !is_at_work(alive).await {
                is_busy = false;
                // What kept it busy may have ended while it was watched.
                answer = self.new_connection(eyes, true).await;
            }
            if seen.is_none() && answer == Answer::Accepts {
                // The kept connection was to an earlier life of the engine, or was cut.
                seen = self.look_inside().await;
            }
            (state, reason) = match answer {
                Answer::Accepts => (EngineState::Running, String::new()),
                Answer::Busy(text) => (EngineState::Running, text),
                Answer::Starting(text) => (EngineState::Starting, text),
                // It does one thing at a time: a long command is no end of it, and to kill it would lose what is in its memory.
                Answer::Nothing(why) if is_busy => {
                    (EngineState::Running, format!("it is busy with one command: {why}"))
                }
                Answer::Nothing(why) => (EngineState::Hung, why),
            };
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
        if reason.is_empty() {
            reason = storage_reason;
        }
        let known = seen.is_some();
        if !known {
            eyes.written.forget();
        }
        let Seen { info, place, is_open } = seen.unwrap_or_default();
        let role = known.then(|| match (info.is_primary(), is_open) {
            (true, None) => Role::Primary,
            (true, Some(_)) => Role::Active,
            (false, Some(_)) if info.is_active() => Role::Active,
            (false, _) => Role::Replica,
        });
        let received = info.number("slave_read_repl_offset").or_else(|| info.offset());
        if let (Some(Role::Replica), true, Some(place), Some(received)) = (role, info.streams(), &place, received)
            && let Some(member) = self.following()
        {
            let position = Place { end: end_of(received).max(place.end), ..place.clone() }.position();
            let heard = Some(HeardPosition { member, position });
            *self.upstream_heard.lock().unwrap_or_else(PoisonError::into_inner) = heard;
        }
        let settings = self.known_wanted().map(|wanted| wanted.settings.clone()).unwrap_or_default();
        let rate = info.offset().and_then(|offset| eyes.written.look(time::Instant::now(), offset));
        if known && state == EngineState::Running {
            self.size_backlog(&eyes.written, &info).await;
            self.follow_renewal(&mut eyes.renewal).await;
        }
        let stale = if is_open.is_some() { self.hold_stream(&info).await } else { String::new() };
        let mut observation = EngineObservation {
            state,
            role,
            storage_writable,
            position: place.as_ref().map(Place::position),
            streaming: match role {
                Some(Role::Replica | Role::Active) if info.streams() => Ternary::Yes,
                Some(Role::Replica | Role::Active) => Ternary::No,
                Some(Role::Primary) | None => Ternary::Unknown,
            },
            upstream: self.following(),
            replay_lag_bytes: (role == Some(Role::Replica))
                .then(|| received.unwrap_or(0).saturating_sub(info.offset().unwrap_or(0))),
            pid,
            version: self.server.version.clone(),
            reason,
            details: details(rate, &info, &settings),
            data_bytes: info.data_bytes(),
            // A replica can: what the upstream has not kept is synchronized in full, by the engine itself.
            stale,
        };
        if let Some(is_open) = is_open {
            observation.set_open(is_open);
        }
        if let Some(credentials) = self.credentials() {
            observation.details.insert(CERTIFICATE_UNTIL.to_owned(), credentials.until().to_string());
        }
        observation
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
        let Some(wanted) = self.known_wanted() else { return Answer::Starting("it was never configured".to_owned()) };
        let answer = match wire::knock(&self.socket, &wanted.secrets.agent, ANSWER).await {
            Ok(text) if text.is_empty() => Answer::Accepts,
            Ok(text) => Answer::Busy(text),
            Err(error @ SessionError::Loading) => Answer::Starting(error.to_string()),
            // A process that does not listen yet is about to; one that listened before hangs.
            Err(SessionError::NobodyListens(text)) if !accepted_before => Answer::Starting(text),
            Err(error) => Answer::Nothing(format!("a new connection is not accepted: {error}")),
        };
        eyes.connection = Some(Connection { at: time::Instant::now(), changes, answer: answer.clone() });
        answer
    }

    /// Asks the kept connection; `None` when it does not answer.
    async fn look_inside(&self) -> Option<Seen> {
        let session = time::timeout(ANSWER, self.session()).await.ok()?.ok()?;
        let info = match session.info("default", ANSWER).await {
            Ok(info) => info,
            Err(error) => {
                // A busy engine answers later: where all connections are in use there would be no other.
                if error.is_broken() {
                    self.drop_session().await;
                }
                return None;
            }
        };
        // While it loads or synchronizes, what it has is neither the old data nor the new.
        let whole = !info.is("loading", "1") && !info.synchronizes();
        if self.is_side() {
            self.note_acknowledgement(&info);
            let is_open = session.is_open_side(ANSWER).await.ok()?;
            let place = if whole { place_of_side(&info) } else { None };
            return Some(Seen { info, place, is_open: Some(is_open) });
        }
        let place = if whole { time::timeout(ANSWER, self.place_seen(&info)).await.ok()?.ok() } else { None };
        Some(Seen { info, place, is_open: None })
    }
}

/// Processor time that a process has had, in clock ticks; 0 where it cannot be looked at.
fn processor_time(pid: u32) -> u64 {
    let process = i32::try_from(pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok());
    process.and_then(|process| process.stat().ok()).map_or(0, |stat| stat.utime + stat.stime)
}

/// Whether one of a process's threads goes on and on, and does not only look at the time and sleep again.
async fn is_at_work(pid: u32) -> bool {
    let before = threads(pid);
    time::sleep(WATCH).await;
    threads(pid).iter().any(|(thread, (ticks, waits))| {
        let (ticks_before, waits_before) = before.get(thread).copied().unwrap_or_default();
        let (ticks, waits) = (ticks.saturating_sub(ticks_before), waits.saturating_sub(waits_before));
        ticks > 1 && waits < ticks * WAITS_PER_TICK
    })
}

/// Processor time in clock ticks, and how often it has waited for something, of each thread of a process; nothing where it cannot be
/// looked at.
fn threads(pid: u32) -> BTreeMap<i32, (u64, u64)> {
    let process = i32::try_from(pid).ok().and_then(|pid| procfs::process::Process::new(pid).ok());
    let tasks = process.and_then(|process| process.tasks().ok()).into_iter().flatten().filter_map(Result::ok);
    let looked = tasks.filter_map(|task| {
        let (stat, status) = (task.stat().ok()?, task.status().ok()?);
        Some((task.tid, (stat.utime + stat.stime, status.voluntary_ctxt_switches?)))
    });
    looked.collect()
}

/// Facts for people.
fn details(rate: Option<u64>, info: &Info, settings: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut details = BTreeMap::new();
    let copied = [
        ("sessions", "connected_clients"),
        ("replication_id", "master_replid"),
        ("used_memory_bytes", "used_memory"),
        ("maxmemory_bytes", "maxmemory"),
        ("evicted_keys", "evicted_keys"),
        ("full_synchronizations", "sync_full"),
        ("partial_synchronizations", "sync_partial_ok"),
        ("refused_partial_synchronizations", "sync_partial_err"),
        ("backlog_bytes", "repl_backlog_size"),
        ("changes_since_snapshot", "rdb_changes_since_last_save"),
        ("last_snapshot", "rdb_last_bgsave_status"),
    ];
    details.extend(copied.iter().filter_map(|(name, of)| Some(((*name).to_owned(), info.text(of)?.to_owned()))));
    if info.synchronizes() {
        let bytes = |name| info.text(name).unwrap_or("0").to_owned();
        let text = format!("{} bytes read", bytes("master_sync_read_bytes"));
        details.insert("synchronizing".to_owned(), text);
    }
    if let Some(why) = why_it_refuses_writes(info, settings) {
        details.insert(REFUSES_WRITES.to_owned(), why);
    }
    let Some(offset) = info.offset() else { return details };
    details.insert("offset".to_owned(), offset.to_string());
    if let Some(rate) = rate.filter(|_| info.is_primary() || info.is_active()) {
        details.insert("log_bytes_per_second".to_owned(), rate.to_string());
    }
    for replica in info.downstreams() {
        let state = if replica.online { "streams" } else { "is being synchronized" };
        let text = format!("{state}, {} bytes not acknowledged", offset.saturating_sub(replica.offset));
        details.insert(format!("replica.{}", replica.address), text);
    }
    details
}

/// Why who takes writes refuses them; `None` when it does not.
fn why_it_refuses_writes(info: &Info, settings: &BTreeMap<String, String>) -> Option<String> {
    let takes_writes = info.is_primary() || info.is_active();
    let why = || why_memory_is_full(info).or_else(|| why_replicas_are_too_few(info, settings));
    takes_writes.then(why).flatten()
}

/// Why every write that needs memory is refused.
fn why_memory_is_full(info: &Info) -> Option<String> {
    let number = |name| info.number(name).unwrap_or(0);
    let limit = number("maxmemory");
    // As the engine counts: what is on its way to replicas is not data.
    let used = number("used_memory").saturating_sub(number("mem_not_counted_for_evict"));
    let full = limit > 0 && used + SENT > limit && info.is("maxmemory_policy", "noeviction");
    full.then(|| {
        format!(
            "{used} bytes of memory are used, maxmemory is {limit}, and with the policy noeviction nothing goes to make room: remove data, \
             or make a cluster with more"
        )
    })
}

/// Why the cluster's own settings forbid every write: too few replicas have said lately that they are there.
fn why_replicas_are_too_few(info: &Info, settings: &BTreeMap<String, String>) -> Option<String> {
    // The engine tells it only where it has such settings.
    let good = info.number("min_slaves_good_slaves")?;
    let least = settings.iter().find(|(name, _)| canonical(name) == LEAST_REPLICAS)?.1;
    let too_few = least.parse::<u64>().is_ok_and(|least| good < least);
    too_few.then(|| {
        format!(
            "{LEAST_REPLICAS} is {least}, and {good} replicas have acknowledged lately: bring them back, or lower that setting of the \
             cluster"
        )
    })
}
