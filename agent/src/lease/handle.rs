//! What the rest of the agent sees of the lease: it stamps heartbeats, hands in answers, waits for a lease, and asks for what
//! the keeper alone may do.
//!
//! The locks in here are held for a few instructions, by nobody who waits for a disk meanwhile.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use regent_common::{
    clock::{Clock, Moment},
    ids::Epoch,
    lease::{Authority, FenceStages, Grant, LeaseReport, LeaseSource, Timing},
    mutation::{self, Rule},
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

use super::{
    holder::{Holder, Standing},
    promises::Promises,
};
use crate::{
    gate::{Abilities, GateError},
    ledger::Ledger,
};

/// Why the gate or the lease is not as it should be for a step to go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// No lease came.
    #[error(
        "no lease for epoch {epoch} came within {} ms: the engine was not made writable (rule L6); the coordinator has to \
         answer this node's heartbeats",
        within.as_millis()
    )]
    NotHeld {
        /// The epoch.
        epoch: Epoch,
        /// How long it was waited for.
        within: Duration,
    },
    /// The kernel did not take a change.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The keeper has ended; only the end of the agent does that.
    #[error("the agent is ending")]
    Ending,
}

/// The coordinator's answer to a heartbeat, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Of which heartbeat.
    pub nonce: u64,
    /// The lease, if this member is the stored primary.
    pub grant: Option<Grant>,
    /// Highest epoch that is stored for the cluster.
    pub stored_epoch: Epoch,
    /// The times of the cluster's profile; `None` for a spare.
    pub timing: Option<Timing>,
}

/// What only the keeper does.
pub(super) enum Order {
    /// Arm the gate for a reign that is about to begin, closed, with no old socket left (rules G1, G4).
    Take { ports: BTreeSet<u16>, done: oneshot::Sender<Result<(), GateError>> },
    /// Arm the gate, open by the lease that stands, in front of an engine that serves already: nobody is cut.
    TakeRunning { ports: BTreeSet<u16>, done: oneshot::Sender<Result<(), GateError>> },
    /// Close the gate and destroy all sockets.
    Cut { done: oneshot::Sender<Result<(), GateError>> },
    /// Gate nothing any more: the engine is verified read-only or stopped.
    LayDown { done: oneshot::Sender<Result<(), GateError>> },
    /// Gate nothing any more, and cut nobody: the engine is no member's any more.
    LetGo { done: oneshot::Sender<Result<(), GateError>> },
    /// The ports on which the engine listens.
    Ports(BTreeSet<u16>),
}

/// What the keeper has made true in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Kernel {
    /// Epoch and version of the electorate for which a fitting gate was confirmed (rule M1).
    pub(super) confirmed: Option<(Epoch, u64)>,
    /// Epoch for which the gate stands open.
    pub(super) open_for: Option<Epoch>,
    /// The opening that an earlier process of this agent has left, while this one has not replaced it (rule L7).
    pub(super) inherited: Option<Inherited>,
}

/// An opening of the gate under a lease of an earlier process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inherited {
    pub(super) epoch: Epoch,
    /// When the kernel ends it; `None` for never.
    pub(super) end: Option<Moment>,
}

/// What is shared with the keeper.
pub(super) struct Shared {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) abilities: Abilities,
    holder: Mutex<Holder>,
    promises: Mutex<Promises>,
    kernel: Mutex<Kernel>,
    pub(super) wake: Notify,
    /// Counts changes that are worth a heartbeat.
    pub(super) changes: watch::Sender<u64>,
    /// Counts requests for a heartbeat at once.
    pub(super) beats: watch::Sender<u64>,
    /// The epoch whose lease has lapsed, or is about to, where no gate closes by itself (rule G6).
    pub(super) lapsed: watch::Sender<Option<Epoch>>,
    /// Whether this process is about to end and asks for a lease that outlives it (rule L7).
    hands_over: AtomicBool,
    /// The end of such a lease, once the kernel has confirmed a gate that stands open by it.
    pub(super) handed_over: watch::Sender<Option<Moment>>,
}

/// A handle; clones share the lease.
#[derive(Clone)]
pub struct LeaseHandle {
    pub(super) shared: Arc<Shared>,
    pub(super) orders: mpsc::UnboundedSender<Order>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is locked here is changed by assignments that cannot stop half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Inherited ===

impl Inherited {
    fn stands(&self, now: Moment) -> bool {
        self.end.is_none_or(|end| !end.held_for(now).is_zero())
    }
}

// === impl Shared ===

impl Shared {
    pub(super) fn new(clock: Arc<dyn Clock>, abilities: Abilities, holder: Holder) -> Self {
        let promises = Mutex::new(Promises::new(clock.now()));
        Self {
            clock,
            abilities,
            holder: Mutex::new(holder),
            promises,
            kernel: Mutex::default(),
            wake: Notify::new(),
            changes: watch::channel(0).0,
            beats: watch::channel(0).0,
            lapsed: watch::channel(None).0,
            hands_over: AtomicBool::new(false),
            handed_over: watch::channel(None).0,
        }
    }

    pub(super) fn hands_over(&self) -> bool {
        self.hands_over.load(Ordering::Relaxed)
    }

    pub(super) fn holder(&self) -> MutexGuard<'_, Holder> {
        lock(&self.holder)
    }

    pub(super) fn promises(&self) -> MutexGuard<'_, Promises> {
        lock(&self.promises)
    }

    pub(super) fn kernel(&self) -> MutexGuard<'_, Kernel> {
        lock(&self.kernel)
    }

    /// Sets what is true in the kernel, and tells who waits for it.
    pub(super) fn set_kernel(&self, change: impl FnOnce(&mut Kernel)) {
        let changed = {
            let mut kernel = self.kernel();
            let before = kernel.clone();
            change(&mut kernel);
            before != *kernel
        };
        if changed {
            self.changes.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn standing(&self) -> Option<Standing> {
        let now = self.clock.now();
        self.holder().standing(now)
    }
}

// === impl LeaseHandle ===

impl LeaseHandle {
    /// Stamps a heartbeat that is sent now (rule L1).
    pub fn stamp(&self) -> u64 {
        let now = self.shared.clock.now();
        self.shared.holder().stamp(now)
    }

    /// Hands in the coordinator's answer. False when it answers nothing that this process asked: it was dropped.
    pub fn answered(&self, answer: Answer) -> bool {
        let (counted, marked) = {
            let mut holder = self.shared.holder();
            let known = holder.handed_over();
            let counted = holder.answered(self.shared.clock.now(), answer.nonce, answer.grant, answer.stored_epoch);
            // Times that come with an answer to nothing may be of a profile that is over.
            if let Some(timing) = answer.timing.filter(|_| counted) {
                holder.set_timing(timing);
            }
            (counted, holder.handed_over() != known)
        };
        if marked {
            // The coordinator waits for the word that what it names is replaced.
            self.shared.changes.send_modify(|count| *count += 1);
        }
        self.shared.wake.notify_one();
        counted
    }

    /// The times in force.
    pub fn timing(&self) -> Timing {
        self.shared.holder().timing()
    }

    /// The lease that stands now, if one does.
    pub fn standing(&self) -> Option<Standing> {
        self.shared.standing()
    }

    /// Highest epoch that anybody has told this process of.
    pub fn told_epoch(&self) -> Epoch {
        let told = self.shared.holder().told_epoch();
        told.max(self.promises().barred_below())
    }

    /// The promises of this member.
    pub fn promises(&self) -> MutexGuard<'_, Promises> {
        self.shared.promises()
    }

    /// The clocks by which leases and promises end.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.shared.clock
    }

    /// Counts what is worth a heartbeat: the gate opened or closed, an electorate was acknowledged.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Counts requests for a heartbeat at once.
    pub fn beats(&self) -> watch::Receiver<u64> {
        self.shared.beats.subscribe()
    }

    /// The epoch whose lease has lapsed where no gate closes by itself: whoever sees it stops the engine (rule G6).
    pub fn lapsed(&self) -> watch::Receiver<Option<Epoch>> {
        self.shared.lapsed.subscribe()
    }

    /// Asks the coordinator, from the next heartbeat on, for a lease that outlives this process (rule L7). It is not taken
    /// back: whoever asks is about to end.
    pub fn ask_to_hand_over(&self) {
        self.shared.hands_over.store(true, Ordering::Relaxed);
        self.beat();
    }

    /// Whether this process has asked for that: it is about to end.
    pub fn hands_over(&self) -> bool {
        self.shared.hands_over.load(Ordering::Relaxed)
    }

    /// Has a heartbeat sent at once.
    pub fn beat(&self) {
        self.shared.beats.send_modify(|count| *count += 1);
    }

    /// The end of a lease that outlives this process, once the kernel has confirmed a gate that stands open by it.
    pub fn handed_over(&self) -> watch::Receiver<Option<Moment>> {
        self.shared.handed_over.subscribe()
    }

    /// Whether a frozen agent is covered: the kernel closes the gate by itself.
    pub fn has_gate(&self) -> bool {
        self.shared.abilities.timed_gate
    }

    /// What a member reports of its authority. `ledger` is the one that the report's other parts were taken from.
    pub fn authority(&self, ledger: &Ledger) -> Authority {
        let now = self.shared.clock.now();
        let Abilities { timed_gate, destroys_sockets, survives_flush, problems } = self.shared.abilities.clone();
        let fence = FenceStages { timed_gate, destroys_sockets, survives_flush, problems };
        let Some(membership) = &ledger.membership else { return Authority { fence, ..Authority::default() } };
        let (standing, reigns, obeyed, mark) = {
            let holder = self.shared.holder();
            (holder.standing(now), holder.reign().is_some(), holder.obeyed().cloned(), holder.handed_over())
        };
        // What is acknowledged is what the ledger has (rule M1), not what is merely obeyed.
        let recorded = if mutation::broken(Rule::M1Ledger) { obeyed } else { membership.electorate.clone() };
        let kernel = self.shared.kernel().clone();
        // A lease behind a gate that the kernel does not open is of no use to anybody.
        let open = !self.has_gate() || kernel.open_for == Some(membership.epoch);
        let standing = standing.filter(|_| open).map(|standing| (standing.end, Some(standing.source)));
        // What an earlier process was granted stands as long as its gate does (rules G2, L7). One without an end has nobody who
        // could be promoted; from whom another is, this process does not know.
        let inherited = kernel.inherited.filter(|gate| gate.epoch == membership.epoch && gate.stands(now));
        let inherited = inherited.map(|gate| (gate.end, gate.end.is_none().then_some(LeaseSource::Alone)));
        let stands = standing.or(inherited);
        let lease = reigns.then(|| LeaseReport {
            epoch: membership.epoch,
            stands: stands.is_some(),
            source: stands.and_then(|(_, source)| source),
            remaining: stands.and_then(|(end, _)| end).map_or(Duration::ZERO, |end| end.held_for(now)),
        });
        let hands_over = self.shared.hands_over();
        // An opening of our own has taken the place of what was left (rule L7). Who hands over himself is not who comes after.
        let replaced =
            mark.filter(|_| !hands_over && kernel.confirmed.is_some_and(|(epoch, _)| epoch == membership.epoch));
        let fits = |version| {
            mutation::broken(Rule::M1Gate)
                || kernel.confirmed.is_some_and(|(epoch, known)| epoch == membership.epoch && known >= version)
        };
        let promises = self.promises();
        Authority {
            role: membership.role,
            established: membership.established,
            writable_epoch: membership.writable_epoch,
            electorate: recorded.filter(|electorate| fits(electorate.version)),
            lease,
            heard: promises.heard(now),
            prepare_in: promises.prepare_in(now, membership.epoch.next(), membership.longest_ttl()),
            fence,
            forced: membership.forced.clone(),
            hand_over: hands_over && reigns,
            replaced,
        }
    }

    /// Revokes every reign below an epoch, irrevocably, and closes the gate (rule G5). Waits for the kernel, not for a disk.
    pub async fn revoke(&self, below: Epoch) -> Result<(), LeaseError> {
        self.shared.holder().revoke(below);
        self.cut().await
    }

    /// Closes the gate and destroys all sockets of the engine's ports.
    pub async fn cut(&self) -> Result<(), LeaseError> {
        self.order(|done| Order::Cut { done }).await
    }

    /// Arms the gate for a reign that is about to begin, and waits until its lease stands and the gate is open (rules L6, G1,
    /// G4). The ledger names the reign already.
    pub async fn take(&self, epoch: Epoch, ports: BTreeSet<u16>, within: Duration) -> Result<(), LeaseError> {
        self.order(|done| Order::Take { ports, done }).await?;
        self.wait_until(|| self.holds(epoch), within).await.map_err(|_| LeaseError::NotHeld { epoch, within })
    }

    /// As [`Self::take`], for an engine that serves already and is nobody's yet: first the lease, then the gate, which stands open
    /// from its first moment. Only where nobody else can have been promoted: the cluster has had no other primary.
    pub async fn take_running(&self, epoch: Epoch, ports: BTreeSet<u16>, within: Duration) -> Result<(), LeaseError> {
        let granted = || self.standing().is_some_and(|standing| standing.epoch == epoch);
        self.wait_until(granted, within).await.map_err(|_| LeaseError::NotHeld { epoch, within })?;
        loop {
            match self.order(|done| Order::TakeRunning { ports: ports.clone(), done }).await {
                // The machine was too busy for one try; the lease is renewed meanwhile.
                Err(LeaseError::Gate(GateError::Late | GateError::NoTimeLeft)) if granted() => {}
                other => break other?,
            }
        }
        self.wait_until(|| self.holds(epoch), within).await.map_err(|_| LeaseError::NotHeld { epoch, within })
    }

    async fn wait_until(&self, there: impl Fn() -> bool, within: Duration) -> Result<(), tokio::time::error::Elapsed> {
        let mut changes = self.changes();
        let waiting = async {
            loop {
                // A heartbeat that is sent now brings the grant soonest.
                self.beat();
                let again = self.timing().heartbeat;
                if there() {
                    return;
                }
                // Running out of time is as good as a change.
                let _ = tokio::time::timeout(again, changes.changed()).await;
            }
        };
        tokio::time::timeout(within, waiting).await
    }

    /// Whether a lease of this epoch stands, and the gate with it.
    pub fn holds(&self, epoch: Epoch) -> bool {
        let open = !self.has_gate() || self.shared.kernel().open_for == Some(epoch);
        open && self.standing().is_some_and(|standing| standing.epoch == epoch)
    }

    /// Arms the gate of these ports, closed, for engines that reign nowhere (rule T5).
    pub async fn shut(&self, ports: BTreeSet<u16>) -> Result<(), LeaseError> {
        self.order(|done| Order::Take { ports, done }).await
    }

    /// Gates nothing any more. Only when the engine is verified read-only or stopped (rule G1).
    pub async fn lay_down(&self) -> Result<(), LeaseError> {
        self.order(|done| Order::LayDown { done }).await
    }

    /// Gates nothing any more and cuts nobody. Only for an engine that is no member's any more and of whose cluster nobody else is, or
    /// becomes, the primary: it goes on without a lease.
    pub async fn let_go(&self) -> Result<(), LeaseError> {
        self.order(|done| Order::LetGo { done }).await
    }

    /// Tells on which ports the engine listens.
    pub fn set_ports(&self, ports: BTreeSet<u16>) {
        // A keeper that has ended gates nothing any more.
        let _ = self.orders.send(Order::Ports(ports));
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<(), GateError>>) -> Order,
    ) -> Result<(), LeaseError> {
        let (done, ended) = oneshot::channel();
        self.orders.send(order(done)).map_err(|_| LeaseError::Ending)?;
        Ok(ended.await.map_err(|_| LeaseError::Ending)??)
    }
}

impl std::fmt::Debug for LeaseHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseHandle").field("standing", &self.standing()).finish_non_exhaustive()
    }
}
