//! Checks a request for a new cluster and makes its record. Pure: everything it looks at is handed to it.
//!
//! Every refusal names the field and what to do; nothing has been changed when one is returned.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use regent_common::{
    error::{Reason, bad_field, refuse},
    ids::{ClusterId, ClusterName, NodeName},
    lease::Profile,
    topology::{ConnectionFormat, EngineOffer, Mode},
};
use regent_proto::coordinator::v1::CreateClusterRequest;
use tonic::Status;

use crate::{
    api::view,
    model::{
        Assignment,
        cluster::{ClusterRecord, MemberRecord, Policy},
        node::NodeRecord,
    },
    nodes::{NodeView, tls},
};

/// A node as the checks see it.
pub struct Candidate {
    /// The stored node.
    pub record: NodeRecord,
    /// Its last word.
    pub view: NodeView,
    /// Its cluster, if it has one.
    pub assignment: Option<Assignment>,
}

/// Who asks, and when.
pub struct Asker {
    /// Identity of the caller.
    pub name: String,
    /// Wall time.
    pub now: Timestamp,
    /// Id for the cluster.
    pub id: ClusterId,
    /// Profile of clusters that name none.
    pub profile: Profile,
}

/// The profile of this name.
pub fn profile(name: &str) -> Result<Profile, Status> {
    name.parse().map_err(|error: regent_common::lease::UnknownProfile| bad_field("profile", error.to_string()))
}

/// The name of a new cluster.
pub(super) fn new_name(text: &str, taken: &BTreeSet<ClusterName>) -> Result<ClusterName, Status> {
    let name =
        ClusterName::from_resource(text).map_err(|error| refuse(Reason::NameInvalid, format!("cluster: {error}")))?;
    if taken.contains(&name) {
        return Err(refuse(Reason::NameTaken, format!("cluster {name} exists already: choose another name")));
    }
    Ok(name)
}

/// Makes the record of the wanted cluster, or says why it cannot be.
pub fn check(
    request: &CreateClusterRequest,
    nodes: &BTreeMap<NodeName, Candidate>,
    taken: &BTreeSet<ClusterName>,
    asker: Asker,
) -> Result<ClusterRecord, Status> {
    let name = new_name(&request.cluster, taken)?;
    let offers = offers(&request.engine, nodes)?;
    let (name_of_mode, mode) = mode(request, &offers)?;
    if request.tls {
        anywhere_with_tls(&request.engine, &offers)?;
    }
    let chosen = choose_nodes(request, nodes, &offers, mode)?;
    let version = version(request, &chosen, &offers)?;
    let connection = connection(request, &chosen, &offers)?;
    let profile = if request.profile.is_empty() { asker.profile } else { profile(&request.profile)? };
    let port = u16::try_from(request.port).map_err(|_| bad_field("port", "must be between 0 and 65535"))?;
    let mut record = ClusterRecord {
        engine: request.engine.clone(),
        version,
        mode: name_of_mode,
        tls: request.tls,
        labels: request.labels.clone(),
        protected: request.protected,
        settings: request.settings.clone(),
        port,
        connection,
        policy: Policy { profile, ..Policy::default() },
        ..ClusterRecord::new(asker.id, name, asker.now, asker.name)
    };
    for node in chosen {
        let member = record.take_member_name();
        record.members.insert(member, MemberRecord::new(node));
    }
    Ok(record)
}

/// Who offers the engine.
pub(super) fn offers<'a>(
    engine: &str,
    nodes: &'a BTreeMap<NodeName, Candidate>,
) -> Result<BTreeMap<&'a NodeName, &'a EngineOffer>, Status> {
    let all = || nodes.iter().flat_map(|(name, node)| node.view.engines.iter().map(move |offer| (name, offer)));
    let found: BTreeMap<_, _> = all().filter(|(_, offer)| offer.engine == engine).collect();
    if found.is_empty() {
        let known: BTreeSet<&str> = all().map(|(_, offer)| offer.engine.as_str()).collect();
        let known = if known.is_empty() { "none: no node is connected".to_owned() } else { join(known) };
        return Err(refuse(Reason::UnknownEngine, format!("engine {engine:?} is offered by no node; known: {known}")));
    }
    Ok(found)
}

/// The mode that is asked for, or the engine's own, by its name and as what it means here.
fn mode(request: &CreateClusterRequest, offers: &BTreeMap<&NodeName, &EngineOffer>) -> Result<(String, Mode), Status> {
    // Agents of two versions may offer different ones: whether those that are taken have it is seen when they are chosen.
    let offered: BTreeSet<&str> = offers.values().flat_map(|offer| offer.modes.iter().map(String::as_str)).collect();
    let first = || offers.values().next().and_then(|offer| offer.modes.first()).cloned().unwrap_or_default();
    let name = if request.mode.is_empty() { first() } else { request.mode.clone() };
    match Mode::named(&name).filter(|_| offered.contains(name.as_str())) {
        Some(mode) => Ok((name, mode)),
        None => Err(refuse(
            Reason::UnknownMode,
            format!("engine {} has no mode {name:?}; known: {}", request.engine, join(offered)),
        )),
    }
}

/// Why a node cannot be used; `None` when it can.
fn obstacle(name: &NodeName, node: &Candidate) -> Option<Status> {
    if let Some(assignment) = &node.assignment {
        let message = format!("node {name} is member {} of cluster {}", assignment.member, assignment.cluster);
        return Some(refuse(Reason::NodeInCluster, message));
    }
    if node.record.revoked {
        return Some(refuse(Reason::NodeRevoked, format!("node {name} is revoked: join it again first")));
    }
    if !node.view.connected {
        let message = format!("node {name} is not connected: {}; start its agent and try again", node.view.problem);
        return Some(refuse(Reason::NodeUnreachable, message));
    }
    if let Some(why) = node.view.quarantine() {
        let message = format!("node {name} is in quarantine: {why}; nothing was changed");
        return Some(refuse(Reason::LedgerLost, message));
    }
    if let Some(seen) = &node.view.observation {
        let message = format!("node {name} is not free: {}; nothing was changed", view::left_over(seen));
        return Some(refuse(Reason::NodeInCluster, message));
    }
    None
}

fn choose_nodes(
    request: &CreateClusterRequest,
    nodes: &BTreeMap<NodeName, Candidate>,
    offers: &BTreeMap<&NodeName, &EngineOffer>,
    mode: Mode,
) -> Result<Vec<NodeName>, Status> {
    let any = offers.values().next().expect("checked not to be empty");
    match mode {
        Mode::MultiMaster => return choose_sides(request, nodes, offers),
        Mode::PrimaryReplica => {}
    }
    let chosen = if request.nodes.is_empty() {
        fitting_spares(request, nodes, offers, request.replicas.unwrap_or(any.default_replicas))?
    } else {
        named(request, nodes, offers)?
    };
    let replicas = u32::try_from(chosen.len()).unwrap_or(u32::MAX).saturating_sub(1);
    if replicas < any.min_replicas || replicas > any.max_replicas {
        let (min, max) = (any.min_replicas, any.max_replicas);
        return Err(bad_field(
            "nodes",
            format!("{} takes {min} to {max} replicas, {replicas} were asked for", request.engine),
        ));
    }
    Ok(chosen)
}

/// The two nodes of a pair.
fn choose_sides(
    request: &CreateClusterRequest,
    nodes: &BTreeMap<NodeName, Candidate>,
    offers: &BTreeMap<&NodeName, &EngineOffer>,
) -> Result<Vec<NodeName>, Status> {
    if request.replicas.is_some_and(|replicas| replicas != 1) {
        return Err(bad_field(
            "replicas",
            "a pair has two sides, and no replica besides: leave it out, or name two nodes",
        ));
    }
    let chosen = if request.nodes.is_empty() {
        let able = |name: &NodeName| offers.get(name).is_some_and(|offer| offer.modes.contains(&request.mode));
        let offers = offers.iter().filter(|(name, _)| able(name)).map(|(name, offer)| (*name, *offer)).collect();
        fitting_spares(request, nodes, &offers, 1)?
    } else {
        named(request, nodes, offers)?
    };
    if chosen.len() != 2 {
        return Err(bad_field("nodes", format!("a pair has two sides, {} nodes were named", chosen.len())));
    }
    let unable = chosen.iter().find(|name| !offers.get(name).is_some_and(|offer| offer.modes.contains(&request.mode)));
    if let Some(name) = unable {
        let message = format!("the agent of node {name} does not offer mode {:?}: upgrade it", request.mode);
        return Err(refuse(Reason::EngineMissing, message));
    }
    Ok(chosen)
}

fn named(
    request: &CreateClusterRequest,
    nodes: &BTreeMap<NodeName, Candidate>,
    offers: &BTreeMap<&NodeName, &EngineOffer>,
) -> Result<Vec<NodeName>, Status> {
    if request.replicas.is_some_and(|replicas| replicas as usize + 1 != request.nodes.len()) {
        return Err(bad_field("replicas", "give either the nodes or the number of replicas, not both"));
    }
    let chosen = node_names(&request.nodes)?;
    for name in &chosen {
        usable(name, &request.engine, nodes, offers)?;
    }
    Ok(chosen)
}

/// The names of nodes that a request gives, in its order.
pub(super) fn node_names(texts: &[String]) -> Result<Vec<NodeName>, Status> {
    let mut names = Vec::new();
    for text in texts {
        let name = NodeName::from_resource(text).map_err(|e| refuse(Reason::NameInvalid, format!("nodes: {e}")))?;
        if names.contains(&name) {
            return Err(refuse(Reason::NodeTwice, format!("node {name} is named twice")));
        }
        names.push(name);
    }
    Ok(names)
}

/// Refuses a node that is named and cannot become a member, whatever the engine.
pub(super) fn free(name: &NodeName, nodes: &BTreeMap<NodeName, Candidate>) -> Result<(), Status> {
    let node = nodes
        .get(name)
        .ok_or_else(|| refuse(Reason::NodeNotFound, format!("there is no node {name}: see `regentctl node list`")))?;
    obstacle(name, node).map_or(Ok(()), Err)
}

/// Refuses a node that is named and cannot be used.
pub(super) fn usable(
    name: &NodeName,
    engine: &str,
    nodes: &BTreeMap<NodeName, Candidate>,
    offers: &BTreeMap<&NodeName, &EngineOffer>,
) -> Result<(), Status> {
    free(name, nodes)?;
    let missing = match offers.get(name) {
        Some(offer) if offer.problem.is_empty() => return Ok(()),
        Some(offer) => format!("node {name} cannot run {engine}: {}", offer.problem),
        None => format!("the agent of node {name} does not know engine {engine}: upgrade it"),
    };
    Err(refuse(Reason::EngineMissing, missing))
}

/// The node that is added to a cluster as a replica: the one that is named, or the first spare that has the version.
pub fn added(cluster: &ClusterRecord, node: &str, nodes: &BTreeMap<NodeName, Candidate>) -> Result<NodeName, Status> {
    let offers = offers(&cluster.engine, nodes)?;
    let replicas = u32::try_from(cluster.members.len()).unwrap_or(u32::MAX);
    let most = offers.values().next().map(|offer| offer.max_replicas).unwrap_or_default();
    if replicas > most {
        let message = format!("cluster {} has {} replicas, and {} takes no more", cluster.name, most, cluster.engine);
        return Err(bad_field("node", message));
    }
    let has_version = |name: &NodeName| offers.get(name).is_some_and(|offer| offer.versions.contains(&cluster.version));
    let speaks = |name: &NodeName| !cluster.tls || offers.get(name).is_some_and(|offer| tls::offered(offer));
    if node.is_empty() {
        let fits = |name: &&NodeName| usable(name, &cluster.engine, nodes, &offers).is_ok() && has_version(name);
        let (found, mute): (Vec<_>, Vec<_>) = nodes.keys().filter(fits).partition(|name| speaks(name));
        return match found.first() {
            Some(name) => Ok((*name).clone()),
            None if mute.is_empty() => {
                let message = format!(
                    "no spare node has {} {}: join one, or name one to see what it lacks; nothing was changed",
                    cluster.engine, cluster.version
                );
                Err(refuse(Reason::NotEnoughSpares, message))
            }
            None => Err(without_tls(&cluster.engine, mute)),
        };
    }
    let name = NodeName::from_resource(node).map_err(|error| refuse(Reason::NameInvalid, format!("node: {error}")))?;
    usable(&name, &cluster.engine, nodes, &offers)?;
    if !has_version(&name) {
        let message = format!("node {name} does not have version {} of {}", cluster.version, cluster.engine);
        return Err(refuse(Reason::EngineMissing, message));
    }
    if !speaks(&name) {
        return Err(without_tls(&cluster.engine, [&name]));
    }
    Ok(name)
}

/// Spares for a new cluster, of those that offer what it wants of its ports.
fn fitting_spares(
    request: &CreateClusterRequest,
    nodes: &BTreeMap<NodeName, Candidate>,
    offers: &BTreeMap<&NodeName, &EngineOffer>,
    replicas: u32,
) -> Result<Vec<NodeName>, Status> {
    let found = spares(nodes, offers, replicas)?;
    if !request.tls {
        return Ok(found);
    }
    let able = offers.iter().filter(|(_, offer)| tls::offered(offer)).map(|(name, offer)| (*name, *offer)).collect();
    // There are enough of them, but for that.
    spares(nodes, &able, replicas).map_err(|_| {
        let mute =
            |name: &&&NodeName| !able.contains_key(**name) && usable(name, &request.engine, nodes, offers).is_ok();
        without_tls(&request.engine, offers.keys().filter(mute).copied())
    })
}

/// Refuses an engine that could be run, and for which no node offers TLS.
fn anywhere_with_tls(engine: &str, offers: &BTreeMap<&NodeName, &EngineOffer>) -> Result<(), Status> {
    let usable: Vec<_> = offers.values().filter(|offer| offer.problem.is_empty()).collect();
    if usable.is_empty() || usable.iter().any(|offer| tls::offered(offer)) {
        return Ok(());
    }
    let message = format!(
        "no node offers TLS for engine {engine}; nothing was changed: if Regent has it for this engine (see `Engines` in the README), {}",
        tls::remedy_in_full(engine)
    );
    Err(refuse(Reason::NoTls, message))
}

/// Refuses nodes that do not offer TLS.
fn without_tls<'a>(engine: &str, names: impl IntoIterator<Item = &'a NodeName>) -> Status {
    let said = tls::not_offered(engine, names);
    refuse(Reason::NoTls, format!("{said}; nothing was changed: {}", tls::remedy_in_full(engine)))
}

/// How clients connect to members on these nodes.
fn connection(
    request: &CreateClusterRequest,
    chosen: &[NodeName],
    offers: &BTreeMap<&NodeName, &EngineOffer>,
) -> Result<ConnectionFormat, Status> {
    if !request.tls {
        return Ok(offers.values().next().expect("checked not to be empty").connection.clone());
    }
    let of = |name: &NodeName| offers.get(name).and_then(|offer| offer.connection_with_tls.clone());
    let mute: Vec<&NodeName> = chosen.iter().filter(|name| of(name).is_none()).collect();
    match chosen.first().and_then(of).filter(|_| mute.is_empty()) {
        Some(connection) => Ok(connection),
        None => Err(without_tls(&request.engine, mute)),
    }
}

fn spares(
    nodes: &BTreeMap<NodeName, Candidate>,
    offers: &BTreeMap<&NodeName, &EngineOffer>,
    replicas: u32,
) -> Result<Vec<NodeName>, Status> {
    let wanted = replicas as usize + 1;
    let usable: Vec<NodeName> = nodes
        .iter()
        .filter(|(name, node)| {
            obstacle(name, node).is_none() && offers.get(name).is_some_and(|offer| offer.problem.is_empty())
        })
        .map(|(name, _)| name.clone())
        .take(wanted)
        .collect();
    if usable.is_empty() {
        return Err(refuse(Reason::NoNodes, "no spare node can run this engine: join nodes first"));
    }
    if usable.len() < wanted {
        let (found, wanted) = (usable.len(), wanted);
        let message = format!("{wanted} spare nodes are needed, one for each member, and {found} can be used");
        return Err(refuse(Reason::NotEnoughSpares, message));
    }
    Ok(usable)
}

/// The version that all members run: what was asked for, or the newest that all have.
fn version(
    request: &CreateClusterRequest,
    chosen: &[NodeName],
    offers: &BTreeMap<&NodeName, &EngineOffer>,
) -> Result<String, Status> {
    let of = |node: &NodeName| offers.get(node).map(|offer| offer.versions.as_slice()).unwrap_or_default();
    let has = |node: &NodeName, version: &str| of(node).iter().any(|v| v == version);
    let listed = || join(chosen.iter().map(|node| format!("{node}: {}", of(node).join(" "))));
    if !request.version.is_empty() {
        if let Some(node) = chosen.iter().find(|node| !has(node, &request.version)) {
            let message = format!("node {node} does not have version {}; installed: {}", request.version, listed());
            return Err(refuse(Reason::EngineMissing, message));
        }
        return Ok(request.version.clone());
    }
    let first = chosen.first().map(of).unwrap_or_default();
    let common = first.iter().find(|version| chosen.iter().all(|node| has(node, version)));
    common.cloned().ok_or_else(|| {
        refuse(Reason::VersionsDiffer, format!("no version is installed on all nodes; installed: {}", listed()))
    })
}

pub(super) fn join(items: impl IntoIterator<Item = impl ToString>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests;
