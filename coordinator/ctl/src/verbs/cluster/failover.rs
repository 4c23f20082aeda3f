//! `cluster failover`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, Unchanged, resource},
    watch::{self, Waiting},
};

/// Replace a primary that does not serve, where Regent does not do so by itself
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// Give up what no reachable member has, however much it is
    #[arg(long)]
    accept_data_loss: bool,
    /// A node that is off, and stays off until its agent is heard again; can be given more than once
    #[arg(long, value_name = "NODE")]
    confirm_off: Vec<String>,
    /// The name of the cluster again, when data may be lost or a node is said to be off
    #[arg(long, value_name = "NAME")]
    confirm: Option<String>,
    #[command(flatten)]
    unchanged: Unchanged,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("fail over cluster {}", arguments.name));
    let message = wire::FailoverClusterRequest {
        name: resource("clusters", &arguments.name),
        confirm_name: arguments.confirm.unwrap_or_default(),
        accept_data_loss: arguments.accept_data_loss,
        confirm_off: arguments.confirm_off,
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
        etag: arguments.unchanged.etag,
    };
    let connection = context.connect(&call).await?;
    let answer =
        connection.clusters().failover_cluster(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), arguments.waiting).await
}
