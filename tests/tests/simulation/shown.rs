//! What the person with the API sees of the cluster, the way `cluster show` says it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use regent_common::lease::Profile;
use regent_proto::coordinator::v1 as wire;

use super::{time, trace::traced};

/// What the person is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Ask for a resync of this node's member.
    Resync(String),
    /// Give the cluster these times.
    Profile(Profile),
    /// Ask for a planned promotion of this node's member.
    Promote(String),
    /// Take this node's member out, or make a member there.
    Reshape(String),
    /// Let only some addresses in.
    Allow,
    /// Remove the cluster.
    Delete,
    /// Ask for a failover whatever it loses, and vouch that this node is off.
    Failover {
        /// The node, if there is one.
        off: Option<String>,
    },
}

/// What the person sees.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shown(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    cluster: Option<wire::Cluster>,
    at: Duration,
    said: String,
    /// Whether faults may still come: the person leaves a cluster alone that has to recover.
    disturbed: bool,
    wish: Option<Wish>,
}

// === impl Shown ===

impl Shown {
    /// The API has answered.
    pub(crate) fn answered(&self, cluster: wire::Cluster) {
        let mut seen = self.lock();
        let said = format!(
            "{:?} {} {} {}",
            cluster.health(),
            cluster.reasons.join("; "),
            cluster.failover_note,
            if cluster.operation.is_empty() { "" } else { "an operation runs" },
        );
        if said != seen.said {
            traced!("cluster show: {}", said.trim());
        }
        (seen.said, seen.at, seen.cluster) = (said, time::now(), Some(cluster));
    }

    /// The API has not answered, or refused.
    pub(crate) fn not_answered(&self, problem: &str) {
        let mut seen = self.lock();
        let said = format!("no answer: {problem}");
        if said != seen.said {
            traced!("cluster show: {said}");
        }
        (seen.said, seen.cluster) = (said, None);
    }

    /// Whether the person may ask for something.
    pub(crate) fn disturbed(&self) -> bool {
        self.lock().disturbed
    }

    /// Lets the person ask for things, or only look.
    pub(crate) fn disturb(&self, disturbed: bool) {
        self.lock().disturbed = disturbed;
    }

    /// Gives the person something to do.
    pub(crate) fn wish(&self, wish: Wish) {
        self.lock().wish = Some(wish);
    }

    /// Whether there is something to do.
    pub(crate) fn wished(&self) -> bool {
        self.lock().wish.is_some()
    }

    /// What there is to do, once.
    pub(crate) fn take_wish(&self) -> Option<Wish> {
        self.lock().wish.take()
    }

    /// Name of the member that lives on a node; `None` when it shows no such member.
    pub(crate) fn member_on(&self, node: &str) -> Option<String> {
        let seen = self.lock();
        let member = seen.cluster.as_ref()?.members.iter().find(|member| member.node == format!("nodes/{node}"))?;
        Some(member.name.rsplit('/').next()?.to_owned())
    }

    /// Whether it says that the member on a node has lost its data, and nothing else goes on that could be meant.
    pub(crate) fn has_lost_data(&self, node: &str) -> bool {
        let Some(member) = self.member_on(node) else { return false };
        let seen = self.lock();
        let idle = seen.cluster.as_ref().is_some_and(|cluster| cluster.operation.is_empty());
        !seen.disturbed && idle && seen.said.contains(&format!("there is no data of {member} on its node"))
    }

    /// What it says.
    pub(crate) fn said(&self) -> String {
        self.lock().said.clone()
    }

    /// Whether a healthy cluster was shown after `begin`.
    pub(crate) fn is_healthy_since(&self, begin: Duration) -> bool {
        let seen = self.lock();
        seen.at >= begin && seen.cluster.as_ref().is_some_and(|cluster| cluster.health() == wire::Health::Healthy)
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
