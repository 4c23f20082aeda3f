//! Looks for what the two sides of a pair do not have alike, beside what they serve. Changes nothing.
//!
//! It ends well when both have the same, and fails with `DIVERGED` when they do not, so that whoever asks for it every night reads one
//! word. The values are compared by the first side, in one pass over its entries; what only the second one has needs another.

use async_trait::async_trait;
use regent_common::{error::Reason, topology::Difference};
use serde_json::Value;

use super::pair::{difference_of, listed, other_of};
use crate::{
    model::{
        cluster::ClusterRecord,
        operation::{OperationRecord, PlannedStep},
    },
    operation::{Aftermath, Kind, StepContext, StepDone, StepError},
    planner::pair::either_data,
};

/// The kind.
pub struct Compare;

#[async_trait]
impl Kind for Compare {
    fn name(&self) -> &'static str {
        "compare"
    }

    fn plan(&self, cluster: &ClusterRecord, _: &Value) -> Vec<PlannedStep> {
        let names = ["compare", "compare_back"];
        cluster.members.keys().zip(names).map(|(side, name)| PlannedStep::new(name, [side.clone()])).collect()
    }

    fn begin(&self, _: &mut ClusterRecord, _: &Value) {}

    async fn run(&self, step: &PlannedStep, context: &StepContext<'_>) -> Result<StepDone, StepError> {
        let Some(side) = step.members.first() else { return Ok(StepDone::new()) };
        let other = other_of(context, side)?;
        if step.name == "compare" {
            let found = difference_of(context, side, &other, true).await?;
            if !found.values {
                // As one that knows nothing of an action answers.
                let message = format!(
                    "the agent of {side} is of a release that compares no values: upgrade it; nothing was changed"
                );
                return Err(StepError::new(Reason::InvalidField, message));
            }
            return Ok(StepDone::new().output(&found));
        }
        let back = difference_of(context, side, &other, false).await?;
        let first: Difference = context.output("compare")?;
        let mut unlike = Vec::new();
        for (has, lacks, found) in [(&other, side, &first), (side, &other, &back)] {
            if found.only_here > 0 {
                let some = listed(found.only_here, &found.examples);
                unlike.push(format!("{has} has {some} that {lacks} has not"));
            }
        }
        if first.differing > 0 {
            let some = listed(first.differing, &first.differing_examples);
            unlike.push(format!("{some} of both have other values on each"));
        }
        let unknown = match first.undecided {
            0 => String::new(),
            some => format!(
                "; the values of {} were not compared: they changed all the while, are so large that clients would have had to wait, or are of \
                 a kind that the engine makes no digest of",
                listed(some, &[])
            ),
        };
        if unlike.is_empty() {
            let all = listed(first.compared, &[]);
            let sentence = format!("{other} and {side} have the same, {all}{unknown}");
            return Ok(StepDone::new().say(sentence));
        }
        let cluster = context.cluster()?;
        let message = format!(
            "{}{unknown}; nothing was changed: write or delete these entries again, or make both sides the same: {}",
            unlike.join("; "),
            either_data(&cluster, side)
        );
        Err(StepError::new(Reason::Diverged, message))
    }

    fn abandon(&self, _: &mut ClusterRecord, _: &OperationRecord, _: bool, _: &str) -> Aftermath {
        Aftermath::Keep
    }

    fn yields_to_failover(&self) -> bool {
        true
    }

    fn is_of_pairs_only(&self) -> bool {
        true
    }

    fn cancellable(&self) -> bool {
        true
    }

    fn event(&self) -> &'static str {
        "COMPARISON"
    }
}
