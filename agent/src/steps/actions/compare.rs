//! Counts what only this side of a multi-master cluster has, beside what it serves. Changes nothing.

use regent_common::topology::Peer;

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext, other: Peer) -> Result<Done, StepError> {
    context.refuse_own_source(&other)?;
    let driver = context.driver()?;
    let difference = (*driver).compare(&other, &context.work).await?;
    Ok(Done::new(StepOutcome { difference: Some(difference), ..StepOutcome::default() }))
}
