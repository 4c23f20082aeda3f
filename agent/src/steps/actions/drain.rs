//! Hands everything over to a successor before a planned promotion, under the lease that stands (rule P6).
//!
//! The ledger's mark comes before the first application is turned away, and goes before the first is let in again: a fence that
//! finds it says that nobody wrote in between. **Invariant:** a drain ends by itself: when it does not succeed in time, when no
//! fence has come in time after it, and when the agent is started again. Only the fence ends the reign.

use std::time::Duration;

use regent_common::{
    error::ErrorChain,
    ids::{MemberName, OperationToken},
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
    let driver = context.driver()?;
    let token = context.header.token;
    context.mark(move |membership| membership.drained = Some(token)).await?;
    // Whatever becomes of this step, and of its caller: after that time applications are let in.
    let (ledger, member) = (context.ledger.clone(), context.member.clone());
    let late = async move {
        tokio::time::sleep(within + hold).await;
        lift_late(&ledger, &member, token).await;
    };
    let late = tokio::spawn(late.in_current_span());
    let handed_over = tokio::time::timeout(within, driver.drain(&successor)).await.unwrap_or_else(|_| {
        let (doing, last) = (format!("handing over to {successor}"), "applications are let in again".to_owned());
        Err(DriverError::Deadline { doing, seconds: within.as_secs(), last })
    });
    match handed_over {
        Ok(position) => Ok(Done::new(StepOutcome { position: Some(position), ..StepOutcome::default() })),
        Err(error) => {
            lift(&context.ledger, &*driver).await?;
            late.abort();
            Err(error.into())
        }
    }
}

pub(super) async fn undo(context: &StepContext) -> Result<Done, StepError> {
    lift(&context.ledger, &*context.driver()?).await?;
    Ok(Done::new(StepOutcome::default()))
}

/// Lets applications in again; the mark goes first.
pub(super) async fn lift(ledger: &LedgerStore, driver: &dyn Driver) -> Result<(), StepError> {
    ledger.update(Ledger::end_drain).await?;
    Ok(driver.undo_drain().await?)
}

/// The step by which applications are kept out now.
pub fn standing(ledger: &Ledger) -> Option<OperationToken> {
    ledger.membership.as_ref()?.drained
}

/// Takes the drain of this token back, if nobody has ended it.
pub async fn lift_late(ledger: &LedgerStore, member: &Member, token: OperationToken) {
    let stands = move |ledger: &Ledger| standing(ledger) == Some(token);
    if !stands(&ledger.read()) {
        return;
    }
    tracing::warn!("no promotion has followed the drain: applications are let in again");
    let failed = |error: &(dyn std::error::Error + 'static)| {
        tracing::warn!(error = %ErrorChain(error), "applications could not be let in again; tried anew");
    };
    let end = move |ledger: &mut Ledger| {
        if stands(ledger) {
            ledger.end_drain();
        }
    };
    while let Err(error) = ledger.update(end).await {
        failed(&error);
        tokio::time::sleep(AGAIN).await;
    }
    while let Some(driver) = member.driver() {
        match driver.undo_drain().await {
            Ok(()) => return,
            Err(error) => failed(&error),
        }
        tokio::time::sleep(AGAIN).await;
    }
}
