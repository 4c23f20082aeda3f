//! `cluster promote`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, Unchanged, resource},
    watch::{self, Waiting},
};

/// Make a replica the primary by plan: nothing is lost, and the former primary follows
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// Member to promote, or its node
    member: String,
    /// How long handing over may take before it is taken back, in milliseconds [default: 5000]
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0, hide_default_value = true)]
    drain_within: u64,
    #[command(flatten)]
    unchanged: Unchanged,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("promote {} of cluster {}", arguments.member, arguments.name));
    let message = wire::PromoteMemberRequest {
        name: resource("clusters", &arguments.name),
        member: arguments.member,
        drain_within_millis: arguments.drain_within,
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
        etag: arguments.unchanged.etag,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().promote_member(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), arguments.waiting).await
}
