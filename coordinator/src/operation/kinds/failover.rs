//! Replaces a primary whose engine is dead: fence, prepare, choose, promote, follow (rules P1 to P5, as far as they go
//! without a lease).
//!
//! The epoch is raised in the commit that begins the operation. **Invariant:** nothing is promoted before every member
//! that may accept writes has *answered* a fence at the new epoch; an event that an engine has ended never counts as that.
//! The candidate is stored before the promotion is sent (rule P2); another candidate needs another epoch, which is another
//! failover. When no replica may be promoted the old primary's own data is, if its agent answers: that is a restart in place.

use std::time::Duration;

use async_trait::async_trait;
use regent_common::{error::Reason, ids::MemberName, position::Position};
use regent_proto::agent::v1::{self as wire, StepResult, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{all_or_first_error, position_of};
use crate::{
    model::{
        cluster::{ClusterRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience},
    planner::candidate::{Choice, Prepared, choose},
};

/// How long a replica may take to answer prepare; one that does not is left behind.
const PREPARE_WITHIN: Duration = Duration::from_secs(3);
/// How long the old primary's data may take to be read, crash recovery included.
const EXAMINE_WITHIN: Duration = Duration::from_secs(300);
/// How long the candidate's agent is waited for, and then a replica's.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(10));
/// How long a replica may take to follow; one that does not is brought back by a rejoin.
const FOLLOW_WITHIN: Duration = Duration::from_secs(15);

/// The kind.
pub struct Failover;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// Primary that is replaced; `None` when an earlier failover did not end.
    pub former: Option<MemberName>,
    /// Highest position that was heard of it.
    pub known: Option<Position>,
}

/// What the step "prepare" brings.
#[derive(Debug, Serialize, Deserialize)]
struct Prepare {
    candidate: MemberName,
    others: Vec<MemberName>,
}

#[async_trait]
impl Kind for Failover {
    fn name(&self) -> &'static str {
        "failover"
    }

    fn plan(&self, cluster: &ClusterRecord, _: &Value) -> Vec<PlannedStep> {
        let ready = cluster.members.iter().filter(|(_, m)| m.state == MemberState::Ready).map(|(name, _)| name.clone());
        vec![
            PlannedStep::new("fence", cluster.may_be_writable.iter().cloned()),
            PlannedStep::new("prepare", ready.clone()),
            PlannedStep::new("promote", []).no_return(),
            PlannedStep::new("follow", ready),
        ]
    }

    fn begin(&self, cluster: &mut ClusterRecord, _: &Value) {
        cluster.epoch = cluster.epoch.next();
        let reigned = cluster.primary.take().into_iter().chain(cluster.candidate.take());
        for member in reigned.collect::<Vec<_>>() {
            cluster.set_state(&member, MemberState::NeedsRejoin);
            cluster.may_be_writable.insert(member);
        }
        cluster.established = false;
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        match step.name.as_str() {
            "fence" => fence(context, &step.members).await,
            "prepare" => prepare(context, &step.members).await,
            "promote" => promote(context).await,
            _ => follow(context).await,
        }
    }

    fn abandon(&self, _: &mut ClusterRecord, _: &OperationRecord, _: &str) -> Aftermath {
        // The record says that there is no primary: the planner asks for the next failover, at a higher epoch.
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        false
    }

    fn cancellable(&self) -> bool {
        false
    }

    fn event(&self) -> &'static str {
        "FAILOVER"
    }
}

async fn fence(context: &StepContext<'_>, members: &[MemberName]) -> Result<StepDone, StepError> {
    let fence = |_: &_| Action::Fence(wire::Fence {});
    all_or_first_error(context.call_all(members, Patience::Forever, fence).await)?;
    let fenced = members.to_vec();
    Ok(StepDone::new().say(format!("fenced {}", super::listed(members))).change(move |cluster| {
        for member in &fenced {
            cluster.may_be_writable.remove(member);
        }
    }))
}

/// Prepares every reachable replica and chooses among them, and the old primary's data if none of them will do.
async fn prepare(context: &StepContext<'_>, members: &[MemberName]) -> Result<StepDone, StepError> {
    let cluster = context.cluster()?;
    let parameters = context.parameters::<Parameters>();
    let mut known = parameters.known;
    let mut prepared = Vec::new();
    let mut report = Vec::new();
    for (member, outcome) in prepare_all(context, members).await {
        match outcome {
            Ok(result) => {
                if let Some(heard) = result.primary_position_heard.clone().map(Position::from) {
                    known = Some(match known {
                        Some(known) if !heard.includes(&known) => known,
                        Some(_) | None => heard,
                    });
                }
                prepared.push(Prepared { position: position_of(&member, &result)?, member });
            }
            Err(why) => report.push(format!("{member} was not prepared: {why}")),
        }
    }
    let max_lag = cluster.policy.max_lag_on_failover;
    let choice = match choose(&prepared, known.as_ref(), max_lag) {
        Ok(choice) => choice,
        Err(no_choice) => {
            report.push(format!("no replica can be promoted: {no_choice}"));
            restart_in_place(context, parameters.former, &mut prepared, &mut report).await?
        }
    };
    report.push(choice.why);
    let candidate = choice.member;
    let others = prepared.into_iter().map(|p| p.member).filter(|member| *member != candidate).collect();
    let output = Prepare { candidate: candidate.clone(), others };
    let mut done = StepDone::new().output(&output).change(move |cluster| {
        cluster.candidate = Some(candidate.clone());
        cluster.may_be_writable.insert(candidate.clone());
    });
    done.report = report;
    Ok(done)
}

/// Prepares all at once; a member that is away or slow is left out.
async fn prepare_all(
    context: &StepContext<'_>,
    members: &[MemberName],
) -> Vec<(MemberName, Result<StepResult, String>)> {
    let calls = members.iter().map(|member| async move {
        let answer = async {
            // One that was heard and went silent costs no time; one that was never heard may just be being dialled.
            if !context.heard(member, PREPARE_WITHIN).await?.connected {
                return Err(StepError::new(Reason::NodeUnreachable, "its node is not connected"));
            }
            context.call(member, Action::Prepare(wire::Prepare {}), Patience::AtMost(PREPARE_WITHIN)).await
        };
        let outcome = match tokio::time::timeout(PREPARE_WITHIN, answer).await {
            Ok(outcome) => outcome.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", PREPARE_WITHIN.as_secs())),
        };
        (member.clone(), outcome)
    });
    futures::future::join_all(calls).await
}

/// Offers the old primary's own data, which lacks nothing that it had acknowledged.
async fn restart_in_place(
    context: &StepContext<'_>,
    former: Option<MemberName>,
    prepared: &mut Vec<Prepared>,
    report: &mut Vec<String>,
) -> Result<Choice, StepError> {
    let Some(former) = former else {
        return Err(StepError::new(Reason::ClusterHasNoPrimary, report.join("; ")));
    };
    let examine = Action::Examine(wire::Examine { primary_position: None });
    let result = tokio::time::timeout(EXAMINE_WITHIN, context.call(&former, examine, PATIENCE)).await;
    let result = result.unwrap_or_else(|_| Err(StepError::new(Reason::Deadline, "crash recovery did not end")))?;
    let position = position_of(&former, &result)?;
    report.push(format!("the data of the former primary {former} can be used: {position}"));
    // Copies that it does not include cannot follow it: they are brought back by a rejoin.
    prepared.retain(|p| position.includes(&p.position));
    Ok(Choice { member: former.clone(), known_loss: 0, why: format!("{former} is restarted in place on its own data") })
}

async fn promote(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    let Prepare { candidate, .. } = context.output("prepare")?;
    context.call(&candidate, Action::Promote(wire::Promote {}), PATIENCE).await?;
    let epoch = context.epoch()?;
    Ok(StepDone::new().say(format!("{candidate} is the primary of epoch {epoch}")).change(move |cluster| {
        cluster.primary = Some(candidate.clone());
        cluster.candidate = None;
        cluster.established = true;
        cluster.set_state(&candidate, MemberState::Ready);
    }))
}

/// Points the other prepared members at the new primary. One that does not follow is brought back by a rejoin.
async fn follow(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    let Prepare { candidate, others } = context.output("prepare")?;
    let upstream = wire::Peer::from(&context.peer(&candidate)?);
    let calls = others.iter().map(|member| {
        let action = Action::Follow(wire::Follow { upstream: Some(upstream.clone()) });
        async move {
            let call = tokio::time::timeout(FOLLOW_WITHIN, context.call(member, action, PATIENCE));
            (
                member.clone(),
                call.await.map_err(|_| "it took too long".to_owned()).and_then(|o| o.map_err(|e| e.to_string())),
            )
        }
    });
    let mut left_behind = Vec::new();
    let mut done = StepDone::new();
    for (member, outcome) in futures::future::join_all(calls).await {
        match outcome {
            Ok(_) => done = done.say(format!("{member} follows {candidate}")),
            Err(why) => {
                done = done.say(format!("{member} does not follow yet: {why}"));
                left_behind.push(member);
            }
        }
    }
    Ok(done.change(move |cluster| {
        for member in &left_behind {
            cluster.set_state(member, MemberState::NeedsRejoin);
        }
    }))
}
