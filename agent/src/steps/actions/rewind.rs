//! Brings a diverged copy back to the history of another member and starts it as its replica.

use regent_common::topology::{Peer, Role};

use super::super::{StepContext, StepError, context::Done};
use crate::ledger::StepOutcome;

pub(super) async fn run(context: &StepContext, source: Peer) -> Result<Done, StepError> {
    context.refuse_own_source(&source)?;
    let membership = context.membership()?;
    if membership.distrusted {
        return Err(StepError::DataNotWhole { member: membership.member });
    }
    let driver = context.driver()?;
    context
        .mark(|membership| {
            membership.resyncing = true;
            membership.dirty = true;
        })
        .await?;
    let detail = match driver.rewind(&source, &context.work).await {
        Ok(detail) => detail,
        Err(error) => {
            let dirty = driver.is_dirty();
            context
                .mark(move |membership| {
                    membership.dirty = dirty;
                    membership.resyncing = dirty;
                })
                .await?;
            return Err(error.into());
        }
    };
    context.become_follower().await?;
    Ok(Done::noting(StepOutcome { detail, ..StepOutcome::default() }, move |membership| {
        membership.resyncing = false;
        membership.dirty = false;
        membership.fenced = false;
        membership.role = Some(Role::Replica);
        membership.upstream = Some(source.member);
    }))
}
