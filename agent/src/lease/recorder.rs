//! Keeps what the coordinator's answers bring, in the ledger: that an epoch is established (rule L5), its electorate
//! (rule M1), the times of the cluster. Beside the lease, never in its way: a disk that hangs delays an acknowledgement, not
//! a renewal.

use regent_common::{
    error::ErrorChain,
    ids::{ClusterId, Epoch},
    lease::{Electorate, Timing},
};
use tokio::sync::mpsc;

use crate::ledger::{Ledger, LedgerStore, Membership};

/// What is to be kept.
#[derive(Debug, Clone)]
struct Noted {
    cluster_id: ClusterId,
    granted: Option<(Epoch, Electorate)>,
    timing: Timing,
}

/// Where answers are handed in.
#[derive(Debug, Clone)]
pub struct Recorder {
    ledger: LedgerStore,
    sender: mpsc::Sender<Noted>,
}

// === impl Recorder ===

impl Recorder {
    /// Starts the task that writes; it ends with the last handle.
    pub fn start(ledger: LedgerStore) -> Self {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(write(ledger.clone(), receiver));
        Self { ledger, sender }
    }

    /// Hands in what an answer brought, if the ledger does not have it. While the disk is busy it is dropped: the next answer
    /// brings it again.
    pub fn note(&self, granted: Option<(Epoch, Electorate)>, timing: Timing) {
        let present = self.ledger.read();
        let Some(membership) = &present.membership else { return };
        let noted = Noted { cluster_id: membership.cluster_id, granted, timing };
        let mut changed = membership.clone();
        noted.keep(&mut changed);
        if changed != *membership {
            let _ = self.sender.try_send(noted);
        }
    }
}

// === impl Noted ===

impl Noted {
    fn keep(&self, membership: &mut Membership) {
        membership.keep_timing(self.timing.heartbeat, self.timing.ttl);
        if let Some((epoch, electorate)) = &self.granted {
            membership.keep_grant(*epoch, electorate);
        }
    }
}

async fn write(ledger: LedgerStore, mut noted: mpsc::Receiver<Noted>) {
    while let Some(noted) = noted.recv().await {
        let written = ledger
            .update(move |ledger: &mut Ledger| {
                if let Some(membership) = ledger.membership.as_mut().filter(|m| m.cluster_id == noted.cluster_id) {
                    noted.keep(membership);
                }
            })
            .await;
        if let Err(error) = written {
            tracing::warn!(error = %ErrorChain(&error), "what the coordinator said of the lease could not be kept");
        }
    }
}
