//! Closes the gate in front of engines that are found beside no ledger (rule T5): nobody knows what they are and what was promised
//! for them, so that no driver can stop them.
//!
//! They are known by the folder in which they work. It ends when the node has a member again: the step that made it one has
//! stopped the engine, and what comes next decides about the gate.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use regent_common::error::ErrorChain;
use tokio_util::sync::CancellationToken;

use crate::{host::ports::listening_below, node::Node};

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Watches until told to stop, or until there is nothing unknown.
pub(super) async fn run(node: Arc<Node>, data_root: PathBuf, stop: CancellationToken) {
    let mut shut = BTreeSet::new();
    loop {
        let ledger = node.ledger().read();
        if ledger.quarantine.is_none() || ledger.membership.is_some() {
            return;
        }
        let folder = data_root.clone();
        // On a thread that may wait: reading descriptors can be slow.
        if let Ok(Ok(ports)) = tokio::task::spawn_blocking(move || listening_below(&folder)).await
            && !ports.is_subset(&shut)
        {
            shut.extend(ports);
            match node.lease.shut(shut.clone()).await {
                Ok(()) => tracing::warn!(ports = ?shut, "the gate of an engine beside no ledger is closed"),
                Err(error) => {
                    tracing::error!(error = %ErrorChain(&error), "the gate of an engine beside no ledger cannot be closed");
                    shut.clear();
                }
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_none() {
            return;
        }
    }
}
