//! Takes an instance over that runs on the node and is nobody's, without stopping it.
//!
//! As the primary it accepts writes already, without a lease; nobody else can have been promoted, because its cluster has never had
//! another primary, and decides nothing by itself before the adoption has ended. So the mark and the lease come first (rule L6), then
//! the gate, which stands open from its first moment, then the engine. An attempt that fails puts everything back.

use std::path::Path;

use regent_common::topology::{Peer, Role};

use super::super::{StepContext, StepError, context::Done};
use crate::{
    engine::{Driver, DriverError},
    ledger::{Membership, StepOutcome},
};

pub(super) async fn run(
    context: &StepContext,
    data_directory: &Path,
    upstream: Option<Peer>,
) -> Result<Done, StepError> {
    let before = context.membership()?;
    let driver = context.driver()?;
    context.refuse_dirty(&before, &*driver)?;
    let adopted = match &upstream {
        Some(upstream) => {
            context.refuse_own_source(upstream)?;
            driver.adopt(data_directory, Some(upstream)).await
        }
        None => {
            context.begin_running_reign(&*driver).await?;
            driver.adopt(data_directory, None).await
        }
    };
    let position = match adopted {
        Ok(position) => position,
        Err(error) => return Err(put_back(context, &*driver, before, error).await),
    };
    let outcome = StepOutcome {
        position: Some(position),
        engine_version: driver.version(),
        endpoint: Some(driver.endpoint()),
        ..StepOutcome::default()
    };
    Ok(Done::noting(outcome, move |membership| {
        membership.dirty = false;
        if let Some(upstream) = upstream {
            membership.role = Some(Role::Replica);
            membership.upstream = Some(upstream.member);
        }
    }))
}

/// The instance goes on as it was found; the error to report, which is the first one.
async fn put_back(context: &StepContext, driver: &dyn Driver, before: Membership, error: DriverError) -> StepError {
    let put_back = async {
        driver.give_back().await?;
        context.lease.let_go().await?;
        // An attempt that was killed has left its mark: what is given back reigns nowhere, and a start of the agent must not gate it.
        let never = Membership { writable_epoch: None, writable_boot_id: None, role: None, upstream: None, ..before };
        context.mark(move |membership| membership.take_reign_back(never)).await
    };
    if let Err(second) = put_back.await {
        // Who asked takes the whole adoption back, which tries it again.
        tracing::error!(error = %second, "the instance could not be given back");
    }
    error.into()
}
