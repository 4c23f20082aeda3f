//! Cuts the member's own stream and reports how far it has come, and how far the primaries had that it heard (rule P3). The epoch
//! is on disk since the step was accepted.
//!
//! An old primary that is prepared (rule P5) is revoked, its gate closed, its sessions cut; its engine is left running, so
//! that it can be the candidate. Without a gate it is fenced in full: its engine is killed, then started isolated to find
//! out its position.

use regent_common::{
    mutation::{self, Rule},
    topology::Role,
};

use super::{
    super::{StepContext, StepError, context::Done},
    drain,
};
use crate::{engine::Stop, ledger::StepOutcome};

pub(super) async fn run(context: &StepContext) -> Result<Done, StepError> {
    let membership = context.membership()?;
    let driver = context.driver()?;
    context.refuse_dirty(&membership, &*driver)?;
    if membership.resyncing {
        // It could not be promoted: better to say so before it is chosen (rule M3).
        return Err(StepError::DataNotWhole { member: membership.member });
    }
    let epoch = context.header.epoch;
    let position = if membership.role == Some(Role::Primary) {
        if !mutation::broken(Rule::P5Old) {
            context
                .mark(move |membership| {
                    membership.fenced_epoch = membership.fenced_epoch.max(Some(epoch));
                    membership.fenced = true;
                })
                .await?;
        }
        if mutation::broken(Rule::P5Old) {
            // Its reign goes on.
        } else if context.lease.has_gate() {
            // The engine goes on behind a closed gate: a blip must not end with nobody.
            context.lease.revoke(epoch).await?;
            if membership.drained.is_some() {
                // It may be the primary again without a start of its engine.
                drain::lift(&context.ledger, &context.member, &*driver).await?;
            }
        } else {
            driver.stop(Stop::Kill).await?;
        }
        driver.examine().await?
    } else if mutation::broken(Rule::P3Cut) {
        driver.examine().await?
    } else {
        driver.cut().await?
    };
    let outcome = StepOutcome {
        position: Some(position),
        heard: context.heard(&*driver),
        writable_epoch: membership.writable_epoch,
        ..StepOutcome::default()
    };
    Ok(Done::noting(outcome, |membership| membership.upstream = None))
}
