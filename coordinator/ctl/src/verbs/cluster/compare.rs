//! `cluster compare`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, resource},
    watch::{self, Waiting},
};

/// Look for what the two sides of a pair do not have alike, while they serve; fails when there is something, and changes nothing
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("compare the sides of cluster {}", arguments.name));
    let message = wire::ComparePairRequest {
        name: resource("clusters", &arguments.name),
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().compare_pair(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), arguments.waiting).await
}
