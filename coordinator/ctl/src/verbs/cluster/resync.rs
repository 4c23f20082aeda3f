//! `cluster resync`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, resource, size},
    watch::{self, Waiting},
};

/// Wipe replicas and restore them from the primary, or one side of a pair from the other
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// Members to resync [default: all replicas, one after another]; of a pair the side whose data is given up
    #[arg(value_name = "MEMBER")]
    members: Vec<String>,
    /// The name of the cluster again, or that of the member when one is meant
    #[arg(long, value_name = "NAME")]
    confirm: String,
    /// Replicas that are resynced at once
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    parallel: u32,
    /// Most bytes per second for each copy, such as 50MiB [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_rate: Option<u64>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("resync cluster {}", arguments.name));
    let message = wire::ResyncClusterRequest {
        name: resource("clusters", &arguments.name),
        members: arguments.members,
        confirm_name: arguments.confirm,
        parallel: arguments.parallel,
        max_bytes_per_second: arguments.max_rate.unwrap_or_default(),
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().resync_cluster(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), arguments.waiting).await
}
