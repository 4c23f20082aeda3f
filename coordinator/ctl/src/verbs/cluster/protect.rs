//! `cluster protect`.

use std::collections::BTreeMap;

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
    super::update::update(context, "protect", &arguments.name, BTreeMap::new(), Some(true), arguments.check).await
}
