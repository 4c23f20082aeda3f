//! `cluster add-member`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, Unchanged, resource, size},
    watch::{self, Waiting},
};

/// Make a spare node a replica: it is copied from the primary and follows it
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// Node that becomes a replica [default: a spare that can run the engine]
    #[arg(long, value_name = "NODE", default_value = "", hide_default_value = true)]
    node: String,
    #[command(flatten)]
    unchanged: Unchanged,
    /// Most bytes per second for the copy, such as 50MiB [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    max_rate: Option<u64>,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("add a member to cluster {}", arguments.name));
    let message = wire::AddMemberRequest {
        name: resource("clusters", &arguments.name),
        node: arguments.node,
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
        etag: arguments.unchanged.etag,
        max_bytes_per_second: arguments.max_rate.unwrap_or_default(),
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().add_member(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), arguments.waiting).await
}
