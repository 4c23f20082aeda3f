//! `node list`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, all_pages, request},
    failure::Failure,
    output::{json, table},
};

/// List nodes
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only nodes without a cluster
    #[arg(long)]
    spare: bool,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading("list nodes");
    let connection = context.connect(&call).await?;
    let nodes = all_pages(async |page_token| {
        let message = wire::ListNodesRequest { page_size: 0, page_token, spare_only: arguments.spare };
        let page = connection.nodes().list_nodes(request(message)).await?.into_inner();
        Ok((page.nodes, page.next_page_token))
    })
    .await
    .map_err(|status| call.failed(status))?;
    context.output.data(|| table::nodes(&nodes, wall_now()), || json::list("nodes", &nodes));
    Ok(())
}
