//! Takes a member out of its cluster: withdraw it from the electorate, release its node, tell the others.
//!
//! That it is to leave stands in its state from the beginning, so that a removal which a failover has cut short is gone on with
//! by itself after it. A node that cannot be reached is left behind with a tombstone, by which it is emptied when it returns.
//!
//! **Invariants:** the primary is never removed; before the first byte goes the primary has acknowledged an electorate without
//! the member (rule M3); its number is not used again.

use std::time::Duration;

use async_trait::async_trait;
use futures::future::select_all;
use regent_common::{error::Reason, ids::MemberName, topology::Observation};
use regent_proto::agent::v1::{self as wire, action::Action};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{configure, configure::configure_all, primary_of};
use crate::{
    cluster::judging::judge_all,
    model::{
        cluster::{ClusterRecord, MemberState},
        operation::{OperationRecord, PlannedStep},
    },
    nodes::NodeView,
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience, parameters::read},
    planner::removal,
};

/// How long the node is waited for before it is left to its tombstone.
const RELEASE_WITHIN: Patience = Patience::AtMost(Duration::from_secs(5));

/// How long the other members' words are waited for.
const HEARD_WITHIN: Duration = Duration::from_secs(15);
/// How late a word that was missed is seen.
const LOOK: Duration = Duration::from_millis(500);

/// The kind.
pub struct RemoveMember;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// The member.
    pub member: MemberName,
    /// Leave its data on the node, aside.
    pub keep_data: bool,
    /// Fewer than two whole copies may be left.
    #[serde(default)]
    pub allow_single: bool,
}

#[async_trait]
impl Kind for RemoveMember {
    fn name(&self) -> &'static str {
        "remove_member"
    }

    fn plan(&self, cluster: &ClusterRecord, parameters: &Value) -> Vec<PlannedStep> {
        let Parameters { member, .. } = read(parameters);
        let others: Vec<_> = cluster.members.keys().filter(|other| **other != member).cloned().collect();
        vec![
            PlannedStep::new("withdraw", [member.clone()]),
            PlannedStep::new("release", [member]).no_return(),
            PlannedStep::new("configure", others),
        ]
    }

    fn begin(&self, cluster: &mut ClusterRecord, parameters: &Value) {
        let Parameters { member, keep_data, allow_single } = read(parameters);
        cluster.set_state(&member, MemberState::Leaving { keep_data, allow_single });
        cluster.leave_electorate(&[member]);
    }

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        let parameters: Parameters = context.parameters();
        match step.name.as_str() {
            "withdraw" => {
                check(context, &parameters).await?;
                // The heartbeat that follows a step at once is answered with the electorate that is waited for.
                context.call(&primary_of(context)?, configure(context)?, Patience::Forever).await?;
                context.electorate_acknowledged(None).await?;
                Ok(StepDone::new())
            }
            "release" => release(context, parameters).await,
            _ => configure_all(context, &step.members).await,
        }
    }

    fn abandon(&self, cluster: &mut ClusterRecord, operation: &OperationRecord, undone: bool, _: &str) -> Aftermath {
        // Cut short by a failover it stays as one that leaves, and the planner goes on with it; given up by a person, or refused,
        // it is brought back.
        if undone {
            let Parameters { member, .. } = read(&operation.parameters);
            cluster.set_state(&member, MemberState::NeedsRejoin);
        }
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        true
    }

    fn undoes(&self) -> bool {
        true
    }

    fn is_tried_again(&self) -> bool {
        true
    }

    fn cancellable(&self) -> bool {
        true
    }

    fn event(&self) -> &'static str {
        "MEMBER_REMOVE"
    }
}

/// Looks once more: since the request, or since an earlier coordinator began this, a failover may have made it the primary, or another
/// copy may be gone. A coordinator that has just started hears of the others first; what no word of theirs can change is refused
/// at once.
async fn check(context: &StepContext<'_>, parameters: &Parameters) -> Result<(), StepError> {
    let Parameters { member, allow_single, .. } = parameters;
    let environment = context.environment();
    let began = environment.clock.boottime();
    loop {
        let cluster = context.cluster()?;
        let (judgements, _) = judge_all(environment, &cluster);
        let Some((reason, why)) = removal::obstacle(&cluster, &judgements, member, *allow_single) else {
            return Ok(());
        };
        let of_the_others = matches!(reason, Reason::PrimaryUnhealthy | Reason::SingleCopyLeft);
        if of_the_others && is_gone(&context.view(member)?, &cluster, member) {
            return Ok(());
        }
        if !of_the_others || environment.clock.boottime().saturating_sub(began) >= HEARD_WITHIN {
            return Err(StepError::new(reason, format!("{member} stays, and nothing was erased: {why}")));
        }
        let others = cluster.members.iter().filter(|(other, _)| *other != member);
        let changes = others.map(|(_, record)| environment.agents.wait_for_change(&record.node, LOOK));
        select_all(changes).await;
    }
}

/// Whether its node says that it is not this member any more: an earlier try has released it, and there is no copy to be kept.
fn is_gone(view: &NodeView, cluster: &ClusterRecord, member: &MemberName) -> bool {
    let other = |seen: &Observation| seen.cluster_id != cluster.id || seen.member != *member;
    view.connected && view.quarantine().is_none() && view.observation.as_ref().is_none_or(other)
}

async fn release(context: &StepContext<'_>, parameters: Parameters) -> Result<StepDone, StepError> {
    check(context, &parameters).await?;
    let Parameters { member, keep_data, .. } = parameters;
    // After a crash of the coordinator: said again before the first byte goes.
    context.electorate_acknowledged(None).await?;
    let node = context.cluster()?.members.get(&member).map(|record| record.node.clone());
    let Some(node) = node else { return Ok(StepDone::new()) };
    let fate = if keep_data { "its data is kept there, aside" } else { "its data is erased" };
    let release = Action::Release(wire::Release { keep_data, give_back: false });
    let sentence = match context.call(&member, release, RELEASE_WITHIN).await {
        Ok(_) => format!("{member} has left, and {fate}: node {node} is a spare"),
        // The node is not in this cluster any more: nothing of it is left there.
        Err(error) if matches!(error.reason, Reason::WrongCluster | Reason::WrongMember) => {
            format!("{member} has left: node {node} is a spare")
        }
        Err(error) if error.reason == Reason::NodeUnreachable => format!(
            "{member} has left, and node {node} could not be reached: when it returns {fate}, and it is a spare then"
        ),
        Err(error) => return Err(error),
    };
    let environment = context.environment();
    let facts = [("node", node.to_string()), ("member", member.to_string()), ("keep_data", keep_data.to_string())];
    let facts = facts.map(|(name, value)| (name.to_owned(), value)).into();
    let cluster = context.cluster()?.name.clone();
    environment.events.publish("NODE_RELEASED", Some(&cluster), &node.resource(), &sentence, facts).await;
    Ok(StepDone::new().say(sentence).change(move |cluster| {
        cluster.members.remove(&member);
    }))
}
