//! Puts the copy in place and starts it as a replica. The old copy goes aside only after the one that must survive has
//! given its word (rule T2).

use regent_common::topology::{Peer, Role};

use super::super::{StepContext, StepError, context::Done};
use crate::{engine::DriverError, ledger::StepOutcome};

pub(super) async fn run(context: &StepContext, upstream: Peer, keep_old: bool) -> Result<Done, StepError> {
    let driver = context.driver()?;
    replace(context, upstream.clone(), Role::Replica, keep_old, async || driver.swap(&upstream, keep_old).await).await
}

/// Has the driver replace this member's data by that of another member, which it follows from then on. Until it does the data must not
/// be started, unless the driver says that the old data is in place again.
pub(super) async fn replace(
    context: &StepContext,
    source: Peer,
    role: Role,
    keep_old: bool,
    work: impl AsyncFnOnce() -> Result<(), DriverError>,
) -> Result<Done, StepError> {
    context.refuse_own_source(&source)?;
    let driver = context.driver()?;
    let had_data = driver.has_data();
    if had_data {
        context.confirm_survivor(&source).await?;
    }
    context
        .mark(|membership| {
            membership.resyncing = true;
            membership.dirty = true;
        })
        .await?;
    if let Err(error) = work().await {
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
        membership.role = Some(role);
        membership.upstream = Some(source.member);
    }))
}
