//! Makes this member the primary on the word of a person, while no coordinator answers (rule P9). What is refused was decided in
//! [`crate::force`] before the step was begun.
//!
//! The ledger comes first: the epoch when the step was accepted, then that it is established with nobody to ask, so that its
//! lease stands alone (rule E1). The lease and the engine follow as in every promotion. An agent that dies half-way leaves a
//! member that is no primary yet, or one that is; the same word said again goes on.

use regent_common::lease::Forced;

use super::{
    super::{StepContext, StepError, context::Done},
    promote,
};

pub(super) async fn run(context: &StepContext, forced: Forced) -> Result<Done, StepError> {
    promote::refuse_unfit(context)?;
    let epoch = context.header.epoch;
    context.mark(move |membership| membership.force(epoch, forced)).await?;
    promote::run(context).await
}
