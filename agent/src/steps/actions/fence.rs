//! Ends every reign below the step's epoch, and none at it (rule G5).
//!
//! Running steps of lower epochs and tokens were killed before this began, and their epochs revoked in the lease future. The
//! fence is on disk before the engine is killed, and it is answered only when no process is left that could acknowledge a
//! write, or SIGKILL is pending on it behind a gate that is closed both ways, and no socket through which an acknowledgement
//! could leave.

use std::time::Duration;

use super::{
    super::{StepContext, StepError, context::Done},
    drain,
};
use crate::{engine::Stop, ledger::StepOutcome};

/// How long killed processes are waited for where a gate stands before them. What is left then waits for the disk.
const VANISH_WITHIN: Duration = Duration::from_millis(500);

/// What became of the engine's processes.
enum Killed {
    /// None is left.
    Gone,
    /// SIGKILL is pending on what is left (state D), and the gate is closed: nothing of it reaches anybody any more.
    Pending,
}

/// Kills the engine. Processes that a hung disk keeps do not keep the fence where the kernel drops the ports both ways
/// (rule G5).
async fn kill(context: &StepContext) -> Result<Killed, StepError> {
    let driver = context.driver()?;
    let stopping = driver.stop(Stop::Kill);
    if !context.lease.has_gate() {
        return Ok(stopping.await.map(|()| Killed::Gone)?);
    }
    // The signals are sent first, then their effect is waited for.
    match tokio::time::timeout(VANISH_WITHIN, stopping).await {
        Ok(Ok(())) => Ok(Killed::Gone),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Ok(Killed::Pending),
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
    let killed = kill(context).await?;
    // What the killed engine has left queued in the kernel must not leave later (rule G4).
    context.lease.cut().await?;
    let detail = match killed {
        Killed::Gone => String::new(),
        Killed::Pending => {
            "SIGKILL is pending on processes that wait for the disk; their ports are closed both ways".to_owned()
        }
    };
    // Read after the kill: whoever let applications in before that has cleared it first (rule P6).
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
