//! Fills this side of a multi-master cluster anew from the other one. The old data goes aside only after the side that must survive
//! has given its word (rule T2).

use regent_common::topology::{Mode, Peer, Role};

use super::super::{StepContext, StepError, context::Done};
use crate::{engine::DriverError, ledger::StepOutcome};

pub(super) async fn run(context: &StepContext, source: Peer, keep_old: bool) -> Result<Done, StepError> {
    context.refuse_own_source(&source)?;
    let membership = context.membership()?;
    if membership.spec.mode != Mode::MultiMaster {
        return Err(DriverError::OtherMode { doing: "refill", mode: membership.spec.mode }.into());
    }
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
    if let Err(error) = driver.refill(&source, keep_old).await {
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
        membership.role = Some(Role::Active);
        membership.upstream = Some(source.member);
    }))
}
