//! Ends every reign below the step's epoch, and none at it (rule G5).
//!
//! Running steps of lower epochs and tokens were killed before this began. The fence is on disk before the engine is
//! killed, and it is answered only when no process is left that could acknowledge a write.

use super::super::{StepContext, StepError, context::Done};
use crate::{engine::Stop, ledger::StepOutcome};

pub(super) async fn run(context: &StepContext) -> Result<Done, StepError> {
    let membership = context.membership()?;
    let epoch = context.header.epoch;
    if membership.writable_epoch.is_some_and(|writable| writable >= epoch) {
        // A late message: this member was promoted at this epoch since, so that every reign below it is over.
        return Ok(Done::new(StepOutcome {
            detail: format!("this member reigns at epoch {epoch}; no reign below it stands"),
            ..StepOutcome::default()
        }));
    }
    context
        .mark(move |membership| {
            membership.fenced_epoch = membership.fenced_epoch.max(Some(epoch));
            membership.fenced = true;
        })
        .await?;
    context.driver()?.stop(Stop::Kill).await?;
    Ok(Done::new(StepOutcome {
        became_writable: membership.became_writable_below(epoch),
        position: context.member.last_position(),
        primary_position_heard: membership.primary_position_heard,
        ..StepOutcome::default()
    }))
}
