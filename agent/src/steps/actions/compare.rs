//! Counts what this side of a multi-master cluster has and the other one has not, beside what it serves. Changes nothing.

use regent_common::topology::Peer;

use super::super::{StepContext, StepError, context::Done};
use crate::{engine::Comparison, ledger::StepOutcome};

pub(super) async fn run(context: &StepContext, other: Peer, what: Comparison) -> Result<Done, StepError> {
    context.refuse_own_source(&other)?;
    let driver = context.driver()?;
    let difference = (*driver).compare(&other, what, &context.work).await?;
    Ok(Done::new(StepOutcome { difference: Some(Box::new(difference)), ..StepOutcome::default() }))
}
