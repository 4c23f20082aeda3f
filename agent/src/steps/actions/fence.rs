//! Ends every reign below the step's epoch, and none at it (rule G5).
//!
//! Running steps of lower epochs and tokens were killed before this began, and their epochs revoked in the lease future. The
//! fence is on disk before the engine is asked for anything, and it is answered only when no process is left that could acknowledge a
//! write, or SIGKILL is pending on it behind a gate that is closed both ways, and no socket through which an acknowledgement
//! could leave.

use std::time::Duration;

use super::{
    super::{StepContext, StepError, context::Done},
    drain,
};
use crate::ledger::StepOutcome;

/// How long killed processes are waited for where a gate stands before them. What is left then waits for the disk.
const VANISH_WITHIN: Duration = Duration::from_millis(500);

/// What became of the engine's processes.
enum Fenced {
    /// None is left that could acknowledge a write.
    Whole,
    /// SIGKILL is pending on what is left (state D), and the gate is closed: nothing of it reaches anybody any more.
    Pending,
}

/// Fences the engine. Processes that a hung disk keeps do not keep the fence where the kernel drops the ports both ways
/// (rule G5).
async fn fence(context: &StepContext) -> Result<Fenced, StepError> {
    let driver = context.driver()?;
    let fencing = driver.fence();
    if !context.lease.has_gate() {
        return Ok(fencing.await.map(|()| Fenced::Whole)?);
    }
    // The signals are sent first, then their effect is waited for.
    match tokio::time::timeout(VANISH_WITHIN, fencing).await {
        Ok(Ok(())) => Ok(Fenced::Whole),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(Fenced::Pending),
    }
}

pub(super) async fn run(context: &StepContext) -> Result<Done, StepError> {
    let membership = context.membership()?;
    let epoch = context.header.epoch;
    if membership.writable_epoch.is_some_and(|writable| writable >= epoch) {
        // A late message: this member was promoted at this epoch since, so that every reign below it is over.
        return Ok(Done::new(StepOutcome {
            detail: format!("this member reigns at epoch {epoch}; no reign below it stands"),
            writable_epoch: membership.writable_epoch,
            ..StepOutcome::default()
        }));
    }
    // The epochs below were revoked in the lease future, and the gate closed, before this step was admitted.
    context
        .mark(move |membership| {
            membership.fenced_epoch = membership.fenced_epoch.max(Some(epoch));
            membership.fenced = true;
        })
        .await?;
    let fenced = fence(context).await?;
    // What the engine has left queued in the kernel must not leave later (rule G4).
    context.lease.cut().await?;
    let detail = match fenced {
        Fenced::Whole => String::new(),
        Fenced::Pending => {
            "SIGKILL is pending on processes that wait for the disk; their ports are closed both ways".to_owned()
        }
    };
    // Read after that: whoever let applications in before that has cleared it first (rule P6).
    let handed_over = drain::final_position(&context.member, &context.ledger.read());
    let outcome = StepOutcome {
        detail,
        writable_epoch: membership.writable_epoch,
        drained: handed_over.is_some(),
        position: handed_over.or_else(|| context.member.last_position()),
        ..StepOutcome::default()
    };
    // The next start of the engine lets them in by itself.
    Ok(Done::noting(outcome, |membership| membership.drained = None))
}
