//! Checks a request to adopt running instances, and makes the record of their cluster. Pure: everything it looks at is handed to it.
//!
//! [`Wanted::read`] says whether the nodes that are named can be used; then their agents are asked what runs there, and
//! [`Wanted::check`] decides by what they say. Every refusal names the node and what to do; nothing has been changed when one is
//! returned.
//!
//! **Invariants:** what is adopted is one primary and replicas of it and nothing else; what the instances would lose is either
//! accepted by name, or refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
};

use regent_common::{
    error::{Reason, bad_field, refuse},
    ids::{ClusterName, MemberName, NodeName},
    lease::Profile,
    topology::Endpoint,
};
use regent_proto::{agent::v1::FoundInstance, coordinator::v1::AdoptClusterRequest};
use tonic::Status;

use super::create::{self, Asker, Candidate};
use crate::{
    model::cluster::{ClusterRecord, MemberRecord, Policy},
    operation::kinds::adopt_cluster::{Instance, Parameters},
    pki::Host,
};

mod report;
mod streams;
#[cfg(test)]
mod tests;

/// What runs on each node, by the word of its agent.
pub type Surveys = BTreeMap<NodeName, Vec<FoundInstance>>;

/// A request that has been checked as far as nobody has to be asked.
#[derive(Debug)]
pub struct Wanted<'a> {
    request: &'a AdoptClusterRequest,
    name: ClusterName,
    nodes: Vec<NodeName>,
    directories: BTreeMap<NodeName, String>,
    profile: Profile,
}

/// What is going to be adopted.
#[derive(Debug)]
pub struct Adoption {
    /// The cluster.
    pub record: ClusterRecord,
    /// The operation's parameters.
    pub parameters: Parameters,
    /// What it does, for people.
    pub report: Vec<String>,
}

/// An instance that is meant.
#[derive(Debug)]
struct Found<'a> {
    node: &'a NodeName,
    /// Under which names and addresses its node is known.
    hosts: BTreeSet<Host>,
    port: u16,
    upstream: Option<Endpoint>,
    said: &'a FoundInstance,
}

// === impl Wanted ===

impl<'a> Wanted<'a> {
    /// Checks the request and whether its nodes can be used.
    pub fn read(
        request: &'a AdoptClusterRequest,
        nodes: &BTreeMap<NodeName, Candidate>,
        taken: &BTreeSet<ClusterName>,
        default: Profile,
    ) -> Result<Self, Status> {
        let name = create::new_name(&request.cluster, taken)?;
        let named = create::node_names(&request.nodes)?;
        if named.is_empty() {
            let message = "no node is named: name that of the instance and those of its replicas";
            return Err(refuse(Reason::NoNodes, message));
        }
        let mut directories = BTreeMap::new();
        for (text, directory) in &request.data_directories {
            let field = |problem: String| bad_field("data_directories", problem);
            let node = NodeName::from_resource(text).map_err(|error| field(error.to_string()))?;
            if !named.contains(&node) {
                return Err(field(format!("node {node} is not among the nodes that are named")));
            }
            directories.insert(node, directory.clone());
        }
        let profile = if request.profile.is_empty() { default } else { create::profile(&request.profile)? };
        named.iter().try_for_each(|node| create::free(node, nodes))?;
        Ok(Self { request, name, nodes: named, directories, profile })
    }

    /// The nodes whose agents have to say what runs on them.
    pub fn nodes(&self) -> &[NodeName] {
        &self.nodes
    }

    /// Makes the record of the cluster, or says why it cannot be.
    pub fn check(
        &self,
        nodes: &BTreeMap<NodeName, Candidate>,
        surveys: &Surveys,
        asker: Asker,
    ) -> Result<Adoption, Status> {
        let mut found =
            self.nodes.iter().map(|node| self.meant(node, nodes, surveys)).collect::<Result<Vec<_>, _>>()?;
        if let Some(problems) = named(&found, "cannot be adopted", |said| &said.problems) {
            return Err(not_adoptable(problems));
        }
        // The primary becomes the first member.
        found.sort_by_key(|found| found.said.replica);
        let (primary, replicas) = parted(&found)?;
        for replica in replicas {
            alike(primary, replica)?;
            if let Some(why) = streams::astray(replica, primary, replicas) {
                return Err(not_adoptable(why));
            }
        }
        let (engine, version) = (&primary.said.engine, &primary.said.version);
        let offers = create::offers(engine, nodes)?;
        for found in &found {
            create::usable(found.node, engine, nodes, &offers)?;
            if !offers.get(found.node).is_some_and(|offer| offer.versions.contains(version)) {
                let message = format!("node {} does not have the programs of {engine} {version}", found.node);
                return Err(refuse(Reason::EngineMissing, message));
            }
        }
        let offer = offers.get(primary.node).expect("its node can be used");
        let count = u32::try_from(replicas.len()).unwrap_or(u32::MAX);
        if count < offer.min_replicas || count > offer.max_replicas {
            let (min, max) = (offer.min_replicas, offer.max_replicas);
            return Err(bad_field("nodes", format!("{engine} takes {min} to {max} replicas, {count} are named")));
        }
        // Who only checks is told of them.
        let unaccepted = !self.request.accept_losses && !self.request.validate_only;
        if let Some(losses) = named(&found, "has what a cluster would not", |said| &said.losses).filter(|_| unaccepted)
        {
            return Err(not_adoptable(format!("{losses}; accept that by name (--accept-losses) if it may be lost")));
        }
        let mut record = ClusterRecord {
            engine: engine.clone(),
            version: version.clone(),
            mode: offer.modes.first().cloned().unwrap_or_default(),
            labels: self.request.labels.clone(),
            protected: self.request.protected,
            settings: primary.said.settings.clone(),
            connection: offer.connection.clone(),
            policy: Policy { profile: self.profile, ..Policy::default() },
            access_rules: primary.said.access_rules.clone(),
            adopting: true,
            ..ClusterRecord::new(asker.id, self.name.clone(), asker.now, asker.name)
        };
        let mut members: Vec<(MemberName, &Found<'_>)> = Vec::new();
        for found in &found {
            let member = record.take_member_name();
            record.members.insert(member.clone(), MemberRecord::new(found.node.clone()));
            members.push((member, found));
        }
        let remarks = report::remarks(&members);
        let report = report::whole(&members, &remarks, self.request.accept_losses);
        let instance =
            |found: &Found<'_>| Instance { port: found.port, data_directory: found.said.data_directory.clone() };
        let instances = members.iter().map(|(member, found)| (member.clone(), instance(found))).collect();
        Ok(Adoption { record, parameters: Parameters { instances, remarks }, report })
    }

    /// The instance that is meant on a node.
    fn meant<'b>(
        &self,
        node: &'b NodeName,
        nodes: &BTreeMap<NodeName, Candidate>,
        surveys: &'b Surveys,
    ) -> Result<Found<'b>, Status> {
        let all = surveys.get(node).map(Vec::as_slice).unwrap_or_default();
        let listed = || {
            let each = all.iter().map(|found| format!("{} (port {})", found.data_directory, found.port));
            create::join(each)
        };
        let said = match (self.directories.get(node), all) {
            (_, []) => {
                let message = format!("no instance runs on node {node} that is no member of a cluster already");
                return Err(not_adoptable(format!("{message}: start it, or name the node on which it runs")));
            }
            (None, [one]) => one,
            (None, _) => {
                let problem =
                    format!("more than one instance runs on node {node}: name the one that is meant of {}", listed());
                return Err(bad_field("data_directories", problem));
            }
            (Some(directory), all) => {
                let plain = |path: &str| path.trim_end_matches('/').to_owned();
                let meant = all.iter().find(|found| plain(&found.data_directory) == plain(directory));
                meant.ok_or_else(|| {
                    let message = format!("no instance that runs on node {node} has its data in {directory}");
                    bad_field("data_directories", format!("{message}; there are {}", listed()))
                })?
            }
        };
        let candidate = nodes.get(node).map(streams::hosts).unwrap_or_default();
        Found::read(node, candidate, said)
    }
}

// === impl Found ===

impl<'a> Found<'a> {
    fn read(node: &'a NodeName, hosts: BTreeSet<Host>, said: &'a FoundInstance) -> Result<Self, Status> {
        let unreadable = |what: &str| {
            refuse(
                Reason::Internal,
                format!("the agent of node {node} says what cannot be read: {what} of an instance"),
            )
        };
        let port = u16::try_from(said.port).ok().filter(|port| *port != 0).ok_or_else(|| unreadable("the port"))?;
        let upstream =
            said.upstream.clone().map(Endpoint::try_from).transpose().map_err(|_| unreadable("the upstream"))?;
        Ok(Self { node, hosts, port, upstream, said })
    }
}

/// The primary, and its replicas, of instances of which primaries come first.
fn parted<'a, 'b>(found: &'b [Found<'a>]) -> Result<(&'b Found<'a>, &'b [Found<'a>]), Status> {
    let (first, others) = found.split_first().expect("a node was named");
    if first.said.replica {
        let follows = first.upstream.as_ref().map_or_else(String::new, |upstream| {
            format!(" (that on node {} follows {}:{})", first.node, upstream.host, upstream.port)
        });
        let message = format!("none of the instances is a primary{follows}: name the primary's node as well");
        return Err(not_adoptable(message));
    }
    if let Some(second) = others.first().filter(|other| !other.said.replica) {
        let message = format!("the instances on nodes {} and {} are both primaries", first.node, second.node);
        return Err(not_adoptable(format!("{message}: adopt each as a cluster of its own")));
    }
    Ok((first, others))
}

/// Refuses a replica that is none of this primary's data.
fn alike(primary: &Found<'_>, replica: &Found<'_>) -> Result<(), Status> {
    let (first, other) = (primary.said, replica.said);
    if first.engine != other.engine {
        let (one, two) = (&first.engine, &other.engine);
        let message = format!("node {} runs {one} and node {} runs {two}", primary.node, replica.node);
        return Err(not_adoptable(message));
    }
    if first.version != other.version {
        let (one, two) = (&first.version, &other.version);
        let message = format!("node {} runs version {one} and node {} version {two}", primary.node, replica.node);
        return Err(refuse(Reason::VersionsDiffer, format!("{message}; nothing was changed")));
    }
    if first.history.is_empty() || first.history != other.history {
        let message = format!("the instance on node {} is no copy of that on node {}", replica.node, primary.node);
        return Err(not_adoptable(format!("{message}: their data has histories of its own each")));
    }
    Ok(())
}

/// All sentences of one sort, with the nodes; `None` where there is none.
fn named(found: &[Found<'_>], what: &str, sort: impl Fn(&FoundInstance) -> &Vec<String>) -> Option<String> {
    let each = found.iter().filter(|found| !sort(found.said).is_empty()).map(|found| {
        let sentences = sort(found.said).iter().map(|sentence| sentence.trim_end_matches('.'));
        format!("the instance on node {} {what}: {}", found.node, sentences.collect::<Vec<_>>().join("; "))
    });
    let all: Vec<_> = each.collect();
    (!all.is_empty()).then(|| all.join("; "))
}

fn not_adoptable(why: impl Display) -> Status {
    refuse(Reason::NotAdoptable, format!("{why}; nothing was changed"))
}
