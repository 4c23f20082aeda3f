//! Ends every reign below the step's epoch, and none at it (rule G5).
//!
//! Running steps of lower epochs and tokens were killed before this began, and their epochs revoked in the lease future. The
//! fence is on disk before the engine is killed, and it is answered only when no process is left that could acknowledge a
//! write, and no socket through which an acknowledgement could leave.

use regent_common::mutation::{self, Rule};

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
    if mutation::broken(Rule::G5Ledger) {
        context.driver()?.stop(Stop::Kill).await?;
        return Ok(Done::new(StepOutcome { became_writable: true, ..StepOutcome::default() }));
    }
    // The epochs below were revoked in the lease future, and the gate closed, before this step was admitted.
    context
        .mark(move |membership| {
            membership.fenced_epoch = membership.fenced_epoch.max(Some(epoch));
            membership.fenced = true;
        })
        .await?;
    context.driver()?.stop(Stop::Kill).await?;
    // What the killed engine has left queued in the kernel must not leave later (rule G4).
    context.lease.cut().await?;
    Ok(Done::new(StepOutcome {
        became_writable: membership.became_writable_below(epoch),
        position: context.member.last_position(),
        primary_position_heard: membership.primary_position_heard,
        ..StepOutcome::default()
    }))
}
