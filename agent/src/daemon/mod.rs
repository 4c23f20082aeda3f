//! The running agent: everything put together, from the configuration to the end.
//!
//! **Invariants:** ending, being killed and starting again never touch the engine's process; one agent per state
//! directory, by a lock that the kernel drops with the process. That lock is also why a new process may take the word of the
//! one before for past: what was granted to it for a restart cannot be used any more once the new one runs (rule L7).

mod assembly;
mod contact;
mod ports;
mod renewal;
mod unknown;

use std::{
    fs::{self, File, OpenOptions},
    io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusHandle;
use regent_common::{
    clock::SystemClock,
    error::ErrorChain,
    identity::{IdentityDirectory, Principal},
    ids::NodeName,
    service_manager,
    tls::{ReloadingIdentity, TlsError},
    transport::{self, ServeOptions, TcpDialer, TransportError},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use assembly::{Assembled, Assembly};

use crate::{
    config::Config,
    enroll::{Addresses, Enrollment},
    firewall::{Firewall, Means, names::SystemNames, nftables::NftablesFirewall, none::NoFirewall},
    force::Force,
    gate::{Gate, measured::Measured, nftables::NftablesGate, none::NoGate},
    hand_over, host, http,
    ledger::{LedgerError, LedgerStore, RealDisk},
    local,
    member::{Engines, Member, Place, data_in},
    node::{KeeperRuns, Node},
};

/// Time between two looks at the identity's files.
const IDENTITY_PERIOD: Duration = Duration::from_secs(30);
/// Time between two clean-ups of the measurements.
const UPKEEP_PERIOD: Duration = Duration::from_secs(10);

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The machine has not joined.
    #[error(
        "this machine is not a node yet: there is no usable identity in {path}; run \
         \"regent-agent join COORDINATOR --token TOKEN\""
    )]
    NotJoined {
        /// The identity directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: TlsError,
    },
    /// The identity is somebody else's.
    #[error("the identity in {path} is {found}, not a node's: put the node's own back, or join again")]
    NotANode {
        /// The identity directory.
        path: PathBuf,
        /// Whose it is.
        found: String,
    },
    /// Another agent runs.
    #[error("another agent holds {path}: stop it first; nothing was changed")]
    AlreadyRunning {
        /// The lock.
        path: PathBuf,
    },
    /// A folder cannot be made or locked.
    #[error("cannot {doing} {path}")]
    Folder {
        /// A verb.
        doing: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A port cannot be listened on.
    #[error("cannot listen on {address}: change \"{key}\" in agent.toml or stop what listens there")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Key of the configuration.
        key: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The services cannot be served.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The services cannot be put together.
    #[error("the services cannot be put together: {0}")]
    Services(String),
}

/// What a running agent is made of.
pub struct Daemon {
    /// Its configuration.
    pub config: Config,
    /// The engines that it can run.
    pub engines: Engines,
    /// Measurements for the HTTP port.
    pub metrics: PrometheusHandle,
}

fn folder(path: &Path, mode: u32) -> Result<(), DaemonError> {
    let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    made.map_err(|source| DaemonError::Folder { doing: "make", path: path.to_owned(), source })
}

/// Locks the state directory for this process.
fn lock(state_dir: &Path) -> Result<File, DaemonError> {
    let path = state_dir.join("lock");
    let failed = |source| DaemonError::Folder { doing: "lock", path: path.clone(), source };
    let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(failed)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(DaemonError::AlreadyRunning { path }),
        Err(error) => Err(failed(error.into())),
    }
}

async fn listen(address: SocketAddr, key: &'static str) -> Result<TcpListener, DaemonError> {
    TcpListener::bind(address).await.map_err(|source| DaemonError::Listen { address, key, source })
}

// === impl Daemon ===

impl Daemon {
    /// Runs until told to stop, at once, or to `leave`: then it hands its lease over first (rule L7). The engine goes on in
    /// either case.
    pub async fn run(self, leave: CancellationToken, stop: CancellationToken) -> Result<(), DaemonError> {
        let config = &self.config;
        let (identity, name) = self.identity()?;
        folder(&config.state_dir, 0o700)?;
        folder(&config.run_dir, 0o755)?;
        folder(&config.data_root, 0o755)?;
        let _lock = lock(&config.state_dir)?;
        let grpc = listen(config.listen, "listen").await?;
        let plain = match config.http_listen {
            Some(address) => Some(listen(address, "http_listen").await?),
            None => None,
        };
        let foreign = data_in(&config.data_root);
        let ledger = LedgerStore::open(Arc::new(RealDisk), config.state_dir.clone(), foreign.as_deref())?;
        let assembly = Assembly {
            name,
            identity: identity.clone(),
            boot_id: host::boot_id(),
            ledger,
            member: Arc::new(Member::new(self.engines, self.place())),
            gate: self.gate(),
            firewall: self.firewall(),
            keeper: KeeperRuns::OnOwnThread,
            clock: Arc::new(SystemClock),
            dialer: Arc::new(TcpDialer),
            coordinators: self.coordinators(),
            addresses: Addresses::of(config),
        };
        // Whatever ends the agent ends all of it.
        let _all = stop.clone().drop_guard();
        let Some(assembled) = leave.run_until_cancelled(assembly.start(&stop)).await else { return Ok(()) };
        let Assembled { node, routes, revocations, force } = assembled?;
        tokio::spawn(leave_when_told(Arc::clone(&node), leave, stop.clone()));
        self.spawn_around(&node, force, &identity, plain, &stop);
        tracing::info!(node = %node.name, address = %config.listen, "the agent runs");
        service_manager::ready(&format!("Node {}", node.name));
        transport::serve_with(grpc, identity, routes, ServeOptions { revocations }, stop).await?;
        tracing::info!("the agent ends; the engine goes on");
        Ok(())
    }

    fn identity(&self) -> Result<(ReloadingIdentity, NodeName), DaemonError> {
        let path = self.config.identity_dir();
        let identity = ReloadingIdentity::open(&IdentityDirectory::new(&path))
            .map_err(|source| DaemonError::NotJoined { path: path.clone(), source })?;
        let found = identity.identity();
        match &found.principal {
            Principal::Node(name) => Ok((identity, name.clone())),
            Principal::User(_) | Principal::Coordinator(_) => {
                Err(DaemonError::NotANode { path, found: found.to_string() })
            }
        }
    }

    fn place(&self) -> Place {
        Place {
            data_root: self.config.data_root.clone(),
            run_directory: self.config.run_dir.clone(),
            advertise_host: self.config.advertise_host(),
            ports: self.config.engine_ports,
            sections: self.config.engine.clone(),
            // Not the path by which it was started: a program that was replaced meanwhile is still this one.
            agent_program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe")),
            supervisor: self.config.supervisor.backend(),
        }
    }

    fn gate(&self) -> Arc<dyn Gate> {
        if self.config.gate_table.is_empty() {
            return Arc::new(NoGate::new("the gate is switched off: set \"gate_table\" in agent.toml to have one"));
        }
        let gate = NftablesGate::open(&self.config.gate_table, Arc::new(SystemClock));
        for problem in gate.abilities().problems {
            tracing::warn!(problem, "the fence of this host is not complete");
        }
        Arc::new(Measured::new(Arc::new(gate)))
    }

    fn firewall(&self) -> Means {
        let firewall: Arc<dyn Firewall> = if self.config.allow_table.is_empty() {
            let why = "allow-lists are switched off: set \"allow_table\" in agent.toml to have one";
            Arc::new(NoFirewall::new(why))
        } else {
            let firewall = NftablesFirewall::open(&self.config.allow_table);
            if let Some(problem) = firewall.problem() {
                tracing::warn!(problem, "no allow-list can be in force on this node");
            }
            Arc::new(firewall)
        };
        Means { firewall, names: Arc::new(SystemNames), extra_ports: self.config.firewall.extra_ports.clone() }
    }

    fn coordinators(&self) -> Vec<String> {
        if self.config.coordinator.is_empty() {
            Enrollment::load(&self.config.state_dir).into_iter().map(|known| known.coordinator).collect()
        } else {
            self.config.coordinator.clone()
        }
    }

    /// Starts everything that goes on beside the services.
    fn spawn_around(
        &self,
        node: &Arc<Node>,
        force: Arc<Force>,
        identity: &ReloadingIdentity,
        plain: Option<TcpListener>,
        stop: &CancellationToken,
    ) {
        let config = &self.config;
        tokio::spawn(host::run(node.host.clone(), config.data_root.clone(), host::PERIOD, stop.clone()));
        tokio::spawn(ports::run(node.clone(), stop.clone()));
        tokio::spawn(unknown::run(node.clone(), config.data_root.clone(), stop.clone()));
        tokio::spawn(upkeep(self.metrics.clone(), stop.clone()));
        tokio::spawn(service_manager::keep_watchdog(stop.clone()));
        if let Some(listener) = plain {
            let serving = http::serve(listener, node.clone(), self.metrics.clone(), stop.clone());
            tokio::spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(error = %ErrorChain(&error), "health and measurements are not served any more");
                }
            });
        }
        let (socket, told, until) = (config.status_socket(), node.clone(), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = local::serve(&socket, told, force, until).await {
                tracing::warn!(socket = %socket.display(), error = %ErrorChain(&error), "status is told by the ledger alone");
            }
        });
        tokio::spawn({
            let (identity, stop) = (identity.clone(), stop.clone());
            async move { identity.watch(IDENTITY_PERIOD, stop).await }
        });
        let directory = IdentityDirectory::new(config.identity_dir());
        let renewing = renewal::Renewal {
            identity: identity.clone(),
            directory,
            coordinators: self.coordinators(),
            host: config.advertise_host(),
            clock: Arc::new(SystemClock),
        };
        tokio::spawn(renewing.run(stop.clone()));
    }
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Ends the agent when it is told to leave, with its lease handed over (rule L7). A machine that goes down takes the engine with
/// it: then the lease is left to end as soon as it would, so that another member takes over soon.
async fn leave_when_told(node: Arc<Node>, leave: CancellationToken, stop: CancellationToken) {
    let leaving = async {
        leave.cancelled().await;
        if host::goes_down().await {
            tracing::info!("no lease is handed over: the machine goes down");
        } else {
            service_manager::stopping("Handing the lease over to the next agent");
            hand_over::hand_over(&node).await;
        }
    };
    stop.run_until_cancelled(leaving).await;
    stop.cancel();
}

async fn upkeep(metrics: PrometheusHandle, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(UPKEEP_PERIOD)).await.is_some() {
        metrics.run_upkeep();
    }
}
