//! Follows an upstream. A start as a replica lifts a fence.

use regent_common::topology::{Peer, Role};

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext, upstream: Peer) -> Result<Done, StepError> {
    context.refuse_own_source(&upstream)?;
    let membership = context.membership()?;
    let driver = context.driver()?;
    context.refuse_dirty(&membership, &*driver)?;
    let detail = driver.follow(&upstream).await?;
    context.become_follower().await?;
    Ok(Done::noting(StepOutcome { detail, ..StepOutcome::default() }, move |membership| {
        // It streams, so that the data in place is whole, whatever became of a resync that did not end.
        membership.resyncing = false;
        membership.fenced = false;
        membership.role = Some(Role::Replica);
        membership.upstream = Some(upstream.member);
    }))
}
