//! Applies who is let in, members, settings and access rules, and keeps them for the next start of the agent.

use regent_common::topology::ClusterSpec;

use super::super::{
    StepContext, StepError,
    context::{Done, refuse_other_spec},
};
use crate::ledger::{StepOutcome, StoredSpec};

pub(super) async fn run(context: &StepContext, spec: ClusterSpec, fingerprint: String) -> Result<Done, StepError> {
    let membership = context.membership()?;
    refuse_other_spec(&membership.spec, &spec)?;
    // First: a setting that the driver refuses must not keep anybody in who is to be kept out.
    context.firewall.tell(membership.cluster_id, &spec.allow_list, membership.port, &spec.members).await?;
    context.driver()?.configure(&spec).await?;
    // After the driver took it: a setting that it refuses must not come back with every start of the agent.
    context.ledger.store_secrets(&spec.secrets).await?;
    Ok(Done::noting(StepOutcome::default(), move |membership| {
        membership.spec = StoredSpec::from(&spec);
        membership.configured = true;
        membership.configuration = fingerprint;
    }))
}
