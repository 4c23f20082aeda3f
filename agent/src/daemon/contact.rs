//! Tells the coordinator that this agent is here, until the coordinator has called; again whenever it has been away for
//! a while. The coordinator calls known nodes by itself: this only makes it sooner.

use std::{sync::Arc, time::Duration};

use regent_common::{error::ErrorChain, tls::ReloadingIdentity, transport::Dialer};
use tokio_util::sync::CancellationToken;

use crate::{
    enroll::{self, Addresses, EnrollError},
    node::Node,
};

/// First and longest pause between two attempts.
const PAUSES: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long the coordinator may take to call after it was told.
const CALL_WITHIN: Duration = Duration::from_secs(30);

/// The task that announces.
pub(super) struct Announcing {
    pub(super) dialer: Arc<dyn Dialer>,
    pub(super) node: Arc<Node>,
    pub(super) identity: ReloadingIdentity,
    pub(super) coordinators: Vec<String>,
    pub(super) addresses: Addresses,
}

// === impl Announcing ===

impl Announcing {
    pub(super) async fn run(self, stop: CancellationToken) {
        if self.coordinators.is_empty() {
            tracing::warn!("no coordinator is known: it has to find this node by itself");
            return;
        }
        stop.run_until_cancelled(self.keep_announced()).await;
    }

    async fn keep_announced(&self) {
        let mut contact = self.node.contact.subscribe();
        // The first time at once: the coordinator has to learn a new address even where an old session still looks open.
        let mut connected = false;
        loop {
            if !connected {
                self.announce().await;
            }
            connected =
                tokio::time::timeout(CALL_WITHIN, contact.wait_for(|contact| contact.sessions > 0)).await.is_ok();
            if connected && contact.wait_for(|contact| contact.sessions == 0).await.is_err() {
                return;
            }
        }
    }

    /// Returns when a coordinator has heard it.
    async fn announce(&self) {
        let mut pause = PAUSES.0;
        let mut warned = false;
        loop {
            let incarnation = &self.node.incarnation;
            match enroll::announce(&self.dialer, &self.coordinators, &self.identity, &self.addresses, incarnation).await
            {
                Ok(()) => return,
                // It was heard, and another agent speaks for this node (rule T5): that takes a person.
                Err(error @ EnrollError::Refused(_)) => {
                    tracing::error!(error = %ErrorChain(&error), "the coordinator refuses this agent");
                    pause = PAUSES.1;
                }
                Err(error) if warned => tracing::debug!(error = %ErrorChain(&error), "no coordinator answers"),
                Err(error) => {
                    tracing::warn!(error = %ErrorChain(&error), "no coordinator answers; trying on");
                    warned = true;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}
