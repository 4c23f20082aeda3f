//! One actor per cluster: hears, judges, decides, and runs one operation at a time.
//!
//! The loop chooses an [`Input`] and then applies it; waiting is cancel-safe, acting is not interrupted. Nothing waits for
//! a poll: a changed word of a node wakes the actor at once. The period only bounds how late something forgotten is seen.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use regent_common::{
    error::ErrorChain,
    ids::{ClusterName, MemberName, OperationId, Revision},
    topology::Progress,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use super::{
    ChangeError, ClusterHandle,
    backoff::{Backoff, Subject},
    brake::Budget,
    judging::{judge_all, views},
};
use crate::{
    audit::SELF,
    authority::Authority,
    detector::Verdict,
    environment::Environment,
    model::{cluster::ClusterRecord, operation::OperationRecord},
    nodes::NodeView,
    operation::{
        executor::{self, NewOperation, RunError},
        kind,
        log::{Failure, Outcome},
        retention,
    },
    planner::{Decision, decide_with},
    store::{Transaction, get_json, keys},
};

mod electorate;
mod failing_over;
mod hand_over;
mod old_store;
mod pair;
mod quarantine;
mod upkeep;

/// How late a forgotten change is seen.
const PERIOD: Duration = Duration::from_secs(1);
/// Least time between two looks that nothing but time asks for.
const LEAST: Duration = Duration::from_millis(2);
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
    authority: Arc<Authority>,
    running: Option<Running>,
    /// What failed of late, and when it may begin again.
    backoff: Arc<Backoff>,
    /// The last reason for no failover, so that it is written down once.
    told: Option<String>,
    /// Automatic failovers of late.
    budget: Arc<Budget>,
    /// Why the primary does not serve although its words arrive, and since when.
    idle_since: Option<(Verdict, Duration)>,
    /// Which sides of a pair take writes, as it was told last.
    serving: Option<BTreeSet<MemberName>>,
    /// Sides of a pair that cannot catch up, as was told.
    stale: BTreeSet<MemberName>,
    /// What was told of nodes in quarantine, by member, so that it is told once (rule T5).
    quarantined: BTreeMap<MemberName, String>,
    /// Why nothing is granted and nothing fails over (rule T4).
    frozen: Option<String>,
    /// Revision above everything that was reported when what the ledgers say was adopted.
    adopted: Revision,
    /// When to look again at the latest, by CLOCK_BOOTTIME.
    look_at: Duration,
    /// When an operation that stopped without an end is gone on with.
    again_at: Duration,
    /// When the last operation ended: what members said before that is of what it has changed.
    ended_at: Duration,
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
    /// Its automatic failovers of late.
    pub budget: Arc<Budget>,
    /// What failed of late.
    pub backoff: Arc<Backoff>,
}

/// Starts an actor. It goes on with the operation that the record names: `resumed` when an earlier coordinator had begun it.
pub fn spawn(
    environment: Environment,
    cluster: Arc<ClusterHandle>,
    authority: Arc<Authority>,
    resumed: bool,
    stop: CancellationToken,
) -> ActorHandle {
    let (sender, mailbox) = mpsc::channel(256);
    let (progress, watched) = watch::channel(None);
    let (budget, backoff) = (Arc::new(Budget::default()), Arc::new(Backoff::default()));
    let handle = ActorHandle {
        cluster: Arc::clone(&cluster),
        mailbox: sender,
        progress: watched,
        budget: Arc::clone(&budget),
        backoff: Arc::clone(&backoff),
    };
    let actor = Actor {
        environment,
        cluster,
        mailbox,
        progress,
        authority,
        running: None,
        backoff,
        told: None,
        budget,
        idle_since: None,
        serving: None,
        stale: BTreeSet::new(),
        quarantined: BTreeMap::new(),
        frozen: None,
        // No store is older than a cluster that was made in it just now, whatever its nodes have seen before.
        adopted: if resumed { Revision(0) } else { Revision(u64::MAX) },
        look_at: Duration::ZERO,
        again_at: Duration::ZERO,
        ended_at: Duration::ZERO,
    };
    tokio::spawn(actor.run(resumed, stop));
    handle
}

// === impl Actor ===

impl Actor {
    #[tracing::instrument(name = "cluster", skip_all, fields(cluster = %self.cluster.name()))]
    async fn run(mut self, resumed: bool, stop: CancellationToken) {
        self.go_on(resumed).await;
        loop {
            let pause = self.look_at.saturating_sub(self.environment.clock.boottime()).clamp(LEAST, PERIOD);
            let input = tokio::select! {
                biased;
                () = stop.cancelled() => Input::Stop,
                outcome = ended(&mut self.running) => Input::OperationEnded(Box::new(outcome)),
                request = self.mailbox.recv() => request.map_or(Input::Stop, Input::Request),
                () = tokio::time::sleep(pause) => Input::Period,
            };
            match input {
                Input::Stop => return self.stop(),
                Input::Request(request) => self.apply(request).await,
                Input::OperationEnded(outcome) => self.operation_ended(*outcome),
                Input::Period => self.take_up_again().await,
            }
            if self.cluster.record().is_none() && self.running.is_none() {
                self.environment.brake.note(self.cluster.name(), false, Duration::ZERO);
                return;
            }
            self.look_at = self.environment.clock.boottime() + PERIOD;
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
        let waits = self.running.is_some() || self.frozen.is_some();
        if !waits && self.environment.clock.boottime() >= self.again_at {
            self.again_at = self.environment.clock.boottime() + AGAIN;
            self.go_on(true).await;
        }
    }

    async fn apply(&mut self, request: Request) {
        match request {
            Request::NodeChanged => {}
            Request::Start { reply, .. } if self.frozen.is_some() => {
                let why = self.frozen.clone().unwrap_or_default();
                // A caller that has gone away has nothing to hear.
                let _ =
                    reply.send(Err(ChangeError::Refused(format!("the cluster is frozen: {why}; nothing was changed"))));
            }
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
        self.backoff.begins(&operation);
        tracing::info!(operation = %operation.id, kind = operation.kind, reason = operation.reason, "operation begins");
        self.running = Some(Running { operation, interrupt, task });
    }

    fn operation_ended(&mut self, outcome: Result<Outcome, RunError>) {
        let Some(running) = self.running.take() else { return };
        self.progress.send_replace(None);
        self.ended_at = self.environment.clock.boottime();
        let operation = &running.operation;
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
            self.backoff.succeeded(operation);
        } else {
            self.backoff.failed(operation, self.ended_at);
        }
        tracing::info!(operation = %operation.id, kind = operation.kind, outcome = label, "operation ended");
        let mut facts = BTreeMap::from([("operation".to_owned(), operation.id.to_string())]);
        let named =
            ["member", "node"].map(|name| (name, operation.parameters.get(name).and_then(|value| value.as_str())));
        facts.extend(named.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))));
        if let Some(record) = self.cluster.record() {
            facts.insert("epoch".to_owned(), record.epoch.to_string());
            facts.extend(record.primary.as_ref().map(|primary| ("primary".to_owned(), primary.to_string())));
        }
        // Beside the actor: a failover that comes next does not wait for the minutes of what it has pre-empted.
        let (environment, cluster) = (self.environment.clone(), self.cluster.name().clone());
        let backoff = Arc::clone(&self.backoff);
        tokio::spawn(tell_of_the_end(environment, cluster, Arc::clone(operation), label, facts, backoff));
    }

    /// Judges, decides, acts.
    async fn look(&mut self) {
        let Some(record) = self.cluster.record() else { return };
        let views = views(&self.environment, &record);
        if self.look_at_store(&record, &views).await {
            return;
        }
        if views.values().all(|view| view.connected) {
            self.authority.heard_all();
        }
        let (mut judgements, succession) = judge_all(&self.environment, &record);
        self.tell_of_quarantine(&record, &views).await;
        self.look_for_idleness(&record, &mut judgements, &succession);
        let record = self.keep_electorate(record, &judgements, &views).await;
        let record = self.keep_survivor(record, &judgements).await;
        self.tell_who_serves(&record, &judgements, &views).await;
        self.tell_who_is_stale(&record, &judgements).await;
        self.backoff.forget_returned(&record);
        self.keep_hand_over(&record, &views).await;
        self.look_when_silent(&record, &views);
        let now = self.environment.clock.boottime();
        let decision = decide_with(&record, &judgements, &succession, &self.upkeep(&record, &views));
        let fails = matches!(decision, Decision::AwaitLease { .. } | Decision::Failover { .. });
        self.environment.brake.note(&record.name, fails, now);
        if !fails {
            self.authority.resume();
        }
        match decision {
            Decision::Nothing => self.told = None,
            Decision::NoFailover { why } => self.no_failover(&record, why).await,
            Decision::AwaitLease { left, .. } => {
                // From here on the lease is not renewed, also when its holder is heard again: only a look that finds it alive
                // changes that.
                let suspended =
                    if withholds(&record) { self.authority.suspend(record.epoch) } else { self.authority.lease_left() };
                let left = suspended.max(left.min(PERIOD));
                self.look_at = self.look_at.min(now + left);
            }
            Decision::Failover { cause, why } => self.fail_over(&record, cause, why).await,
            Decision::Mark { member, why } => self.mark(&record, member, why).await,
            Decision::Mend { member, how, why } => {
                self.start_automatic(upkeep::mending(member, how, why)).await;
            }
        }
    }

    /// Silence brings no event: looks again at the moment at which it becomes worth a word.
    fn look_when_silent(&mut self, record: &ClusterRecord, views: &BTreeMap<MemberName, NodeView>) {
        let suspect_after = record.policy.profile.timing().suspect_after;
        let serves = |member: &MemberName| record.is_pair() || record.primary.as_ref() == Some(member);
        let now = self.environment.clock.boottime();
        for last in views.iter().filter(|(member, _)| serves(member)).filter_map(|(_, view)| view.last_contact) {
            let due = last + suspect_after + LEAST;
            // A side that stays away is no reason to look all the time.
            if !record.is_pair() || due >= now {
                self.look_at = self.look_at.min(due);
            }
        }
    }

    /// Begins an operation of Regent's own, unless one runs or an earlier one failed just now. Whether it began.
    async fn start_automatic(&mut self, new: NewOperation) -> bool {
        if self.running.is_some() {
            return false;
        }
        let kind = new.kind;
        let subject = Subject::new(kind.name(), &new.parameters);
        if let Some(not_before) = self.backoff.rests_until(&subject, self.environment.clock.boottime()) {
            self.look_at = self.look_at.min(not_before);
            return false;
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
                    audit.record(SELF, "", action, &clusters, "begun", &format!("{resource}: {reason}")).await;
                });
                true
            }
            Err(error) => {
                tracing::warn!(kind = kind.name(), error = %ErrorChain(&error), "the operation was not begun");
                false
            }
        }
    }

    async fn tell(&self, event: &str, resource: &str, message: &str, facts: BTreeMap<String, String>) {
        self.environment.events.publish(event, Some(self.cluster.name()), resource, message, facts).await;
    }

    async fn write_down(&self, action: &str, resource: &str, outcome: &str, detail: &str) {
        let cluster = self.cluster.name().resource();
        let detail = format!("{resource}: {detail}");
        self.environment.audit.record(SELF, "", action, &cluster, outcome, &detail).await;
    }
}

/// Writes down and tells how an operation ended, and why if it failed, and forgets old ones.
async fn tell_of_the_end(
    environment: Environment,
    cluster: ClusterName,
    operation: Arc<OperationRecord>,
    label: &'static str,
    facts: BTreeMap<String, String>,
    backoff: Arc<Backoff>,
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
        Some(failure) => {
            if label == "FAILED" {
                backoff.explain(&operation, &failure.message);
            }
            format!("{} {}: {}", operation.kind, label.to_lowercase(), failure.message)
        }
        None => format!("{} {}: {}", operation.kind, label.to_lowercase(), report.join("; ")),
    };
    let event = kind(&operation.kind).map_or("OPERATION", |kind| kind.event());
    let resource = operation.id.resource();
    environment.events.publish(&format!("{event}_{label}"), Some(&cluster), &resource, &message, facts).await;
    let detail = format!("{resource}: {message}");
    environment.audit.record(SELF, "", event, &cluster.resource(), label, &detail).await;
    if let Err(error) = retention::prune(environment.store.as_ref(), &cluster).await {
        tracing::warn!(error = %ErrorChain(&error), "old operations could not be forgotten");
    }
}

/// Whether nothing is granted at the record's epoch while the end of a lease is waited for. The candidate of a failover that runs
/// is granted its lease; what is waited for then is of the reign before. That of one which did not end is granted none any
/// more: it would be waited for as long as it is heard.
fn withholds(record: &ClusterRecord) -> bool {
    record.primary.is_some() || record.operation.is_none()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::fixtures::cluster;

    #[test]
    fn only_the_candidate_of_a_failover_that_runs_is_granted_a_lease_while_another_is_waited_for() {
        let mut record = cluster();
        assert!(withholds(&record), "a primary that is not heard");
        (record.candidate, record.primary) = (record.primary.clone(), None);
        record.operation = Some(OperationId::from_parts(1, 1));
        assert!(!withholds(&record), "a failover runs");
        record.operation = None;
        assert!(
            withholds(&record),
            "the candidate of a failover that failed would be waited for as long as it is heard"
        );
    }
}
