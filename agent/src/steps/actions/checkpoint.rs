//! Flushes the primary, so that copies made from now on see its present history, and reports how far it has come.
//!
//! It is also a step with which the copy that must survive takes on the token of a resync (rule T2).

use super::super::{StepContext, StepError, context::Done};
use crate::{engine::Flush, ledger::StepOutcome};

pub(super) async fn run(context: &StepContext, flush: Flush) -> Result<Done, StepError> {
    let driver = context.driver()?;
    driver.checkpoint(flush).await?;
    // Looked at after the flush: whoever compares a copy with it must not find the copy ahead of an older word.
    let position = driver.observe().await.position;
    Ok(Done::new(StepOutcome { position, ..StepOutcome::default() }))
}
