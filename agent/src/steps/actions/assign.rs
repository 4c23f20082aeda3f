//! Makes the node a member of a cluster: chooses its port, keeps what the cluster told it. Starts nothing.
//!
//! Data that is already there is never taken over: on a node with a ledger the assignment is refused, on one that has
//! lost its ledger the data is marked as not to be trusted, and only a resync or a release ends that (rule T5). So it is with a
//! member in quarantine whose ledger is there: it is too old, or another process spoke for the same node.

use std::{path::Path, sync::Arc};

use regent_common::topology::ClusterSpec;

use super::super::{
    StepContext, StepError,
    context::{Done, refuse_other_spec},
};
use crate::{
    engine::{Driver, DriverError, Stop},
    ledger::{Ledger, Membership, StepOutcome, StoredSpec},
    member::{Wanted, all_data_in, is_empty},
};

pub(super) async fn run(context: &StepContext, spec: ClusterSpec, port: u16) -> Result<Done, StepError> {
    let ledger = context.ledger.read();
    let driver = match &ledger.membership {
        Some(known) if ledger.quarantine.is_some() => bring_back(context, known, &spec).await?,
        Some(membership) => {
            refuse_other_spec(&membership.spec, &spec)?;
            context.driver()?
        }
        None => {
            let driver = context.member.open(&Wanted {
                cluster: &spec.cluster,
                member: &context.header.member,
                engine: &spec.engine,
                version: &spec.version,
                port,
            })?;
            let data = context.member.root(&spec.cluster).join("data");
            refuse_beside_others(context, &ledger, &data)?;
            let distrusted = driver.has_data() || !is_empty(&data);
            if distrusted && ledger.quarantine.is_none() {
                let member = context.header.member.clone();
                return Err(DriverError::ForeignData { path: data, member }.into());
            }
            if distrusted {
                // Nobody knows what this engine has promised to whom.
                driver.stop(Stop::Kill).await?;
            }
            let membership = enter(context, &spec, driver.endpoint().port, distrusted);
            context.ledger.store_secrets(&spec.secrets).await?;
            context.ledger.update(move |ledger| become_member(ledger, membership)).await?;
            context.member.hold(driver.clone());
            driver
        }
    };
    // Before any step that may start its engine.
    let membership = context.membership()?;
    context.firewall.tell(membership.cluster_id, &spec.allow_list, membership.port, &spec.members).await?;
    context.ledger.store_secrets(&spec.secrets).await?;
    let outcome =
        StepOutcome { endpoint: Some(driver.endpoint()), engine_version: driver.version(), ..StepOutcome::default() };
    Ok(Done::noting(outcome, move |membership| membership.spec = StoredSpec::from(&spec)))
}

/// A member whose ledger is not to be believed begins anew with the numbers of this step (rule T5): what it knows of times and of
/// its own reigns can only be too little, and stays. Its data waits for a resync.
async fn bring_back(
    context: &StepContext,
    known: &Membership,
    spec: &ClusterSpec,
) -> Result<Arc<dyn Driver>, StepError> {
    refuse_other_spec(&known.spec, spec)?;
    let driver = context.driver()?;
    driver.stop(Stop::Kill).await?;
    let membership = Membership {
        ttl_millis: known.ttl_millis,
        heartbeat_millis: known.heartbeat_millis,
        longest_ttl_millis: known.longest_ttl_millis,
        writable_epoch: known.writable_epoch,
        fenced_epoch: known.fenced_epoch,
        ..enter(context, spec, known.port, true)
    };
    context.ledger.update(move |ledger| become_member(ledger, membership)).await?;
    Ok(driver)
}

/// In quarantine another cluster's engine may still run here, and its data may be all that is left of that cluster: the node
/// becomes a member of nothing else before a person has moved that data away.
fn refuse_beside_others(context: &StepContext, ledger: &Ledger, own: &Path) -> Result<(), StepError> {
    let others = || all_data_in(context.member.data_root()).into_iter().find(|data| data != own);
    match ledger.quarantine.as_ref().and_then(|_| others()) {
        Some(path) => Err(DriverError::ForeignData { path, member: context.header.member.clone() }.into()),
        None => Ok(()),
    }
}

fn enter(context: &StepContext, spec: &ClusterSpec, port: u16, distrusted: bool) -> Membership {
    Membership {
        cluster_id: context.header.cluster_id,
        member: context.header.member.clone(),
        port,
        spec: StoredSpec::from(spec),
        configured: false,
        configuration: String::new(),
        epoch: context.header.epoch,
        token: context.header.token,
        role: None,
        upstream: None,
        established: false,
        electorate: None,
        longest_ttl_millis: None,
        ttl_millis: None,
        heartbeat_millis: None,
        dirty: false,
        distrusted,
        resyncing: false,
        writable_epoch: None,
        writable_boot_id: None,
        fenced_epoch: None,
        fenced: false,
        drained: None,
        forced: None,
    }
}

fn become_member(ledger: &mut Ledger, membership: Membership) {
    ledger.quarantine = None;
    ledger.past_clusters.remove(&membership.cluster_id);
    ledger.released_under.remove(&membership.cluster_id);
    ledger.membership = Some(membership);
}
