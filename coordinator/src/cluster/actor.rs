//! One actor per cluster: hears, judges, decides, and runs one operation at a time.
//!
//! The loop chooses an [`Input`] and then applies it; waiting is cancel-safe, acting is not interrupted. Nothing waits for
//! a poll: a changed word of a node wakes the actor at once. The period only bounds how late something forgotten is seen.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use regent_common::{
    error::{ErrorChain, Reason},
    ids::{ClusterName, MemberName, OperationId},
    position::Position,
    topology::Progress,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{ChangeError, ClusterHandle};
use crate::{
    detector::{Evidence, Expected, Judgement, Thresholds, judge},
    environment::Environment,
    model::{cluster::ClusterRecord, operation::OperationRecord},
    operation::{
        executor::{self, NewOperation, RunError},
        kind, kinds,
        log::{Failure, Outcome},
        retention,
    },
    planner::{Decision, decide_but},
    store::{Transaction, get_json, keys},
};

/// How late a forgotten change is seen.
const PERIOD: Duration = Duration::from_secs(1);
/// Pause before an automatic operation that failed is tried again: doubled each time, up to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// Pause before an operation that stopped without an end is gone on with.
const AGAIN: Duration = Duration::from_secs(5);

/// What an actor is asked.
pub enum Request {
    /// Something was heard of one of the cluster's nodes.
    NodeChanged,
    /// Begin an operation.
    Start {
        /// Which.
        new: NewOperation,
        /// What else belongs into the commit.
        transaction: Transaction,
        /// The operation, or why not.
        reply: oneshot::Sender<Result<OperationRecord, ChangeError>>,
    },
    /// Cancel the running operation.
    Cancel {
        /// Which.
        operation: OperationId,
        /// Who and why.
        failure: Failure,
        /// Whether it was running here.
        reply: oneshot::Sender<bool>,
    },
}

/// What woke the actor.
enum Input {
    Request(Request),
    OperationEnded(Box<Result<Outcome, RunError>>),
    Period,
    Stop,
}

/// The operation that runs.
struct Running {
    operation: Arc<OperationRecord>,
    interrupt: watch::Sender<Option<Failure>>,
    task: tokio::task::JoinHandle<Result<Outcome, RunError>>,
}

/// The actor.
pub struct Actor {
    environment: Environment,
    cluster: Arc<ClusterHandle>,
    mailbox: mpsc::Receiver<Request>,
    progress: watch::Sender<Option<(OperationId, Progress)>>,
    thresholds: Thresholds,
    running: Option<Running>,
    /// Failures in a row of automatic operations, and when the next may begin; by what they were for.
    backoff: BTreeMap<String, (u32, Duration)>,
    /// The last reason for no failover, so that it is written down once.
    told: Option<String>,
    /// When an operation that stopped without an end is gone on with.
    again_at: Duration,
}

/// What others hold of an actor.
#[derive(Clone)]
pub struct ActorHandle {
    /// The cluster's record.
    pub cluster: Arc<ClusterHandle>,
    /// Its mailbox.
    pub mailbox: mpsc::Sender<Request>,
    /// How far the present step of the running operation has come.
    pub progress: watch::Receiver<Option<(OperationId, Progress)>>,
}

/// Starts an actor. It goes on with the operation that the record names: `resumed` when an earlier coordinator had begun it.
pub fn spawn(
    environment: Environment,
    cluster: Arc<ClusterHandle>,
    thresholds: Thresholds,
    resumed: bool,
    stop: CancellationToken,
) -> ActorHandle {
    let (sender, mailbox) = mpsc::channel(256);
    let (progress, watched) = watch::channel(None);
    let handle = ActorHandle { cluster: Arc::clone(&cluster), mailbox: sender, progress: watched };
    let actor = Actor {
        environment,
        cluster,
        mailbox,
        progress,
        thresholds,
        running: None,
        backoff: BTreeMap::new(),
        told: None,
        again_at: Duration::ZERO,
    };
    tokio::spawn(actor.run(resumed, stop));
    handle
}

// === impl Actor ===

impl Actor {
    #[tracing::instrument(name = "cluster", skip_all, fields(cluster = %self.cluster.name()))]
    async fn run(mut self, resumed: bool, stop: CancellationToken) {
        self.go_on(resumed).await;
        let mut period = tokio::time::interval(PERIOD);
        loop {
            let input = tokio::select! {
                biased;
                () = stop.cancelled() => Input::Stop,
                outcome = ended(&mut self.running) => Input::OperationEnded(Box::new(outcome)),
                request = self.mailbox.recv() => request.map_or(Input::Stop, Input::Request),
                _ = period.tick() => Input::Period,
            };
            match input {
                Input::Stop => return self.stop(),
                Input::Request(request) => self.apply(request).await,
                Input::OperationEnded(outcome) => self.operation_ended(*outcome),
                Input::Period => self.take_up_again().await,
            }
            if self.cluster.record().is_none() && self.running.is_none() {
                return;
            }
            self.look().await;
        }
    }

    fn stop(&self) {
        // The log says how far it is; the next coordinator goes on from there.
        if let Some(running) = &self.running {
            running.task.abort();
        }
    }

    /// Goes on with the operation that the record names.
    async fn go_on(&mut self, resumed: bool) {
        let Some(id) = self.cluster.record().and_then(|record| record.operation) else { return };
        match get_json::<OperationRecord>(self.environment.store.as_ref(), &keys::operation(&id)).await {
            Ok(Some(operation)) => self.launch(Arc::new(operation.value), resumed),
            Ok(None) => tracing::error!(operation = %id, "the record names an operation that is not in the store"),
            Err(error) => tracing::error!(operation = %id, error = %ErrorChain(&error), "the operation cannot be read"),
        }
    }

    /// An operation that stopped without an end (the store could not be read, say) would keep every other one out for ever,
    /// a failover too: it is gone on with, under a higher token.
    async fn take_up_again(&mut self) {
        if self.running.is_none() && self.environment.clock.boottime() >= self.again_at {
            self.again_at = self.environment.clock.boottime() + AGAIN;
            self.go_on(true).await;
        }
    }

    async fn apply(&mut self, request: Request) {
        match request {
            Request::NodeChanged => {}
            Request::Start { new, transaction, reply } => {
                let outcome = executor::create(&self.environment, &self.cluster, new, transaction).await;
                if let Ok(operation) = &outcome {
                    self.launch(Arc::new(operation.clone()), false);
                }
                // A caller that has gone away finds the operation in the list.
                let _ = reply.send(outcome);
            }
            Request::Cancel { operation, failure, reply } => {
                let running = self.running.as_ref().filter(|running| running.operation.id == operation);
                if let Some(running) = running {
                    running.interrupt.send_replace(Some(failure));
                }
                let _ = reply.send(running.is_some());
            }
        }
    }

    fn launch(&mut self, operation: Arc<OperationRecord>, resumed: bool) {
        let (interrupt, interrupted) = watch::channel(None);
        let (progress, mut watched) = watch::channel(Progress::default());
        let (shown, id) = (self.progress.clone(), operation.id);
        let relay = async move {
            while watched.changed().await.is_ok() {
                shown.send_replace(Some((id, watched.borrow_and_update().clone())));
            }
        };
        tokio::spawn(relay);
        let (environment, cluster, record) =
            (self.environment.clone(), Arc::clone(&self.cluster), Arc::clone(&operation));
        let task = tokio::spawn(async move {
            executor::run_to_end(&environment, &cluster, &record, resumed, interrupted, progress).await
        });
        tracing::info!(operation = %operation.id, kind = operation.kind, reason = operation.reason, "operation begins");
        self.running = Some(Running { operation, interrupt, task });
    }

    fn operation_ended(&mut self, outcome: Result<Outcome, RunError>) {
        let Some(running) = self.running.take() else { return };
        self.progress.send_replace(None);
        let operation = &running.operation;
        let subject = subject(operation);
        let label = match &outcome {
            Ok(Outcome::Succeeded) => "SUCCEEDED",
            Ok(Outcome::Failed) => "FAILED",
            Ok(Outcome::Cancelled) => "CANCELLED",
            Err(error) => {
                tracing::error!(operation = %operation.id, error = %ErrorChain(error), "the operation stopped");
                self.again_at = self.environment.clock.boottime() + AGAIN;
                return;
            }
        };
        if label == "SUCCEEDED" {
            self.backoff.remove(&subject);
        } else {
            let failures = self.backoff.get(&subject).map_or(0, |(failures, _)| *failures);
            let pause = BACKOFF.0.saturating_mul(1 << failures.min(10)).min(BACKOFF.1);
            self.backoff.insert(subject, (failures + 1, self.environment.clock.boottime() + pause));
        }
        tracing::info!(operation = %operation.id, kind = operation.kind, outcome = label, "operation ended");
        let mut facts = BTreeMap::from([("operation".to_owned(), operation.id.to_string())]);
        if let Some(record) = self.cluster.record() {
            facts.insert("epoch".to_owned(), record.epoch.to_string());
            facts.extend(record.primary.as_ref().map(|primary| ("primary".to_owned(), primary.to_string())));
        }
        // Beside the actor: a failover that comes next does not wait for the minutes of what it has pre-empted.
        let (environment, cluster) = (self.environment.clone(), self.cluster.name().clone());
        tokio::spawn(tell_of_the_end(environment, cluster, Arc::clone(operation), label, facts));
    }

    /// Judges, decides, acts.
    async fn look(&mut self) {
        let Some(record) = self.cluster.record() else { return };
        let judgements = judge_all(&self.environment, &record, &self.thresholds);
        let now = self.environment.clock.boottime();
        let rests = |member: &&MemberName| {
            self.backoff.get(&rejoin_of(member)).is_some_and(|(_, not_before)| now < *not_before)
        };
        let resting = record.members.keys().filter(rests).cloned().collect();
        match decide_but(&record, &judgements, &resting) {
            Decision::Nothing => self.told = None,
            Decision::NoFailover { why } => {
                if self.running.is_none() && self.told.as_ref() != Some(&why) {
                    tracing::warn!(why, "no failover");
                    self.write_down("NO_FAILOVER", &record.name.resource(), "decided", &why).await;
                    self.tell("NO_FAILOVER", &record.name.resource(), &why, BTreeMap::new()).await;
                    self.told = Some(why);
                }
            }
            Decision::Failover { why } => self.fail_over(&record, why).await,
            Decision::Rejoin { member, why } => {
                let parameters = kinds::rejoin::Parameters { member };
                let parameters = serde_json::to_value(parameters).expect("parameters are plain data");
                self.start_automatic(&kinds::rejoin::Rejoin, parameters, why).await;
            }
        }
    }

    async fn fail_over(&mut self, record: &ClusterRecord, why: String) {
        if let Some(running) = &self.running {
            let yields = kind(&running.operation.kind).is_some_and(|kind| kind.yields_to_failover());
            if yields && running.interrupt.borrow().is_none() {
                let message =
                    format!("a failover takes precedence ({why}); what is left to do is taken up again after it");
                let failure = Failure { reason: Reason::StepSuperseded.as_str().to_owned(), message };
                running.interrupt.send_replace(Some(failure));
            }
            return;
        }
        let reigned = record.primary.iter().chain(&record.candidate).chain(record.reigned.keys());
        let known = reigned.filter_map(|member| Some((member.clone(), self.last_position(record, member)?))).collect();
        let parameters = kinds::failover::Parameters { known };
        let parameters = serde_json::to_value(parameters).expect("parameters are plain data");
        self.start_automatic(&kinds::failover::Failover, parameters, why).await;
    }

    /// Begins an operation of Regent's own, unless one runs or an earlier one failed just now.
    async fn start_automatic(
        &mut self,
        kind: &'static dyn crate::operation::Kind,
        parameters: serde_json::Value,
        reason: String,
    ) {
        if self.running.is_some() {
            return;
        }
        let new =
            NewOperation { id: OperationId::generate(), kind, parameters, created_by: "regent".to_owned(), reason };
        let subject = subject_of(kind.name(), &new.parameters);
        let now = self.environment.clock.boottime();
        if self.backoff.get(&subject).is_some_and(|(_, not_before)| now < *not_before) {
            return;
        }
        let reason = new.reason.clone();
        match executor::create(&self.environment, &self.cluster, new, Transaction::default()).await {
            Ok(operation) => {
                let resource = operation.id.resource();
                self.launch(Arc::new(operation), false);
                // Written after the start: an automatic failover does not wait for its own minutes.
                let (audit, cluster, action) =
                    (self.environment.audit.clone(), self.cluster.name().clone(), kind.event());
                let clusters = cluster.resource();
                tokio::spawn(async move {
                    audit.record("regent", "", action, &clusters, "begun", &format!("{resource}: {reason}")).await;
                });
            }
            Err(error) => {
                tracing::warn!(kind = kind.name(), error = %ErrorChain(&error), "the operation was not begun")
            }
        }
    }

    fn last_position(&self, record: &ClusterRecord, member: &MemberName) -> Option<Position> {
        let view = self.environment.agents.view(&record.members.get(member)?.node);
        view.last_position.filter(|(cluster, _)| *cluster == record.id).map(|(_, position)| position)
    }

    async fn tell(&self, event: &str, resource: &str, message: &str, facts: BTreeMap<String, String>) {
        self.environment.events.publish(event, Some(self.cluster.name()), resource, message, facts).await;
    }

    async fn write_down(&self, action: &str, resource: &str, outcome: &str, detail: &str) {
        let cluster = self.cluster.name().resource();
        let detail = format!("{resource}: {detail}");
        self.environment.audit.record("regent", "", action, &cluster, outcome, &detail).await;
    }
}

/// Writes down and tells how an operation ended, and forgets old ones.
async fn tell_of_the_end(
    environment: Environment,
    cluster: ClusterName,
    operation: Arc<OperationRecord>,
    label: &'static str,
    facts: BTreeMap<String, String>,
) {
    let status = executor::status(&environment, &operation).await.ok();
    let report: Vec<String> =
        status.iter().flat_map(|status| &status.steps).flat_map(|step| step.report.clone()).collect();
    let failure = status.and_then(|status| match status.stage {
        crate::operation::log::Stage::Ended(_, failure) => failure,
        crate::operation::log::Stage::Pending
        | crate::operation::log::Stage::Running
        | crate::operation::log::Stage::Unwinding(..) => None,
    });
    let message = match &failure {
        Some(failure) => format!("{} {}: {}", operation.kind, label.to_lowercase(), failure.message),
        None => format!("{} {}: {}", operation.kind, label.to_lowercase(), report.join("; ")),
    };
    let event = kind(&operation.kind).map_or("OPERATION", |kind| kind.event());
    let resource = operation.id.resource();
    environment.events.publish(&format!("{event}_{label}"), Some(&cluster), &resource, &message, facts).await;
    let detail = format!("{resource}: {message}");
    environment.audit.record("regent", "", event, &cluster.resource(), label, &detail).await;
    if let Err(error) = retention::prune(environment.store.as_ref(), &cluster).await {
        tracing::warn!(error = %ErrorChain(&error), "old operations could not be forgotten");
    }
}

/// What an operation is for, so that repeated failures of the same thing are spaced out.
fn subject(operation: &OperationRecord) -> String {
    subject_of(&operation.kind, &operation.parameters)
}

fn subject_of(kind: &str, parameters: &serde_json::Value) -> String {
    match parameters.get("member").and_then(|member| member.as_str()) {
        Some(member) => format!("{kind} {member}"),
        None => kind.to_owned(),
    }
}

fn rejoin_of(member: &MemberName) -> String {
    format!("{} {member}", crate::operation::Kind::name(&kinds::rejoin::Rejoin))
}

/// Judges every member by what is known now.
pub fn judge_all(
    environment: &Environment,
    record: &ClusterRecord,
    thresholds: &Thresholds,
) -> BTreeMap<MemberName, Judgement> {
    let now = environment.clock.boottime();
    record
        .members
        .iter()
        .map(|(member, stored)| {
            let view = environment.agents.view(&stored.node);
            let expected = Expected {
                cluster_id: record.id,
                member: member.clone(),
                role: record.role_of(member),
                primary: record.primary.clone(),
            };
            let evidence = Evidence {
                connected: view.connected,
                silent_for: view.last_contact.map(|last| now.saturating_sub(last)),
                listening_for: now.saturating_sub(environment.started_at),
                observation: view.observation,
            };
            (member.clone(), judge(&expected, &evidence, thresholds))
        })
        .collect()
}

/// Waits for the running operation; for ever without one.
async fn ended(running: &mut Option<Running>) -> Result<Outcome, RunError> {
    match running {
        None => std::future::pending().await,
        Some(running) => match (&mut running.task).await {
            Ok(outcome) => outcome,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => std::future::pending().await,
        },
    }
}

/// Name and mailbox, for the directory's table.
pub type Entry = (ClusterName, ActorHandle);
