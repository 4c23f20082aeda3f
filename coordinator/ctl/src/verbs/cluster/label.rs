//! `cluster label`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::Context,
    failure::Failure,
    verbs::arguments::{DryRun, map, pair},
};

/// Set labels of a cluster; an empty value removes the label
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    /// Labels to set, or to remove with KEY=
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let change = wire::UpdateClusterRequest { labels: map(arguments.labels)?, ..Default::default() };
    super::update::update(context, "label", &arguments.name, change, arguments.check).await
}
