//! `cluster resume`.

use regent_proto::coordinator::v1 as wire;

use crate::{connection::Context, failure::Failure, verbs::arguments::DryRun};

/// Resume automatic decisions of a cluster
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let change = wire::UpdateClusterRequest { paused: Some(false), ..Default::default() };
    super::update::update(context, "resume", &arguments.name, change, arguments.check).await
}
