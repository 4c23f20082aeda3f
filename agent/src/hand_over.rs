//! What an agent does before it ends: it asks the coordinator for a lease that outlives it, so that the engine serves on until
//! the next process is there (rule L7).
//!
//! Only the coordinator is asked, never another member. Whoever serves asks: also one whom the others endorse, as the coordinator
//! may be back just now, and one that itself lives on what the process before it has left. The new process takes the rest of the
//! gate's time from the kernel ([`crate::lease::keeper`]) and says when it relies on that no more. **Invariant:** ending
//! shortens nothing: without an answer the lease and the gate end when they would have.

use std::time::Duration;

use regent_common::lease::LeaseSource;

use crate::{node::Node, steps::actions::drain};

/// How long an answer is waited for, and the kernel.
pub const WITHIN: Duration = Duration::from_secs(3);
/// Pause before a heartbeat asks again: the coordinator stores the longer lease before it grants it.
const AGAIN: Duration = Duration::from_millis(100);

/// What has become of the lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandedOver {
    /// The gate stands open for about so long without an agent.
    For(Duration),
    /// There is nothing to hand over, and why.
    Nothing(&'static str),
    /// No longer lease was granted in time: it ends when it would have.
    NotGranted,
}

/// Hands the lease over, if there is one that can be. Returns when the agent may end.
pub async fn hand_over(node: &Node) -> HandedOver {
    let outcome = match obstacle(node) {
        Some(why) => HandedOver::Nothing(why),
        None => tokio::time::timeout(WITHIN, wait(node)).await.unwrap_or(HandedOver::NotGranted),
    };
    match outcome {
        HandedOver::For(time) => tracing::info!(
            seconds = time.as_secs(),
            "the lease is handed over: the engine serves on for so long, and the next agent has as much time to start"
        ),
        HandedOver::Nothing(why) => tracing::info!(why, "no lease is handed over"),
        HandedOver::NotGranted => tracing::warn!(
            "the coordinator did not grant a longer lease before this agent ends: the gate closes when the present one is over, \
             unless the next agent is there before"
        ),
    }
    outcome
}

/// Why there is nothing to hand over.
fn obstacle(node: &Node) -> Option<&'static str> {
    if drain::standing(&node.ledger().read()).is_some() {
        return Some("it hands over to another member just now, and applications are kept out");
    }
    if !node.lease.has_gate() {
        return Some("no gate closes by itself here: the engine serves on in any case, until the next agent is there");
    }
    match standing(node) {
        None => Some("this member holds none"),
        Some(Some(LeaseSource::Alone)) => Some("nobody could be promoted: it has no end"),
        Some(Some(LeaseSource::Coordinator | LeaseSource::Endorsement) | None) => None,
    }
}

/// From whom the lease is that stands, and the gate with it; from whom one is that was found standing nobody knows.
fn standing(node: &Node) -> Option<Option<LeaseSource>> {
    let lease = node.lease.authority(&node.ledger().read()).lease?;
    lease.stands.then_some(lease.source)
}

async fn wait(node: &Node) -> HandedOver {
    let mut handed_over = node.lease.handed_over();
    node.lease.ask_to_hand_over();
    loop {
        if let Ok(Ok(end)) = tokio::time::timeout(AGAIN, handed_over.wait_for(Option::is_some)).await {
            let left = end.map(|end| end.held_for(node.lease.clock().now())).unwrap_or_default();
            // So much of it has the kernel (rule G2).
            return HandedOver::For(left / 10 * 9);
        }
        if standing(node).is_none() {
            return HandedOver::Nothing("it has ended meanwhile");
        }
        if let Some(why) = obstacle(node) {
            return HandedOver::Nothing(why);
        }
        node.lease.beat();
    }
}
