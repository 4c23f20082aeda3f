//! Brings a member back to the stored topology by the cheapest safe way: follow, rewind, or clone.
//!
//! The way is chosen by position, never by time or timeline number: an ancestor of the primary follows; a copy that has
//! something the primary has not has diverged. What it had is stored as a divergence report *before* anything of it is
//! erased; then it is rewound, and cloned when rewinding cannot work.
//!
//! A side of a pair comes back in steps of its own ([`pair`]).

use std::time::Duration;

use async_trait::async_trait;
use regent_common::{
    error::Reason,
    ids::MemberName,
    position::Position,
    topology::{Divergence, EngineState, Role},
};
use regent_proto::agent::v1::{self as wire, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{clone_members, configure, in_addition, pair, position_of, primary_of, swap_members};
use crate::{
    model::{
        cluster::{ClusterRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience, parameters::read},
};

/// How long an agent is waited for before the rejoin is given up and tried again later.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(10));

/// How long the member's word is waited for after this coordinator has started.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// The kind.
pub struct Rejoin;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// The member.
    pub member: MemberName,
}

/// How a member comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Way {
    Follow,
    Rewind,
    Clone,
}

#[async_trait]
impl Kind for Rejoin {
    fn name(&self) -> &'static str {
        "rejoin"
    }

    fn plan(&self, cluster: &ClusterRecord, parameters: &Value) -> Vec<PlannedStep> {
        let Parameters { member } = read(parameters);
        if cluster.is_pair() {
            return pair::returning(cluster, &member);
        }
        vec![
            PlannedStep::new("configure", cluster.primary.clone()),
            PlannedStep::new("examine", [member.clone()]),
            PlannedStep::new("restore", [member.clone()]).no_return(),
            PlannedStep::new("verify", [member]),
        ]
    }

    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value) {
        let Parameters { member } = read(parameters);
        cluster.set_state(&member, MemberState::NeedsRejoin);
        cluster.leave_electorate(&[member]);
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        let member = context.parameters::<Parameters>().member;
        if context.cluster()?.is_pair() {
            return pair::bring_back(context, step, &member).await;
        }
        match step.name.as_str() {
            "configure" => {
                context.call(&primary_of(context)?, configure(context)?, PATIENCE).await?;
                Ok(StepDone::new())
            }
            "examine" => examine(context, &member).await,
            "restore" => restore(context, &member).await,
            _ => {
                context.call(&member, configure(context)?, PATIENCE).await?;
                Ok(StepDone::new()
                    .say(format!("{member} is back"))
                    .change(move |cluster| cluster.set_state(&member, MemberState::Ready)))
            }
        }
    }

    fn abandon(&self, _: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        // The member still needs a rejoin, and the planner will see that.
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        true
    }

    fn is_tried_again(&self) -> bool {
        true
    }

    fn cancellable(&self) -> bool {
        true
    }

    fn event(&self) -> &'static str {
        "REJOIN"
    }
}

/// Finds out where the copy stands and chooses the way.
async fn examine(context: &StepContext<'_>, member: &MemberName) -> Result<StepDone, StepError> {
    let primary = primary_of(context)?;
    let seen = context.heard(member, HEARD_WITHIN).await?.observation;
    let engine = seen.as_ref().map(|seen| &seen.engine);
    let follows_somebody =
        engine.is_some_and(|engine| engine.state == EngineState::Running && engine.role == Some(Role::Replica));
    if !follows_somebody {
        // Whatever it was, it must not accept a write from here on.
        context.call(member, Action::Fence(wire::Fence {}), PATIENCE).await?;
    }
    if seen.is_some_and(|seen| seen.dirty) {
        return Ok(StepDone::new().output(&Way::Clone).say(format!("the data of {member} is half-done: it is cloned")));
    }
    let examined = context.call(member, Action::Examine(wire::Examine {}), PATIENCE).await;
    let own = match examined {
        Ok(result) => position_of(member, &result)?,
        Err(error) if says_nothing_of_the_data(error.reason) => return Err(error),
        Err(error) => {
            // Its data is about to be erased unread: that it was, and why, is kept like any other divergence.
            let report = Divergence {
                member: member.clone(),
                amount: 0,
                lost: Position::empty(),
                unit: "positions of the engine's log, unknown: the copy cannot be read".to_owned(),
                resolution: "found".to_owned(),
                found_at: context.environment().clock.wall(),
                detail: format!("{member} cannot be read: {error}"),
            };
            return Ok(StepDone::new()
                .output(&Way::Clone)
                .say(format!("{member} cannot be read, so it is cloned: {error}"))
                .change(move |cluster| cluster.add_divergence(report.clone())));
        }
    };
    // The primary is asked after the member: a copy that streams may be ahead of an older word of the primary.
    let checkpoint =
        context.call(&primary, Action::Checkpoint(wire::Checkpoint { for_copies: true }), PATIENCE).await?;
    let theirs = position_of(&primary, &checkpoint)?;
    let lost = own.minus(&theirs);
    if lost.is_empty() {
        return Ok(StepDone::new()
            .output(&Way::Follow)
            .say(format!("{member} is an ancestor of {primary}: it follows")));
    }
    let report = Divergence {
        member: member.clone(),
        amount: lost.amount(),
        lost,
        unit: "positions of the engine's log".to_owned(),
        resolution: "found".to_owned(),
        found_at: context.environment().clock.wall(),
        detail: format!("{member} stood at {own}, the primary {primary} at {theirs}"),
    };
    let sentence = format!(
        "{member} has diverged: it has {} {} that the primary has not ({})",
        report.amount, report.unit, report.detail
    );
    Ok(StepDone::new().output(&Way::Rewind).say(sentence).change(move |cluster| cluster.add_divergence(report.clone())))
}

/// Whether a failure says that the copy could not be looked at, not that there is something wrong with it: it is looked at
/// again later, and nothing is erased for it.
fn says_nothing_of_the_data(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NodeUnreachable
            | Reason::PortInUse
            | Reason::EngineMissing
            | Reason::NoTls
            | Reason::StaleEpoch
            | Reason::StaleToken
            | Reason::StepSuperseded
            | Reason::Cancelled
            | Reason::Deadline
    )
}

/// Goes the chosen way, and on to the next where it does not lead through.
async fn restore(context: &StepContext<'_>, member: &MemberName) -> Result<StepDone, StepError> {
    let mut way: Way = context.output("examine")?;
    // Before the first byte goes nobody may count on this copy any more (rule M3).
    context.electorate_acknowledged(None).await?;
    let mut report = Vec::new();
    loop {
        let outcome = match way {
            Way::Follow => {
                let upstream = Some(wire::Peer::from(&context.peer(&primary_of(context)?)?));
                context.call(member, Action::Follow(wire::Follow { upstream }), PATIENCE).await.map(|result| {
                    report.push(format!("{member} follows{}", in_addition(&result.detail)));
                    "followed"
                })
            }
            Way::Rewind => {
                let source = Some(wire::Peer::from(&context.peer(&primary_of(context)?)?));
                context.call(member, Action::Rewind(wire::Rewind { source }), PATIENCE).await.map(|_| "rewound")
            }
            Way::Clone => {
                context.call(member, configure(context)?, PATIENCE).await?;
                clone_members(context, std::slice::from_ref(member), 0, true).await?;
                swap_members(context, std::slice::from_ref(member), true).await?;
                context.call(member, Action::DiscardKept(wire::DiscardKept {}), PATIENCE).await.map(|_| "cloned")
            }
        };
        match (outcome, way) {
            (Ok(resolution), _) => {
                if way != Way::Follow {
                    report.push(format!("{member} was {resolution}"));
                }
                let done = StepDone { report, ..StepDone::default() };
                let member = member.clone();
                return Ok(done.change(move |cluster| {
                    for report in
                        cluster.divergences.iter_mut().filter(|r| r.member == member && r.resolution == "found")
                    {
                        report.resolution = resolution.to_owned();
                    }
                }));
            }
            (Err(error), _) if matches!(error.reason, Reason::NodeUnreachable | Reason::NoTls) => return Err(error),
            (Err(error), Way::Clone) => return Err(error),
            (Err(error), Way::Follow) if error.reason == Reason::Diverged => {
                report.push(format!("{member} cannot follow: {error}"));
                way = Way::Rewind;
            }
            (Err(error), Way::Follow | Way::Rewind) => {
                report.push(format!("{member} needs a clone: {error}"));
                way = Way::Clone;
            }
        }
    }
}
