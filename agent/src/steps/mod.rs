//! Carries out the steps of operations: each at most once at a time, each with its start and its result on disk.
//!
//! A step runs in a task of its own: the call that asked for it may break off, the same call again joins it or is
//! answered from the ledger. Steps that the ledger admits run one after another; one that is accepted under a higher
//! epoch or token first stops what runs under a lower one and waits for its end (rule T1), and a fence kills it instead.
//!
//! **Invariants:** nothing runs that the ledger has not admitted; a step's start is on disk before it begins, its result
//! before anybody hears of it. A failed attempt leaves no result: the same step may be asked for again.

pub mod action;
pub mod actions;
mod context;
mod error;
pub mod running;

use std::{sync::Arc, time::Duration};

pub use action::{Action, ActionError};
pub use context::{Peers, StepContext};
pub use error::StepError;
use regent_common::{
    error::ErrorChain,
    ids::OperationId,
    mutation::{self, Rule},
};
use running::{Held, Running, Table};
use tokio::sync::Mutex;
use tracing::Instrument;

use crate::{
    engine::{Stop, Work},
    firewall::Keeper,
    lease::LeaseHandle,
    ledger::{Admission, Header, LedgerStore, StepKey, StepOutcome},
    member::Member,
};

/// What came of asking for a step.
#[derive(Debug)]
pub enum Execution {
    /// It had been carried out before.
    Answered(Box<StepOutcome>),
    /// It runs, begun now or before.
    Running(Arc<Running>),
}

/// Carries out steps on this node.
#[derive(Debug)]
pub struct Executor {
    ledger: LedgerStore,
    member: Arc<Member>,
    peers: Arc<dyn Peers>,
    lease: LeaseHandle,
    firewall: Arc<Keeper>,
    boot_id: Arc<str>,
    table: Arc<Table>,
    /// Held while a step is admitted, until what is lower has ended and the start is on disk.
    admitting: Mutex<()>,
    /// Held while a step is carried out.
    driving: Arc<Mutex<()>>,
}

/// What stopping a step means for its action.
enum Stopping {
    /// Its work is dropped; every driver method can be called again after that.
    AtOnce,
    /// It has helpers to end first, and gets this long.
    Within(Duration),
    /// It is waited for: dropped half-way, the engine could become writable after the stop was answered.
    AtItsEnd,
}

/// How long a step may take to end its helper processes.
const GRACE: Duration = Duration::from_secs(5);

fn stopping(action: &Action) -> Stopping {
    match action {
        // Of an adoption that is broken off half would be left, and nobody to give it back.
        Action::Initialize | Action::Promote | Action::Adopt { .. } | Action::ForcePrimary { .. } => Stopping::AtItsEnd,
        Action::Clone { .. } | Action::Swap { .. } | Action::Rewind { .. } | Action::Refill { .. } => {
            Stopping::Within(GRACE)
        }
        Action::Assign { .. }
        | Action::Configure { .. }
        | Action::DiscardKept
        | Action::Fence
        | Action::Prepare { .. }
        | Action::Follow { .. }
        | Action::Examine
        | Action::Release { .. }
        | Action::Checkpoint { .. }
        | Action::Drain { .. }
        | Action::UndoDrain
        // Nothing excludes two sides that take writes: one that opens a moment late harms nobody.
        | Action::Activate { .. }
        | Action::Compare { .. } => Stopping::AtOnce,
    }
}

// === impl Executor ===

impl Executor {
    /// An executor with nothing running.
    ///
    /// `boot_id` names the present boot of the machine.
    pub fn new(
        ledger: LedgerStore,
        member: Arc<Member>,
        peers: Arc<dyn Peers>,
        lease: LeaseHandle,
        firewall: Arc<Keeper>,
        boot_id: &str,
    ) -> Self {
        Self {
            ledger,
            member,
            peers,
            lease,
            firewall,
            boot_id: boot_id.into(),
            table: Arc::default(),
            admitting: Mutex::new(()),
            driving: Arc::new(Mutex::new(())),
        }
    }

    /// The running steps.
    pub fn table(&self) -> &Arc<Table> {
        &self.table
    }

    /// The ledger that it obeys.
    pub fn ledger(&self) -> &LedgerStore {
        &self.ledger
    }

    /// Asks for a step. Going away does not stop it: it is admitted and carried out in tasks of its own.
    pub async fn execute(self: &Arc<Self>, header: Header, action: Action) -> Result<Execution, StepError> {
        let executor = self.clone();
        let name = action.name();
        let admitting = tokio::spawn(async move { executor.admit_and_start(header, action).await });
        admitting.await.map_err(|_| StepError::Killed { action: name })?
    }

    /// Tells a running step to stop; false when it does not run.
    pub fn cancel(&self, operation: OperationId, step: &str) -> bool {
        let running = self.table.get(&StepKey { operation, step: step.to_owned() });
        if let Some(running) = &running {
            running.stop();
        }
        running.is_some()
    }

    fn decide(&self, header: &Header, action: &Action) -> (Admission, Option<Arc<Running>>) {
        let running = self.table.get(&header.key);
        let content = running.as_ref().map(|step| step.content);
        (self.ledger.read().admit(header, action.claim(), content), running)
    }

    async fn admit_and_start(self: Arc<Self>, header: Header, action: Action) -> Result<Execution, StepError> {
        if action.kills() {
            // Before waiting for anything: whoever admits a step now may itself be waiting for a lower one to end, or for a
            // disk that hangs.
            self.kill_below(&header, &action).await?;
        }
        let _admitting = self.admitting.lock().await;
        loop {
            let (admission, running) = self.decide(&header, &action);
            let joined = admission == Admission::Join;
            if !matches!(admission, Admission::Refuse(_)) && self.end_below(&header, &action, joined).await {
                // The ends of others may have changed what is known: decide again.
                continue;
            }
            match (admission, running) {
                (Admission::Refuse(refusal), _) => return Err(refusal.into()),
                (Admission::Answer(outcome), _) => {
                    self.ledger.update(move |ledger| ledger.accept(&header)).await?;
                    return Ok(Execution::Answered(Box::new(outcome)));
                }
                (Admission::Join, Some(running)) => {
                    let token = header.token;
                    self.ledger.update(move |ledger| ledger.accept(&header)).await?;
                    running.raise_token(token);
                    return Ok(Execution::Running(running));
                }
                // It ended between the two looks.
                (Admission::Join, None) => {}
                (Admission::Run, _) => {
                    self.respect_promises(&header, &action).await?;
                    if action.kills() && mutation::broken(Rule::G5Ledger) {
                        return Ok(Execution::Answered(Box::new(self.kill_without_the_ledger().await?)));
                    }
                    let (begun, name) = (header.clone(), action.name());
                    self.ledger.update(move |ledger| ledger.begin(&begun, name)).await?;
                    return Ok(Execution::Running(self.start(header, action)));
                }
            }
        }
    }

    /// What a fence is where the ledger does not matter: the engine is dead, the epochs below are revoked in this process, and no
    /// disk knows of it.
    async fn kill_without_the_ledger(&self) -> Result<StepOutcome, StepError> {
        if let Some(driver) = self.member.driver() {
            driver.stop(Stop::Kill).await?;
        }
        self.lease.cut().await?;
        let writable_epoch = self.ledger.read().membership.as_ref().and_then(|membership| membership.writable_epoch);
        Ok(StepOutcome { writable_epoch, position: self.member.last_position(), ..StepOutcome::default() })
    }

    async fn kill_below(&self, header: &Header, action: &Action) -> Result<(), StepError> {
        let (admission, _) = self.decide(header, action);
        if !matches!(admission, Admission::Refuse(_)) {
            // A fence first of all revokes, in the lease future and for good (rule G5).
            self.lease.revoke(header.epoch).await?;
            for step in self.table.below(header, admission == Admission::Join) {
                tracing::warn!(step = step.key.step, action = step.action, "killed for a fence");
                step.kill();
            }
        }
        Ok(())
    }

    /// Keeps a member from being used at a higher epoch while it has promised that to the primary of a lower one (rules E2, E3).
    /// The higher epoch is kept in any case: nothing lower is endorsed any more.
    async fn respect_promises(&self, header: &Header, action: &Action) -> Result<(), StepError> {
        let epoch = header.epoch;
        let membership = self.ledger.read().membership.clone();
        let longest = membership.as_ref().and_then(|membership| membership.longest_ttl());
        let left = {
            let now = self.lease.clock().now();
            let mut promises = self.lease.promises();
            if matches!(action, Action::ForcePrimary { .. }) {
                let left = promises.force_in(now, membership.as_ref());
                if !left.is_zero() {
                    // Not barred, and the epoch not kept: nothing is to change for a primary that lives by this member's word.
                    return Err(StepError::PromiseStands { left });
                }
            }
            promises.bar(epoch);
            match action {
                Action::Prepare { old_primary_fenced: true } => {
                    promises.release(epoch);
                    Duration::ZERO
                }
                Action::Prepare { old_primary_fenced: false } => promises.prepare_in(now, epoch, longest),
                Action::Promote | Action::Follow { .. } => promises.promised_for(now, epoch),
                Action::Assign { .. }
                | Action::Configure { .. }
                | Action::Initialize
                | Action::Clone { .. }
                | Action::Swap { .. }
                | Action::DiscardKept
                | Action::Fence
                | Action::Examine
                | Action::Rewind { .. }
                | Action::Release { .. }
                | Action::Checkpoint { .. }
                | Action::Drain { .. }
                | Action::UndoDrain
                | Action::Adopt { .. }
                | Action::Activate { .. }
                | Action::Compare { .. }
                | Action::Refill { .. }
                | Action::ForcePrimary { .. } => Duration::ZERO,
            }
        };
        if left.is_zero() {
            return Ok(());
        }
        let header = header.clone();
        self.ledger.update(move |ledger| ledger.accept(&header)).await?;
        Err(StepError::PromiseStands { left })
    }

    /// Ends what a step with this header ends, and waits for that. Returns whether there was anything.
    async fn end_below(&self, header: &Header, action: &Action, joined: bool) -> bool {
        if mutation::broken(Rule::T1Running) {
            return false;
        }
        let lower = self.table.below(header, joined);
        for step in &lower {
            if action.kills() { step.kill() } else { step.supersede() }
        }
        for step in &lower {
            tracing::info!(step = step.key.step, action = step.action, "stopped for a higher epoch or token");
            // How it ended is for those who asked for it.
            let _ = step.ended().await;
        }
        !lower.is_empty()
    }

    fn start(self: &Arc<Self>, header: Header, action: Action) -> Arc<Running> {
        let held = self.table.enter(&header, action.name());
        let running = held.running.clone();
        let span = tracing::info_span!(
            "step",
            operation = %header.key.operation,
            step = header.key.step,
            action = action.name(),
            epoch = header.epoch.0,
            token = header.token.0,
        );
        let task = tokio::spawn(self.clone().carry_out(header, action, held).instrument(span));
        running.set_abort(task.abort_handle());
        running
    }

    async fn carry_out(self: Arc<Self>, header: Header, action: Action, held: Held) {
        let Held { ticket, progress, cancel, running: _ } = held;
        let name = action.name();
        let manner = stopping(&action);
        let context = StepContext {
            header: header.clone(),
            ledger: self.ledger.clone(),
            member: self.member.clone(),
            peers: self.peers.clone(),
            lease: self.lease.clone(),
            firewall: self.firewall.clone(),
            boot_id: self.boot_id.clone(),
            work: Work { progress, cancel: cancel.clone() },
        };
        let work = async {
            // Its turn is a part of waiting for the end of what runs (rule T1).
            let _driving = if mutation::broken(Rule::T1Running) {
                None
            } else {
                tokio::select! {
                    turn = self.driving.lock() => Some(turn),
                    () = cancel.cancelled() => return Err(StepError::Killed { action: name }),
                }
            };
            let mut running = Box::pin(actions::run(&context, action));
            tokio::select! {
                done = &mut running => done,
                () = cancel.cancelled() => match manner {
                    Stopping::AtOnce => Err(StepError::Killed { action: name }),
                    Stopping::Within(grace) => tokio::time::timeout(grace, running)
                        .await
                        .unwrap_or(Err(StepError::Killed { action: name })),
                    Stopping::AtItsEnd => running.await,
                },
            }
        };
        let end = match work.await {
            Ok(done) => {
                let (key, content) = (header.key.clone(), header.content());
                let outcome = done.outcome.clone();
                self.ledger
                    .update(move |ledger| {
                        (done.effect)(ledger);
                        ledger.finish(&key, content, done.outcome);
                    })
                    .await
                    .map(|()| outcome)
                    .map_err(StepError::from)
            }
            Err(error) => {
                let (key, content, text) = (header.key.clone(), header.content(), ErrorChain(&error).to_string());
                if let Err(ledger) = self.ledger.update(move |ledger| ledger.fail(&key, content, &text)).await {
                    tracing::warn!(error = %ErrorChain(&ledger), "a failed attempt could not be noted");
                }
                Err(error)
            }
        };
        let outcome = if end.is_ok() { "done" } else { "failed" };
        metrics::counter!("regent_agent_steps_total", "action" => name, "outcome" => outcome).increment(1);
        match &end {
            Ok(_) => tracing::info!("done"),
            // The coordinator hears of it, decides, and logs what matters to people.
            Err(error) => tracing::info!(error = %ErrorChain(error), "not done"),
        }
        ticket.hand_in(end.map_err(Arc::new));
    }
}
