//! `cluster pause`.

use regent_proto::coordinator::v1 as wire;

use crate::{connection::Context, failure::Failure, verbs::arguments::DryRun};

/// Pause automatic decisions of a cluster: no failover, and no member is brought back by itself
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let change = wire::UpdateClusterRequest { paused: Some(true), ..Default::default() };
    super::update::update(context, "pause", &arguments.name, change, arguments.check).await
}
