//! Cutting, promoting, following, and the slots of the other members.
//!
//! **How far a standby has come**: when its startup process has replayed everything and waits, the replayed place; it is
//! the end of the last whole record. While it still replays, the larger of received and replayed. The difference matters:
//! what is received may end in half a record, which a promotion discards, and counting it would make every other replica
//! look diverged.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use nix::sys::signal::Signal;
use regent_common::{ids::MemberName, position::Position, topology::Peer};
use tokio::time;
use tokio_postgres::error::SqlState;

use super::{
    Postgres, config,
    lifecycle::Force,
    position::{Lsn, Names, Place, parse_lsn},
    refused,
    session::{Session, SqlError, literal},
    wire::{self, Target},
};
use crate::engine::DriverError;

/// Between two looks on the way of a failover.
const POLL: Duration = Duration::from_millis(2);
/// How long a cut may take.
const CUT: Duration = Duration::from_secs(5);
/// How long the replay of what was received may take before the position is given as received.
const REPLAY: Duration = Duration::from_secs(30);
/// How long a promotion may take.
const PROMOTE: Duration = Duration::from_secs(60);
/// How long a stream may take to come up.
const STREAM: Duration = Duration::from_secs(30);
/// How long a server may take to hear that the other end of a stream is gone, and how often to look.
const SLOT_FREE_WITHIN: Duration = Duration::from_secs(10);
const SLOT_LOOK: Duration = Duration::from_millis(100);
/// For one statement.
const STATEMENT: Duration = Duration::from_secs(5);

/// What a standby's startup process waits for when it has replayed all that there is.
pub(super) const REPLAYED_ALL: &[&str] = &["RecoveryWalStream", "RecoveryRetrieveRetryInterval"];

/// Where a standby is with its log.
struct Replay {
    replayed: Lsn,
    received: Lsn,
    /// Whether all of it is replayed.
    done: bool,
    /// Whether a receiver is there.
    receiving: bool,
}

impl Replay {
    fn end(&self) -> Lsn {
        if self.done { self.replayed } else { self.replayed.max(self.received) }
    }
}

/// A member's slot as its upstream has it.
struct Slot {
    active: bool,
    lost: bool,
}

// === impl Postgres ===

impl Postgres {
    /// Writes whom this member follows; in force from the next reload or start.
    pub(super) async fn write_upstream(&self, upstream: Option<&Peer>) -> Result<(), DriverError> {
        let text = config::upstream_conf(&self.layout, &self.member, upstream);
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

    /// Cuts the stream and says how far this copy has come.
    pub(super) async fn cut_stream(&self) -> Result<Position, DriverError> {
        let cut = |error: SqlError| error.refused("cut the stream");
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
        self.write_upstream(None).await?;
        self.reload()?;
        let session = self.session().await.map_err(cut)?;
        let started = time::Instant::now();
        // A receiver may have been asked for in the moment of the reload: gone counts when it is gone twice.
        let mut looks_without = 0;
        loop {
            let receivers = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver'";
            let none = session.value(receivers, STATEMENT).await.map_err(cut)?.as_deref() == Some("0");
            looks_without = if none { looks_without + 1 } else { 0 };
            if looks_without == 3 {
                break;
            }
            if started.elapsed() > CUT {
                return Err(DriverError::Deadline {
                    doing: "cutting the stream".to_owned(),
                    seconds: CUT.as_secs(),
                    last: "the receiver is still there".to_owned(),
                });
            }
            time::sleep(POLL).await;
        }
        let place = self.place().await?;
        tracing::info!(milliseconds = started.elapsed().as_millis(), place = %place.position(), "the stream is cut");
        Ok(place.position())
    }

    async fn wait_accepting_if_needed(&self) -> Result<(), DriverError> {
        match self.session().await {
            Ok(_) => Ok(()),
            Err(_) => self.wait_accepting().await,
        }
    }

    /// Makes the standby a primary.
    pub(super) async fn become_primary(&self) -> Result<Position, DriverError> {
        let asked = |error: SqlError| error.refused("promote");
        self.check_startable(Force::No).await?;
        self.adopt_process()?;
        if !self.is_alive() {
            self.start_isolated().await?;
        }
        self.wait_accepting_if_needed().await?;
        let session = self.session().await.map_err(asked)?;
        let started = time::Instant::now();
        let in_recovery = "SELECT pg_is_in_recovery()";
        if session.value(in_recovery, STATEMENT).await.map_err(asked)?.as_deref() != Some("f") {
            let order = self.layout.data().join("promote");
            std::fs::write(&order, b"").map_err(|source| DriverError::Io { doing: "write", path: order, source })?;
            self.supervisor.signal(Signal::SIGUSR1).map_err(|error| refused("promote", &error))?;
            while session.value(in_recovery, STATEMENT).await.map_err(asked)?.as_deref() != Some("f") {
                if started.elapsed() > PROMOTE {
                    return Err(DriverError::Deadline {
                        doing: "promoting".to_owned(),
                        seconds: PROMOTE.as_secs(),
                        last: self.last_log_lines().await,
                    });
                }
                time::sleep(POLL).await;
            }
            tracing::info!(milliseconds = started.elapsed().as_millis(), "promoted");
        }
        self.name_timeline().await?;
        let place = self.place().await?;
        // Was empty since the cut, unless nobody cut: then it must not come back with the next start.
        self.write_upstream(None).await?;
        self.make_slots_meanwhile(session)?;
        tracing::info!(milliseconds = started.elapsed().as_millis(), place = %place.position(), "ready as the primary");
        Ok(place.position())
    }

    /// Follows another member, if this copy can.
    pub(super) async fn follow_upstream(&self, upstream: &Peer) -> Result<(), DriverError> {
        self.check_startable(Force::No).await?;
        let own = self.find_place_as_standby().await?;
        let theirs = self.identify(upstream).await?;
        own.can_follow(&theirs)
            .map_err(|detail| DriverError::Diverged { upstream: upstream.member.clone(), detail })?;
        self.stream_from(upstream).await
    }

    /// Points a running standby at the upstream and waits until it streams.
    pub(super) async fn stream_from(&self, upstream: &Peer) -> Result<(), DriverError> {
        self.ensure_slot(upstream).await?;
        self.write_upstream(Some(upstream)).await?;
        self.reload()?;
        self.wait_streaming(upstream).await?;
        self.drop_stale_slots().await;
        Ok(())
    }

    pub(super) async fn wait_streaming(&self, upstream: &Peer) -> Result<(), DriverError> {
        let started = time::Instant::now();
        let wanted = format!("{}:{}", upstream.engine.host, upstream.engine.port);
        let sql = "SELECT status, sender_host || ':' || sender_port FROM pg_stat_wal_receiver";
        let mut last = String::new();
        while started.elapsed() < STREAM {
            let session = self.session().await.map_err(|error| error.refused("ask for the stream"));
            match (session, self.is_alive()) {
                (_, false) => break,
                (Err(error), true) => last = error.to_string(),
                (Ok(session), true) => match session.rows(sql, STATEMENT).await {
                    Ok(rows) => match rows.first().map(Vec::as_slice) {
                        Some([Some(status), Some(sender)]) if status == "streaming" && *sender == wanted => {
                            return Ok(());
                        }
                        Some(row) => last = format!("the receiver says {row:?}"),
                        None => "there is no receiver".clone_into(&mut last),
                    },
                    Err(error) => last = error.to_string(),
                },
            }
            time::sleep(Duration::from_millis(5)).await;
        }
        Err(DriverError::Deadline {
            doing: format!("waiting for the stream from {}", upstream.member),
            seconds: started.elapsed().as_secs(),
            last: format!("{last}; {}", self.last_log_lines().await),
        })
    }

    /// How far this copy has come; starts it isolated when it does not run, and leaves it running: what follows is either
    /// a follow, which needs it, or a rewind or clone, which stop it.
    pub(super) async fn find_place(&self) -> Result<Place, DriverError> {
        self.adopt_process()?;
        if !self.is_alive() {
            self.start_isolated().await?;
        }
        self.wait_accepting_if_needed().await?;
        self.place().await
    }

    async fn find_place_as_standby(&self) -> Result<Place, DriverError> {
        self.adopt_process()?;
        if self.is_alive() {
            self.wait_accepting_if_needed().await?;
            let primary = self.is_primary().await.map_err(|error| error.refused("ask for its role"))?;
            if primary {
                self.start_isolated().await?;
            }
        } else {
            self.start_isolated().await?;
        }
        self.place().await
    }

    /// How far the running engine has come. Waits for the replay of what was received.
    pub(super) async fn place(&self) -> Result<Place, DriverError> {
        let asked = |error: SqlError| error.refused("ask for its position");
        let session = self.session().await.map_err(asked)?;
        let started = time::Instant::now();
        let mut standby = None;
        while !self.is_primary().await.map_err(asked)? {
            let replay = replay(&session).await.map_err(asked)?;
            let finished = replay.done || replay.receiving || started.elapsed() > REPLAY;
            standby = Some(replay);
            if finished {
                break;
            }
            time::sleep(POLL).await;
        }
        let local = Target::Local { socket: self.socket(), user: config::AGENT };
        let identified =
            wire::identify(&local, STATEMENT).await.map_err(|error| refused("ask for its timeline", &error))?;
        let lsn = standby.map_or(identified.flushed, |replay| replay.end());
        let names = timeline_names(&session).await.map_err(asked)?;
        let wire::Identified { system_id, timeline, history, .. } = identified;
        Ok(Place { system_id, timeline, lsn, history, names })
    }

    /// Gives the primary's timeline its name, if it has none: see `position.rs`.
    pub(super) async fn name_timeline(&self) -> Result<(), DriverError> {
        let failed = |error: SqlError| error.refused("name the timeline");
        let session = self.session().await.map_err(failed)?;
        let name = ulid::Ulid::generate().to_string().to_ascii_lowercase();
        let timeline = "('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::bigint";
        let sql = format!(
            "INSERT INTO {}.timeline SELECT {timeline}, {} ON CONFLICT DO NOTHING",
            config::AGENT,
            literal(&name)
        );
        session.execute(&sql).await.map_err(failed)
    }

    pub(super) fn socket(&self) -> std::path::PathBuf {
        self.socket_folder().join(format!(".s.PGSQL.{}", self.endpoint.port))
    }

    /// The socket of an engine that we start.
    pub(super) fn own_socket(&self) -> std::path::PathBuf {
        self.run_directory.join(format!(".s.PGSQL.{}", self.endpoint.port))
    }

    /// Who another member is and how far it has come.
    pub(super) async fn identify(&self, peer: &Peer) -> Result<Place, DriverError> {
        let target = Target::Remote {
            host: peer.engine.host.clone(),
            port: peer.engine.port,
            user: config::REPLICATOR,
            password: self.wanted()?.replication.clone(),
        };
        let doing = format!("ask {} for its position", peer.member);
        let identified = wire::identify(&target, STATEMENT).await.map_err(|error| refused(&doing, &error))?;
        let wire::Identified { system_id, timeline, flushed, history } = identified;
        let session = self.session_with(peer).await?;
        let names = timeline_names(&session).await.map_err(|error| error.refused(doing))?;
        Ok(Place { system_id, timeline, lsn: flushed, history, names })
    }

    pub(super) async fn session_with(&self, peer: &Peer) -> Result<Session, DriverError> {
        let replication = self.wanted()?.replication.clone();
        Session::remote(&peer.engine.host, peer.engine.port, &replication)
            .await
            .map_err(|error| error.refused(format!("connect to {}", peer.member)))
    }

    /// This member's slot on its upstream: there, and not lost.
    pub(super) async fn ensure_slot(&self, upstream: &Peer) -> Result<(), DriverError> {
        let session = self.session_with(upstream).await?;
        make_slot(&session, &config::slot_name(&self.member))
            .await
            .map_err(|error| error.refused(format!("make a replication slot on {}", upstream.member)))
    }

    /// Makes the slots of the other members without keeping a promotion waiting: writes are accepted by now, a member that
    /// follows makes its own, and one that is away loses nothing in the meantime that `wal_keep_size` does not hold.
    fn make_slots_meanwhile(&self, session: Arc<Session>) -> Result<(), DriverError> {
        let wanted = self.wanted()?;
        let others: Vec<String> =
            wanted.members.iter().filter(|member| **member != self.member).map(config::slot_name).collect();
        tokio::spawn(async move {
            for name in others {
                if let Err(error) = make_slot(&session, &name).await {
                    tracing::warn!(%error, slot = name, "a slot could not be made; it is made when its member follows");
                }
            }
        });
        Ok(())
    }

    /// On a primary: a slot for every other member, none for former members.
    pub(super) async fn apply_slots(&self) -> Result<(), DriverError> {
        let failed = |error: SqlError| error.refused("make the slots of the members");
        let session = self.session().await.map_err(failed)?;
        let members = &self.wanted()?.members;
        for member in members.iter().filter(|member| **member != self.member) {
            make_slot(&session, &config::slot_name(member)).await.map_err(failed)?;
        }
        self.drop_slots(&session, |name| !self.is_expected(members, name)).await.map_err(failed)
    }

    /// Whether a slot belongs on this primary: that of another member.
    fn is_expected(&self, members: &[MemberName], slot: &str) -> bool {
        members.iter().filter(|member| **member != self.member).any(|member| owns_slot(member, slot))
    }

    /// On a primary: a slot of a former member that was still in use when it left holds the log back for nobody.
    pub(super) async fn drop_former_slots(&self, session: &Session) {
        let Ok(wanted) = self.wanted() else { return };
        if let Err(error) = self.drop_slots(session, |name| !self.is_expected(&wanted.members, name)).await {
            tracing::warn!(%error, "slots of former members could not be dropped; it is tried again");
        }
    }

    /// On a replica: the slots that it had made as a primary would hold its log back for ever.
    async fn drop_stale_slots(&self) {
        let result = match self.session().await {
            // Slots of clones are left: another member may be copying this one.
            Ok(session) => self.drop_slots(&session, |name| !name.ends_with("_clone")).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(%error, "slots of an earlier time as the primary could not be dropped");
        }
    }

    /// Drops unused slots of this cluster's members; slots that other people made are theirs.
    async fn drop_slots(&self, session: &Session, unwanted: impl Fn(&str) -> bool) -> Result<(), SqlError> {
        for (name, slot) in physical_slots(session).await? {
            if slot.active || !self.is_members_slot(&name) || !unwanted(&name) {
                continue;
            }
            drop_slot(session, &name).await?;
        }
        Ok(())
    }

    /// Whether a slot has the name of a member of this cluster, present or former.
    fn is_members_slot(&self, name: &str) -> bool {
        let cluster = self.cluster.as_str().replace('-', "_");
        let name = name.strip_suffix("_clone").unwrap_or(name);
        name.strip_prefix(&cluster)
            .is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

fn owns_slot(member: &MemberName, slot: &str) -> bool {
    slot == config::slot_name(member) || slot == config::clone_slot_name(member)
}

/// Makes a slot that holds the log back from now on; one that exists stays, one that has lost its log is made anew.
pub(super) async fn make_slot(session: &Session, name: &str) -> Result<(), SqlError> {
    match physical_slots(session).await?.get(name) {
        Some(slot) if slot.lost && !slot.active => drop_slot(session, name).await?,
        Some(_) => return Ok(()),
        None => {}
    }
    let made = session.execute(&format!("SELECT pg_create_physical_replication_slot({}, true)", literal(name))).await;
    match made {
        Err(error) if error.has_code(&SqlState::DUPLICATE_OBJECT) => Ok(()),
        other => other,
    }
}

/// Drops a slot; one that is not there is dropped already.
pub(super) async fn drop_slot(session: &Session, name: &str) -> Result<(), SqlError> {
    match session.execute(&format!("SELECT pg_drop_replication_slot({})", literal(name))).await {
        Err(error) if error.has_code(&SqlState::UNDEFINED_OBJECT) => Ok(()),
        other => other,
    }
}

/// As [`drop_slot`] for one whose stream has just been ended at the other side: the server hears of that in a moment.
pub(super) async fn drop_slot_soon(session: &Session, name: &str) -> Result<(), SqlError> {
    let started = time::Instant::now();
    loop {
        match drop_slot(session, name).await {
            Err(error) if error.has_code(&SqlState::OBJECT_IN_USE) && started.elapsed() < SLOT_FREE_WITHIN => {
                time::sleep(SLOT_LOOK).await;
            }
            other => return other,
        }
    }
}

async fn physical_slots(session: &Session) -> Result<BTreeMap<String, Slot>, SqlError> {
    let sql = "SELECT slot_name, active, wal_status FROM pg_replication_slots WHERE slot_type = 'physical'";
    let rows = session.rows(sql, STATEMENT).await?;
    let slots = rows.into_iter().filter_map(|row| {
        let mut columns = row.into_iter();
        let name = columns.next()??;
        let active = columns.next()?.as_deref() == Some("t");
        let lost = columns.next()?.as_deref() == Some("lost");
        Some((name, Slot { active, lost }))
    });
    Ok(slots.collect())
}

/// The names of the timelines that this copy has been through, as far as it has replayed them.
pub(super) async fn timeline_names(session: &Session) -> Result<Names, SqlError> {
    let rows = session.rows(&format!("SELECT number, name FROM {}.timeline", config::AGENT), STATEMENT).await;
    let rows = match rows {
        // An instance whose initialization has not come that far.
        Err(error) if error.has_code(&SqlState::UNDEFINED_TABLE) => Vec::new(),
        other => other?,
    };
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((row.first()?.as_deref()?.parse().ok()?, row.get(1)?.clone()?)))
        .collect())
}

async fn replay(session: &Session) -> Result<Replay, SqlError> {
    let sql = "SELECT pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn(), \
               (SELECT wait_event FROM pg_stat_activity WHERE backend_type = 'startup'), \
               (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'walreceiver')";
    let row = session.rows(sql, STATEMENT).await?.into_iter().next().unwrap_or_default();
    let column = |index: usize| row.get(index).and_then(Option::as_deref);
    let place = |index| column(index).and_then(parse_lsn).unwrap_or_default();
    Ok(Replay {
        replayed: place(0),
        received: place(1),
        done: column(2).is_some_and(|event| REPLAYED_ALL.contains(&event)),
        receiving: column(3) != Some("0"),
    })
}
