//! `operation list`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, all_pages, request},
    failure::Failure,
    output::{json, table},
    verbs::arguments::cluster_or_empty,
};

/// List operations, newest first
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only those of this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Only those that have not ended
    #[arg(long)]
    running: bool,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading("list operations");
    let cluster = cluster_or_empty(arguments.cluster.as_deref());
    let connection = context.connect(&call).await?;
    let operations = all_pages(async |page_token| {
        let cluster = cluster.clone();
        let message =
            wire::ListOperationsRequest { cluster, page_size: 0, page_token, running_only: arguments.running };
        let page = connection.operations().list_operations(request(message)).await?.into_inner();
        Ok((page.operations, page.next_page_token))
    })
    .await
    .map_err(|status| call.failed(status))?;
    context.output.data(|| table::operations(&operations, wall_now()), || json::list("operations", &operations));
    Ok(())
}
