//! Hands everything over to a successor before a planned promotion, under the lease that stands (rule P6).
//!
//! The ledger's mark comes before the first application is turned away, and goes before the first is let in again: a fence that
//! finds it says that nobody wrote in between. **Invariant:** a drain ends by itself: when it does not succeed in time, when no
//! fence has come in time after it, and when the agent is started again. Only the fence ends the reign. An agent that is about to end
//! does not begin one, nor hands its lease over during one: nobody would be let in for as long as that lease stands.

use std::time::Duration;

use regent_common::{
    error::ErrorChain,
    ids::{MemberName, OperationToken},
    position::Position,
    topology::Role,
};
use tracing::Instrument;

use super::super::{StepContext, StepError, context::Done};
use crate::{
    engine::{Driver, DriverError},
    ledger::{Ledger, LedgerStore, StepOutcome},
    member::Member,
};

/// Pause before letting applications in again is tried anew.
const AGAIN: Duration = Duration::from_millis(500);

pub(super) async fn run(
    context: &StepContext,
    successor: MemberName,
    within: Duration,
    hold: Duration,
) -> Result<Done, StepError> {
    let membership = context.membership()?;
    let epoch = context.header.epoch;
    if membership.role != Some(Role::Primary) || !context.lease.holds(epoch) {
        return Err(StepError::NotReigning { member: membership.member, epoch });
    }
    let leaving = || StepError::Leaving { member: membership.member.clone() };
    if context.lease.hands_over() {
        return Err(leaving());
    }
    let driver = context.driver()?;
    // A drain and the end of another one follow one another; its position is known only while it stands.
    let mut handed_over = context.member.handed_over.lock().await;
    *handed_over = None;
    let token = context.header.token;
    context.mark(move |membership| membership.drained = Some(token)).await?;
    if context.lease.hands_over() {
        drop(handed_over);
        lift(&context.ledger, &context.member, &*driver).await?;
        return Err(leaving());
    }
    // Whatever becomes of this step, and of its caller: after that time applications are let in.
    let late = lift_after(context, token, within + hold);
    let drained = tokio::time::timeout(within, driver.drain(&successor)).await.unwrap_or_else(|_| {
        let (doing, last) = (format!("handing over to {successor}"), "applications are let in again".to_owned());
        Err(DriverError::Deadline { doing, seconds: within.as_secs(), last })
    });
    match drained {
        Ok(position) => {
            *handed_over = Some(position.clone());
            late.abort();
            lift_after(context, token, hold);
            Ok(Done::new(StepOutcome { position: Some(position), ..StepOutcome::default() }))
        }
        Err(error) => {
            drop(handed_over);
            // Should that fail, it is tried again when the time is over.
            lift(&context.ledger, &context.member, &*driver).await?;
            Err(error.into())
        }
    }
}

pub(super) async fn undo(context: &StepContext) -> Result<Done, StepError> {
    lift(&context.ledger, &context.member, &*context.driver()?).await?;
    Ok(Done::new(StepOutcome::default()))
}

/// Takes the drain of this token back after a time, if it stands then.
fn lift_after(context: &StepContext, token: OperationToken, after: Duration) -> tokio::task::JoinHandle<()> {
    let (ledger, member) = (context.ledger.clone(), context.member.clone());
    let late = async move {
        tokio::time::sleep(after).await;
        lift_late(&ledger, &member, token).await;
    };
    tokio::spawn(late.in_current_span())
}

/// Lets applications in again; the mark goes first.
pub(super) async fn lift(ledger: &LedgerStore, member: &Member, driver: &dyn Driver) -> Result<(), StepError> {
    let mut handed_over = member.handed_over.lock().await;
    *handed_over = None;
    ledger.update(Ledger::end_drain).await?;
    Ok(driver.undo_drain().await?)
}

/// The final position of the drain that stands, for the fence that ends it: of this process, and not broken since. A lock that is
/// held is one of somebody who lets applications in.
pub(super) fn final_position(member: &Member, ledger: &Ledger) -> Option<Position> {
    let position = member.handed_over.try_lock().ok()?.clone();
    standing(ledger).and(position)
}

/// The step by which applications are kept out now.
pub fn standing(ledger: &Ledger) -> Option<OperationToken> {
    ledger.membership.as_ref()?.drained
}

/// Takes the drain of this token back, unless another one stands. What an earlier try has left half-way is gone on with: to let
/// applications in where they are does no harm.
pub async fn lift_late(ledger: &LedgerStore, member: &Member, token: OperationToken) {
    loop {
        let mut handed_over = member.handed_over.lock().await;
        match standing(&ledger.read()) {
            Some(other) if other != token => return,
            Some(_) => tracing::warn!("no promotion has followed the drain: applications are let in again"),
            None => {}
        }
        *handed_over = None;
        let lifted = match (ledger.update(Ledger::end_drain).await, member.driver()) {
            (Err(error), _) => Err(ErrorChain(&error).to_string()),
            (Ok(()), None) => Err("its driver is not there".to_owned()),
            (Ok(()), Some(driver)) => driver.undo_drain().await.map_err(|error| ErrorChain(&error).to_string()),
        };
        drop(handed_over);
        match lifted {
            Ok(()) => return,
            // Whoever has left the cluster has nobody to let in.
            Err(_) if ledger.read().membership.is_none() => return,
            Err(error) => tracing::warn!(error, "applications could not be let in again; tried anew"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
