//! Two sides that both take writes and follow each other, which KeyDB calls an active replica with several masters.
//!
//! What its source (6.3.4) and trials say of it, and what follows from that here:
//!
//! - **Nothing tells that a key was deleted while a side was away**, so that what an old snapshot still has comes back to both sides when
//!   the other takes it in. And **a start gives every key that it loads the time of the load** (0, until somebody sends the first command):
//!   an old value may win over one that was written since. So the data of a side that was away is never merged into anything. Such a
//!   side is started closed, for a comparison ([`super::difference`]), and then *filled*: it starts with nothing and takes everything from
//!   the other side. The old data is aside until it streams. By itself, when it is opened, that is only done with data of which the
//!   other side has every key, or has had it ([`super::delivery`]).
//! - **What a side that serves takes in with a full synchronization undoes what is deleted there meanwhile.** So the one that is filled
//!   lets the other follow it for a moment while it is still empty, and then turns it away until it is opened: the other goes on from
//!   there, by what is written from then on, and takes no copy of anything.
//! - **An id that came back with older data** would let the other side go on in the middle of other words. The engine keeps its id over a
//!   start only where its file names an upstream: so none does, and whom a side follows it is told while it runs.
//! - **A new upstream begins with descriptor 0** (see `is_demoted_by_a_start` in [`super::flavor`]), which its first failure closes. The
//!   first of a process has its standard input there, which nobody misses. So an upstream is never dropped: a side that is to follow
//!   nobody logs in to it with a wrong password. Where another is needed all the same, and descriptor 0 is somebody's by now, the engine is
//!   started anew.
//! - **A stream that broke is followed by a copy of everything where its upstream has forgotten what was missed**, and that is merged in. So
//!   it is taken up again only where it goes on ([`super::holding`]).
//! - `CLIENT PAUSE` also holds what the stream brings, half-way: it is never used here.
//!
//! **Invariants:** every start is closed, also one by hand: applications and the other side's stream are turned away. A side that an agent
//! finds running stays as open as it is.

use std::{fs, time::Duration};

use redis::Cmd;
use regent_common::topology::{Mode, Peer};
use secrecy::ExposeSecret;
use tokio::{sync::watch, time};
use tokio_util::sync::CancellationToken;

use super::{
    Redis,
    access::{SIDE, side_acl},
    info::Info,
    lifecycle::Force,
    position::{Line, Place, end_of},
    replication::POLL,
    session::{BRIEF, Session, SessionError},
};
use crate::{
    engine::{Activation, Comparison, DriverError, Work, swap},
    supervisor::Status,
};

/// A password that no side has: theirs are random.
pub(super) const WRONG_PASSWORD: &str = "follows-nobody";
/// How long a side that is being filled waits for the other to follow it while it is empty: that one's agent looks about once a second
/// whether its engine may, and the engine looks for its upstream every second.
const FOLLOWED: Duration = Duration::from_secs(8);
/// How long a stream must not have stood for none to be just coming up: a login and its answers take a few round trips.
const QUIET: Duration = Duration::from_millis(100);
/// What the engine's standard input is from its start.
const NULL: &str = "/dev/null";

/// How far one of two sides has come, by its own id and offset: nobody else's are comparable with them.
pub(super) fn place_of_side(info: &Info) -> Option<Place> {
    Some(Place { line: Line::of(info.id()?), end: end_of(info.offset()?) })
}

// === impl Redis ===

impl Redis {
    /// Whether this is one of two sides that both take writes.
    pub(super) fn is_side(&self) -> bool {
        self.known_wanted().is_some_and(|wanted| wanted.mode == Mode::MultiMaster)
    }

    /// Refuses what only a primary or a replica knows.
    pub(super) fn refuse_for_side(&self, doing: &'static str) -> Result<(), DriverError> {
        if self.is_side() { Err(DriverError::OtherMode { doing, mode: Mode::MultiMaster }) } else { Ok(()) }
    }

    pub(super) fn refuse_unless_side(&self, doing: &'static str) -> Result<(), DriverError> {
        let mode = self.wanted()?.mode;
        if mode == Mode::MultiMaster { Ok(()) } else { Err(DriverError::OtherMode { doing, mode }) }
    }

    /// Makes the engine a side, as it is told.
    pub(super) async fn become_side(&self, how: Activation<'_>) -> Result<(), DriverError> {
        self.refuse_unless_side("activate")?;
        self.adopt_process()?;
        let (has_data, is_being_filled) = self
            .on_disk(|layout| {
                swap::settle(layout)?;
                Ok((layout.has_data(), layout.swap_journal().exists()))
            })
            .await?;
        if let (Some(other), true) = (how.other, is_being_filled) {
            self.refill_from(other, false).await?;
        } else if how.first && !has_data {
            self.begin_data().await?;
            self.finish_data().await?;
        } else {
            self.check_startable(Force::No).await?;
            if self.is_alive() { self.wait_accepting().await? } else { self.launch(Force::No).await? }
        }
        match how.other {
            Some(other) => {
                self.take_up(other, how.open).await?;
                if how.open {
                    self.refuse_to_be_taken_in(other).await?;
                }
            }
            None => self.leave_alone().await?,
        }
        self.set_open(how.open).await
    }

    /// Follows the other side from here on. One that was just started, or cannot go on from where it was, stays alone until it is to be
    /// opened: what it has is merged with nobody's, and is then replaced. An open one that cannot go on stays as it is.
    async fn take_up(&self, other: &Peer, open: bool) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused(format!("follow {}", other.member));
        let session = self.session().await.map_err(failed)?;
        let info = session.info("replication", BRIEF).await.map_err(failed)?;
        let is_open = session.is_open_side(BRIEF).await.map_err(failed)?;
        let is_cut_off = self.is_cut_off(other, &info).await;
        let is_alone = !is_open && (is_cut_off || !info.has_upstream());
        // To take up a stream that cannot go on is to take in everything.
        if (is_alone && !open) || (is_open && is_cut_off) {
            return self.write_upstream(Some(other)).await;
        }
        let lets_in = self.lets_in(other).await;
        if is_alone && matches!(lets_in, Ok(true)) {
            if has_keys(&session).await.map_err(failed)? {
                self.refuse_to_lose(other).await?;
                return self.refill_from(other, false).await;
            }
            self.be_followed_while_empty(other).await?;
        }
        self.attach(other).await?;
        match lets_in {
            Ok(true) => {
                self.wait_streaming(other).await?;
                self.note_stream(other).await;
                Ok(())
            }
            Ok(false) => {
                tracing::info!(other = %other.member, "the other side is closed: it is followed as soon as it is opened");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(other = %other.member, %error, "the other side does not answer: it is followed when it does");
                Ok(())
            }
        }
    }

    /// Refuses where this side has what the other one has never had.
    async fn refuse_to_lose(&self, other: &Peer) -> Result<(), DriverError> {
        let delivered = async {
            let theirs = self.session_with(&other.engine.host, other.engine.port).await?;
            self.was_delivered(&self.session().await?, &theirs).await
        };
        // Then every key has been there, and need not be looked for.
        if delivered.await.map_err(|error| error.refused(format!("be compared with {}", other.member)))? {
            return Ok(());
        }
        let work = Work { progress: watch::Sender::default(), cancel: CancellationToken::new() };
        let difference = self.difference_from(other, Comparison::Presence, &work).await?;
        if difference.only_here == 0 {
            return Ok(());
        }
        let (count, examples) = (difference.only_here, difference.examples.join(", "));
        let detail = format!("it has {count} keys that {} has not (such as {examples})", other.member);
        Err(DriverError::Diverged { upstream: other.member.clone(), detail })
    }

    /// Whether the other side is open, by its own word.
    async fn lets_in(&self, other: &Peer) -> Result<bool, SessionError> {
        let session = self.session_with(&other.engine.host, other.engine.port).await?;
        session.is_open_side(BRIEF).await
    }

    /// Has the engine follow the other side, as soon as that lets it in.
    async fn attach(&self, other: &Peer) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused(format!("follow {}", other.member));
        self.write_upstream(Some(other)).await?;
        let mut session = self.session().await.map_err(failed)?;
        let info = session.info("replication", BRIEF).await.map_err(failed)?;
        let is_known = info.follows(&other.engine.host, other.engine.port);
        if !is_known && (info.has_upstream() || !self.can_lose_descriptor_0()) {
            let is_open = session.is_open_side(BRIEF).await.map_err(failed)?;
            tracing::warn!(other = %other.member, "the engine takes no new upstream safely: it is started anew");
            self.stop_fast().await?;
            self.launch(Force::No).await?;
            self.set_open(is_open).await?;
            session = self.session().await.map_err(failed)?;
        }
        self.begin_stream().await?;
        let password = self.wanted()?.secrets.replication.clone();
        session.tell(&["CONFIG", "SET", "masterauth", password.expose_secret()]).await.map_err(failed)?;
        let port = other.engine.port.to_string();
        session.tell(&["REPLICAOF", &other.engine.host, &port]).await.map_err(failed)
    }

    /// Whether the first failure of a new upstream closes nothing that anybody needs.
    fn can_lose_descriptor_0(&self) -> bool {
        let Status::Alive { pid } = self.supervisor.status() else { return false };
        fs::read_link(format!("/proc/{pid}/fd/0")).is_ok_and(|file| file.as_os_str() == NULL)
    }

    /// Follows nobody from here on: nothing of the other side reaches this one any more when this returns.
    async fn leave_alone(&self) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused("leave the other side");
        self.write_upstream(None).await?;
        self.begin_stream().await?;
        let session = self.session().await.map_err(failed)?;
        session.tell(&["CONFIG", "SET", "masterauth", WRONG_PASSWORD]).await.map_err(failed)?;
        let started = time::Instant::now();
        let mut stood = started;
        loop {
            let info = session.info("replication", BRIEF).await.map_err(failed)?;
            if !info.has_upstream() || (!info.synchronizes() && !info.streams() && stood.elapsed() > QUIET) {
                return Ok(());
            }
            if info.synchronizes() {
                // What is on the way would be merged in when it has arrived: only to drop the upstream ends that.
                let (host, port) = (info.text("master_host"), info.text("master_port"));
                let remove = ["REPLICAOF", "REMOVE", host.unwrap_or_default(), port.unwrap_or_default()];
                session.tell(&remove).await.map_err(failed)?;
            } else if info.streams() {
                stood = time::Instant::now();
                session.tell(&["CLIENT", "KILL", "TYPE", "master"]).await.map_err(failed)?;
            }
            if started.elapsed() > BRIEF {
                let detail = format!("its stream still stands after {} s", BRIEF.as_secs());
                return Err(DriverError::Refused { doing: "leave the other side".to_owned(), detail });
            }
            time::sleep(POLL).await;
        }
    }

    /// Lets applications, and the other side's stream, in or keeps them out.
    async fn set_open(&self, open: bool) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused(if open { "be opened" } else { "be closed" });
        let session = self.session().await.map_err(failed)?;
        let wanted = self.wanted()?;
        session.bring_to(&side_acl(&self.server, &wanted.secrets, open)).await.map_err(failed)?;
        if open {
            return Ok(());
        }
        let users: Vec<String> = session.ask(Cmd::new().arg("ACL").arg("USERS"), BRIEF).await.map_err(failed)?;
        for user in users.iter().filter(|user| wanted.secrets.is_application(user)) {
            session.tell(&["CLIENT", "KILL", "USER", user]).await.map_err(failed)?;
        }
        self.turn_away(&session).await.map_err(failed)
    }

    /// Ends the stream to the other side, and lets it log in no more.
    async fn turn_away(&self, session: &Session) -> Result<(), SessionError> {
        session.tell(&["ACL", "SETUSER", SIDE, "off"]).await?;
        let started = time::Instant::now();
        while started.elapsed() < BRIEF {
            // One that is just connecting has logged in already.
            session.tell(&["CLIENT", "KILL", "USER", SIDE]).await?;
            session.tell(&["CLIENT", "KILL", "TYPE", "replica"]).await?;
            if session.info("replication", BRIEF).await?.is("connected_slaves", "0") {
                return Ok(());
            }
            time::sleep(POLL).await;
        }
        Err(SessionError::Refused(format!("the other side still follows it after {} s", BRIEF.as_secs())))
    }

    /// Puts the data aside, if there is any, and takes everything from the other side.
    pub(super) async fn refill_from(&self, source: &Peer, keep_old: bool) -> Result<(), DriverError> {
        self.refuse_unless_side("refill")?;
        let doing = || format!("be filled from {}", source.member);
        if !self.lets_in(source).await.map_err(|error| error.refused(doing()))? {
            let detail = format!("{} is closed: nobody knows whether its data is whole", source.member);
            return Err(DriverError::Refused { doing: doing(), detail });
        }
        self.on_disk(|layout| {
            layout.claim()?;
            layout.make_folders()?;
            swap::begin_empty(layout)
        })
        .await?;
        swap::carry_out(self, source, keep_old).await
    }

    /// Starts with nothing, closed, and returns when everything of the other side is there, on the disk, too.
    pub(super) async fn fill_from(&self, source: &Peer) -> Result<(), DriverError> {
        self.kill().await?;
        self.on_disk(|layout| {
            layout.remove_tree(&layout.data())?;
            layout.make_folder(&layout.data(), 0o700, true)
        })
        .await?;
        let filling = async {
            self.launch(Force::Empty).await?;
            self.remember_much().await;
            self.be_followed_while_empty(source).await?;
            self.attach(source).await?;
            self.wait_streaming(source).await?;
            self.note_stream(source).await;
            self.save().await
        };
        let filled = filling.await;
        if filled.is_err() {
            // Half of the data is nothing that anybody should find.
            self.kill().await?;
        }
        filled
    }

    /// Lets the other side follow this one while there is nothing to take in, and turns it away again: it goes on from there when this
    /// one is opened. Where it does not come it takes a full copy then.
    async fn be_followed_while_empty(&self, other: &Peer) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused(format!("be followed by {}", other.member));
        let theirs = self.session_with(&other.engine.host, other.engine.port).await.map_err(failed)?;
        let (own_host, own_port) = (&self.endpoint.host, self.endpoint.port);
        if !theirs.info("replication", BRIEF).await.map_err(failed)?.follows(own_host, own_port) {
            return Ok(());
        }
        let session = self.session().await.map_err(failed)?;
        session.tell(&["ACL", "SETUSER", SIDE, "on"]).await.map_err(failed)?;
        let started = time::Instant::now();
        let (mut is_followed, mut ready) = (false, started);
        while !is_followed && ready.elapsed() < FOLLOWED {
            time::sleep(POLL).await;
            // While it writes a snapshot it looks for no upstream.
            if theirs.info("persistence", BRIEF).await.map_err(failed)?.is("rdb_bgsave_in_progress", "1") {
                ready = time::Instant::now();
            }
            let streams = theirs.info("replication", BRIEF).await.map_err(failed)?.streams();
            let info = session.info("replication", BRIEF).await.map_err(failed)?;
            is_followed = streams && info.downstreams().iter().any(|replica| replica.online);
        }
        self.turn_away(&session).await.map_err(failed)?;
        let milliseconds = started.elapsed().as_millis();
        if is_followed {
            tracing::info!(milliseconds, "the other side knows where this one begins");
        } else {
            tracing::warn!(
                milliseconds,
                "the other side does not follow: it takes a full copy when this one is opened"
            );
        }
        Ok(())
    }
}

async fn has_keys(session: &Session) -> Result<bool, SessionError> {
    Ok(session.info("keyspace", BRIEF).await?.keys_by_database().values().any(|keys| *keys > 0))
}
