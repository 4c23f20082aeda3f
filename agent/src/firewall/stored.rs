//! What is kept of the allow-list over restarts of the agent and of the machine: a file beside the ledger, written before the list is
//! put in force, so that after a power cut the machine comes up with what was in force, or with what was about to be.
//!
//! Not in the ledger, which is written far more often and whole each time: a list may have thousands of ranges.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use regent_common::{allow_list::AllowList, ids::ClusterId};
use serde::{Deserialize, Serialize};

use crate::ledger::{LedgerError, LedgerStore};

/// Name of the file in the state directory.
const FILE: &str = "allow-list.json";

/// Format of the file that this build writes.
const FORMAT: u32 = 1;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Stored {
    /// Format of the file.
    format: u32,
    /// Cluster whose list it is.
    pub(super) cluster_id: ClusterId,
    /// The list.
    pub(super) list: AllowList,
    /// Addresses that the names of those had last who always pass: a machine may boot when no resolver answers.
    #[serde(default)]
    pub(super) addresses: BTreeMap<String, BTreeSet<IpAddr>>,
}

// === impl Stored ===

impl Stored {
    pub(super) fn new(cluster_id: ClusterId, list: AllowList, addresses: BTreeMap<String, BTreeSet<IpAddr>>) -> Self {
        Self { format: FORMAT, cluster_id, list, addresses }
    }

    /// What is kept; `None` when nothing is. Fails for a file that cannot be read, or was written by a newer agent.
    pub(super) async fn load(ledger: &LedgerStore) -> Result<Option<Self>, LedgerError> {
        let Some((path, content)) = ledger.load_beside(FILE).await? else { return Ok(None) };
        let stored: Self = serde_json::from_slice(&content)
            .map_err(|error| LedgerError::DamagedBeside { path: path.clone(), problem: error.to_string() })?;
        if stored.format > FORMAT {
            return Err(LedgerError::Newer { path, found: stored.format });
        }
        Ok(Some(stored))
    }

    /// Keeps it; durable when this returns.
    pub(super) async fn save(&self, ledger: &LedgerStore) -> Result<(), LedgerError> {
        let content = serde_json::to_vec(self).expect("it has only text keys");
        ledger.store_beside(FILE, content).await
    }

    /// Keeps nothing any more.
    pub(super) async fn forget(ledger: &LedgerStore) -> Result<(), LedgerError> {
        ledger.remove_beside(FILE).await
    }
}
