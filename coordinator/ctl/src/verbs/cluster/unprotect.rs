//! `cluster unprotect`.

use std::collections::BTreeMap;

use crate::{connection::Context, failure::Failure, verbs::arguments::DryRun};

/// Allow the deletion of a cluster again
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    super::update::update(context, "unprotect", &arguments.name, BTreeMap::new(), Some(false), arguments.check).await
}
