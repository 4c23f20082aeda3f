//! Flushes the primary, so that copies made from now on see its present history.
//!
//! It is also the step with which the copy that must survive takes on the token of a resync (rule T2).

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext) -> Result<Done, StepError> {
    context.driver()?.checkpoint().await?;
    Ok(Done::new(StepOutcome::default()))
}
