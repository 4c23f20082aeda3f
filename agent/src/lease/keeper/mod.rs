//! The one future that does lease work: it opens, renews and closes the gate, and asks for endorsement.
//!
//! It looks whenever something was handed in, and at least once a heartbeat. In production it has a thread and a runtime of
//! its own, so that nothing else in the process can delay it. **Invariant:** every change of the gate is made here, one
//! after another, and never lets it stand open longer than the lease that stood when the change was decided (rule G2).

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use async_trait::async_trait;
use regent_common::{
    clock::{Clock, Moment},
    ids::{ClusterId, Epoch, MemberName},
    lease::{LeaseReport, Timing},
    mutation::{self, Rule},
    position::Position,
    topology::{Peer, Role},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    handle::{Inherited, LeaseHandle, Order, Shared},
    holder::{Holder, Reign, Standing},
};
use crate::{
    gate::{Gate, GateError, Open},
    ledger::{Ledger, Membership},
};

/// A question for endorsement (rule E1).
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Whom to ask.
    pub peer: Peer,
    /// Cluster of both.
    pub cluster_id: ClusterId,
    /// Who asks.
    pub member: MemberName,
    /// Epoch of which it is the primary.
    pub epoch: Epoch,
    /// The question's nonce.
    pub nonce: u64,
    /// Boot of the asker's machine.
    pub boot_id: String,
    /// How long a promise is wanted.
    pub ttl: Duration,
    /// What the asker says of its lease.
    pub lease: LeaseReport,
    /// How far it has come.
    pub position: Option<Position>,
}

/// A member's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Whether it endorses.
    pub endorsed: bool,
    /// Highest epoch that it knows.
    pub known_epoch: Epoch,
}

/// The way to other members.
#[async_trait]
pub trait Endorsers: Send + Sync + 'static {
    /// Asks one member; an error is no answer.
    async fn ask(&self, question: Question) -> Result<Word, String>;
}

/// What a keeper is made of.
pub struct Keeper {
    /// The gate.
    pub gate: Arc<dyn Gate>,
    /// The way to other members.
    pub endorsers: Arc<dyn Endorsers>,
    /// The ledger, as it is on disk.
    pub ledger: watch::Receiver<Arc<Ledger>>,
    /// The position that was seen last.
    pub position: Arc<dyn Fn() -> Option<Position> + Send + Sync>,
    /// Boot of this machine.
    pub boot_id: String,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
}

/// The running keeper.
struct Running {
    keeper: Keeper,
    shared: Arc<Shared>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// Cluster of which the ledger told last.
    cluster_id: Option<ClusterId>,
    /// Ports that are gated; `None` while the gate is not armed.
    armed: Option<BTreeSet<u16>>,
    /// Ports on which the engine listens, by the kernel's word.
    listening: BTreeSet<u16>,
    /// What the gate was last opened for.
    opened: Option<Opened>,
    /// Whether what an earlier process left was taken over.
    adopted: bool,
    /// The reign that the ledger named when this process started, and when that was.
    found: Option<(Epoch, Moment)>,
    asked_at: Option<Moment>,
    verified_at: Option<Moment>,
    /// The last trouble with the gate, so that it is logged once.
    trouble: Option<GateError>,
}

/// An open gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Opened {
    epoch: Epoch,
    /// Its end as it was asked for; `None` for none.
    end: Option<Moment>,
    /// Whether an earlier process of this agent opened it, under a lease that this one knows nothing of.
    inherited: bool,
}

/// What the holder says at one moment, all of it under one lock: the version of the electorate must be the one by which the
/// lease was judged (rule M1).
#[derive(Debug, Clone, Copy)]
struct Judged {
    now: Moment,
    reign: Option<Epoch>,
    standing: Option<Standing>,
    version: Option<u64>,
    timing: Timing,
}

/// Least time between two looks.
const LEAST: Duration = Duration::from_millis(1);

/// What the ledger says of this member as a primary: it is one of the present epoch if its engine was, or is being, made
/// writable in it.
fn reign_of(membership: &Membership, boot_id: &str) -> Option<Reign> {
    let present = membership.writable_epoch == Some(membership.epoch) || mutation::broken(Rule::P5Old);
    let epoch = membership.writable_epoch.filter(|_| present && membership.role == Some(Role::Primary))?;
    let others = membership.spec.members.iter().map(|peer| peer.member.clone());
    Some(Reign {
        epoch,
        established: membership.established,
        recorded: membership.electorate.clone(),
        others: others.filter(|member| *member != membership.member).collect(),
        rebooted: membership.writable_boot_id.as_deref().is_some_and(|boot| boot != boot_id),
    })
}

// === impl Keeper ===

impl Keeper {
    /// Prepares to keep: the handle can be used at once, [`KeeperTask::run`] does the work.
    pub fn prepare(self) -> (LeaseHandle, KeeperTask) {
        let now = self.clock.now();
        let ledger = self.ledger.borrow().clone();
        let membership = ledger.membership.as_ref();
        // In quarantine this member reigns nowhere, whatever its ledger says (rule T5).
        let reign = ledger.believed().and_then(|membership| reign_of(membership, &self.boot_id));
        let timing = membership.map_or_else(|| regent_common::lease::Profile::default().timing(), Membership::timing);
        let first_nonce = u64::try_from(self.clock.wall().as_nanosecond()).unwrap_or_default();
        let mut holder = Holder::new(now, timing, first_nonce);
        if let Some(membership) = membership {
            holder.revoke(membership.fenced_epoch.unwrap_or_default());
        }
        holder.set_reign(reign);
        let found = holder.reign().map(|reign| reign.epoch);
        let (orders, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared::new(self.clock.clone(), self.gate.abilities(), holder));
        let handle = LeaseHandle { shared: shared.clone(), orders };
        let listening = membership.map(|membership| membership.port).into_iter().collect();
        let cluster_id = membership.map(|membership| membership.cluster_id);
        let running = Running {
            cluster_id,
            keeper: self,
            shared,
            orders: receiver,
            armed: None,
            listening,
            opened: None,
            adopted: false,
            found: found.map(|epoch| (epoch, now)),
            asked_at: None,
            verified_at: None,
            trouble: None,
        };
        (handle, KeeperTask(Box::new(running)))
    }
}

/// A keeper that is about to run.
pub struct KeeperTask(Box<Running>);

impl KeeperTask {
    /// Runs until told to stop. What the gate stands open for then ends by itself.
    pub async fn run(self, stop: CancellationToken) {
        let mut running = self.0;
        stop.run_until_cancelled(running.keep()).await;
    }

    /// The same on a thread and a runtime of its own: nothing else in the process delays it.
    pub fn run_on_own_thread(self, stop: CancellationToken) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("lease".to_owned()).spawn(move || runtime.block_on(self.run(stop)))?;
        Ok(())
    }
}

// === impl Running ===

impl Running {
    fn has_gate(&self) -> bool {
        self.shared.abilities.timed_gate
    }

    /// Takes over what an earlier process left in the kernel; what the kernel refuses is tried again at the next look.
    async fn adopt(&mut self) {
        if !self.adopted && self.has_gate() {
            let taken_over = self.take_over().await;
            self.adopted = taken_over.is_ok();
            self.note(taken_over);
        }
    }

    /// A gate that still stands open goes on standing until its time is over (rule L7); an engine that may be writable gets one.
    async fn take_over(&mut self) -> Result<(), GateError> {
        let state = self.keeper.gate.state().await?;
        let reign = self.shared.holder().reign().map(|reign| reign.epoch);
        let ledger = self.keeper.ledger.borrow().clone();
        // The epoch may be over and its engine run all the same: the process that was to end it died before.
        let reigned = ledger.membership.as_ref().is_some_and(|membership| membership.role == Some(Role::Primary));
        if state.gated.is_empty() && reign.is_none() && !reigned {
            return Ok(());
        }
        let ports = state.gated.union(&self.listening).copied().collect();
        self.arm(ports).await?;
        match (state.open, reign) {
            (_, None) => self.cut().await?,
            (Open::Closed, Some(_)) => {}
            (Open::Until(end), Some(epoch)) => self.opened = Some(Opened { epoch, end: Some(end), inherited: true }),
            (Open::Untimed, Some(epoch)) => self.opened = Some(Opened { epoch, end: None, inherited: true }),
        }
        if let Some(Opened { epoch, end, .. }) = self.opened {
            self.shared.set_kernel(|kernel| {
                kernel.open_for = Some(epoch);
                kernel.inherited = Some(Inherited { epoch, end });
            });
            let left = end.map(|end| end.held_for(self.shared.clock.now()).as_millis());
            tracing::info!(%epoch, left_millis = left, "the gate stands open by a lease of the process before this one");
        }
        Ok(())
    }

    async fn keep(&mut self) {
        loop {
            self.read_ledger();
            self.adopt().await;
            self.look().await;
            let pause = {
                let now = self.shared.clock.now();
                self.shared.holder().next_look(now).max(LEAST)
            };
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                () = self.shared.wake.notified() => {}
                changed = self.keeper.ledger.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn read_ledger(&mut self) {
        let ledger = self.keeper.ledger.borrow_and_update().clone();
        let membership = ledger.membership.as_ref();
        let reign = ledger.believed().and_then(|membership| reign_of(membership, &self.keeper.boot_id));
        let cluster_id = membership.map(|membership| membership.cluster_id);
        let changed = self.cluster_id.is_some() && cluster_id.is_some() && self.cluster_id != cluster_id;
        self.cluster_id = cluster_id.or(self.cluster_id);
        if changed {
            self.shared.promises().change_cluster();
        }
        let mut holder = self.shared.holder();
        if changed {
            holder.change_cluster();
        }
        if let Some(fenced) = membership.and_then(|membership| membership.fenced_epoch) {
            holder.revoke(fenced);
        }
        holder.set_reign(reign);
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Ports(ports) => {
                self.listening = ports;
                if let Some(armed) = &self.armed
                    && !self.listening.is_subset(armed)
                {
                    let ports = armed.union(&self.listening).copied().collect();
                    let armed = self.arm(ports).await;
                    self.opened = None;
                    self.note(armed);
                }
            }
            Order::Take { ports, done } => {
                let taken = self.take(ports).await;
                self.answer(done, taken);
            }
            Order::TakeRunning { ports, done } => {
                let taken = self.take_running(ports).await;
                self.answer(done, taken);
            }
            Order::Cut { done } => {
                let cut = self.cut().await;
                self.answer(done, cut);
            }
            Order::LayDown { done } => {
                let laid_down = self.lay_down().await;
                self.answer(done, laid_down);
            }
            Order::LetGo { done } => {
                let let_go = self.let_go().await;
                self.answer(done, let_go);
            }
        }
    }

    fn answer(&mut self, done: tokio::sync::oneshot::Sender<Result<(), GateError>>, outcome: Result<(), GateError>) {
        self.note(outcome.clone());
        // Whoever asked may have been stopped meanwhile.
        let _ = done.send(outcome);
    }

    async fn arm(&mut self, ports: BTreeSet<u16>) -> Result<(), GateError> {
        self.keeper.gate.arm(&ports).await?;
        self.armed = Some(ports);
        Ok(())
    }

    async fn take(&mut self, ports: BTreeSet<u16>) -> Result<(), GateError> {
        if !self.has_gate() {
            return Ok(());
        }
        let ports = ports.union(&self.listening).copied().collect();
        self.arm(ports).await?;
        self.cut().await
    }

    async fn take_running(&mut self, ports: BTreeSet<u16>) -> Result<(), GateError> {
        if !self.has_gate() || self.armed.is_some() {
            // What is armed already is kept as the lease wants it.
            return Ok(());
        }
        let judged = self.judge();
        let standing = judged.standing.ok_or(GateError::NoTimeLeft)?;
        let ports = ports.union(&self.listening).copied().collect();
        self.keeper.gate.arm_open(&ports, standing.end).await?;
        self.armed = Some(ports);
        self.opened = Some(Opened { epoch: standing.epoch, end: standing.end, inherited: false });
        self.confirm(standing.epoch, judged.version);
        Ok(())
    }

    async fn let_go(&mut self) -> Result<(), GateError> {
        if self.armed.is_none() {
            return Ok(());
        }
        self.keeper.gate.disarm().await?;
        (self.armed, self.opened) = (None, None);
        self.shared.set_kernel(|kernel| *kernel = super::handle::Kernel::default());
        Ok(())
    }

    async fn cut(&mut self) -> Result<(), GateError> {
        if self.armed.is_none() {
            return Ok(());
        }
        self.close().await?;
        let destroyed = self.keeper.gate.destroy_sockets().await?;
        if destroyed > 0 {
            tracing::info!(destroyed, "sockets of the engine's ports were destroyed");
        }
        Ok(())
    }

    async fn close(&mut self) -> Result<(), GateError> {
        self.keeper.gate.close().await?;
        self.opened = None;
        self.shared.set_kernel(|kernel| *kernel = super::handle::Kernel::default());
        Ok(())
    }

    async fn lay_down(&mut self) -> Result<(), GateError> {
        if self.armed.is_none() {
            return Ok(());
        }
        self.cut().await?;
        self.keeper.gate.disarm().await?;
        self.armed = None;
        Ok(())
    }

    fn judge(&self) -> Judged {
        let now = self.shared.clock.now();
        let holder = self.shared.holder();
        Judged {
            now,
            reign: holder.reign().map(|reign| reign.epoch),
            standing: holder.standing(now),
            version: holder.obeyed().map(|electorate| electorate.version),
            timing: holder.timing(),
        }
    }

    /// Makes the gate fit the lease, and asks for endorsement when it is time.
    async fn look(&mut self) {
        let judged = self.judge();
        if self.has_gate() {
            if self.armed.is_some() {
                self.verify(&judged).await;
                let fitted = self.fit(&judged).await;
                self.note(fitted);
            }
        } else {
            self.watch_without_gate(&judged);
        }
        self.ask(&judged);
    }

    async fn fit(&mut self, judged: &Judged) -> Result<(), GateError> {
        let Some(standing) = judged.standing else {
            return match self.opened {
                None => Ok(()),
                // The kernel ends it in time; closing it now would make every restart of the agent an outage (rule L7).
                Some(opened)
                    if opened.inherited && judged.reign == Some(opened.epoch) && !self.is_over(opened, judged) =>
                {
                    Ok(())
                }
                Some(_) => self.close().await,
            };
        };
        let wanted = Opened { epoch: standing.epoch, end: standing.end, inherited: false };
        if self.opened != Some(wanted) {
            // What stood open before ends by itself if this fails; it is tried again at the next look.
            self.keeper.gate.open(standing.end).await?;
            if self.opened.replace(wanted).is_some_and(|opened| opened.inherited) {
                tracing::info!(epoch = %standing.epoch, "the gate stands open by a lease of this process now");
            }
        }
        self.confirm(standing.epoch, judged.version);
        self.note_handed_over(&standing, judged);
        Ok(())
    }

    /// Rule L7: the kernel has the gate by which the engine serves on while no agent runs. Only the coordinator grants more than
    /// the profile's length.
    fn note_handed_over(&self, standing: &Standing, judged: &Judged) {
        let longer = standing.end.filter(|end| end.held_for(judged.now) > judged.timing.ttl);
        if let Some(end) = longer.filter(|_| self.shared.hands_over()) {
            self.shared.handed_over.send_replace(Some(end));
        }
    }

    fn is_over(&self, opened: Opened, judged: &Judged) -> bool {
        opened.end.is_some_and(|end| end.held_for(judged.now).is_zero())
    }

    /// The kernel has a gate that fits the version by which the lease was judged.
    fn confirm(&self, epoch: Epoch, version: Option<u64>) {
        self.shared.set_kernel(|kernel| {
            kernel.open_for = Some(epoch);
            kernel.confirmed = version.map(|version| (epoch, version));
            kernel.inherited = None;
        });
    }

    /// Rule G6: where no gate closes by itself the engine is stopped early enough to be gone when the lease ends.
    fn watch_without_gate(&self, judged: &Judged) {
        let ending = match judged.standing {
            None => true,
            Some(Standing { end: None, .. }) => false,
            Some(Standing { end: Some(end), .. }) => end.held_for(judged.now) < judged.timing.heartbeat,
        };
        // Before the first grant of a reign its engine is not writable yet: there is nothing to stop. What an earlier process
        // was granted is over when a whole lease has passed since this one started.
        let reigned = self.shared.kernel().open_for;
        let found = self.found.filter(|(_, started)| started.age(judged.now) >= judged.timing.ttl);
        let is_over = |epoch: &Epoch| reigned == Some(*epoch) || found.is_some_and(|(found, _)| found == *epoch);
        let lapsed = judged.reign.filter(|epoch| ending && is_over(epoch));
        self.shared.lapsed.send_if_modified(|known| {
            let changed = *known != lapsed;
            *known = lapsed;
            changed
        });
        if let Some(standing) = judged.standing {
            self.confirm(standing.epoch, judged.version);
        }
    }

    /// Rule G3, once a heartbeat.
    async fn verify(&mut self, judged: &Judged) {
        if self.verified_at.is_some_and(|at| at.age(judged.now) < judged.timing.heartbeat) {
            return;
        }
        self.verified_at = Some(judged.now);
        match self.keeper.gate.verify().await {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => {
                tracing::warn!(missing = missing.join("; "), "the gate was not as it should be, and was put back");
                self.opened = None;
                // It was put back closed.
                self.shared.set_kernel(|kernel| kernel.inherited = None);
            }
            Err(error) => self.note(Err(error)),
        }
    }

    fn note(&mut self, outcome: Result<(), GateError>) {
        match outcome {
            // These are how a change that comes too late is kept from doing harm.
            Ok(()) | Err(GateError::Late | GateError::NoTimeLeft) => self.trouble = None,
            Err(error) => {
                if self.trouble.as_ref() != Some(&error) {
                    tracing::error!(%error, "the gate cannot be changed: writes stop when what is open has ended");
                }
                self.trouble = Some(error);
            }
        }
    }

    /// Asks for endorsement, once a heartbeat, when the coordinator does not renew the lease (rule E1).
    fn ask(&mut self, judged: &Judged) {
        let Judged { now, standing, timing, .. } = *judged;
        if self.asked_at.is_some_and(|at| at.age(now) < timing.heartbeat) {
            return;
        }
        let questions = self.shared.holder().ask(now);
        if questions.is_empty() {
            return;
        }
        self.asked_at = Some(now);
        let ledger = self.keeper.ledger.borrow().clone();
        let (Some(membership), Some(epoch)) = (&ledger.membership, judged.reign) else { return };
        let lease = LeaseReport {
            epoch,
            stands: standing.is_some(),
            source: standing.map(|standing| standing.source),
            remaining: standing.and_then(|standing| standing.end).map_or(Duration::ZERO, |end| end.held_for(now)),
        };
        for (member, nonce) in questions {
            let Some(peer) = membership.spec.members.iter().find(|peer| peer.member == member) else { continue };
            let question = Question {
                peer: peer.clone(),
                cluster_id: membership.cluster_id,
                member: membership.member.clone(),
                epoch,
                nonce,
                boot_id: self.keeper.boot_id.clone(),
                ttl: timing.ttl,
                lease: lease.clone(),
                position: (self.keeper.position)(),
            };
            let (endorsers, shared) = (self.keeper.endorsers.clone(), self.shared.clone());
            tokio::spawn(async move {
                // An answer that comes after the ttl is of no use.
                let answer = tokio::time::timeout(timing.ttl, endorsers.ask(question)).await;
                match answer {
                    Ok(Ok(word)) => {
                        let now = shared.clock.now();
                        shared.holder().endorsed(now, nonce, word.endorsed, word.known_epoch);
                        shared.wake.notify_one();
                    }
                    Ok(Err(problem)) => tracing::debug!(%member, problem, "no endorsement"),
                    Err(_) => tracing::debug!(%member, "no answer to the question for endorsement"),
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
