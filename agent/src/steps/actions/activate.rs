//! Makes this member an active side of a multi-master cluster. A start as one lifts a fence.
//!
//! No lease and no gate stand before such a side: what keeps applications and the other side out of data that may be old is the
//! engine's own access rules, with which every start of it begins. The ledger's word that it is a side comes before it is opened.

use regent_common::topology::{Mode, Peer, Role};

use super::super::{StepContext, StepError, context::Done};
use crate::{
    engine::{Activation, DriverError},
    ledger::StepOutcome,
};

pub(super) async fn run(
    context: &StepContext,
    other: Option<Peer>,
    open: bool,
    first: bool,
) -> Result<Done, StepError> {
    if let Some(other) = &other {
        context.refuse_own_source(other)?;
    }
    let membership = context.membership()?;
    if membership.spec.mode != Mode::MultiMaster {
        return Err(DriverError::OtherMode { doing: "activate", mode: membership.spec.mode }.into());
    }
    let driver = context.driver()?;
    // An attempt to make the first data that was broken off is begun anew by the driver.
    if !first || membership.must_not_start() {
        context.refuse_dirty(&membership, &*driver)?;
    }
    context.mark(|membership| membership.role = Some(Role::Active)).await?;
    // What a fence has closed the engine's own rules keep closed until it is opened.
    context.become_follower().await?;
    driver.activate(Activation { other: other.as_ref(), open, first }).await?;
    let position = driver.observe().await.position;
    let outcome = StepOutcome {
        position,
        engine_version: driver.version(),
        endpoint: Some(driver.endpoint()),
        ..StepOutcome::default()
    };
    Ok(Done::noting(outcome, move |membership| {
        membership.resyncing = false;
        membership.fenced = false;
        membership.upstream = other.map(|other| other.member);
    }))
}
