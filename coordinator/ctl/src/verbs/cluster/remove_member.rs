//! `cluster remove-member`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, Unchanged, resource},
    watch::{self, Waiting},
};

/// Take a replica out of its cluster, erase its data and make its node a spare
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// Member to remove, or its node
    member: String,
    /// The name of the member again; not for a dry run
    #[arg(
        long,
        value_name = "MEMBER",
        required_unless_present = "dry_run",
        default_value = "",
        hide_default_value = true
    )]
    confirm: String,
    /// Leave the data on the node, aside
    #[arg(long)]
    keep_data: bool,
    /// Fewer than two whole copies of the data may be left
    #[arg(long)]
    allow_single: bool,
    #[command(flatten)]
    unchanged: Unchanged,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("remove {} from cluster {}", arguments.member, arguments.name));
    let message = wire::RemoveMemberRequest {
        name: resource("clusters", &arguments.name),
        member: arguments.member,
        confirm_name: arguments.confirm,
        keep_data: arguments.keep_data,
        allow_single: arguments.allow_single,
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
        etag: arguments.unchanged.etag,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().remove_member(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), arguments.waiting).await
}
