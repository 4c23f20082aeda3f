//! The actions, one file each. **Adding one:** copy a file, add a variant to `Action` and a line to `run`.
//!
//! Every action may be carried out again after it failed, was stopped, or the agent was killed half-way. Marks that must
//! be on disk *before* the engine changes go through `StepContext::mark`; what is true only *after* it goes into the
//! ledger together with the result (`Done`).

mod activate;
mod adopt;
mod assign;
mod checkpoint;
mod clone;
mod compare;
mod configure;
mod discard_kept;
pub mod drain;
mod examine;
mod fence;
mod follow;
mod force_primary;
mod initialize;
mod prepare;
mod promote;
mod refill;
mod release;
mod rewind;
mod swap;

use super::{Action, StepContext, StepError, context::Done};

/// Carries one action out.
pub(super) async fn run(context: &StepContext, action: Action) -> Result<Done, StepError> {
    if action.may_start_engine() {
        context.firewall.ensure().await?;
    }
    match action {
        Action::Assign { spec, port } => assign::run(context, spec, port).await,
        Action::Configure { spec, fingerprint } => configure::run(context, spec, fingerprint).await,
        Action::Initialize => initialize::run(context).await,
        Action::Clone { source, max_bytes_per_second, wipe_first_if_needed } => {
            clone::run(context, source, max_bytes_per_second, wipe_first_if_needed).await
        }
        Action::Swap { upstream, keep_old } => swap::run(context, upstream, keep_old).await,
        Action::DiscardKept => discard_kept::run(context).await,
        Action::Fence => fence::run(context).await,
        Action::Prepare { .. } => prepare::run(context).await,
        Action::Promote => promote::run(context).await,
        Action::Follow { upstream } => follow::run(context, upstream).await,
        Action::Examine => examine::run(context).await,
        Action::Rewind { source } => rewind::run(context, source).await,
        Action::Release { keep_data, give_back } => release::run(context, keep_data, give_back).await,
        Action::Checkpoint { flush } => checkpoint::run(context, flush).await,
        Action::Drain { successor, within, hold } => drain::run(context, successor, within, hold).await,
        Action::UndoDrain => drain::undo(context).await,
        Action::Adopt { data_directory, upstream } => adopt::run(context, &data_directory, upstream).await,
        Action::Activate { other, open, first } => activate::run(context, other, open, first).await,
        Action::Compare { other, what } => compare::run(context, other, what).await,
        Action::Refill { source, keep_old } => refill::run(context, source, keep_old).await,
        Action::ForcePrimary { forced } => force_primary::run(context, forced).await,
    }
}
