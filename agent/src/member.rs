//! The driver of this node's member: opening it, holding it, giving it up.
//!
//! **Invariant:** opening a driver starts nothing; an engine that an earlier agent left running is adopted as it is.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use regent_common::{
    error::ErrorChain,
    ids::{ClusterName, MemberName},
    position::Position,
    topology::{EngineObservation, EngineOffer, EngineState},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    config::PortRange,
    engine::{Context, Driver, DriverError, Factory, FoundInstance, Ground, SettingsCheck},
    ledger::Membership,
    supervisor::Backend,
};

/// The engines that a node can run.
pub type Engines = &'static [&'static dyn Factory];

/// What a driver is told about its node.
#[derive(Debug, Clone)]
pub struct Place {
    /// Folder of all engine data, one folder per cluster in it.
    pub data_root: PathBuf,
    /// Folder for sockets and pid files.
    pub run_directory: PathBuf,
    /// Host under which clients and peers reach this node.
    pub advertise_host: String,
    /// Ports from which an engine gets one when its cluster names none.
    pub ports: Option<PortRange>,
    /// The engines' own sections of the configuration.
    pub sections: BTreeMap<String, toml::Table>,
    /// This program.
    pub agent_program: PathBuf,
    /// What engines are started in.
    pub supervisor: Backend,
}

/// Which driver to open.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// Cluster that the member belongs to.
    pub cluster: &'a ClusterName,
    /// The member.
    pub member: &'a MemberName,
    /// Its engine.
    pub engine: &'a str,
    /// Version; empty for the newest.
    pub version: &'a str,
    /// Port; 0 for the node's own choice.
    pub port: u16,
}

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No such engine in this build.
    #[error("engine {engine:?} is not known to this agent; it knows: {known}")]
    UnknownEngine {
        /// What was asked for.
        engine: String,
        /// What there is.
        known: String,
    },
    /// The engine cannot be used on this node.
    #[error("engine {engine} cannot be used on this node: {problem}")]
    Unusable {
        /// Name of the engine.
        engine: String,
        /// Why, and what to do.
        problem: String,
    },
    /// The driver said no.
    #[error(transparent)]
    Driver(#[from] DriverError),
}

/// The node's member, as far as its engine is concerned.
pub struct Member {
    engines: Engines,
    place: Place,
    driver: watch::Sender<Option<Arc<dyn Driver>>>,
    seen: watch::Sender<Option<EngineObservation>>,
    seen_at: Mutex<Option<Instant>>,
    /// How far this primary has come, while the drain that found it out stands (rule P6); held while one is made or taken back, so
    /// that these follow one another.
    pub(crate) handed_over: tokio::sync::Mutex<Option<Position>>,
    /// The last position that was seen, kept when the engine no longer answers (rule P4).
    last_position: Mutex<Option<Position>>,
}

/// Engine data in a data root, if there is any.
pub fn data_in(data_root: &Path) -> Option<PathBuf> {
    all_data_in(data_root).into_iter().next()
}

/// All engine data in a data root, a folder for each cluster.
pub fn all_data_in(data_root: &Path) -> Vec<PathBuf> {
    let Ok(clusters) = std::fs::read_dir(data_root) else { return Vec::new() };
    clusters.flatten().map(|cluster| cluster.path().join("data")).filter(|data| !is_empty(data)).collect()
}

/// Whether a folder is missing or has nothing in it.
pub fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none())
}

// === impl Member ===

impl Member {
    /// A node without a driver.
    pub fn new(engines: Engines, place: Place) -> Self {
        let (driver, seen) = (watch::channel(None).0, watch::channel(None).0);
        Self {
            engines,
            place,
            driver,
            seen,
            seen_at: Mutex::default(),
            last_position: Mutex::default(),
            handed_over: tokio::sync::Mutex::default(),
        }
    }

    /// What this node can run.
    pub fn offers(&self) -> Vec<EngineOffer> {
        self.engines.iter().map(|factory| self.offer_of(*factory)).collect()
    }

    fn offer_of(&self, factory: &dyn Factory) -> EngineOffer {
        let section = self.place.sections.get(factory.name());
        let mut offer = factory.offer(section);
        if !offer.problem.is_empty() {
            return offer;
        }
        match factory.connection_with_tls(section, &self.place.advertise_host) {
            Ok(Some(connection)) => offer.connection_with_tls = Some(connection),
            Ok(None) => {}
            Err(error) => {
                let engine = factory.name();
                tracing::warn!(engine, error = %ErrorChain(&error), "the engine is offered without TLS");
            }
        }
        offer
    }

    /// Folder of a cluster on this node.
    pub fn root(&self, cluster: &ClusterName) -> PathBuf {
        self.place.data_root.join(cluster.as_str())
    }

    /// Folder of all engine data.
    pub fn data_root(&self) -> &Path {
        &self.place.data_root
    }

    /// Asks an engine's program whether it would take these settings.
    pub async fn check_settings(
        &self,
        engine: &str,
        version: &str,
        settings: &BTreeMap<String, String>,
    ) -> Result<(), OpenError> {
        let section = self.place.sections.get(engine);
        let agent_program = &self.place.agent_program;
        Ok(self.factory(engine)?.check_settings(&SettingsCheck { section, agent_program, version, settings }).await?)
    }

    /// Instances that run on this node and are no member's, each with the name of its engine.
    pub async fn survey(&self) -> Result<Vec<(&'static str, FoundInstance)>, OpenError> {
        let mut found = Vec::new();
        for factory in self.engines {
            let section = self.place.sections.get(factory.name());
            let (agent_program, data_root) = (&*self.place.agent_program, &*self.place.data_root);
            let instances = factory.survey(&Ground { section, agent_program, data_root }).await?;
            found.extend(instances.into_iter().map(|instance| (factory.name(), instance)));
        }
        Ok(found)
    }

    fn factory(&self, engine: &str) -> Result<&'static dyn Factory, OpenError> {
        self.engines.iter().copied().find(|factory| factory.name() == engine).ok_or_else(|| {
            let known: Vec<_> = self.engines.iter().map(|factory| factory.name()).collect();
            OpenError::UnknownEngine { engine: engine.to_owned(), known: known.join(", ") }
        })
    }

    /// Makes a driver. It is not yet the node's: see [`Member::hold`].
    pub fn open(&self, wanted: &Wanted<'_>) -> Result<Arc<dyn Driver>, OpenError> {
        let factory = self.factory(wanted.engine)?;
        let section = self.place.sections.get(wanted.engine);
        let problem = factory.offer(section).problem;
        if !problem.is_empty() {
            return Err(OpenError::Unusable { engine: wanted.engine.to_owned(), problem });
        }
        Ok(factory.open(Context {
            cluster: wanted.cluster.clone(),
            member: wanted.member.clone(),
            root: self.root(wanted.cluster),
            run_directory: self.place.run_directory.clone(),
            section: section.cloned(),
            advertise_host: self.place.advertise_host.clone(),
            port: self.port(wanted.port)?,
            version: wanted.version.to_owned(),
            agent_program: self.place.agent_program.clone(),
            supervisor: self.place.supervisor,
        })?)
    }

    /// The port that is wanted, or the first free one of this node's range; 0 leaves the choice to the driver.
    fn port(&self, wanted: u16) -> Result<u16, DriverError> {
        match (wanted, &self.place.ports) {
            (0, Some(range)) => {
                let free = |port: &u16| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok();
                range.ports().find(free).ok_or_else(|| DriverError::PortInUse { port: range.last() })
            }
            (wanted, Some(_) | None) => Ok(wanted),
        }
    }

    /// Makes the driver that the ledger's membership names, and holds it.
    pub fn reopen(&self, membership: &Membership) -> Result<Arc<dyn Driver>, OpenError> {
        let driver = self.open(&Wanted {
            cluster: &membership.spec.cluster,
            member: &membership.member,
            engine: &membership.spec.engine,
            version: &membership.spec.version,
            port: membership.port,
        })?;
        self.hold(driver.clone());
        Ok(driver)
    }

    /// Makes this the node's driver.
    pub fn hold(&self, driver: Arc<dyn Driver>) {
        self.driver.send_replace(Some(driver));
    }

    /// Gives the driver up.
    pub fn let_go(&self) {
        self.driver.send_replace(None);
        *self.last_position.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.note(None);
    }

    /// The node's driver, if it has one.
    pub fn driver(&self) -> Option<Arc<dyn Driver>> {
        self.driver.borrow().clone()
    }

    /// Follows the node's driver as it comes and goes.
    pub fn watch_driver(&self) -> watch::Receiver<Option<Arc<dyn Driver>>> {
        self.driver.subscribe()
    }

    /// Notes what was seen last.
    pub fn note(&self, seen: Option<EngineObservation>) {
        if let Some(position) = seen.as_ref().and_then(|seen| seen.position.clone()) {
            *self.last_position.lock().unwrap_or_else(PoisonError::into_inner) = Some(position);
        }
        self.seen.send_replace(seen);
        // After it: what is reported between the two is called too old, not too new.
        *self.seen_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// How long ago that was; zero before the first look.
    pub fn seen_ago(&self) -> Duration {
        let seen_at = *self.seen_at.lock().unwrap_or_else(PoisonError::into_inner);
        seen_at.map_or(Duration::ZERO, |at| at.elapsed())
    }

    /// Follows what is seen of the engine.
    pub fn watch_seen(&self) -> watch::Receiver<Option<EngineObservation>> {
        self.seen.subscribe()
    }

    /// The position that was seen last, also of an engine that has ended since: a lower bound of what the copy holds.
    pub fn last_position(&self) -> Option<Position> {
        self.last_position.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state of the engine that was seen last.
    pub fn last_state(&self) -> Option<EngineState> {
        Some(self.seen.borrow().as_ref()?.state)
    }
}

impl std::fmt::Debug for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Member").field("place", &self.place).finish_non_exhaustive()
    }
}
