//! What a node in quarantine keeps true on its machine (rule T5): gate closed, engine stopped.
//!
//! It decides nothing: the ledger says that the node is in quarantine, and the lease's keeper takes no reign from such a ledger.
//! **Invariant:** an engine is stopped here, never started; whoever ends the quarantine, by an assignment, stops it as well.

use std::time::Duration;

use regent_common::{error::ErrorChain, topology::EngineState};
use tokio_util::sync::CancellationToken;

use crate::{engine::Stop, lease::LeaseHandle, ledger::LedgerStore, member::Member};

/// Time between two looks at an engine that has to stay stopped, and between two attempts to stop it.
const PERIOD: Duration = Duration::from_secs(1);

/// Keeps the gate closed and the engine stopped as long as the ledger is in quarantine, until `stop`.
pub async fn keep(ledger: LedgerStore, lease: LeaseHandle, member: std::sync::Arc<Member>, stop: CancellationToken) {
    let keeping = async {
        let mut present = ledger.watch();
        // The ledger's store lives as long as the node.
        while present.wait_for(|ledger| ledger.quarantine.is_some()).await.is_ok() {
            hold(&lease, &member).await;
            // Its end is as good a reason to look as the period.
            let _ = tokio::time::timeout(PERIOD, present.wait_for(|ledger| ledger.quarantine.is_none())).await;
        }
    };
    stop.run_until_cancelled(keeping).await;
}

async fn hold(lease: &LeaseHandle, member: &Member) {
    let Some(driver) = member.driver() else { return };
    let is_over =
        |state: EngineState| matches!(state, EngineState::Absent | EngineState::Stopped | EngineState::Crashed);
    if is_over(driver.observe().await.state) {
        return;
    }
    // No reign is left in the lease future; what is still open is closed before the engine is asked for anything (rule G5).
    if let Err(error) = lease.cut().await {
        tracing::error!(error = %ErrorChain(&error), "the gate of a node in quarantine could not be closed");
    }
    match driver.stop(Stop::Kill).await {
        Ok(_) => tracing::warn!("the engine of a node in quarantine was stopped"),
        Err(error) => {
            tracing::error!(error = %ErrorChain(&error), "the engine of a node in quarantine could not be stopped");
        }
    }
}
