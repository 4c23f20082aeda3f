//! `node show`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, page},
    verbs::arguments::resource,
};

/// Show a node: its machine, its engines, its place in a cluster
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the node
    name: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading(format!("show node {}", arguments.name));
    let connection = context.connect(&call).await?;
    let message = wire::GetNodeRequest { name: resource("nodes", &arguments.name) };
    let answer = connection.nodes().get_node(request(message)).await.map_err(|status| call.failed(status))?;
    let node = answer.into_inner();
    context.output.data(|| page::node(&node, wall_now()), || json::object(&node));
    Ok(())
}
