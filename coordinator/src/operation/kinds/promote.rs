//! A planned promotion: the primary hands everything over to a chosen replica, which then takes its place (rule P6).
//!
//! The primary is drained under its own lease; a drain that does not succeed in time is taken back, and nothing has happened. Then
//! the epoch is raised, and everything goes on as in a failover, with three differences: nothing at all may be lost, the chosen
//! member is preferred among equals, and the final position is the drain's, if the fence's answer says that nobody was let in
//! since. If it says otherwise the old primary's own data is asked, and it is restarted in place when nobody has all of it: then
//! the operation fails, and says so.
//!
//! **Invariant:** the epoch is raised in the commit that ends the drain, and only the fence's answer ends the reign.

use std::{future::Future, time::Duration};

use async_trait::async_trait;
use regent_common::{error::Reason, ids::MemberName};
use regent_proto::agent::v1::{self as wire, StepResult, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{failover, position_of, primary_of};
use crate::{
    cluster::judging::judge_all,
    model::{
        cluster::{ClusterRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience},
};

/// How long the primary's agent is waited for before it is drained, and to take a drain back; it does that by itself too.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(2));
/// How long applications are kept out after the drain, until the fence comes: several times what the way there takes, and a
/// restart of the coordinator.
const HOLD: Duration = Duration::from_secs(5);

/// How long the flush before it may take. Nothing is the matter meanwhile but that a failover would wait for it.
const FLUSH_WITHIN: Duration = Duration::from_secs(60);
/// How much longer than the drain may take its answer is waited for: a disk may hang under the agent's ledger.
const ANSWER: Duration = Duration::from_secs(5);

/// The kind.
pub struct Promote;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// What a failover goes by.
    #[serde(flatten)]
    pub failover: failover::Parameters,
    /// Whom to promote.
    pub member: MemberName,
    /// How long the drain may take, in milliseconds.
    pub drain_within_millis: u64,
}

#[async_trait]
impl Kind for Promote {
    fn name(&self) -> &'static str {
        "promote"
    }

    fn plan(&self, cluster: &ClusterRecord, _: &Value) -> Vec<PlannedStep> {
        let ready = || cluster.replicas().filter(|(_, m)| m.state == MemberState::Ready).map(|(name, _)| name.clone());
        vec![
            PlannedStep::new("check", cluster.primary.clone()),
            PlannedStep::new("drain", cluster.primary.clone()),
            PlannedStep::new("fence", cluster.primary.clone()).no_return(),
            PlannedStep::new("prepare", ready()),
            PlannedStep::new("promote", []),
            PlannedStep::new("follow", ready()),
            PlannedStep::new("verify", []),
        ]
    }

    fn begin(&self, _: &mut ClusterRecord, _: &Value) {}

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        match step.name.as_str() {
            "check" => check(context).await,
            "drain" => drain(context).await,
            "fence" => failover::fence(context, &step.members).await,
            "prepare" => failover::prepare(context, &step.members).await,
            "promote" => failover::promote(context).await,
            "follow" => failover::follow(context).await,
            _ => verify(context),
        }
    }

    async fn undo(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<(), StepError> {
        if step.name == "drain" {
            for primary in &step.members {
                let undone = context.call(primary, Action::UndoDrain(wire::UndoDrain {}), PATIENCE).await;
                if let Err(error) = undone {
                    tracing::warn!(%error, "the drain could not be taken back from here; the agent does it by itself");
                }
            }
        }
        Ok(())
    }

    fn abandon(&self, _: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        // Before the fence nothing has changed; after it the planner asks for a failover.
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        // From the drain on it is one itself; before that each call has a deadline, after which a failover may begin.
        false
    }

    fn cancellable(&self) -> bool {
        true
    }

    fn event(&self) -> &'static str {
        "PROMOTE"
    }
}

/// Looks once more, now that nothing else runs, and has the primary flush: whatever it writes after that is little.
async fn check(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    let Parameters { member, .. } = context.parameters();
    let (cluster, primary) = (context.cluster()?, primary_of(context)?);
    if primary == member {
        let message = format!("{member} has become the primary meanwhile; nothing was changed");
        return Err(StepError::new(Reason::MemberIsPrimary, message));
    }
    if !cluster.promotable().contains(&member) {
        let message = format!("{member} has left the electorate meanwhile; nothing was changed");
        return Err(StepError::new(Reason::NoReplica, message));
    }
    // A lease that outlives the agent would keep everybody out for as long as it stands.
    let (_, succession) = judge_all(context.environment(), &cluster);
    if !succession.handed_over.is_zero() {
        let message =
            format!("the agent of {primary} is being restarted; nothing was changed: ask again when it is back");
        return Err(StepError::new(Reason::PrimaryUnhealthy, message));
    }
    let flush = context.call(&primary, Action::Checkpoint(wire::Checkpoint { for_copies: false }), PATIENCE);
    within(FLUSH_WITHIN, "to flush", flush).await?;
    Ok(StepDone::new())
}

/// Says so where somebody else had to become the primary: nobody is to read of a success that was none.
fn verify(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    let Parameters { member, .. } = context.parameters();
    let primary = primary_of(context)?;
    if primary == member {
        return Ok(StepDone::new());
    }
    let message = format!(
        "{member} could not be shown to have everything, so that {primary} is the primary; nothing is lost, and it can be \
         asked for again"
    );
    Err(StepError::new(Reason::NoReplica, message))
}

/// A call that may not take longer: while this operation runs no failover begins.
async fn within(
    limit: Duration,
    doing: &str,
    call: impl Future<Output = Result<StepResult, StepError>>,
) -> Result<StepResult, StepError> {
    tokio::time::timeout(limit, call).await.unwrap_or_else(|_| {
        let late = format!("the primary took longer than {} ms {doing}", limit.as_millis());
        Err(StepError::new(Reason::Deadline, late))
    })
}

async fn drain(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    let Parameters { member, drain_within_millis, .. } = context.parameters();
    let primary = primary_of(context)?;
    let drain = wire::Drain {
        successor: member.to_string(),
        within_millis: drain_within_millis,
        hold_millis: u64::try_from(HOLD.as_millis()).expect("a few seconds"),
    };
    let began = context.environment().clock.boottime();
    let limit = Duration::from_millis(drain_within_millis) + ANSWER;
    let result = within(limit, "to hand over", context.call(&primary, Action::Drain(drain), PATIENCE)).await?;
    let took = context.environment().clock.boottime().saturating_sub(began).as_millis();
    let position = position_of(&primary, &result)?;
    let done = StepDone::new()
        .say(format!("{primary} has handed everything over to {member} within {took} ms, up to {position}"));
    Ok(done.change(move |cluster| {
        if cluster.primary.as_ref() == Some(&primary) {
            cluster.epoch = cluster.epoch.next();
            failover::end_reign(cluster);
        }
    }))
}
