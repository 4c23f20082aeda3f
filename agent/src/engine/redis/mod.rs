//! The Redis family: [`Redis`](REDIS), [`Valkey`](VALKEY) and [`KeyDB`](KEYDB), which one driver runs as primary and replicas.
//!
//! The engine keeps its data in memory, and a snapshot of it on the disk. What that means for a member:
//!
//! - **What was acknowledged is safe on the replicas, not on the disk.** A process that is killed loses what was written since its
//!   last snapshot; a failover loses what no replica had. A clean stop makes a snapshot first, and a reign that is ended on purpose
//!   leaves the process alive ([`fence`]).
//! - **A member starts as a replica of nobody**, whatever it was: no file says that it is a primary ([`config`]). It is made
//!   one by the agent, under a lease, and before that nobody can copy from it. So a primary that comes back with an empty disk,
//!   the classic way to lose everything (redis#2087), empties nobody.
//! - **A replica whose place the upstream still has goes on from there; else the engine copies everything.** The engine
//!   decides that by itself, and does not ask whether the copy had something that the upstream has not: so the agent asks
//!   before, by the line of ids that the data has had ([`position`]).
//!
//! KeyDB alone can also be two sides that both take writes ([`pair`]).

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    ids::MemberName,
    position::Position,
    topology::{
        ClusterSpec, ConnectionFormat, Difference, Endpoint, EngineObservation, EngineOffer, HeardPosition, Peer,
    },
};
use tokio::sync::watch;

use self::{
    bootstrap::Wanted,
    certificate::Credentials,
    delivery::Acknowledged,
    flavor::{Flavor, Section, Server},
    holding::Stream,
    position::Line,
    probe::Eyes,
    session::{BRIEF, Session, SessionError},
    tls::Encryption,
};
use super::{
    Activation, CloneOptions, Cloned, Comparison, Context, Driver, DriverError, Factory, Flush, FoundInstance, Ground,
    SettingsCheck, StartAs, Stop, Work,
    layout::{Layout, Shape, io_error, offload},
    refused, swap,
};
use crate::supervisor::{Supervisor, process::EngineProcess};

mod access;
mod adoption;
mod backlog;
mod bootstrap;
mod catching_up;
mod certificate;
mod clone;
mod config;
mod delivery;
mod difference;
mod drain;
mod fence;
mod flavor;
mod holding;
mod info;
mod lifecycle;
mod pair;
mod position;
mod probe;
mod replication;
mod session;
mod swapping;
mod tls;
mod wire;

/// Port of an engine whose cluster and node name none.
const DEFAULT_PORT: u16 = 6379;

/// Makes drivers of one engine of the family.
#[derive(Debug)]
pub struct RedisFactory {
    flavor: &'static Flavor,
}

/// Redis.
pub static REDIS: RedisFactory = RedisFactory { flavor: &flavor::REDIS };
/// Valkey.
pub static VALKEY: RedisFactory = RedisFactory { flavor: &flavor::VALKEY };
/// KeyDB, as a primary with replicas or as two sides that both take writes.
pub static KEYDB: RedisFactory = RedisFactory { flavor: &flavor::KEYDB };

/// What a member's folder has besides what all have: nothing. Data is where a snapshot is.
static SHAPE: Shape = Shape { holds_data: |data| data.join("dump.rdb").exists(), folders: &[] };

/// One instance.
struct Redis {
    flavor: &'static Flavor,
    member: MemberName,
    layout: Layout,
    section: Section,
    server: Server,
    agent_program: PathBuf,
    endpoint: Endpoint,
    socket: PathBuf,
    supervisor: Arc<dyn Supervisor>,
    /// Held by every method that changes the engine, except clones and kills.
    control: tokio::sync::Mutex<()>,
    /// Held by a clone.
    cloning: tokio::sync::Mutex<()>,
    /// Counts kills, so that a method that was under way knows of one and starts nothing any more.
    kills: AtomicU64,
    /// The count when the method that holds `control` began.
    kills_at_begin: AtomicU64,
    /// The one connection that is kept open.
    session: tokio::sync::Mutex<Option<Session>>,
    wanted: Mutex<Option<Arc<Wanted>>>,
    /// Whom this member was last told to follow.
    following: Mutex<Option<MemberName>>,
    /// How far the upstream had come by what the stream told.
    upstream_heard: Mutex<Option<HeardPosition>>,
    /// The line of the data in place, as far as it was known when it was last asked for.
    line: Mutex<Option<Line>>,
    /// How much of what this side wrote the other one has carried out, as it last said.
    acknowledged: Mutex<Option<Acknowledged>>,
    /// What is known of the stream from the other of two sides.
    stream: Mutex<Stream>,
    /// The line that the upstream told, not kept yet.
    asked_line: Mutex<Option<Line>>,
    /// Whether a snapshot of the copy in place was written since the last clone began.
    old_copy_written: AtomicBool,
    facts: Arc<Facts>,
    eyes: tokio::sync::Mutex<Eyes>,
    encryption: Encryption,
}

/// What is known of the files without touching the disk, which may hang.
#[derive(Debug, Default)]
struct Facts {
    has_data: AtomicBool,
    dirty: AtomicBool,
    /// The process that the server's pid file names, 0 without one: with no such process it tells of a crash.
    claimed_process: AtomicU32,
}

// === impl RedisFactory ===

impl RedisFactory {
    fn installed(&self, section: Option<&toml::Table>, version: &str) -> Result<(Section, Server), DriverError> {
        let section = Section::read(self.flavor, section)?;
        let server = Server::find(self.flavor, &section, version)?;
        Ok((section, server))
    }
}

#[async_trait]
impl Factory for RedisFactory {
    fn name(&self) -> &'static str {
        self.flavor.name
    }

    fn offer(&self, section: Option<&toml::Table>) -> EngineOffer {
        let checked = self.installed(section, "").and_then(|(section, server)| {
            section.engine_user(self.flavor)?;
            Ok(server)
        });
        let (versions, problem) = match checked {
            Ok(server) => (vec![server.version], String::new()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        EngineOffer {
            engine: self.name().to_owned(),
            versions,
            modes: self.flavor.modes.iter().map(|mode| mode.label().to_owned()).collect(),
            min_replicas: 0,
            default_replicas: 2,
            max_replicas: 8,
            can_rewind: false,
            forgets_on_crash: true,
            connection_with_tls: None,
            problem,
            connection: connection("redis"),
        }
    }

    fn connection_with_tls(
        &self,
        section: Option<&toml::Table>,
        advertise_host: &str,
    ) -> Result<Option<ConnectionFormat>, DriverError> {
        let Some(files) = Section::read(self.flavor, section)?.tls else { return Ok(None) };
        let (section, server) = self.installed(section, "")?;
        tls::check_server(&server, &section.engine_user(self.flavor)?)?;
        Credentials::of_files(self.flavor, &files, advertise_host)?;
        Ok(Some(connection("rediss")))
    }

    async fn check_settings(&self, asked: &SettingsCheck<'_>) -> Result<(), DriverError> {
        let (section, server) = self.installed(asked.section, asked.version)?;
        let user = section.engine_user(self.flavor)?;
        config::check(self.flavor, &server, asked.agent_program, &user, asked.settings).await
    }

    async fn survey(&self, ground: &Ground<'_>) -> Result<Vec<FoundInstance>, DriverError> {
        adoption::survey::look_around(self.flavor, ground).await
    }

    fn open(&self, context: Context) -> Result<Arc<dyn Driver>, DriverError> {
        Ok(Arc::new(Redis::open(self.flavor, context)?))
    }
}

/// How clients connect, with or without TLS.
fn connection(scheme: &str) -> ConnectionFormat {
    ConnectionFormat {
        user: access::APPLICATION.to_owned(),
        database: "0".to_owned(),
        any: format!("{scheme}://{{user}}:{{password}}@{{hosts}}/{{database}}"),
        // Its clients have no word for several hosts of which one takes writes.
        primary: String::new(),
    }
}

// === impl Facts ===

impl Facts {
    /// Looks at the disk.
    fn refresh(&self, layout: &Layout) {
        self.has_data.store(layout.has_data(), Ordering::Release);
        self.dirty.store(layout.is_dirty(), Ordering::Release);
        self.claimed_process.store(lifecycle::claimed_process(layout).unwrap_or(0), Ordering::Release);
    }
}

// === impl Redis ===

impl Redis {
    fn open(flavor: &'static Flavor, context: Context) -> Result<Self, DriverError> {
        let section = Section::read(flavor, context.section.as_ref())?;
        let user = section.engine_user(flavor)?;
        let server = Server::find(flavor, &section, &context.version)?;
        if context.run_directory.as_os_str().len() > 80 {
            return Err(DriverError::InvalidSetting {
                name: "run_directory".to_owned(),
                problem: format!("{} is longer than 80 bytes", context.run_directory.display()),
            });
        }
        std::fs::create_dir_all(&context.root).map_err(io_error("create", &context.root))?;
        // Processes are told by their working directory, which the kernel names without links.
        let root = context.root.canonicalize().map_err(io_error("resolve", &context.root))?;
        let layout = Layout::new(root, user, context.cluster.clone(), context.member.clone(), &SHAPE);
        layout.make_folder(&context.run_directory, 0o700, true)?;
        let port =
            [context.port, section.port.unwrap_or(0)].into_iter().find(|port| *port != 0).unwrap_or(DEFAULT_PORT);
        let supervisor = EngineProcess::new(
            context.agent_program.clone(),
            context.supervisor,
            context.cluster.as_str(),
            layout.data(),
            context.run_directory.join("engine.process"),
        );
        supervisor
            .adopt(lifecycle::claimed_process(&layout))
            .map_err(|error| refused("adopt the engine's process", &error))?;
        if layout.is_ours() {
            swap::settle(&layout)?;
        }
        let facts = Arc::new(Facts::default());
        facts.refresh(&layout);
        let wanted = Wanted::load(&layout).map(Arc::new);
        let upstream = std::fs::read_to_string(layout.upstream_conf()).unwrap_or_default();
        let driver = Self {
            flavor,
            member: context.member,
            section,
            server,
            agent_program: context.agent_program,
            endpoint: Endpoint { host: context.advertise_host, port },
            socket: context.run_directory.join("engine.sock"),
            supervisor: Arc::new(supervisor),
            control: tokio::sync::Mutex::default(),
            cloning: tokio::sync::Mutex::default(),
            kills: AtomicU64::new(0),
            kills_at_begin: AtomicU64::new(0),
            session: tokio::sync::Mutex::default(),
            wanted: Mutex::new(wanted),
            following: Mutex::new(config::followed(&upstream)),
            upstream_heard: Mutex::default(),
            line: Mutex::new(Line::load(&layout.data())),
            acknowledged: Mutex::default(),
            stream: Mutex::new(Stream::load(&layout)),
            asked_line: Mutex::default(),
            old_copy_written: AtomicBool::default(),
            layout,
            facts,
            eyes: tokio::sync::Mutex::default(),
            encryption: Encryption::default(),
        };
        if driver.known_wanted().is_some_and(|wanted| wanted.tls) {
            driver.set_credentials(Credentials::of_copies(&driver.layout).map(Arc::new));
        }
        Ok(driver)
    }

    /// Runs file operations where they may wait for the disk.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layout) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        let (layout, facts) = (self.layout.clone(), Arc::clone(&self.facts));
        offload(move || {
            let result = work(&layout);
            facts.refresh(&layout);
            result
        })
        .await
    }

    /// The kept connection, or a new one.
    async fn session(&self) -> Result<Session, SessionError> {
        let mut kept = self.session.lock().await;
        if let Some(session) = &*kept {
            return Ok(session.clone());
        }
        let session = self.connect(BRIEF).await?;
        Ok(kept.insert(session).clone())
    }

    async fn connect(&self, limit: Duration) -> Result<Session, SessionError> {
        let wanted = self.known_wanted().ok_or_else(SessionError::never_configured)?;
        Session::local(&self.socket, &wanted.secrets.agent, limit).await
    }

    /// Takes the engine for one method.
    async fn begin(&self) -> tokio::sync::MutexGuard<'_, ()> {
        let control = self.control.lock().await;
        self.kills_at_begin.store(self.kills.load(Ordering::Acquire), Ordering::Release);
        control
    }

    /// Whether the engine was killed since the method began: then it starts nothing.
    fn was_killed(&self) -> bool {
        self.kills.load(Ordering::Acquire) != self.kills_at_begin.load(Ordering::Acquire)
    }

    /// Closes the kept connection.
    async fn drop_session(&self) {
        self.session.lock().await.take();
    }

    fn known_wanted(&self) -> Option<Arc<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn wanted(&self) -> Result<Arc<Wanted>, DriverError> {
        self.known_wanted().ok_or_else(|| DriverError::Refused {
            doing: "start".to_owned(),
            detail: format!("member {} was never configured", self.member),
        })
    }
}

#[async_trait]
impl Driver for Redis {
    fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    fn version(&self) -> String {
        self.server.version.clone()
    }

    fn process_changes(&self) -> watch::Receiver<u64> {
        self.supervisor.changes()
    }

    async fn observe(&self) -> EngineObservation {
        Box::pin(self.look()).await
    }

    fn upstream_heard(&self) -> Option<HeardPosition> {
        self.upstream_heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_dirty(&self) -> bool {
        self.facts.dirty.load(Ordering::Acquire)
    }

    fn has_data(&self) -> bool {
        self.facts.has_data.load(Ordering::Acquire)
    }

    async fn configure(&self, spec: &ClusterSpec) -> Result<(), DriverError> {
        let _control = self.begin().await;
        Box::pin(self.apply_spec(spec)).await
    }

    async fn initialize(&self) -> Result<Position, DriverError> {
        self.refuse_for_side("initialize")?;
        let _control = self.begin().await;
        Box::pin(self.make_instance()).await
    }

    async fn clone_from(&self, source: &Peer, options: CloneOptions, work: &Work) -> Result<Cloned, DriverError> {
        self.refuse_for_side("clone")?;
        let _cloning = self.cloning.lock().await;
        Box::pin(self.copy_from(source, options, work)).await
    }

    async fn swap(&self, upstream: &Peer, keep_old: bool) -> Result<(), DriverError> {
        self.refuse_for_side("swap")?;
        let _cloning = self.cloning.lock().await;
        let _control = self.begin().await;
        Box::pin(swap::carry_out(self, upstream, keep_old)).await
    }

    async fn discard_kept(&self) -> Result<(), DriverError> {
        let _control = self.begin().await;
        self.on_disk(swap::discard_kept).await
    }

    async fn start(&self, how: StartAs) -> Result<(), DriverError> {
        self.refuse_for_side("start")?;
        let _control = self.begin().await;
        Box::pin(self.start_as(&how)).await
    }

    async fn stop(&self, how: Stop) -> Result<(), DriverError> {
        match how {
            Stop::Fast => {
                let _control = self.begin().await;
                Box::pin(self.stop_fast()).await
            }
            // Waits for nobody: whatever else is under way ends because the engine ends.
            Stop::Kill => {
                self.kills.fetch_add(1, Ordering::AcqRel);
                self.kill().await
            }
        }
    }

    async fn fence(&self) -> Result<(), DriverError> {
        if Box::pin(self.stays_fenced()).await { Ok(()) } else { self.stop(Stop::Kill).await }
    }

    async fn cut(&self) -> Result<Position, DriverError> {
        self.refuse_for_side("cut")?;
        let _control = self.begin().await;
        Box::pin(self.cut_stream()).await
    }

    async fn drain(&self, successor: &MemberName) -> Result<Position, DriverError> {
        self.refuse_for_side("drain")?;
        let _control = self.begin().await;
        Box::pin(self.hand_over_to(successor)).await
    }

    async fn undo_drain(&self) -> Result<(), DriverError> {
        let _control = self.begin().await;
        // A side is drained by nobody, and stays as open as it is.
        if self.is_side() { Ok(()) } else { self.admit().await }
    }

    async fn promote(&self) -> Result<Position, DriverError> {
        self.refuse_for_side("promotion")?;
        let _control = self.begin().await;
        Box::pin(self.become_primary()).await
    }

    async fn follow(&self, upstream: &Peer) -> Result<String, DriverError> {
        self.refuse_for_side("follow")?;
        let _control = self.begin().await;
        Ok(Box::pin(self.follow_upstream(upstream)).await?.sentence())
    }

    async fn examine(&self) -> Result<Position, DriverError> {
        self.refuse_for_side("examine")?;
        let _control = self.begin().await;
        Ok(Box::pin(self.find_place()).await?.position())
    }

    async fn rewind(&self, _: &Peer, _: &Work) -> Result<String, DriverError> {
        Err(DriverError::CannotRewind { reason: "the engine has no means to take single changes back".to_owned() })
    }

    async fn checkpoint(&self, flush: Flush) -> Result<(), DriverError> {
        // Copies are made of what is in memory. One that has to be killed to be demoted comes back from its snapshot.
        let is_killed = flush == Flush::HandOver && self.flavor.is_demoted_by_a_start;
        if is_killed { Box::pin(self.save()).await } else { Ok(()) }
    }

    async fn adopt(&self, data_directory: &Path, upstream: Option<&Peer>) -> Result<Position, DriverError> {
        self.refuse_for_side("adoption")?;
        let _control = self.begin().await;
        Box::pin(self.take_over(data_directory, upstream)).await
    }

    async fn give_back(&self) -> Result<bool, DriverError> {
        let _control = self.begin().await;
        Box::pin(self.leave_as_found()).await
    }

    async fn activate(&self, how: Activation<'_>) -> Result<(), DriverError> {
        let _cloning = self.cloning.lock().await;
        let _control = self.begin().await;
        Box::pin(self.become_side(how)).await
    }

    async fn compare(&self, other: &Peer, what: Comparison, work: &Work) -> Result<Difference, DriverError> {
        // Beside all others: it changes nothing.
        Box::pin(self.difference_from(other, what, work)).await
    }

    async fn refill(&self, source: &Peer, keep_old: bool) -> Result<(), DriverError> {
        let _cloning = self.cloning.lock().await;
        let _control = self.begin().await;
        Box::pin(self.refill_from(source, keep_old)).await
    }

    async fn release(&self, keep_data: bool) -> Result<(), DriverError> {
        let _control = self.begin().await;
        Box::pin(self.give_up(keep_data)).await
    }
}
