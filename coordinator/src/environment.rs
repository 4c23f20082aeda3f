//! What every part of the coordinator needs: clock, store, agents, secrets, audit, events.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use prost::Message;
use regent_common::{
    clock::Clock,
    hex::hex,
    ids::{MemberName, NodeName, Revision},
    lease::Profile,
    topology::{ClusterSpec, Mode, Peer},
};
use regent_proto::agent::v1 as wire;

use crate::{
    audit::AuditLog,
    authority::{Authorities, Authority},
    cluster::brake::{Brake, Limits},
    events::EventLog,
    model::cluster::{ClusterRecord, MemberRecord},
    nodes::{Agents, NodeView},
    secrets::{SecretError, Secrets},
    store::Store,
};

/// Where a node's agent is reached, as host:port; `None` for one that is not known.
pub type Addresses = Arc<dyn Fn(&NodeName) -> Option<String> + Send + Sync>;

/// Shared by all clusters and operations; cheap to clone.
#[derive(Clone)]
pub struct Environment {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// When this coordinator started to listen, by its CLOCK_BOOTTIME.
    pub started_at: Duration,
    /// What must survive a crash.
    pub store: Arc<dyn Store>,
    /// How operations act on nodes.
    pub agents: Arc<dyn Agents>,
    /// Seals and opens what is secret in the store.
    pub secrets: Arc<Secrets>,
    /// Who did what, and what was decided and why.
    pub audit: AuditLog,
    /// What happened, for the platform.
    pub events: EventLog,
    /// Where agents are reached, by node.
    pub addresses: Addresses,
    /// Who is granted a lease, and until when one may stand.
    pub authorities: Arc<Authorities>,
    /// Profile of new clusters that name none.
    pub default_profile: Profile,
    /// What automatic failovers may do.
    pub limits: Limits,
    /// Pauses them when many clusters fail at once.
    pub brake: Arc<Brake>,
    /// The coordinator's own machine.
    pub own_machine: OwnMachine,
}

/// The coordinator's own machine, on which members are not wanted: with it both would be lost at once.
#[derive(Debug, Clone, Default)]
pub struct OwnMachine {
    /// Its boot, by which a node on it is known; `None` when it could not be read.
    pub boot_id: Option<Arc<str>>,
    /// Whether members on it belong to electorates all the same.
    pub promotes: bool,
}

// === impl OwnMachine ===

impl OwnMachine {
    /// Whether a node is on it.
    pub fn holds(&self, node: &NodeView) -> bool {
        self.boot_id.as_deref().is_some_and(|own| node.is_boot(own))
    }

    /// Whether the member of a node is left out of electorates for being on it (rule M3).
    pub fn leaves_out(&self, node: &NodeView) -> bool {
        !self.promotes && self.holds(node)
    }
}

// === impl Environment ===

impl Environment {
    /// The store's present revision, for rule T4; 0 when it cannot be read, which no agent takes for newer than it knows.
    pub async fn revision(&self) -> Revision {
        self.store.revision().await.unwrap_or_default()
    }

    /// The authority of a cluster. One that was never registered has granted nothing.
    pub fn authority(&self, cluster: &ClusterRecord) -> Option<Arc<Authority>> {
        self.authorities.get(cluster.id)
    }

    /// A member as its peers see it; `None` until its endpoint and its agent's address are known.
    pub fn peer(&self, cluster: &ClusterRecord, member: &MemberName) -> Option<Peer> {
        let record = cluster.members.get(member)?;
        Some(Peer {
            member: member.clone(),
            node: record.node.clone(),
            engine: record.endpoint.clone()?,
            agent_address: (self.addresses)(&record.node)?,
        })
    }

    /// What every member of a cluster applies.
    pub fn spec(&self, cluster: &ClusterRecord) -> Result<ClusterSpec, SecretError> {
        let secrets = cluster
            .secrets
            .iter()
            .map(|(purpose, sealed)| {
                let associated = secret_name(cluster, purpose);
                Ok((purpose.clone(), self.secrets.open(&associated, sealed)?))
            })
            .collect::<Result<BTreeMap<_, _>, SecretError>>()?;
        Ok(ClusterSpec { secrets, ..self.open_spec(cluster) })
    }

    /// What every member of a cluster applies, without its secrets.
    fn open_spec(&self, cluster: &ClusterRecord) -> ClusterSpec {
        ClusterSpec {
            cluster: cluster.name.clone(),
            engine: cluster.engine.clone(),
            version: cluster.version.clone(),
            members: cluster.members.keys().filter_map(|member| self.peer(cluster, member)).collect(),
            settings: cluster.settings.clone(),
            secrets: BTreeMap::new(),
            allow_list: cluster.allow_list.clone(),
            access_rules: cluster.access_rules.clone(),
            mode: Mode::named(&cluster.mode).unwrap_or_default(),
            tls: cluster.tls,
        }
    }

    /// Names what every member of a cluster applies, so that one which has applied something else is found; `None` while the address
    /// of a member is not known. Secrets count as they are sealed: nothing can be told of them from it.
    pub fn fingerprint(&self, cluster: &ClusterRecord) -> Option<String> {
        let known = |record: &MemberRecord| record.endpoint.is_none() || (self.addresses)(&record.node).is_some();
        if !cluster.members.values().all(known) {
            return None;
        }
        let spec = wire::ClusterSpec { secrets: cluster.secrets.clone(), ..(&self.open_spec(cluster)).into() };
        let digest = ring::digest::digest(&ring::digest::SHA256, &spec.encode_to_vec());
        Some(hex(&digest.as_ref()[..8]))
    }
}

/// The name under which a cluster's secret is sealed; a sealed value moved to another record does not open.
pub fn secret_name(cluster: &ClusterRecord, purpose: &str) -> String {
    format!("clusters/{}/{purpose}", cluster.id)
}
