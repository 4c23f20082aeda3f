//! Runs an operation: persists each transition before acting on it, resumes after a crash, unwinds after a failure.
//!
//! Order of every step: the `Started` event with the token is durable → the step runs → the `Succeeded` event, the step's
//! change of the cluster's record and the next step's `Started` event are durable in one commit. A crash anywhere leaves
//! either a step that is run again under a higher token, or one that is known to be done.
//!
//! A failure before the point of no return undoes the finished steps, last first. After it nothing is undone: the
//! operation ends as failed, [`Kind::abandon`] makes the stored topology true, and the planner takes it from there
//! (rule P8). In both cases the token is raised first, so that a late call of the given-up step is refused (rule T1).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use regent_common::{
    error::{ErrorChain, Reason, Retryable},
    ids::{MemberName, NodeName, OperationId, OperationToken},
    topology::Progress,
};
use serde::Serialize;
use tokio::sync::watch;

use super::{
    Aftermath, Change, Kind, StepContext, StepDone, StepError, kind,
    log::{Entry, Event, Failure, Outcome, Stage, Status, StepStatus},
    parameters,
};
use crate::{
    audit::SELF,
    cluster::{ChangeError, ClusterHandle},
    environment::Environment,
    model::{
        Assignment, Tombstone,
        cluster::{ClusterRecord, MemberRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
        shown::Shown,
    },
    store::{StoreError, Transaction, keys, list_json},
};

/// Pause before a commit that the store did not take is tried again.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// What is wanted.
pub struct NewOperation {
    /// Its id, made by whoever asks so that a repeated request finds it.
    pub id: OperationId,
    /// The kind.
    pub kind: &'static dyn Kind,
    /// In the kind's own form.
    pub parameters: serde_json::Value,
    /// Who asks.
    pub created_by: String,
    /// Why.
    pub reason: String,
}

// === impl NewOperation ===

impl NewOperation {
    /// An operation of `kind` with an id of its own.
    pub fn new(kind: &'static dyn Kind, parameters: &impl Serialize, created_by: &str, reason: String) -> Self {
        let (id, created_by) = (OperationId::generate(), created_by.to_owned());
        NewOperation { id, kind, parameters: parameters::write(parameters), created_by, reason }
    }

    /// One of Regent's own.
    pub fn automatic(kind: &'static dyn Kind, parameters: &impl Serialize, reason: String) -> Self {
        Self::new(kind, parameters, SELF, reason)
    }
}

/// Why an operation was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The log cannot be read.
    #[error("the log of operation {operation} cannot be read")]
    Log {
        /// The operation.
        operation: OperationId,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Another coordinator has taken over, or the cluster is gone.
    #[error("operation {operation} stops here")]
    Stopped {
        /// The operation.
        operation: OperationId,
        /// Why.
        #[source]
        source: ChangeError,
    },
}

/// Runs one operation.
pub struct Runner<'a> {
    environment: &'a Environment,
    cluster: &'a ClusterHandle,
    operation: &'a OperationRecord,
    kind: &'static dyn Kind,
    status: Status,
    token: OperationToken,
    progress: watch::Sender<Progress>,
    shown: Arc<Mutex<BTreeMap<MemberName, Shown>>>,
}

/// The operation's record and first log entry, as part of the commit that begins it, and the changed cluster.
pub fn begin(
    new: &NewOperation,
    cluster: &mut ClusterRecord,
    now: jiff::Timestamp,
    mut transaction: Transaction,
) -> (OperationRecord, Transaction) {
    cluster.token = cluster.token.next();
    new.kind.begin(cluster, &new.parameters);
    let operation = OperationRecord {
        id: new.id,
        kind: new.kind.name().to_owned(),
        cluster: cluster.name.clone(),
        cluster_id: cluster.id,
        steps: new.kind.plan(cluster, &new.parameters),
        parameters: new.parameters.clone(),
        created_by: new.created_by.clone(),
        reason: new.reason.clone(),
        created_at: now,
    };
    cluster.operation = Some(operation.id);
    let started = Entry { at: now, event: Event::Started { step: 0, token: cluster.token } };
    transaction = transaction
        .require_absent(keys::operation(&operation.id))
        .put_json(keys::operation(&operation.id), &operation)
        .put_json(keys::operation_log(&operation.id, 0), &started);
    (operation, transaction)
}

/// Adds to a commit that a node is a member from now on; the commit fails when the node is one already.
pub fn assign(transaction: Transaction, cluster: &ClusterRecord, member: &MemberName, node: &NodeName) -> Transaction {
    let key = keys::assignment(node);
    let assignment = Assignment { cluster: cluster.name.clone(), member: member.clone() };
    transaction.require_absent(key.clone()).put_json(key, &assignment)
}

/// Adds to a commit that a member has left, so that its node is a spare. One that was away finds out from the tombstone that it is to
/// be emptied, and under which numbers.
fn leave(transaction: Transaction, cluster: &ClusterRecord, member: &MemberName, stored: &MemberRecord) -> Transaction {
    let keep_data = matches!(stored.state, MemberState::Leaving { keep_data: true, .. });
    let tombstone = Tombstone::of_member(cluster, keep_data);
    transaction.delete(keys::assignment(&stored.node)).put_json(keys::member_tombstone(&cluster.id, member), &tombstone)
}

/// Adds to the commit that removes a cluster that its nodes are spares. One that was away finds out from the tombstone that it is to
/// be emptied, and under which numbers.
pub fn dissolve(cluster: &ClusterRecord, transaction: Transaction) -> Transaction {
    let spares = cluster.members.values().map(|member| keys::assignment(&member.node));
    spares.fold(transaction, Transaction::delete).put_json(keys::tombstone(&cluster.id), &Tombstone::of(cluster))
}

/// Begins an operation of an existing cluster; refused while another one runs.
pub async fn create(
    environment: &Environment,
    cluster: &ClusterHandle,
    new: NewOperation,
    transaction: Transaction,
) -> Result<OperationRecord, ChangeError> {
    let mut created = None;
    cluster
        .change(|record| {
            if let Some(running) = record.operation {
                return Err(ChangeError::Busy { cluster: record.name.clone(), running });
            }
            let before = record.members.clone();
            let (operation, transaction) = begin(&new, record, environment.clock.wall(), transaction);
            created = Some(operation);
            let new_members = record.members.iter().filter(|(member, _)| !before.contains_key(*member));
            Ok(new_members.fold(transaction, |t, (member, stored)| assign(t, record, member, &stored.node)))
        })
        .await?;
    Ok(created.expect("the change ran, or an error was returned"))
}

/// Reads an operation's log.
pub async fn status(environment: &Environment, operation: &OperationRecord) -> Result<Status, RunError> {
    let failed = |source| RunError::Log { operation: operation.id, source };
    let prefix = keys::operation_log_prefix(&operation.id);
    let entries = list_json::<Entry>(environment.store.as_ref(), &prefix).await.map_err(|e| failed(Box::new(e)))?;
    Status::replay(operation.steps.len(), entries.into_iter().map(|(_, entry)| entry.value))
        .map_err(|e| failed(Box::new(e)))
}

/// What ends an operation in the log without carrying on with it, as part of another commit: what it was begun from is not
/// true any more. Nothing when it has ended.
pub async fn end_in_log(
    environment: &Environment,
    operation: &OperationRecord,
    failure: &Failure,
) -> Result<Transaction, RunError> {
    let status = status(environment, operation).await?;
    if status.has_ended() {
        return Ok(Transaction::default());
    }
    let events = [Event::Cancelled { failure: failure.clone() }, Event::Ended { outcome: Outcome::Cancelled }];
    entries(environment, operation, &status, events).map(|(_, transaction)| transaction)
}

/// The status after these events, and what writes them.
fn entries(
    environment: &Environment,
    operation: &OperationRecord,
    status: &Status,
    events: impl IntoIterator<Item = Event>,
) -> Result<(Status, Transaction), RunError> {
    let mut status = status.clone();
    let mut transaction = Transaction::default();
    for event in events {
        let key = keys::operation_log(&operation.id, status.next_entry);
        let entry = Entry { at: environment.clock.wall(), event };
        status =
            status.apply(&entry).map_err(|error| RunError::Log { operation: operation.id, source: Box::new(error) })?;
        transaction = transaction.require_absent(key.clone()).put_json(key, &entry);
    }
    Ok((status, transaction))
}

// === impl Runner ===

impl<'a> Runner<'a> {
    /// Prepares to run, or to go on with, an operation. `progress` tells how far its present step has come.
    pub async fn load(
        environment: &'a Environment,
        cluster: &'a ClusterHandle,
        operation: &'a OperationRecord,
        progress: watch::Sender<Progress>,
    ) -> Result<Self, RunError> {
        let status = status(environment, operation).await?;
        let kind = kind(&operation.kind).ok_or_else(|| RunError::Log {
            operation: operation.id,
            source: format!("kind {} is not known to this version", operation.kind).into(),
        })?;
        let token = cluster.record().map(|record| record.token).unwrap_or_default();
        Ok(Self { environment, cluster, operation, kind, status, token, progress, shown: Arc::default() })
    }

    /// Goes on after a crash of the coordinator: a step that had begun is begun again under a higher token.
    pub async fn resume(&mut self) -> Result<(), RunError> {
        match (&self.status.stage, self.status.next_step()) {
            (Stage::Pending | Stage::Running, Some(step)) => {
                tracing::info!(operation = %self.operation.id, kind = self.kind.name(),
                    step = self.operation.steps[step].name, "resuming the operation");
                let token = self.token.next();
                self.commit(vec![Event::Started { step, token }], Box::new(move |record| record.token = token)).await?;
                self.token = token;
                Ok(())
            }
            (Stage::Unwinding(..), _) => self.raise_token().await,
            (Stage::Pending | Stage::Running, None) | (Stage::Ended(..), _) => Ok(()),
        }
    }

    /// Runs to the end, or until `interrupt` has a failure: then the operation is cancelled with it.
    pub async fn run(&mut self, mut interrupt: watch::Receiver<Option<Failure>>) -> Result<Outcome, RunError> {
        loop {
            match self.status.stage.clone() {
                Stage::Ended(outcome, _) => return Ok(outcome),
                Stage::Unwinding(failure, outcome) => self.unwind(&failure, outcome).await?,
                Stage::Pending | Stage::Running => match self.status.next_step() {
                    None => self.finish().await?,
                    Some(step) => {
                        let interrupted = async {
                            // A sender that is gone never interrupts.
                            let failure = interrupt.wait_for(Option::is_some).await.map(|failure| failure.clone());
                            match failure {
                                Ok(failure) => failure.expect("waited for it"),
                                Err(_) => std::future::pending().await,
                            }
                        };
                        tokio::select! {
                            biased;
                            failure = interrupted => self.cancel(failure).await?,
                            outcome = self.run_step(step) => self.step_ended(step, outcome).await?,
                        }
                    }
                },
            }
        }
    }

    pub(super) async fn run_step(&self, step: usize) -> Result<StepDone, StepError> {
        let planned = &self.operation.steps[step];
        failpoint(self.kind.name(), &planned.name, "before");
        self.progress.send_replace(Progress::default());
        let done = self.kind.run(planned, &self.context(step, "")).await;
        failpoint(self.kind.name(), &planned.name, "after");
        done
    }

    pub(super) async fn step_ended(
        &mut self,
        step: usize,
        outcome: Result<StepDone, StepError>,
    ) -> Result<(), RunError> {
        match outcome {
            Ok(done) => {
                let StepDone { output, report, change, remove_cluster } = done;
                if !report.is_empty() {
                    tracing::info!(operation = %self.operation.id, kind = self.kind.name(),
                        step = self.operation.steps[step].name, "{}", report.join("; "));
                }
                let mut events = vec![Event::Succeeded { step, output, report }];
                if remove_cluster {
                    events.push(Event::Ended { outcome: Outcome::Succeeded });
                    return self.commit_removal(events).await;
                }
                let last = step + 1 == self.operation.steps.len();
                if last {
                    events.push(Event::Ended { outcome: Outcome::Succeeded });
                } else {
                    events.push(Event::Started { step: step + 1, token: self.token });
                }
                let id = self.operation.id;
                self.commit(
                    events,
                    Box::new(move |record| {
                        if let Some(change) = &change {
                            change(record);
                        }
                        if last && record.operation == Some(id) {
                            record.operation = None;
                        }
                    }),
                )
                .await
            }
            Err(error) => {
                let failure = Failure { reason: error.reason.as_str().to_owned(), message: error.message };
                let message = format!("step {}: {}", self.operation.steps[step].name, failure.message);
                tracing::info!(operation = %self.operation.id, kind = self.kind.name(),
                    step = self.operation.steps[step].name, error = %failure.message, "the step failed");
                let failure = Failure { message, ..failure };
                self.give_up(Event::Failed { step, failure: failure.clone() }, &failure, Outcome::Failed).await
            }
        }
    }

    /// The first step that has not succeeded; `None` when the operation has none left.
    #[cfg(test)]
    pub(super) fn next_step(&self) -> Option<usize> {
        self.status.next_step()
    }

    async fn cancel(&mut self, failure: Failure) -> Result<(), RunError> {
        self.give_up(Event::Cancelled { failure: failure.clone() }, &failure, Outcome::Cancelled).await
    }

    /// Raises the token with the event that gives the operation up. What cannot or need not be undone ends in the same commit.
    async fn give_up(&mut self, event: Event, failure: &Failure, outcome: Outcome) -> Result<(), RunError> {
        let token = self.token.next();
        let preempted = matches!(event, Event::Cancelled { .. }) && failure.reason == Reason::StepSuperseded.as_str();
        let undo = !self.past_return() && self.kind.undoes() && !preempted;
        if undo {
            self.commit(vec![event], Box::new(move |record| record.token = token)).await?;
            self.token = token;
            return Ok(());
        }
        self.end(vec![event], token, failure, outcome).await
    }

    /// Ends the operation without its aim.
    async fn end(
        &mut self,
        mut events: Vec<Event>,
        token: OperationToken,
        failure: &Failure,
        outcome: Outcome,
    ) -> Result<(), RunError> {
        events.push(Event::Ended { outcome });
        let (kind, operation, why) = (self.kind, self.operation.clone(), failure.message.clone());
        let mut probe = match self.cluster.record() {
            Some(record) => (*record).clone(),
            None => return self.commit(events, Box::new(|_| ())).await,
        };
        let undone = matches!(self.status.stage, Stage::Unwinding(..));
        if kind.abandon(&mut probe, &operation, undone, &why) == Aftermath::Remove {
            return self.commit_removal(events).await;
        }
        self.commit(
            events,
            Box::new(move |record| {
                record.token = record.token.max(token);
                kind.abandon(record, &operation, undone, &why);
                if record.operation == Some(operation.id) {
                    record.operation = None;
                }
            }),
        )
        .await?;
        self.token = token;
        Ok(())
    }

    async fn unwind(&mut self, failure: &Failure, outcome: Outcome) -> Result<(), RunError> {
        let open = |status: &StepStatus| match status {
            StepStatus::Running | StepStatus::Succeeded | StepStatus::Failed(_) => true,
            StepStatus::Pending | StepStatus::Undone => false,
        };
        while let Some(step) = self.status.steps.iter().rposition(|log| open(&log.status)) {
            let planned = &self.operation.steps[step];
            failpoint(self.kind.name(), &planned.name, "undo");
            if let Err(error) = self.kind.undo(planned, &self.context(step, "undo-")).await {
                // What could not be taken back is found again when its node is next heard (rule P8).
                tracing::warn!(operation = %self.operation.id, step = planned.name, %error, "a step could not be undone");
            }
            self.commit(vec![Event::Undone { step }], Box::new(|_| ())).await?;
        }
        self.end(Vec::new(), self.token, failure, outcome).await
    }

    async fn finish(&mut self) -> Result<(), RunError> {
        let id = self.operation.id;
        self.commit(
            vec![Event::Ended { outcome: Outcome::Succeeded }],
            Box::new(move |record| {
                if record.operation == Some(id) {
                    record.operation = None;
                }
            }),
        )
        .await
    }

    async fn raise_token(&mut self) -> Result<(), RunError> {
        let token = self.token.next();
        self.commit(Vec::new(), Box::new(move |record| record.token = token)).await?;
        self.token = token;
        Ok(())
    }

    fn past_return(&self) -> bool {
        self.operation
            .steps
            .iter()
            .zip(&self.status.steps)
            .any(|(planned, log): (&PlannedStep, _)| planned.point_of_no_return && log.status != StepStatus::Pending)
    }

    fn context(&self, step: usize, prefix: &'static str) -> StepContext<'_> {
        let outputs = self
            .operation
            .steps
            .iter()
            .zip(&self.status.steps)
            .filter(|(_, log)| log.status == StepStatus::Succeeded)
            .map(|(planned, log)| (planned.name.clone(), log.output.clone()))
            .collect();
        StepContext {
            environment: self.environment,
            cluster: self.cluster,
            operation: self.operation,
            index: step,
            token: self.token,
            outputs,
            progress: self.progress.clone(),
            shown: Arc::clone(&self.shown),
            prefix,
        }
    }

    async fn commit(&mut self, events: Vec<Event>, change: Change) -> Result<(), RunError> {
        let (status, transaction) = entries(self.environment, self.operation, &self.status, events)?;
        loop {
            let outcome = self
                .cluster
                .change(|record| {
                    let before = record.members.clone();
                    change(record);
                    for (member, shown) in self.shown.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                        if let Some(stored) = record.members.get_mut(member) {
                            stored.shown = stored.shown.max(*shown);
                        }
                    }
                    let gone = before.iter().filter(|(member, _)| !record.members.contains_key(*member));
                    Ok(gone.fold(transaction.clone(), |t, (member, stored)| leave(t, record, member, stored)))
                })
                .await;
            if self.stored(outcome.map(|_| ())).await? {
                self.status = status;
                return Ok(());
            }
        }
    }

    async fn commit_removal(&mut self, events: Vec<Event>) -> Result<(), RunError> {
        let (status, mut transaction) = entries(self.environment, self.operation, &self.status, events)?;
        if let Some(record) = self.cluster.record() {
            transaction = dissolve(&record, transaction);
        }
        loop {
            let outcome = self.cluster.remove(transaction.clone()).await;
            if self.stored(outcome).await? {
                self.status = status;
                return Ok(());
            }
        }
    }

    /// Whether a commit is done; `false` to try again after a pause.
    async fn stored(&self, outcome: Result<(), ChangeError>) -> Result<bool, RunError> {
        let stopped = |source| RunError::Stopped { operation: self.operation.id, source };
        match outcome {
            Ok(()) => Ok(true),
            Err(ChangeError::Store(error)) if error.retryable() => {
                tracing::error!(operation = %self.operation.id, error = %ErrorChain(&error),
                    "the store did not take a commit; the operation waits until it does");
                tokio::time::sleep(STORE_PAUSE).await;
                Ok(false)
            }
            Err(error @ (ChangeError::Gone(_) | ChangeError::Refused(_) | ChangeError::Busy { .. })) => {
                Err(stopped(error))
            }
            Err(error @ ChangeError::Store(_)) => Err(stopped(error)),
        }
    }
}

impl From<&Failure> for StepError {
    fn from(failure: &Failure) -> Self {
        Self { reason: failure.reason.parse().unwrap_or(Reason::Internal), message: failure.message.clone() }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        Self::new(Reason::Internal, ErrorChain(&error).to_string())
    }
}

/// Lets a test build abort the process at a named place; nothing in others.
#[cfg(feature = "failpoints")]
fn failpoint(kind: &str, step: &str, place: &str) {
    if std::env::var("REGENT_FAILPOINT").is_ok_and(|wanted| wanted == format!("{kind}/{step}/{place}")) {
        tracing::info!(kind, step, place, "failpoint: aborting");
        std::process::abort();
    }
}

#[cfg(not(feature = "failpoints"))]
fn failpoint(_: &str, _: &str, _: &str) {}

/// Keeps the borrow of a handle short in callers that hold it in an [`Arc`].
pub async fn run_to_end(
    environment: &Environment,
    cluster: &Arc<ClusterHandle>,
    operation: &OperationRecord,
    resumed: bool,
    interrupt: watch::Receiver<Option<Failure>>,
    progress: watch::Sender<Progress>,
) -> Result<Outcome, RunError> {
    let mut runner = Runner::load(environment, cluster, operation, progress).await?;
    if resumed {
        runner.resume().await?;
    }
    runner.run(interrupt).await
}
