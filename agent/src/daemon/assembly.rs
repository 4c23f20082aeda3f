//! The agent put together from its parts: what it is wherever it runs, on a machine or in a simulation.
//!
//! Files, sockets and signals are the caller's: [`super::Daemon`] has those of a machine.

use std::{sync::Arc, time::Duration};

use regent_common::{
    clock::Clock,
    ids::NodeName,
    tls::ReloadingIdentity,
    transport::{Dialer, Revocations},
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{DaemonError, contact};
use crate::{
    enroll::Addresses,
    firewall::Means,
    force::Force,
    gate::Gate,
    ledger::LedgerStore,
    member::Member,
    node::{KeeperRuns, Node, Parts},
    observe,
    peer::PeerCalls,
    server,
};

/// Time between two looks at the engine.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// What an agent is made of.
pub struct Assembly {
    /// Name of the node.
    pub name: NodeName,
    /// Its identity.
    pub identity: ReloadingIdentity,
    /// Boot id of its kernel; another one after every boot.
    pub boot_id: String,
    /// Its ledger.
    pub ledger: LedgerStore,
    /// Its member.
    pub member: Arc<Member>,
    /// Its gate.
    pub gate: Arc<dyn Gate>,
    /// What it needs for its allow-list.
    pub firewall: Means,
    /// Where the lease's keeper runs.
    pub keeper: KeeperRuns,
    /// Its clocks.
    pub clock: Arc<dyn Clock>,
    /// Its way to others.
    pub dialer: Arc<dyn Dialer>,
    /// Where coordinators are reached.
    pub coordinators: Vec<String>,
    /// Where it is reached itself.
    pub addresses: Addresses,
}

/// An agent that runs, but for its services, which nobody serves yet.
pub struct Assembled {
    /// Its state.
    pub node: Arc<Node>,
    /// Its services.
    pub routes: Routes,
    /// Certificates that count no more.
    pub revocations: Revocations,
    /// Carries out what a person may order without a coordinator.
    pub force: Arc<Force>,
}

// === impl Assembly ===

impl Assembly {
    /// Puts an agent together and starts all that goes on beside its services, until `stop`. The engine goes on in either
    /// case.
    pub async fn start(self, stop: &CancellationToken) -> Result<Assembled, DaemonError> {
        let Self {
            name,
            identity,
            boot_id,
            ledger,
            member,
            gate,
            firewall,
            keeper,
            clock,
            dialer,
            coordinators,
            addresses,
        } = self;
        let coordinator_id = identity.identity().coordinator_id;
        let calls = PeerCalls::new(Arc::clone(&dialer), identity.clone(), coordinator_id.clone());
        let (peers, endorsers, stopped) = (Arc::new(calls.clone()), Arc::new(calls.clone()), stop.clone());
        let parts = Parts {
            name,
            coordinator_id,
            boot_id,
            ledger,
            member,
            peers,
            gate,
            firewall,
            coordinators: coordinators.clone(),
            endorsers,
            keeper,
            stop: stopped,
            clock,
        };
        let node = Node::start(parts).await;
        let revocations = Revocations::default();
        let routes = server::routes(&node, revocations.clone(), stop.clone())
            .await
            .map_err(|status| DaemonError::Services(status.message().to_owned()))?;
        let steps = node.executor.table().changes();
        tokio::spawn(observe::run(node.member.clone(), steps, LOOK_PERIOD, stop.clone()));
        let force = Force::new(node.clone(), calls, Arc::clone(&dialer), identity.clone(), coordinators.clone());
        let announcing = contact::Announcing { dialer, node: node.clone(), identity, coordinators, addresses };
        tokio::spawn(announcing.run(stop.clone()));
        Ok(Assembled { node, routes, revocations, force: Arc::new(force) })
    }
}
