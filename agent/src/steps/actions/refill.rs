//! Fills this side of a multi-master cluster anew from the other one. The old data goes aside only after the side that must survive
//! has given its word (rule T2).

use regent_common::topology::{Mode, Peer, Role};

use super::{
    super::{StepContext, StepError, context::Done},
    swap::replace,
};
use crate::engine::DriverError;

pub(super) async fn run(context: &StepContext, source: Peer, keep_old: bool) -> Result<Done, StepError> {
    let mode = context.membership()?.spec.mode;
    if mode != Mode::MultiMaster {
        return Err(DriverError::OtherMode { doing: "refill", mode }.into());
    }
    let driver = context.driver()?;
    replace(context, source.clone(), Role::Active, keep_old, async || driver.refill(&source, keep_old).await).await
}
