//! Wipes replicas and restores them from the primary, a batch at a time.
//!
//! A batch is taken out of the candidates by a commit before its first byte changes; the copy goes into a side directory
//! where space allows, so that the replica serves its old data until the swap. A member is ready again only when its new
//! copy streams. What a failure or a failover leaves behind is marked, and the planner brings it back.
//!
//! One side of a pair is filled from the other in steps of its own ([`pair`]).

use std::time::Duration;

use async_trait::async_trait;
use regent_common::{error::Reason, ids::MemberName, topology::EngineState};
use regent_proto::agent::v1::{self as wire, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{all_or_first_error, assign_again, clone_members, configure, listed, pair, primary_of, swap_members};
use crate::{
    model::{
        cluster::{ClusterRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience, parameters::read},
};

/// How long the primary's word is waited for after this coordinator has started.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

/// The kind.
pub struct Resync;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// Members to resync.
    pub members: Vec<MemberName>,
    /// Members at once; at least 1.
    pub parallel: usize,
    /// Most bytes per second for each copy; 0 for no limit.
    pub max_bytes_per_second: u64,
}

#[async_trait]
impl Kind for Resync {
    fn name(&self) -> &'static str {
        "resync"
    }

    fn plan(&self, cluster: &ClusterRecord, parameters: &Value) -> Vec<PlannedStep> {
        let parameters: Parameters = read(parameters);
        if let Some(member) = parameters.members.first().filter(|_| cluster.is_pair()) {
            return pair::filling(cluster, member);
        }
        let mut steps = vec![PlannedStep::new("check", cluster.primary.clone())];
        for batch in parameters.members.chunks(parameters.parallel.max(1)) {
            for name in ["withdraw", "clone", "swap", "discard"] {
                steps.push(PlannedStep::new(name, batch.to_vec()));
            }
        }
        steps
    }

    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value) {
        let Parameters { members, .. } = read(parameters);
        // A person has said whose data survives.
        if let Some(survivor) = members.first().and_then(|member| cluster.other_side(member)).cloned() {
            cluster.survivor = Some(survivor);
        }
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        let members = step.members.clone();
        if context.cluster()?.is_pair() {
            let parameters: Parameters = context.parameters();
            let Some(member) = parameters.members.first() else { return Ok(StepDone::new()) };
            return pair::fill(context, step, member).await;
        }
        match step.name.as_str() {
            "check" => check(context).await,
            "withdraw" => Ok(StepDone::new().change(move |cluster| {
                for member in &members {
                    cluster.set_state(member, MemberState::Resyncing);
                }
                cluster.leave_electorate(&members);
            })),
            "clone" => {
                // Before the first byte goes nobody may count on these copies any more (rule M3). The primary is called first: the
                // heartbeat that follows a step at once is answered with the electorate that is waited for.
                let flush = Action::Checkpoint(wire::Checkpoint { for_copies: true });
                context.call(&primary_of(context)?, flush, Patience::Forever).await?;
                context.electorate_acknowledged(None).await?;
                let action = configure(context)?;
                let limit = context.parameters::<Parameters>().max_bytes_per_second;
                // A node that has lost its ledger with its disk is a member again from here on; for others nothing changes.
                assign_again(context, &members).await?;
                all_or_first_error(context.call_all(&members, Patience::Forever, |_| action.clone()).await)?;
                let bytes = clone_members(context, &members, limit, true).await?;
                Ok(StepDone::new().say(format!("copied {bytes} bytes to {}", listed(&members))))
            }
            "swap" => {
                swap_members(context, &members, true).await?;
                let sentence = format!("{} streams from its new copy", listed(&members));
                Ok(StepDone::new().say(sentence).change(move |cluster| {
                    for member in &members {
                        cluster.set_state(member, MemberState::Ready);
                    }
                }))
            }
            _ => {
                let discard = |_: &_| Action::DiscardKept(wire::DiscardKept {});
                all_or_first_error(context.call_all(&members, Patience::Forever, discard).await)?;
                Ok(StepDone::new())
            }
        }
    }

    fn abandon(&self, cluster: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        for member in cluster.members.values_mut() {
            if member.state == MemberState::Resyncing {
                member.state = MemberState::NeedsRejoin;
            }
        }
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        true
    }

    fn cancellable(&self) -> bool {
        true
    }

    fn event(&self) -> &'static str {
        "RESYNC"
    }
}

/// Refuses when the primary is not fit to be copied.
async fn check(context: &StepContext<'_>) -> Result<StepDone, StepError> {
    let primary = primary_of(context)?;
    // A failover may have come between the request and this operation: a copy is never made of itself over itself.
    if context.parameters::<Parameters>().members.contains(&primary) {
        return Err(StepError::new(
            Reason::MemberIsPrimary,
            format!("{primary} has become the primary meanwhile, nothing was erased: name the replicas that are meant"),
        ));
    }
    let view = context.heard(&primary, HEARD_WITHIN).await?;
    let running = view.observation.as_ref().is_some_and(|seen| seen.engine.state == EngineState::Running);
    if !(view.connected && running) {
        return Err(StepError::new(
            Reason::PrimaryUnhealthy,
            format!("the primary {primary} is not healthy, nothing was erased: wait until it is, then resync again"),
        ));
    }
    context.call(&primary, configure(context)?, Patience::Forever).await?;
    Ok(StepDone::new().say(format!("the primary {primary} is healthy")))
}
