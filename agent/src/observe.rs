//! Looks at the engine once a period, and at once when its process starts or ends.
//!
//! A look that waits for a deadline of the engine never delays the news of its end: when the process changes, the look is
//! dropped and a new one begun, which finds no process and therefore asks nothing of it.

use std::{collections::BTreeMap, future::pending, sync::Arc, time::Duration};

use regent_common::topology::{EngineObservation, EngineState, Ternary};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{engine::Driver, member::Member};

/// What is seen of an engine whose driver could not be opened.
pub fn without_driver(reason: String) -> EngineObservation {
    EngineObservation {
        state: EngineState::Stopped,
        role: None,
        storage_writable: Ternary::Unknown,
        position: None,
        streaming: Ternary::Unknown,
        upstream: None,
        replay_lag_bytes: None,
        pid: None,
        version: String::new(),
        reason,
        details: BTreeMap::new(),
        data_bytes: 0,
        stale: String::new(),
    }
}

/// What is told of an engine that nobody has looked at yet: neither that it runs nor that it is gone.
pub fn not_yet() -> EngineObservation {
    let reason = "the agent has just started and has not looked at the engine yet".to_owned();
    EngineObservation { state: EngineState::Starting, ..without_driver(reason) }
}

/// Observes until told to stop. `steps` counts beginnings and ends of steps: each is worth a look.
pub async fn run(member: Arc<Member>, mut steps: watch::Receiver<u64>, period: Duration, stop: CancellationToken) {
    let mut drivers = member.watch_driver();
    loop {
        let driver = drivers.borrow_and_update().clone();
        let watching = async {
            match driver {
                Some(driver) => watch_one(&member, &*driver, &mut steps, period).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            changed = drivers.changed() => if changed.is_err() { return },
            () = watching => {}
        }
    }
}

/// Waits for a change; for ever when there will be none.
async fn changed(receiver: &mut watch::Receiver<u64>) {
    if receiver.changed().await.is_err() {
        pending::<()>().await;
    }
}

async fn watch_one(member: &Member, driver: &dyn Driver, steps: &mut watch::Receiver<u64>, period: Duration) {
    let mut process = driver.process_changes();
    loop {
        process.mark_unchanged();
        tokio::select! {
            biased;
            () = changed(&mut process) => continue,
            seen = driver.observe() => member.note(Some(seen)),
        }
        tokio::select! {
            () = changed(&mut process) => {}
            () = changed(steps) => {}
            () = tokio::time::sleep(period) => {}
        }
    }
}
