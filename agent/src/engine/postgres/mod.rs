//! PostgreSQL by physical streaming replication.
//!
//! One file per concern: `layout` (files and marks), `tools` (programs), `config` (rendered files), `session` and `wire`
//! (SQL and the replication protocol), `position` (timelines), `bootstrap` (new instance, roles), `lifecycle` (start,
//! stop), `drain` (before a planned promotion), `replication` (cut, promote, follow, slots), `clone`, `swap`, `rewind`, `probe`.
//!
//! **Invariants**
//! - `standby.signal` stands in the data directory whenever this member is not the primary, so that nothing that starts the
//!   engine, not even by hand, makes a second primary.
//! - Whom a replica follows stands in `conf/upstream.conf` only, and is empty whenever it follows nobody.
//! - Dirty data is started by nobody but the swap or rewind that made it so.
//! - Methods that change something run one at a time; a clone runs beside them, and a kill waits for nothing.

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
    ids::{ClusterName, MemberName},
    position::Position,
    topology::{ClusterSpec, ConnectionFormat, Endpoint, EngineObservation, EngineOffer, HeardPosition, Peer},
};
use tokio::sync::watch;

use self::{
    bootstrap::Wanted,
    layout::{Layout, SHAPE, io_error, offload},
    probe::Eyes,
    session::{Session, SqlError, Who},
    tools::{Runner, Section, Tools},
};
use super::{
    CloneOptions, Cloned, Context, Driver, DriverError, Factory, Flush, FoundInstance, Ground, SettingsCheck, StartAs,
    Stop, Work, refused, swap,
};
use crate::supervisor::{Supervisor, process::EngineProcess};

mod adoption;
mod bootstrap;
mod clone;
mod config;
mod drain;
mod layout;
mod lifecycle;
mod position;
mod probe;
mod replication;
mod rewind;
mod session;
mod swapping;
mod tools;
mod wire;

/// Port of an engine whose cluster and node name none.
const DEFAULT_PORT: u16 = 5432;

/// Makes PostgreSQL drivers.
#[derive(Debug)]
pub struct PostgresFactory;

/// One PostgreSQL instance.
struct Postgres {
    cluster: ClusterName,
    member: MemberName,
    layout: Layout,
    section: Section,
    runner: Runner,
    endpoint: Endpoint,
    run_directory: PathBuf,
    supervisor: Arc<dyn Supervisor>,
    /// Held by every method that changes the engine, except clones and kills.
    control: tokio::sync::Mutex<()>,
    /// Held by a clone.
    cloning: tokio::sync::Mutex<()>,
    /// Counts kills, so that a method that was under way knows of one and starts nothing any more.
    kills: AtomicU64,
    /// The count when the method that holds `control` began.
    kills_at_begin: AtomicU64,
    /// The one session that is kept open.
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    wanted: Mutex<Option<Arc<Wanted>>>,
    /// Whom this member was last told to follow.
    following: Mutex<Option<MemberName>>,
    /// How far the upstream had come by what the stream told.
    upstream_heard: Mutex<Option<HeardPosition>>,
    facts: Arc<Facts>,
    /// Whether an instance is being taken over, which does not know us before its end.
    taking_over: AtomicBool,
    eyes: tokio::sync::Mutex<Eyes>,
}

/// What is known of the files without touching the disk, which may hang.
#[derive(Debug, Default)]
struct Facts {
    has_data: AtomicBool,
    dirty: AtomicBool,
    /// The process that the postmaster's pid file names, 0 without one: with no such process it tells of a crash.
    claimed_process: AtomicU32,
    /// The folder of its socket that the same file names.
    socket_folder: Mutex<Option<PathBuf>>,
}

// === impl PostgresFactory ===

#[async_trait]
impl Factory for PostgresFactory {
    fn name(&self) -> &'static str {
        "postgresql"
    }

    fn offer(&self, section: Option<&toml::Table>) -> EngineOffer {
        let checked = Section::read(section).and_then(|section| {
            section.engine_user()?;
            Tools::find(&section, "")?;
            Ok(Tools::installed(&section))
        });
        let (versions, problem) = match checked {
            Ok(tools) => (tools.into_iter().map(|tools| tools.version).collect(), String::new()),
            Err(error) => (Vec::new(), error.to_string()),
        };
        EngineOffer {
            engine: self.name().to_owned(),
            versions,
            modes: vec!["primary-replica".to_owned()],
            min_replicas: 0,
            default_replicas: 2,
            max_replicas: 8,
            can_rewind: true,
            forgets_on_crash: false,
            connection_with_tls: None,
            problem,
            connection: ConnectionFormat {
                user: "app".to_owned(),
                database: "app".to_owned(),
                any: "postgresql://{user}:{password}@{hosts}/{database}".to_owned(),
                primary: "postgresql://{user}:{password}@{hosts}/{database}?target_session_attrs=read-write".to_owned(),
            },
        }
    }

    async fn survey(&self, ground: &Ground<'_>) -> Result<Vec<FoundInstance>, DriverError> {
        Box::pin(adoption::survey::look_around(ground)).await
    }

    async fn check_settings(&self, asked: &SettingsCheck<'_>) -> Result<(), DriverError> {
        let section = Section::read(asked.section)?;
        let runner = Runner {
            agent_program: asked.agent_program.to_owned(),
            user: section.engine_user()?,
            tools: Tools::find(&section, asked.version)?,
        };
        config::check(&runner, asked.settings).await
    }

    fn open(&self, context: Context) -> Result<Arc<dyn Driver>, DriverError> {
        Ok(Arc::new(Postgres::open(context)?))
    }
}

// === impl Facts ===

impl Facts {
    /// Looks at the disk.
    fn refresh(&self, layout: &Layout) {
        self.has_data.store(layout.has_data(), Ordering::Release);
        self.dirty.store(layout.is_dirty(), Ordering::Release);
        let claimed = layout.claimed();
        self.claimed_process.store(claimed.as_ref().map_or(0, |claimed| claimed.pid), Ordering::Release);
        let folder = claimed.and_then(|claimed| claimed.socket_folder);
        *self.socket_folder.lock().unwrap_or_else(PoisonError::into_inner) = folder;
    }
}

// === impl Postgres ===

impl Postgres {
    fn open(context: Context) -> Result<Self, DriverError> {
        let section = Section::read(context.section.as_ref())?;
        let user = section.engine_user()?;
        let tools = Tools::find(&section, &context.version)?;
        if context.run_directory.as_os_str().len() > 80 {
            return Err(DriverError::InvalidSetting {
                name: "run_directory".to_owned(),
                problem: format!("{} is longer than 80 bytes", context.run_directory.display()),
            });
        }
        std::fs::create_dir_all(&context.root).map_err(io_error("create", &context.root))?;
        // Processes are told by their working directory, which the kernel names without links.
        let root = context.root.canonicalize().map_err(io_error("resolve", &context.root))?;
        let layout = Layout::new(root, user.clone(), context.cluster.clone(), context.member.clone(), &SHAPE);
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
        supervisor.adopt(layout.claimed_process()).map_err(|error| refused("adopt the engine's process", &error))?;
        if layout.is_ours() {
            swap::settle(&layout)?;
        }
        let facts = Arc::new(Facts::default());
        facts.refresh(&layout);
        let wanted = Wanted::load(&layout).map(Arc::new);
        let upstream = std::fs::read_to_string(layout.upstream_conf()).unwrap_or_default();
        let following = config::followed(&upstream);
        Ok(Self {
            cluster: context.cluster,
            member: context.member,
            runner: Runner { agent_program: context.agent_program, user, tools },
            layout,
            section,
            endpoint: Endpoint { host: context.advertise_host, port },
            run_directory: context.run_directory,
            supervisor: Arc::new(supervisor),
            control: tokio::sync::Mutex::default(),
            cloning: tokio::sync::Mutex::default(),
            kills: AtomicU64::new(0),
            kills_at_begin: AtomicU64::new(0),
            session: tokio::sync::Mutex::default(),
            wanted: Mutex::new(wanted),
            following: Mutex::new(following),
            upstream_heard: Mutex::default(),
            facts,
            taking_over: AtomicBool::new(false),
            eyes: tokio::sync::Mutex::default(),
        })
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

    /// The kept session, or a new one; as the owner of the instance when the agent's own slots are used up.
    async fn session(&self) -> Result<Arc<Session>, SqlError> {
        let mut kept = self.session.lock().await;
        if let Some(session) = &*kept
            && !session.is_closed()
        {
            return Ok(Arc::clone(session));
        }
        let limit = Duration::from_secs(2);
        let session = match self.connect(Who::Agent, limit).await {
            Err(SqlError::TooMany(_)) => self.connect(Who::Superuser, limit).await?,
            other => other?,
        };
        let session = Arc::new(session);
        *kept = Some(Arc::clone(&session));
        Ok(session)
    }

    async fn connect(&self, who: Who, limit: Duration) -> Result<Session, SqlError> {
        Session::local(&self.socket_folder(), self.endpoint.port, who, limit).await
    }

    /// Folder of the socket through which the running engine is reached: an adopted one keeps its own until it is started again.
    fn socket_folder(&self) -> PathBuf {
        let claimed = self.facts.socket_folder.lock().unwrap_or_else(PoisonError::into_inner).clone();
        claimed.unwrap_or_else(|| self.run_directory.clone())
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

    /// Closes the kept session.
    async fn drop_session(&self) {
        self.session.lock().await.take();
    }

    fn wanted(&self) -> Result<Arc<Wanted>, DriverError> {
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        wanted.ok_or_else(|| DriverError::Refused {
            doing: "start".to_owned(),
            detail: format!("member {} was never configured", self.member),
        })
    }
}

#[async_trait]
impl Driver for Postgres {
    fn endpoint(&self) -> Endpoint {
        self.endpoint.clone()
    }

    fn version(&self) -> String {
        self.runner.tools.version.clone()
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
        let _control = self.begin().await;
        Box::pin(self.make_instance()).await
    }

    async fn clone_from(&self, source: &Peer, options: CloneOptions, work: &Work) -> Result<Cloned, DriverError> {
        let _cloning = self.cloning.lock().await;
        Box::pin(self.copy_from(source, options, work)).await
    }

    async fn swap(&self, upstream: &Peer, keep_old: bool) -> Result<(), DriverError> {
        let _cloning = self.cloning.lock().await;
        let _control = self.begin().await;
        Box::pin(swap::carry_out(self, upstream, keep_old)).await
    }

    async fn discard_kept(&self) -> Result<(), DriverError> {
        let _control = self.begin().await;
        self.on_disk(swap::discard_kept).await
    }

    async fn start(&self, how: StartAs) -> Result<(), DriverError> {
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

    async fn cut(&self) -> Result<Position, DriverError> {
        let _control = self.begin().await;
        Box::pin(self.cut_stream()).await
    }

    async fn drain(&self, successor: &MemberName) -> Result<Position, DriverError> {
        let _control = self.begin().await;
        Box::pin(self.hand_over_to(successor)).await
    }

    async fn undo_drain(&self) -> Result<(), DriverError> {
        let _control = self.begin().await;
        self.admit().await
    }

    async fn promote(&self) -> Result<Position, DriverError> {
        let _control = self.begin().await;
        Box::pin(self.become_primary()).await
    }

    async fn follow(&self, upstream: &Peer) -> Result<String, DriverError> {
        let _control = self.begin().await;
        Box::pin(self.follow_upstream(upstream)).await.map(|()| String::new())
    }

    async fn examine(&self) -> Result<Position, DriverError> {
        let _control = self.begin().await;
        Ok(Box::pin(self.find_place()).await?.position())
    }

    async fn rewind(&self, source: &Peer, work: &Work) -> Result<String, DriverError> {
        let _control = self.begin().await;
        Box::pin(self.rewind_to(source, work)).await
    }

    async fn checkpoint(&self, _: Flush) -> Result<(), DriverError> {
        Box::pin(self.flush()).await
    }

    async fn adopt(&self, data_directory: &Path, upstream: Option<&Peer>) -> Result<Position, DriverError> {
        let _control = self.begin().await;
        self.taking_over.store(true, Ordering::Release);
        let taken = Box::pin(self.take_over(data_directory, upstream)).await;
        self.taking_over.store(false, Ordering::Release);
        taken
    }

    async fn give_back(&self) -> Result<bool, DriverError> {
        let _control = self.begin().await;
        Box::pin(self.leave_as_found()).await
    }

    async fn release(&self, keep_data: bool) -> Result<(), DriverError> {
        let _control = self.begin().await;
        Box::pin(self.give_up(keep_data)).await
    }
}
