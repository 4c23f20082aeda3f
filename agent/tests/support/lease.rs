//! Leases for tests of the agent's core: a keeper without a gate, and a coordinator that grants whatever the ledger names.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use regent_agent::{
    gate::none::NoGate,
    lease::{Answer, Endorsers, Keeper, LeaseHandle, Question, Word},
    ledger::LedgerStore,
};
use regent_common::{
    clock::SystemClock,
    lease::{Electorate, Grant, Profile},
};
use tokio_util::sync::CancellationToken;

/// The boot in which these tests live.
pub const BOOT: &str = "boot";

/// Endorsers that never answer.
pub struct NobodyEndorses;

#[async_trait]
impl Endorsers for NobodyEndorses {
    async fn ask(&self, _: Question) -> Result<Word, String> {
        Err("nobody was asked".to_owned())
    }
}

/// A lease that is granted whenever a heartbeat is wanted.
pub fn granted(ledger: &LedgerStore) -> LeaseHandle {
    let lease = without_coordinator(ledger);
    grant_all(&lease, ledger);
    lease
}

/// Grants whenever a heartbeat is wanted.
pub fn grant_all(lease: &LeaseHandle, ledger: &LedgerStore) {
    let (granting, ledger) = (lease.clone(), ledger.clone());
    tokio::spawn(async move {
        let mut beats = granting.beats();
        while beats.changed().await.is_ok() {
            let Some(membership) = ledger.read().membership.clone() else { continue };
            let (epoch, timing) = (membership.epoch, Profile::Standard.timing());
            let electorate = Electorate { version: 1, ..Electorate::default() };
            // Long enough that no test outlives it.
            let grant = Some(Grant { epoch, ttl: Duration::from_secs(600), electorate, handed_over: None });
            let nonce = granting.stamp();
            granting.answered(Answer { nonce, grant, stored_epoch: epoch, timing: Some(timing) });
        }
    });
}

/// A lease that nobody grants.
pub fn without_coordinator(ledger: &LedgerStore) -> LeaseHandle {
    let (lease, task) = Keeper {
        gate: Arc::new(NoGate::new("a test has none")),
        endorsers: Arc::new(NobodyEndorses),
        ledger: ledger.watch(),
        position: Arc::new(|| None),
        boot_id: BOOT.to_owned(),
        clock: Arc::new(SystemClock),
    }
    .prepare();
    tokio::spawn(task.run(CancellationToken::new()));
    lease
}
