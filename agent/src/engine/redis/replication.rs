//! Cutting, promoting, following, and the line of the data (see `position.rs`).
//!
//! **How far a copy has come** is what it has executed. What a replica has received beyond that it throws away when its stream
//! ends, and asks for again.

use std::{sync::PoisonError, time::Duration};

use redis::Cmd;
use regent_common::{ids::MemberName, position::Position, topology::Peer};
use tokio::{io::BufReader, net::UnixStream, time};

use super::{
    Redis,
    access::{AGENT, line_told, teller},
    catching_up::CaughtUp,
    config::{self, NOBODY},
    info::Info,
    lifecycle::Force,
    position::{Line, Place, end_of},
    session::{BRIEF, Session, SessionError},
    wire::ask_for_copy,
};
use crate::engine::DriverError;

/// Between two looks at a stream that comes up.
pub(super) const POLL: Duration = Duration::from_millis(5);
/// How long writes wait at most, in milliseconds, until a new primary remembers them for its replicas.
const HOLD: &str = "5000";
/// How long a stream may take to come up, and a full synchronization to bring more.
pub(super) const STREAM: Duration = Duration::from_secs(60);
/// How often the line of another member is asked for, when it changes its id meanwhile.
const TRIES: u32 = 5;

// === impl Line ===

impl Line {
    /// The line of a copy that says this of itself, if it is the one that had `self` before: the engine knows one id before the
    /// present one, and a copy that was loaded from an old snapshot has an earlier one.
    pub(super) fn as_of(&self, info: &Info) -> Option<Self> {
        let id = info.id()?;
        if self.id == id {
            return Some(self.clone());
        }
        if let Some(earlier) = self.back_to(id) {
            return Some(earlier);
        }
        // What a replica says of its former id is where it has heard of the present one, which is later for one that was away: only
        // a primary has made the change itself.
        let (former, offset) = info.former_id().filter(|_| info.is_primary())?;
        let mut line = if self.id == former { self.clone() } else { self.back_to(former)? };
        line.go_on_as(id, end_of(offset));
        Some(line)
    }

    /// The line as far as this former id.
    fn back_to(&self, id: &str) -> Option<Self> {
        let index = self.left.iter().position(|left| left.id == id)?;
        Some(Self { left: self.left[..index].to_vec(), id: id.to_owned() })
    }

    /// What the engine alone knows of it.
    fn of_engine(info: &Info) -> Option<Self> {
        let id = info.id()?;
        let mut line = Self::of(info.former_id().map_or(id, |(former, _)| former));
        if let Some((_, offset)) = info.former_id() {
            line.go_on_as(id, end_of(offset));
        }
        Some(line)
    }
}

// === impl Redis ===

impl Redis {
    /// Writes whom this member follows; in force from the next start.
    pub(super) async fn write_upstream(&self, upstream: Option<&Peer>) -> Result<(), DriverError> {
        let text = if self.is_side() { config::side_conf(upstream) } else { config::upstream_conf(upstream) };
        *self.following.lock().unwrap_or_else(PoisonError::into_inner) = upstream.map(|peer| peer.member.clone());
        if upstream.is_some() {
            *self.upstream_heard.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        self.on_disk(move |layout| {
            let path = layout.upstream_conf();
            if std::fs::read(&path).ok().as_deref() == Some(text.as_bytes()) {
                return Ok(());
            }
            layout.write_for_engine(&path, text.as_bytes())
        })
        .await
    }

    /// Whom this member was last told to follow.
    pub(super) fn following(&self) -> Option<MemberName> {
        self.following.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn line(&self) -> Option<Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn forget_line(&self) {
        self.line.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Reads the line of the data in place anew.
    pub(super) fn reload_line(&self) -> Option<Line> {
        let line = Line::load(&self.layout.data());
        self.line.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&line);
        line
    }

    /// Keeps the line beside the data, and has the engine tell it.
    pub(super) async fn keep_line(&self, session: &Session, line: &Line) -> Result<(), DriverError> {
        if self.line().as_ref() == Some(line) {
            return Ok(());
        }
        let kept = line.clone();
        self.on_disk(move |layout| kept.store(layout, &layout.data())).await?;
        session.bring_to(&teller(line)).await.map_err(|error| error.refused("tell the line of its data"))?;
        self.line.lock().unwrap_or_else(PoisonError::into_inner).replace(line.clone());
        Ok(())
    }

    pub(super) async fn look_at_replication(&self) -> Result<Info, SessionError> {
        let session = self.session().await?;
        let looked = session.info("replication", BRIEF).await;
        if looked.as_ref().is_err_and(SessionError::is_broken) {
            self.drop_session().await;
        }
        looked
    }

    /// Cuts the stream and says how far this copy has come.
    pub(super) async fn cut_stream(&self) -> Result<Position, DriverError> {
        let cut = |error: SessionError| error.refused("cut the stream");
        self.adopt_process()?;
        if !self.is_alive() {
            return Ok(self.find_place().await?.position());
        }
        self.wait_accepting_if_needed().await?;
        if self.is_primary().await.map_err(cut)? {
            return Err(DriverError::Refused {
                doing: "cut the stream".to_owned(),
                detail: format!("{} is a primary and follows nobody", self.member),
            });
        }
        let started = time::Instant::now();
        // First, as only the upstream can tell a line that was not known yet.
        let before = self.place().await;
        self.write_upstream(None).await?;
        let session = self.session().await.map_err(cut)?;
        let info = session.tell_and_look(&[&["REPLICAOF", NOBODY.0, &NOBODY.1.to_string()]]).await.map_err(cut)?;
        let place = match before {
            Ok(before) if info.id() == Some(&before.line.id) => Place { end: offset_end(&info)?, ..before },
            Ok(_) | Err(_) => self.place_by(&session, &info).await?,
        };
        tracing::info!(milliseconds = started.elapsed().as_millis(), place = %place.position(), "the stream is cut");
        Ok(place.position())
    }

    async fn wait_accepting_if_needed(&self) -> Result<(), DriverError> {
        match self.look_at_replication().await {
            Ok(_) => Ok(()),
            Err(_) => self.wait_accepting().await,
        }
    }

    /// Makes the replica a primary.
    pub(super) async fn become_primary(&self) -> Result<Position, DriverError> {
        self.become_primary_of(Force::No).await
    }

    pub(super) async fn become_primary_of(&self, force: Force) -> Result<Position, DriverError> {
        let asked = |error: SessionError| error.refused("promote");
        self.check_startable(force).await?;
        self.adopt_process()?;
        if !self.is_alive() {
            self.start_isolated().await?;
        }
        self.wait_accepting_if_needed().await?;
        let session = self.session().await.map_err(asked)?;
        let started = time::Instant::now();
        let mut place = self.place().await?;
        let before = session.info("replication", BRIEF).await.map_err(asked)?;
        // What is written before the engine remembers anything has no place in its history.
        let holds = !before.is_primary() && !before.remembers();
        if !before.is_primary() {
            refuse_thrown_away(&before)?;
            let held: &[&[&str]] = &[&["CLIENT", "PAUSE", HOLD, "WRITE"], &["REPLICAOF", "NO", "ONE"]];
            let commands = if holds { held } else { &held[1..] };
            let info = session.tell_and_look(commands).await.map_err(asked)?;
            place.end = offset_end(&info)?;
            place.line.go_on_as(info.id().unwrap_or_default(), place.end);
        }
        // The engine takes another id when the first replica comes and it remembers nothing for it. Nobody has seen the one before.
        if !session.info("replication", BRIEF).await.map_err(asked)?.remembers() {
            place.line.id = self.begin_backlog(&session).await?;
        }
        self.keep_line(&session, &place.line).await?;
        session.let_copy(true).await.map_err(asked)?;
        if holds {
            session.tell(&["CLIENT", "UNPAUSE"]).await.map_err(asked)?;
        }
        // Was empty since the cut, unless nobody cut: then it must not come back with the next start.
        self.write_upstream(None).await?;
        tracing::info!(milliseconds = started.elapsed().as_millis(), place = %place.position(), "ready as the primary");
        Ok(place.position())
    }

    /// Has the engine begin to remember what it writes, by asking for a copy and going away again; its id from then on.
    async fn begin_backlog(&self, session: &Session) -> Result<String, DriverError> {
        let failed = |source| DriverError::Io { doing: "ask", path: self.socket.clone(), source };
        let secret = self.wanted()?.secrets.agent.clone();
        let stream = UnixStream::connect(&self.socket).await.map_err(failed)?;
        let mut stream = BufReader::new(stream);
        // The copy itself is only begun a second later.
        let asked = ask_for_copy(&mut stream, AGENT, &secret).await.map_err(failed)?;
        let refused = |detail| DriverError::Refused { doing: "begin its backlog".to_owned(), detail };
        asked.map_err(refused)?;
        let started = time::Instant::now();
        while started.elapsed() < BRIEF {
            let info = session.info("replication", BRIEF).await.map_err(|error| error.refused("begin its backlog"))?;
            if let (true, Some(id)) = (info.remembers(), info.id()) {
                return Ok(id.to_owned());
            }
            time::sleep(POLL).await;
        }
        Err(refused(format!("it remembers nothing after {} s", BRIEF.as_secs())))
    }

    /// Follows another member, if this copy can.
    pub(super) async fn follow_upstream(&self, upstream: &Peer) -> Result<CaughtUp, DriverError> {
        self.check_startable(Force::No).await?;
        let own = self.find_place_to_follow(upstream).await?;
        let theirs = self.identify(upstream).await?;
        own.can_follow(&theirs)
            .map_err(|detail| DriverError::Diverged { upstream: upstream.member.clone(), detail })?;
        self.stream_from(upstream).await
    }

    /// Points a running replica at the upstream and waits until it streams.
    pub(super) async fn stream_from(&self, upstream: &Peer) -> Result<CaughtUp, DriverError> {
        let failed = |error: SessionError| error.refused(format!("follow {}", upstream.member));
        self.write_upstream(Some(upstream)).await?;
        let session = self.session().await.map_err(failed)?;
        let port = upstream.engine.port.to_string();
        session.let_copy(false).await.map_err(failed)?;
        let own = session.info("replication", BRIEF).await.map_err(failed)?;
        let theirs = self.session_with(&upstream.engine.host, upstream.engine.port).await.map_err(failed)?;
        let theirs = theirs.info("replication", BRIEF).await.map_err(failed)?;
        session.tell(&["REPLICAOF", &upstream.engine.host, &port]).await.map_err(failed)?;
        let copied = self.wait_streaming(upstream).await?;
        let caught_up = CaughtUp::foreseen(&own, &theirs).or_by_a_copy(copied);
        tracing::info!(upstream = %upstream.member, "it streams: {}", caught_up.sentence());
        // It has the upstream's line from here on.
        self.place().await.map(|_| caught_up)
    }

    /// Returns whether a full synchronization was seen meanwhile.
    pub(super) async fn wait_streaming(&self, upstream: &Peer) -> Result<bool, DriverError> {
        // More than ever before: a synchronization that fails and begins anew gets nobody any further.
        let (mut most, mut progressed) = ([None; 2], time::Instant::now());
        let started = progressed;
        let mut copied = false;
        while progressed.elapsed() < STREAM && self.is_alive() {
            let session = self.session().await.map_err(|error| error.refused("ask for the stream"))?;
            match session.info("default", BRIEF).await {
                Ok(info) if info.follows(&upstream.engine.host, upstream.engine.port) => {
                    if info.streams() {
                        return Ok(copied);
                    }
                    copied |= info.synchronizes();
                    for (most, name) in most.iter_mut().zip(["master_sync_read_bytes", "loading_loaded_bytes"]) {
                        let now = info.number(name);
                        if now > *most {
                            (*most, progressed) = (now, time::Instant::now());
                        }
                    }
                }
                Ok(_) => {}
                Err(error) if error.is_broken() => self.drop_session().await,
                Err(_) => {}
            }
            time::sleep(POLL).await;
        }
        Err(DriverError::Deadline {
            doing: format!("waiting for the stream from {}", upstream.member),
            seconds: started.elapsed().as_secs(),
            last: self.last_log_lines().await,
        })
    }

    /// How far this copy has come; starts it isolated when it does not run, and leaves it running.
    pub(super) async fn find_place(&self) -> Result<Place, DriverError> {
        self.adopt_process()?;
        if !self.is_alive() {
            self.start_isolated().await?;
        }
        self.wait_accepting_if_needed().await?;
        self.place().await
    }

    /// How far this copy has come when it takes nothing any more, from clients or from another upstream than this one.
    async fn find_place_to_follow(&self, upstream: &Peer) -> Result<Place, DriverError> {
        let place = self.find_place().await?;
        let info = self.look_at_replication().await.map_err(|error| error.refused("ask for its role"))?;
        if !info.is_primary() && info.follows(&upstream.engine.host, upstream.engine.port) {
            return Ok(place);
        }
        self.start_isolated().await?;
        self.place().await
    }

    /// How far the running engine has come; what is new of its line is kept. Called by whoever has the engine for itself.
    pub(super) async fn place(&self) -> Result<Place, DriverError> {
        let asked = |error: SessionError| error.refused("ask for its position");
        let session = self.session().await.map_err(asked)?;
        let info = self.look_at_replication().await.map_err(asked)?;
        self.place_by(&session, &info).await
    }

    async fn place_by(&self, session: &Session, info: &Info) -> Result<Place, DriverError> {
        let end = offset_end(info)?;
        if let Some(line) = self.line_by(info).await? {
            self.keep_line(session, &line).await?;
            return Ok(Place { line, end });
        }
        // Nobody else has its history: to all others it is diverged, which is the safe side. A guess, and not to be kept: when it
        // streams again its upstream tells.
        Line::of_engine(info).map(|line| Place { line, end }).ok_or_else(unknown)
    }

    /// The same for a look, which keeps nothing: its word may be older than what another method has just kept.
    pub(super) async fn place_seen(&self, info: &Info) -> Result<Place, DriverError> {
        Ok(Place { line: self.line_by(info).await?.ok_or_else(unknown)?, end: offset_end(info)? })
    }

    /// The line of data of which the engine says this, as far as it is known for sure.
    async fn line_by(&self, info: &Info) -> Result<Option<Line>, DriverError> {
        let asked = self.asked_line.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = [self.line(), asked].into_iter().flatten().find_map(|known| known.as_of(info));
        if known.is_some() || !info.streams() {
            return Ok(known);
        }
        // What the engine has synchronized in full by itself has the line of whom it came from.
        let (host, port) = (info.text("master_host").unwrap_or_default(), info.number("master_port"));
        let port = port.and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
        let theirs = self.ask_for_place(host, port).await.map_err(|error| error.refused("ask its upstream"))?;
        let line = theirs.map(|theirs| theirs.line).filter(|line| Some(line.id.as_str()) == info.id());
        self.asked_line.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&line);
        Ok(line)
    }

    /// How far another member has come.
    pub(super) async fn identify(&self, peer: &Peer) -> Result<Place, DriverError> {
        let doing = || format!("ask {} for its position", peer.member);
        let place = self.ask_for_place(&peer.engine.host, peer.engine.port).await;
        place.map_err(|error| error.refused(doing()))?.ok_or_else(|| DriverError::Refused {
            doing: doing(),
            detail: "it does not know what its data is a copy of".to_owned(),
        })
    }

    pub(super) async fn session_with(&self, host: &str, port: u16) -> Result<Session, SessionError> {
        let wanted = self.known_wanted().ok_or_else(SessionError::never_configured)?;
        Session::remote(self.dial(host, port).await?, &wanted.secrets.replication).await
    }

    async fn ask_for_place(&self, host: &str, port: u16) -> Result<Option<Place>, SessionError> {
        let session = self.session_with(host, port).await?;
        for _ in 0..TRIES {
            let info = session.info("replication", BRIEF).await?;
            let users: Vec<String> = session.ask(Cmd::new().arg("ACL").arg("LIST"), BRIEF).await?;
            let line = match line_told(&users) {
                Some(told) => told.as_of(&info),
                None => Line::of_engine(&info),
            };
            if let (Some(line), Some(offset)) = (line, info.offset()) {
                return Ok(Some(Place { line, end: end_of(offset) }));
            }
            time::sleep(POLL).await;
        }
        Ok(None)
    }
}

/// The end of what a copy has that says this of itself.
fn offset_end(info: &Info) -> Result<u64, DriverError> {
    info.offset().map(end_of).ok_or_else(|| DriverError::Refused {
        doing: "say how far it has come".to_owned(),
        detail: "it gave no offset".to_owned(),
    })
}

fn unknown() -> DriverError {
    DriverError::Refused {
        doing: "say what its data is a copy of".to_owned(),
        detail: "neither its files nor its upstream know its id".to_owned(),
    }
}

/// Refuses a replica whose data a full synchronization has thrown away before it failed, while its place in the history stayed.
fn refuse_thrown_away(info: &Info) -> Result<(), DriverError> {
    let (executed, place) = (info.offset().unwrap_or(0), info.number("master_repl_offset").unwrap_or(0));
    if info.streams() || place <= executed.max(1) {
        return Ok(());
    }
    Err(DriverError::Refused {
        doing: "promote".to_owned(),
        detail: format!(
            "its data ends at {executed} and its history at {place}: a full synchronization failed; resync it"
        ),
    })
}
