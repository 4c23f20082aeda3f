//! `cluster delete`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, Unchanged, resource},
    watch::{self, Waiting},
};

/// Delete a cluster and erase its data
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// The name of the cluster again
    #[arg(long, value_name = "NAME")]
    confirm: String,
    /// Leave the data on the nodes
    #[arg(long)]
    keep_data: bool,
    #[command(flatten)]
    unchanged: Unchanged,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("delete cluster {}", arguments.name));
    let message = wire::DeleteClusterRequest {
        name: resource("clusters", &arguments.name),
        confirm_name: arguments.confirm,
        keep_data: arguments.keep_data,
        etag: arguments.unchanged.etag,
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().delete_cluster(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), arguments.waiting).await
}
