//! Makes new data and starts the engine as the first primary. The mark that it may be writable, and a
//! lease, come first (rule L6).

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext) -> Result<Done, StepError> {
    let membership = context.membership()?;
    if membership.distrusted {
        return Err(StepError::DataNotWhole { member: membership.member });
    }
    let driver = context.driver()?;
    context.begin_reign(&*driver).await?;
    let position = driver.initialize().await?;
    let outcome = StepOutcome {
        position: Some(position),
        engine_version: driver.version(),
        endpoint: Some(driver.endpoint()),
        ..StepOutcome::default()
    };
    Ok(Done::noting(outcome, |membership| membership.dirty = false))
}
