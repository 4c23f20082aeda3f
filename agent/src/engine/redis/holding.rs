//! A side takes up a stream that broke only where it goes on from there.
//!
//! The engine connects to its upstream again by itself, and where that no longer remembers what was missed meanwhile, it takes everything
//! that the other side has and merges it with its own: what one of them had deleted while the two were cut from each other is back.
//! So a side has the password for the other one only until its stream stands. When that breaks its agent looks first whether the other
//! side still remembers what was missed, and then gives the password again, for the engine's next attempt, within a second. Where it
//! does not, nothing is merged: both go on with what they have, and a person says whose data survives.
//!
//! **Invariant:** once the agent has seen a stream stand, the engine has the password only where the agent has seen since that broke that
//! the next one goes on from where it was. Before that it is as [`super::pair`] has made it: the other side is empty then, or has just
//! been filled from this one.

use std::{sync::PoisonError, time::Duration};

use regent_common::topology::Peer;
use secrecy::ExposeSecret;
use tokio::time;

use super::{
    Redis,
    info::Info,
    pair::WRONG_PASSWORD,
    session::{BRIEF, SessionError},
};
use crate::engine::{DriverError, layout::Layout};

/// How long the other side may take to say what it remembers: whoever looks at this one waits for that.
const ANSWER: Duration = Duration::from_millis(500);
/// How long all of it may take: whoever looks waits for this, and a disk or an engine that hangs is to be seen.
const AT_MOST: Duration = Duration::from_secs(1);
/// How long a stream that has just come up is waited for to be acknowledged, which takes the engine up to a second; the looks see it later.
const NOTED: Duration = Duration::from_secs(3);
/// Pause between two looks at that.
const LOOK: Duration = Duration::from_millis(100);
/// How often the other side is asked at most.
const ASKED: Duration = Duration::from_millis(800);
/// The part of what the other side remembers that may be overwritten before the engine has connected: one in so many.
const MARGIN: u64 = 16;

/// What is known of the stream from the other side.
#[derive(Debug, Clone, Default)]
pub(super) struct Stream {
    /// Id of the other side's history when the stream last stood; `None` until it first does. It is on the disk, too.
    id: Option<String>,
    /// Whether the engine has the password; `None` where an earlier agent knew.
    has_password: Option<bool>,
    /// When the other side was asked last.
    asked: Option<time::Instant>,
    /// Why it cannot go on; empty when it can, as far as is known.
    stale: String,
}

/// Whether the stream that broke can be gone on with, or why not.
fn goes_on(ours: &Info, theirs: &Info, id: &str) -> Result<(), String> {
    if theirs.id() != Some(id) {
        return Err("it was started anew since, and remembers nothing of before".to_owned());
    }
    // One is what the engine says that has forgotten how far it had come: it would take everything.
    let come = ours.number("slave_repl_offset").filter(|offset| *offset != 1 && theirs.remembers());
    let Some(next) = come.map(|offset| offset + 1) else { return Err("nobody knows from where".to_owned()) };
    if let Some(why) = forgotten(next, theirs) {
        return Err(why);
    }
    let number = |name| theirs.number(name).unwrap_or(0);
    let end = number("repl_backlog_first_byte_offset") + number("repl_backlog_histlen");
    if next > end { Err("it has come further than that".to_owned()) } else { Ok(()) }
}

/// What is not remembered any more of all that comes from this byte on, if anything is not.
fn forgotten(next: u64, theirs: &Info) -> Option<String> {
    let number = |name| theirs.number(name).unwrap_or(0);
    let (first, held, size) =
        (number("repl_backlog_first_byte_offset"), number("repl_backlog_histlen"), number("repl_backlog_size"));
    // It begins to forget when it is full.
    let margin = size / MARGIN;
    let first = if held + margin < size { first } else { first + margin };
    let missed = number("master_repl_offset").saturating_sub(next.saturating_sub(1));
    (next < first).then(|| format!("of {missed} bytes that it has missed only {held} are remembered"))
}

// === impl Layout ===

impl Layout {
    /// Id of the other side's history in which the stream from it last stood.
    fn stream_id(&self) -> std::path::PathBuf {
        self.conf().join("stream.id")
    }
}

impl Stream {
    /// What an earlier agent knew.
    pub(super) fn load(layout: &Layout) -> Self {
        let id = std::fs::read_to_string(layout.stream_id()).ok().filter(|id| !id.is_empty());
        Self { id, ..Self::default() }
    }
}

// === impl Redis ===

impl Redis {
    /// A new stream is about to be taken up, wherever it begins.
    pub(super) async fn begin_stream(&self) -> Result<(), DriverError> {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Stream::default();
        self.on_disk(|layout| layout.unmark(&layout.stream_id())).await
    }

    /// Whether a stream from the other side stood, and cannot go on, as far as can be told now.
    pub(super) async fn is_cut_off(&self, other: &Peer, info: &Info) -> bool {
        let Some(id) = self.known_stream().id else { return false };
        if info.streams() || !info.follows(&other.engine.host, other.engine.port) {
            return false;
        }
        let asking =
            async { self.session_with(&other.engine.host, other.engine.port).await?.info("replication", BRIEF).await };
        asking.await.map_or(true, |theirs: Info| goes_on(info, &theirs, &id).is_err())
    }

    /// Refuses to let the other side in where it would begin its stream anew: more was passed on since it last followed than is
    /// remembered here, as may be while this one is filled.
    pub(super) async fn refuse_to_be_taken_in(&self, other: &Peer) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused("be opened");
        let session = self.session().await.map_err(failed)?;
        if session.is_open_side(BRIEF).await.map_err(failed)? {
            return Ok(());
        }
        let ours = session.info("replication", BRIEF).await.map_err(failed)?;
        let asking =
            async { self.session_with(&other.engine.host, other.engine.port).await?.info("replication", BRIEF).await };
        // Nothing is known of one that does not answer, or has never followed.
        let Ok(theirs) = asking.await else { return Ok(()) };
        let come = theirs.number("slave_repl_offset").filter(|offset| *offset != 1 && !theirs.streams());
        let (Some(come), true) = (come, theirs.follows(&self.endpoint.host, self.endpoint.port)) else { return Ok(()) };
        match forgotten(come + 1, &ours) {
            Some(detail) => Err(DriverError::Forgotten { other: other.member.clone(), detail }),
            None => Ok(()),
        }
    }

    /// Waits until it is known where a stream that has just come up stands, so that the next one has to go on from there.
    pub(super) async fn note_stream(&self, other: &Peer) {
        let started = time::Instant::now();
        while started.elapsed() < NOTED && self.known_stream().has_password != Some(false) {
            let looking = async {
                let session = self.session().await.map_err(|error| error.refused("look at the stream"))?;
                let info = session.info("default", BRIEF).await.map_err(|error| error.refused("look at the stream"))?;
                self.hold(other, &info, Stream { asked: None, ..self.known_stream() }).await
            };
            if let Ok(Err(error)) = time::timeout(AT_MOST, looking).await {
                tracing::debug!(%error, "the stream that has come up is not known yet");
            }
            time::sleep(LOOK).await;
        }
    }

    /// Looks after the stream of a side: why it cannot go on, or nothing. `info` is what the engine says of itself now.
    pub(super) async fn hold_stream(&self, info: &Info) -> String {
        let Some(other) = self.followed_side().filter(|other| info.follows(&other.engine.host, other.engine.port))
        else {
            return String::new();
        };
        // Whoever changes what it follows knows better.
        let Ok(_control) = self.control.try_lock() else { return self.known_stream().stale };
        let known = self.known_stream();
        let late = |_| DriverError::Deadline {
            doing: "looking after the stream".to_owned(),
            seconds: AT_MOST.as_secs(),
            last: String::new(),
        };
        let held = time::timeout(AT_MOST, self.hold(&other, info, known)).await;
        if let Err(error) = held.map_err(late).flatten() {
            tracing::debug!(%error, other = %other.member, "the stream from the other side is not looked after now");
        }
        self.known_stream().stale
    }

    async fn hold(&self, other: &Peer, info: &Info, mut known: Stream) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused(format!("look after the stream from {}", other.member));
        if info.synchronizes() || (info.streams() && known.has_password == Some(false)) {
            return Ok(());
        }
        if known.asked.is_some_and(|asked| asked.elapsed() < ASKED) {
            return Ok(());
        }
        known.asked = Some(time::Instant::now());
        self.keep_stream(known.clone());
        let asking = async {
            let session = self.session_with(&other.engine.host, other.engine.port).await?;
            let info = session.info("default", BRIEF).await?;
            let is_empty = !info.keys_by_database().values().any(|keys| *keys > 0);
            Ok((is_empty && !session.is_open_side(BRIEF).await?, info))
        };
        let theirs = time::timeout(ANSWER, asking).await.unwrap_or(Err(SessionError::Silent(ANSWER)));
        if info.streams() {
            let (_, theirs) = theirs.map_err(failed)?;
            let own = format!("{}:{}", self.endpoint.host, self.endpoint.port);
            let stands = theirs.downstreams().iter().any(|replica| replica.online && replica.address == own);
            let (true, Some(id)) = (stands, theirs.id().map(ToOwned::to_owned)) else { return Ok(()) };
            if known.id.as_ref() != Some(&id) {
                let text = id.clone();
                self.on_disk(move |layout| layout.write_ours(&layout.stream_id(), text.as_bytes())).await?;
            }
            (known.id, known.stale) = (Some(id), String::new());
            return self.give_password(known, false).await;
        }
        // Told to follow one that has not let it in yet.
        let Some(id) = known.id.clone() else { return Ok(()) };
        let next = match &theirs {
            // It begins anew, and waits to be followed while there is nothing to take in.
            Ok((true, theirs)) if theirs.id() != Some(&id) => {
                self.begin_stream().await?;
                return self.give_password(Stream::default(), true).await;
            }
            Ok((_, theirs)) => goes_on(info, theirs, &id),
            Err(_) => {
                self.give_password(known, false).await?;
                return theirs.map(drop).map_err(failed);
            }
        };
        // The engine connects to nobody while it writes a snapshot.
        if next.is_ok() && info.is("rdb_bgsave_in_progress", "1") {
            return self.give_password(known, false).await;
        }
        known.stale = match &next {
            Ok(()) => String::new(),
            Err(why) => format!("what {} has written meanwhile cannot be had from it any more: {why}", other.member),
        };
        if next.is_err() && self.known_stream().stale.is_empty() {
            self.keep_stream(known.clone());
            tracing::warn!(why = %known.stale, "nothing is taken in from the other side: a person says whose data survives");
        }
        self.give_password(known, next.is_ok()).await
    }

    /// Gives the engine the password for the other side, or takes it away, where that is not done yet.
    async fn give_password(&self, mut known: Stream, give: bool) -> Result<(), DriverError> {
        if known.has_password != Some(give) {
            let failed = |error: SessionError| error.refused("say whether the other side may be followed");
            let wanted = self.wanted()?;
            let password = if give { wanted.secrets.replication.expose_secret() } else { WRONG_PASSWORD };
            // One that does not answer in time may do it later.
            known.has_password = None;
            self.keep_stream(known.clone());
            let session = self.session().await.map_err(failed)?;
            session.tell(&["CONFIG", "SET", "masterauth", password]).await.map_err(failed)?;
            known.has_password = Some(give);
        }
        self.keep_stream(known);
        Ok(())
    }

    fn known_stream(&self) -> Stream {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn keep_stream(&self, stream: Stream) {
        *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = stream;
    }

    /// The other side, where it is followed.
    fn followed_side(&self) -> Option<Peer> {
        let following = self.following()?;
        self.known_wanted()?.members.iter().find(|peer| peer.member == following).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789012345678901234567890123456789";
    const SIZE: u64 = 1600;

    /// What the other side says that has written so much, and what it remembers of it.
    fn theirs(written: u64) -> Info {
        let held = written.min(SIZE);
        Info::parse(&format!(
            "master_replid:{ID}\nmaster_repl_offset:{written}\nrepl_backlog_active:1\nrepl_backlog_size:{SIZE}\n\
             repl_backlog_first_byte_offset:{}\nrepl_backlog_histlen:{held}\n",
            written - held + 1
        ))
    }

    #[test]
    fn one_that_has_forgotten_how_far_it_had_come_is_not_let_begin_again() {
        assert!(goes_on(&ours(1), &theirs(1000), ID).is_err());
        assert_eq!(goes_on(&ours(0), &theirs(0), ID), Ok(()), "nothing was written yet");
        let forgets = Info::parse(&format!("master_replid:{ID}\nmaster_repl_offset:10\nrepl_backlog_active:0\n"));
        assert!(goes_on(&ours(10), &forgets, ID).is_err());
    }

    fn ours(offset: u64) -> Info {
        Info::parse(&format!("slave_repl_offset:{offset}\n"))
    }

    #[test]
    fn a_stream_goes_on_while_what_was_missed_is_remembered() {
        for (offset, written, expected) in [
            (0, 1000, true),
            (1000, 1000, true),
            (1001, 1000, false),
            // It is nearly full, and what comes first is about to be forgotten.
            (0, 1550, false),
            (100, 1550, true),
            (2000, 3500, true),
            (1900, 3500, false),
            (1000, 3500, false),
        ] {
            let found = goes_on(&ours(offset), &theirs(written), ID);
            assert_eq!(found.is_ok(), expected, "{offset} of {written}: {found:?}");
        }
    }

    #[test]
    fn another_life_of_the_other_side_remembers_nothing() {
        let other = ID.replace('0', "f");
        assert!(goes_on(&ours(10), &theirs(10), &other).unwrap_err().contains("started anew"));
        assert!(goes_on(&Info::parse(""), &theirs(10), ID).is_err());
        assert!(goes_on(&ours(0), &Info::parse(&format!("master_replid:{ID}")), ID).is_err());
    }
}
