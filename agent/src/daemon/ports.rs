//! Tells the lease's keeper on which ports the engine listens, by the kernel's own word (rules G1, G3): at each look at the
//! engine, so that what it opens later is gated as well.

use std::{collections::BTreeSet, sync::Arc};

use tokio_util::sync::CancellationToken;

use crate::{host::ports::listening_ports, node::Node};

/// Watches until told to stop.
pub(super) async fn run(node: Arc<Node>, stop: CancellationToken) {
    let mut seen = node.member.watch_seen();
    let mut told = BTreeSet::new();
    while let Some(Ok(())) = stop.run_until_cancelled(seen.changed()).await {
        let pid = seen.borrow_and_update().as_ref().and_then(|seen| seen.pid);
        let (Some(pid), Some(driver)) = (pid, node.member.driver()) else { continue };
        // On a thread that may wait: an engine that is stuck can make reading of its descriptors slow.
        let Ok(Ok(mut ports)) = tokio::task::spawn_blocking(move || listening_ports(pid)).await else { continue };
        ports.insert(driver.endpoint().port);
        if ports != told {
            node.lease.set_ports(ports.clone());
            told = ports;
        }
    }
}
