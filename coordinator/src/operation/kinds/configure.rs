//! Applies members, settings and access rules again where a member has others: it was away while they changed, or the change was
//! cut short by a failover.

use std::time::Duration;

use async_trait::async_trait;
use regent_common::ids::MemberName;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::configure;
use crate::{
    model::{
        cluster::ClusterRecord,
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError, context::Patience, parameters::read},
};

/// How long a node is waited for; one that is away is found again when it returns.
const PATIENCE: Patience = Patience::AtMost(Duration::from_secs(10));

/// The kind.
pub struct Configure;

/// What is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parameters {
    /// The member.
    pub member: MemberName,
}

#[async_trait]
impl Kind for Configure {
    fn name(&self) -> &'static str {
        "configure"
    }

    fn plan(&self, _: &ClusterRecord, parameters: &Value) -> Vec<PlannedStep> {
        let Parameters { member } = read(parameters);
        vec![PlannedStep::new("configure", [member])]
    }

    fn begin(&self, _: &mut ClusterRecord, _: &Value) {}

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        for member in &step.members {
            context.call(member, configure(context)?, PATIENCE).await?;
        }
        Ok(StepDone::new())
    }

    fn abandon(&self, _: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        // The member still has another configuration, and the planner will see that.
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
        "CONFIGURE"
    }
}

/// Tells several members what they apply now, as the last step of a change. One that is away, or that does not take it, is said
/// and told again by itself.
pub(super) async fn configure_all(context: &StepContext<'_>, members: &[MemberName]) -> Result<StepDone, StepError> {
    let action = configure(context)?;
    let outcomes = context.call_all(members, PATIENCE, |_| action.clone()).await;
    let late = outcomes.into_iter().filter_map(|(member, outcome)| Some((member, outcome.err()?)));
    Ok(late.fold(StepDone::new(), |done, (member, error)| {
        done.say(format!("{member} does not know yet, and is told again by itself: {error}"))
    }))
}
