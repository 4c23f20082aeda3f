//! Finds out where a returning copy stands, with its engine isolated.

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext) -> Result<Done, StepError> {
    let membership = context.membership()?;
    let driver = context.driver()?;
    context.refuse_dirty(&membership, &*driver)?;
    let position = driver.examine().await?;
    Ok(Done::new(StepOutcome { position: Some(position), ..StepOutcome::default() }))
}
