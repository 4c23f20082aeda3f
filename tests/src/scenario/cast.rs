//! Who plays which part in a scenario: fixed when the fault strikes, whatever becomes of them.

use anyhow::{Context, Result};
use regent_proto::coordinator::v1 as wire;

use super::{Rig, Who};
use crate::{api, cluster::COORDINATOR, network::CLIENTS};

/// A member in a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Name of its node.
    pub node: String,
    /// Name of the member.
    pub member: String,
    /// host:port of its engine.
    pub endpoint: String,
    /// Process id of its engine, on the host.
    pub engine: u32,
}

/// All members of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cast {
    /// The cluster's epoch.
    pub epoch: u64,
    /// The primary.
    pub primary: Actor,
    /// One replica.
    pub first: Actor,
    /// The other replica.
    pub second: Actor,
}

// === impl Cast ===

impl Cast {
    /// From a healthy cluster of three.
    pub fn of(cluster: &wire::Cluster, rig: &impl Rig) -> Result<Self> {
        let endpoints = api::endpoints(cluster)?;
        let mut replicas = Vec::new();
        let mut primary = None;
        for (member, endpoint) in cluster.members.iter().zip(endpoints) {
            let node = api::plain(&member.node).to_owned();
            let engine = rig.host_pid(&node, api::engine_pid(member)?)?;
            let actor = Actor { node, member: api::plain(&member.name).to_owned(), endpoint, engine };
            if actor.member == cluster.primary { primary = Some(actor) } else { replicas.push(actor) }
        }
        let mut replicas = replicas.into_iter();
        Ok(Self {
            epoch: cluster.epoch,
            primary: primary.context("the cluster has no primary")?,
            first: replicas.next().context("the cluster has no replica")?,
            second: replicas.next().context("the cluster has one replica only")?,
        })
    }

    /// A member in its part; the others have no engine.
    pub fn actor(&self, who: Who) -> Result<&Actor> {
        match who {
            Who::Primary => Ok(&self.primary),
            Who::FirstReplica => Ok(&self.first),
            Who::SecondReplica => Ok(&self.second),
            Who::Coordinator | Who::Clients => anyhow::bail!("{who:?} is no member"),
        }
    }

    /// Name of somebody's machine in the network.
    pub fn machine(&self, who: Who) -> &str {
        match who {
            Who::Primary => &self.primary.node,
            Who::FirstReplica => &self.first.node,
            Who::SecondReplica => &self.second.node,
            Who::Coordinator => COORDINATOR,
            Who::Clients => CLIENTS,
        }
    }

    /// All members, the primary first.
    pub fn members(&self) -> [&Actor; 3] {
        [&self.primary, &self.first, &self.second]
    }
}
