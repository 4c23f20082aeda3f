//! Makes the replica the primary of the step's epoch.
//!
//! The ledger's mark that the engine may be writable in this epoch is on disk before it is, and a lease of the epoch is held,
//! with the gate armed and open (rules L6, G1, G4). An engine that does
//! not run is first started isolated, so that every reign begins with a promotion of its own.

use std::sync::Arc;

use regent_common::topology::EngineState;

use super::super::{StepContext, StepError, context::Done};
use crate::{
    engine::{Driver, StartAs},
    ledger::StepOutcome,
};

/// The driver of a member whose data may be promoted.
pub(super) fn refuse_unfit(context: &StepContext) -> Result<Arc<dyn Driver>, StepError> {
    let membership = context.membership()?;
    let driver = context.driver()?;
    context.refuse_dirty(&membership, &*driver)?;
    if membership.resyncing {
        return Err(StepError::DataNotWhole { member: membership.member });
    }
    Ok(driver)
}

pub(super) async fn run(context: &StepContext) -> Result<Done, StepError> {
    let driver = refuse_unfit(context)?;
    context.begin_reign(&*driver).await?;
    // What was seen last is kept current by the process's own events; a look now would cost the writers its probes.
    let state = match context.member.last_state() {
        Some(state) => state,
        None => driver.observe().await.state,
    };
    match state {
        EngineState::Absent | EngineState::Stopped | EngineState::Crashed => driver.start(StartAs::Isolated).await?,
        EngineState::Starting | EngineState::Running | EngineState::Stopping | EngineState::Hung => {}
    }
    let position = driver.promote().await?;
    Ok(Done::new(StepOutcome { position: Some(position), ..StepOutcome::default() }))
}
