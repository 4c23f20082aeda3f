//! The one call behind `protect`, `unprotect`, `label`, `profile`, `policy`, `pause` and `resume`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, table},
    verbs::arguments::{DryRun, resource},
};

/// Changes what `change` says of a cluster, and shows the cluster as it is then.
pub(super) async fn update(
    context: &Context,
    action: &str,
    name: &str,
    change: wire::UpdateClusterRequest,
    check: DryRun,
) -> Result<(), Failure> {
    let call = context.changing(format!("{action} cluster {name}"));
    let message = wire::UpdateClusterRequest {
        name: resource("clusters", name),
        request_id: context.request_id(),
        validate_only: check.dry_run,
        ..change
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().update_cluster(request(message)).await.map_err(|status| call.failed(status))?;
    let cluster = answer.into_inner();
    if check.dry_run {
        context.output.note("Dry run: nothing has been changed. It would be:");
    }
    context.output.data(|| table::clusters(std::slice::from_ref(&cluster), wall_now()), || json::object(&cluster));
    Ok(())
}
