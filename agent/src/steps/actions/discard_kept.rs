//! Removes the data that a swap kept aside.

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext) -> Result<Done, StepError> {
    context.driver()?.discard_kept().await?;
    Ok(Done::new(StepOutcome::default()))
}
