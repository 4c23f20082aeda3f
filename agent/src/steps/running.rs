//! The steps that run in this process: how they are told to stop, how others wait for their end.
//!
//! **Invariant:** a step leaves the table when its task ends, however it ends (also by a panic or by being killed), and
//! only then do those who wait for its end go on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use regent_common::{
    ids::{ClusterId, Epoch, OperationToken},
    topology::Progress,
};
use tokio::{sync::watch, task::AbortHandle};
use tokio_util::sync::CancellationToken;

use super::StepError;
use crate::{
    engine::DriverError,
    ledger::{Content, Header, StepKey, StepOutcome},
};

/// How a step ended.
pub type End = Result<StepOutcome, Arc<StepError>>;

/// One running step.
#[derive(Debug)]
pub struct Running {
    /// Names it.
    pub key: StepKey,
    /// Cluster that it belongs to.
    pub cluster_id: ClusterId,
    /// What it does.
    pub content: Content,
    /// Name of its action.
    pub action: &'static str,
    /// Token that it runs under; raised when a resumed coordinator joins.
    token: AtomicU64,
    /// How far it has come.
    pub progress: watch::Receiver<Progress>,
    /// Its end; the sender is dropped without one when it was killed.
    pub end: watch::Receiver<Option<End>>,
    cancel: CancellationToken,
    abort: Mutex<Option<AbortHandle>>,
    superseded: AtomicBool,
}

/// All running steps of this process.
#[derive(Debug, Default)]
pub struct Table {
    steps: Mutex<BTreeMap<StepKey, Arc<Running>>>,
    changes: watch::Sender<u64>,
}

/// Takes a step out of the table when its task ends, then tells its end.
#[derive(Debug)]
pub(super) struct Ticket {
    table: Arc<Table>,
    key: StepKey,
    end: watch::Sender<Option<End>>,
}

/// The ends of a running step that its task holds.
pub(super) struct Held {
    pub(super) ticket: Ticket,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) cancel: CancellationToken,
    pub(super) running: Arc<Running>,
}

// === impl Running ===

impl Running {
    /// Token that it runs under.
    pub fn token(&self) -> OperationToken {
        OperationToken(self.token.load(Ordering::SeqCst))
    }

    /// Lets it go on under a higher token.
    pub(super) fn raise_token(&self, token: OperationToken) {
        self.token.fetch_max(token.0, Ordering::SeqCst);
    }

    /// Whether a step with this header ends it (rule T1).
    pub(super) fn is_below(&self, cluster_id: ClusterId, epoch: Epoch, token: OperationToken) -> bool {
        self.cluster_id == cluster_id && (self.content.epoch < epoch || self.token() < token)
    }

    /// Tells it to stop.
    pub fn stop(&self) {
        self.cancel.cancel();
    }

    /// Whether it has been told to stop.
    pub fn is_stopping(&self) -> bool {
        self.cancel.is_cancelled()
    }

    /// Tells it to stop for a step with a higher epoch or token.
    pub(super) fn supersede(&self) {
        self.superseded.store(true, Ordering::SeqCst);
        self.cancel.cancel();
    }

    /// Drops it where it stands, for a step with a higher epoch or token.
    pub fn kill(&self) {
        self.supersede();
        if let Some(abort) = &*lock(&self.abort) {
            abort.abort();
        }
    }

    pub(super) fn set_abort(&self, handle: AbortHandle) {
        *lock(&self.abort) = Some(handle);
    }

    /// Waits for its end.
    pub async fn ended(&self) -> End {
        let mut end = self.end.clone();
        // The sender goes away without an end when the step's task was dropped.
        let told = end.wait_for(Option::is_some).await.ok().and_then(|end| end.clone());
        match told {
            Some(Err(error)) if !self.was_superseded(&error) => Err(error),
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(_)) => Err(Arc::new(StepError::Superseded { action: self.action })),
            None if self.superseded.load(Ordering::SeqCst) => {
                Err(Arc::new(StepError::Superseded { action: self.action }))
            }
            None => Err(Arc::new(StepError::Killed { action: self.action })),
        }
    }

    fn was_superseded(&self, error: &StepError) -> bool {
        let stopped = matches!(error, StepError::Killed { .. } | StepError::Driver(DriverError::Cancelled { .. }));
        stopped && self.superseded.load(Ordering::SeqCst)
    }
}

// === impl Table ===

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while one of these locks is held leaves a map or a handle, both whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Table {
    /// The running step of this key.
    pub fn get(&self, key: &StepKey) -> Option<Arc<Running>> {
        lock(&self.steps).get(key).cloned()
    }

    /// All running steps, sorted by key.
    pub fn all(&self) -> Vec<Arc<Running>> {
        lock(&self.steps).values().cloned().collect()
    }

    /// Running steps that a step with this header ends, apart from the one it joins.
    pub(super) fn below(&self, header: &Header, joined: bool) -> Vec<Arc<Running>> {
        self.all()
            .into_iter()
            .filter(|step| step.is_below(header.cluster_id, header.epoch, header.token))
            .filter(|step| !(joined && step.key == header.key))
            .collect()
    }

    /// Counts the beginnings and ends of steps.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn enter(self: &Arc<Self>, header: &Header, action: &'static str) -> Held {
        let (progress_sender, progress) = watch::channel(Progress::default());
        let (end_sender, end) = watch::channel(None);
        let cancel = CancellationToken::new();
        let running = Arc::new(Running {
            key: header.key.clone(),
            cluster_id: header.cluster_id,
            content: header.content(),
            action,
            token: AtomicU64::new(header.token.0),
            progress,
            end,
            cancel: cancel.clone(),
            abort: Mutex::new(None),
            superseded: AtomicBool::new(false),
        });
        lock(&self.steps).insert(header.key.clone(), running.clone());
        self.changes.send_modify(|count| *count += 1);
        Held {
            ticket: Ticket { table: self.clone(), key: header.key.clone(), end: end_sender },
            progress: progress_sender,
            cancel,
            running,
        }
    }
}

// === impl Ticket ===

impl Ticket {
    /// Leaves the table and tells the end.
    pub(super) fn hand_in(self, end: End) {
        let sender = self.end.clone();
        drop(self);
        sender.send_replace(Some(end));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.table.steps).remove(&self.key);
        self.table.changes.send_modify(|count| *count += 1);
    }
}
