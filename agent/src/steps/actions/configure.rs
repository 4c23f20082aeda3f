//! Applies members, settings and access rules, and keeps them for the next start of the agent.

use regent_common::topology::ClusterSpec;

use super::super::{
    StepContext, StepError,
    context::{Done, refuse_other_spec},
};
use crate::ledger::{StepOutcome, StoredSpec};

pub(super) async fn run(context: &StepContext, spec: ClusterSpec, fingerprint: String) -> Result<Done, StepError> {
    refuse_other_spec(&context.membership()?.spec, &spec)?;
    context.driver()?.configure(&spec).await?;
    // After the driver took it: a setting that it refuses must not come back with every start of the agent.
    context.ledger.store_secrets(&spec.secrets).await?;
    Ok(Done::noting(StepOutcome::default(), move |membership| {
        membership.spec = StoredSpec::from(&spec);
        membership.configured = true;
        membership.configuration = fingerprint;
    }))
}
