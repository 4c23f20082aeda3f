//! Who streams from whom, as far as it can be told: engines name hosts as somebody once wrote them, nodes as they are reached.
//!
//! A host that is no node's by any name that is known here may be any node; its port has to fit all the same.

use std::collections::BTreeSet;

use regent_common::topology::Endpoint;

use super::Found;
use crate::{api::create::Candidate, pki::Host};

/// Under which names and addresses a node is known.
pub(super) fn hosts(node: &Candidate) -> BTreeSet<Host> {
    let record = &node.record;
    let of_agents = [&record.agent_address, &node.view.address];
    let of_agents = of_agents.into_iter().filter_map(|address| Host::with_port(address).ok().map(|(host, _)| host));
    let plain = [record.name.as_str(), record.public_address.as_str(), record.private_address.as_str()];
    of_agents.map(canonical).chain(plain.into_iter().filter_map(host)).collect()
}

fn host(text: &str) -> Option<Host> {
    text.parse().ok().map(canonical)
}

/// An address of IPv4 in the form of IPv6 is one of IPv4.
fn canonical(host: Host) -> Host {
    match host {
        Host::Address(address) => Host::Address(address.to_canonical()),
        Host::Name(name) => Host::Name(name),
    }
}

/// Why a replica is none of this primary, with what to do; `None` when it is one, as far as it can be told.
pub(super) fn astray(replica: &Found<'_>, primary: &Found<'_>, replicas: &[Found<'_>]) -> Option<String> {
    let node = replica.node;
    let Some(upstream) = &replica.upstream else {
        let message = format!("the instance on node {node} is a replica and follows nobody by its configuration");
        return Some(format!("{message}: let it stream from that on node {}", primary.node));
    };
    if primary.is_at(upstream) {
        return None;
    }
    let others = || replicas.iter().filter(|other| other.node != node);
    if let Some(middle) = others().find(|other| other.is_at(upstream) || other.serves(replica)) {
        let message = format!("node {node} follows node {}, which is a replica itself", middle.node);
        return Some(format!("{message}: let it stream from node {} directly", primary.node));
    }
    let elsewhere =
        host(&upstream.host).is_some_and(|host| others().chain([primary]).any(|other| other.hosts.contains(&host)));
    (elsewhere || upstream.port != primary.port).then(|| {
        format!(
            "node {node} follows {}:{}, and the primary is that on node {} with port {}: let it stream from that one, or name the \
             node that it follows",
            upstream.host, upstream.port, primary.node, primary.port
        )
    })
}

/// Who streams from an instance and may be none of these.
pub(super) fn strangers<'a>(found: &Found<'a>, followers: &[&Found<'_>]) -> Vec<&'a str> {
    let mut left = followers.to_vec();
    let mut strangers = Vec::new();
    for entry in &found.said.replicas {
        let address = address_of(entry);
        match left.iter().position(|follower| address.as_ref().is_some_and(|host| follower.hosts.contains(host))) {
            Some(place) => {
                left.remove(place);
            }
            None => strangers.push(entry.as_str()),
        }
    }
    // Followers that were not recognised may be just these.
    if strangers.len() <= left.len() { Vec::new() } else { strangers }
}

/// The address in "NAME at ADDRESS".
fn address_of(entry: &str) -> Option<Host> {
    host(entry.rsplit_once(" at ")?.1)
}

// === impl Found ===

impl Found<'_> {
    /// Whether it is surely the one that is meant by an endpoint.
    fn is_at(&self, endpoint: &Endpoint) -> bool {
        endpoint.port == self.port && host(&endpoint.host).is_some_and(|host| self.hosts.contains(&host))
    }

    /// Whether somebody streams from it who comes from the node of `other`.
    fn serves(&self, other: &Found<'_>) -> bool {
        self.said.replicas.iter().filter_map(|entry| address_of(entry)).any(|host| other.hosts.contains(&host))
    }
}
