//! Puts the copy in place and starts it as a replica. The old copy goes aside only after the one that must survive has
//! given its word (rule T2).

use regent_common::topology::{Peer, Role};

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext, upstream: Peer, keep_old: bool) -> Result<Done, StepError> {
    context.refuse_own_source(&upstream)?;
    let driver = context.driver()?;
    let had_data = driver.has_data();
    if had_data {
        context.confirm_survivor(&upstream).await?;
    }
    context
        .mark(|membership| {
            membership.resyncing = true;
            membership.dirty = true;
        })
        .await?;
    if let Err(error) = driver.swap(&upstream, keep_old).await {
        let dirty = driver.is_dirty();
        context.mark(move |membership| membership.dirty = dirty).await?;
        return Err(error.into());
    }
    context.become_follower().await?;
    let outcome = StepOutcome { old_data_kept: had_data && keep_old, ..StepOutcome::default() };
    Ok(Done::noting(outcome, move |membership| {
        membership.resyncing = false;
        membership.dirty = false;
        membership.distrusted = false;
        membership.fenced = false;
        membership.role = Some(Role::Replica);
        membership.upstream = Some(upstream.member);
    }))
}
