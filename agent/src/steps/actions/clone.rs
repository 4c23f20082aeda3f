//! Copies a member's data into the side directory.
//!
//! The member counts as in resync from before the first byte. Where the old data may go first it is marked as not to be
//! started, and the copy that must survive is asked for its word (rule T2) before that.

use regent_common::topology::Peer;

use super::super::{StepContext, StepError, context::Done};
use crate::{engine::CloneOptions, ledger::StepOutcome};

pub(super) async fn run(
    context: &StepContext,
    source: Peer,
    max_bytes_per_second: u64,
    wipe_first_if_needed: bool,
) -> Result<Done, StepError> {
    context.refuse_own_source(&source)?;
    let driver = context.driver()?;
    let may_wipe = wipe_first_if_needed && driver.has_data();
    if may_wipe {
        context.confirm_survivor(&source).await?;
    }
    context
        .mark(move |membership| {
            membership.resyncing = true;
            membership.dirty |= may_wipe;
        })
        .await?;
    let options = CloneOptions { max_bytes_per_second, wipe_first_if_needed: may_wipe };
    let cloned = (*driver).clone_from(&source, options, &context.work).await;
    // The driver came to an end: its word on the old data counts again.
    let (dirty, failed) = (driver.is_dirty(), cloned.is_err());
    context
        .mark(move |membership| {
            membership.dirty = dirty;
            membership.resyncing = dirty || !failed;
        })
        .await?;
    let cloned = cloned?;
    Ok(Done::new(StepOutcome {
        bytes_copied: cloned.bytes,
        old_data_kept: cloned.old_data_kept,
        ..StepOutcome::default()
    }))
}
