//! `cluster profile`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::Context,
    failure::Failure,
    verbs::arguments::{DryRun, PROFILES},
};

/// Choose how fast the loss of a node is noticed
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// fast: within 2 s; standard: 6 s; relaxed: 17 s, for members that are far apart
    #[arg(value_parser = PROFILES)]
    profile: String,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let change = wire::UpdateClusterRequest { profile: arguments.profile, ..Default::default() };
    super::update::update(context, "profile", &arguments.name, change, arguments.check).await
}
