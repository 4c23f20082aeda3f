//! Finds out where a returning copy stands, with its engine isolated.

use regent_common::position::Position;

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext, primary_position: Option<Position>) -> Result<Done, StepError> {
    let membership = context.membership()?;
    let driver = context.driver()?;
    context.refuse_dirty(&membership, &*driver)?;
    let position = driver.examine().await?;
    let detail = match &primary_position {
        None => String::new(),
        Some(primary) if primary.includes(&position) => "this copy has nothing that the primary has not".to_owned(),
        Some(primary) => {
            format!("this copy has {} units of change that the primary has not", position.minus(primary).amount())
        }
    };
    let outcome = StepOutcome {
        position: Some(position),
        detail,
        primary_position_heard: membership.primary_position_heard,
        ..StepOutcome::default()
    };
    Ok(Done::noting(outcome, move |membership| {
        if let Some(primary) = primary_position {
            membership.hear_primary_position(primary);
        }
    }))
}
