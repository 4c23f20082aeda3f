//! `cluster protect`.

use regent_proto::coordinator::v1 as wire;

use crate::{connection::Context, failure::Failure, verbs::arguments::DryRun};

/// Protect a cluster: refuse its deletion
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let change = wire::UpdateClusterRequest { protected: Some(true), ..Default::default() };
    super::update::update(context, "protect", &arguments.name, change, arguments.check).await
}
