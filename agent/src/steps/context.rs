//! What an action is given: its header, the ledger, the driver, the peers.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use regent_common::{
    ids::{ClusterId, OperationToken},
    mutation::{self, Rule},
    position::Position,
    topology::{ClusterSpec, HeardPosition, Peer},
};

use super::StepError;
use crate::{
    engine::{Driver, Work},
    firewall::Keeper,
    lease::LeaseHandle,
    ledger::{Header, Ledger, LedgerStore, Membership, StepOutcome, StoredSpec},
    member::Member,
};

/// What actions ask of other agents.
#[async_trait]
pub trait Peers: Send + Sync + std::fmt::Debug {
    /// Asks the agent of `source` whether its copy is whole under the same token (rule T2). The position of that copy,
    /// or why it is not to be relied on.
    async fn confirm_whole(
        &self,
        source: &Peer,
        cluster_id: ClusterId,
        token: OperationToken,
    ) -> Result<Position, String>;
}

/// One step being carried out.
pub struct StepContext {
    pub(super) header: Header,
    pub(super) ledger: LedgerStore,
    pub(super) member: Arc<Member>,
    pub(super) peers: Arc<dyn Peers>,
    pub(super) lease: LeaseHandle,
    pub(super) firewall: Arc<Keeper>,
    pub(super) boot_id: Arc<str>,
    pub(super) work: Work,
}

/// How long a reign that begins waits for its lease: several heartbeats, and a coordinator that starts again.
const LEASE_WITHIN: Duration = Duration::from_secs(20);

/// What an action brought, and what the ledger notes together with it, in one durable write.
pub(super) struct Done {
    pub(super) outcome: StepOutcome,
    pub(super) effect: Effect,
}

type Effect = Box<dyn FnOnce(&mut Ledger) + Send>;

// === impl Done ===

impl Done {
    /// A result that changes nothing in the ledger.
    pub(super) fn new(outcome: StepOutcome) -> Self {
        Self { outcome, effect: Box::new(|_| {}) }
    }

    /// A result, and a change of the membership.
    pub(super) fn noting(outcome: StepOutcome, change: impl FnOnce(&mut Membership) + Send + 'static) -> Self {
        Self {
            outcome,
            effect: Box::new(|ledger| {
                if let Some(membership) = &mut ledger.membership {
                    change(membership);
                }
            }),
        }
    }
}

// === impl StepContext ===

impl StepContext {
    /// The membership as the ledger has it now.
    pub(super) fn membership(&self) -> Result<Membership, StepError> {
        self.ledger.read().membership.clone().ok_or(StepError::NoMember)
    }

    /// The driver; opened again where that had failed when the agent started.
    pub(super) fn driver(&self) -> Result<Arc<dyn Driver>, StepError> {
        match self.member.driver() {
            Some(driver) => Ok(driver),
            None => Ok(self.member.reopen(&self.membership()?)?),
        }
    }

    /// Notes something in the ledger before going on; durable when it returns.
    pub(super) async fn mark(&self, change: impl FnOnce(&mut Membership) + Send + 'static) -> Result<(), StepError> {
        self.ledger
            .update(|ledger| {
                if let Some(membership) = &mut ledger.membership {
                    change(membership);
                }
            })
            .await?;
        Ok(())
    }

    /// Begins a reign of the step's epoch: the ledger's mark first (rule L6), then the gate, closed and without old sockets
    /// (rules G1, G4), then the lease. The engine may be made writable when this returns.
    pub(super) async fn begin_reign(&self, driver: &dyn Driver) -> Result<(), StepError> {
        let (epoch, boot_id, before) = (self.header.epoch, self.boot_id.clone(), self.membership()?);
        self.mark(move |membership| membership.begin_reign(epoch, &boot_id)).await?;
        if mutation::broken(Rule::L6Boot) {
            return Ok(());
        }
        if let Err(error) = self.lease.take(epoch, [driver.endpoint().port].into(), LEASE_WITHIN).await {
            // Nothing was asked of the engine: it did not become writable, and that has to be known (rule P2).
            self.mark(move |membership| membership.take_reign_back(before)).await?;
            return Err(error.into());
        }
        Ok(())
    }

    /// As [`Self::begin_reign`], over an engine that serves already and that nobody is to be cut from (see `actions/adopt.rs`).
    pub(super) async fn begin_running_reign(&self, driver: &dyn Driver) -> Result<(), StepError> {
        let (epoch, boot_id, before) = (self.header.epoch, self.boot_id.clone(), self.membership()?);
        self.mark(move |membership| membership.begin_reign(epoch, &boot_id)).await?;
        let taken = self.lease.take_running(epoch, [driver.endpoint().port].into(), LEASE_WITHIN).await;
        if let Err(error) = taken {
            self.lease.let_go().await?;
            self.mark(move |membership| membership.take_reign_back(before)).await?;
            return Err(error.into());
        }
        Ok(())
    }

    /// This member follows somebody in the step's epoch: its engine is verified read-only, so that nothing is gated any more
    /// (rule G1), and what reigns that are over had said of themselves bounds nothing any more (rule P4).
    pub(super) async fn become_follower(&self) -> Result<(), StepError> {
        self.lease.lay_down().await?;
        self.lease.promises().forget_heard_below(self.header.epoch);
        Ok(())
    }

    /// How far the primaries had come that this process heard, by their requests for endorsement and by its stream (rule P3).
    pub(super) fn heard(&self, driver: &dyn Driver) -> Vec<HeardPosition> {
        let asked = self.lease.promises().heard_position();
        asked.into_iter().chain(driver.upstream_heard()).collect()
    }

    /// Refuses where the data must not be started, by the ledger's word or the driver's.
    pub(super) fn refuse_dirty(&self, membership: &Membership, driver: &dyn Driver) -> Result<(), StepError> {
        if membership.must_not_start() || driver.is_dirty() {
            Err(StepError::DataNotWhole { member: membership.member.clone() })
        } else {
            Ok(())
        }
    }

    /// Refuses a copy of this member over itself, which would leave none.
    pub(super) fn refuse_own_source(&self, source: &Peer) -> Result<(), StepError> {
        if source.member == self.header.member {
            Err(StepError::OwnSource { member: source.member.clone() })
        } else {
            Ok(())
        }
    }

    /// Before this node's own copy goes: the one that must survive has just confirmed that it is whole (rule T2).
    pub(super) async fn confirm_survivor(&self, source: &Peer) -> Result<(), StepError> {
        if mutation::broken(Rule::T2Wipe) {
            return Ok(());
        }
        let confirmed = self.peers.confirm_whole(source, self.header.cluster_id, self.header.token).await;
        match confirmed {
            Ok(_) => Ok(()),
            Err(reason) => Err(StepError::CopyNotWhole { source_member: source.member.clone(), reason }),
        }
    }
}

/// Refuses what speaks of another cluster or engine than the member has.
pub(super) fn refuse_other_spec(known: &StoredSpec, given: &ClusterSpec) -> Result<(), StepError> {
    let differs = |field, given: &str, known: &str| {
        Err(StepError::OtherSpec { field, given: given.to_owned(), known: known.to_owned() })
    };
    if known.cluster != given.cluster {
        differs("cluster", given.cluster.as_str(), known.cluster.as_str())
    } else if known.engine != given.engine {
        differs("engine", &given.engine, &known.engine)
    } else {
        Ok(())
    }
}
