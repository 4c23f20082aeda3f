//! `node revoke`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, table},
    verbs::arguments::resource,
};

/// Revoke a node: its certificates are refused from now on
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the node
    name: String,
    /// The name of the node again
    #[arg(long, value_name = "NAME")]
    confirm: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("revoke node {}", arguments.name));
    let connection = context.connect(&call).await?;
    let message = wire::RevokeNodeRequest { name: resource("nodes", &arguments.name), confirm_name: arguments.confirm };
    let answer = connection.identities().revoke_node(request(message)).await.map_err(|status| call.failed(status))?;
    let nodes: Vec<_> = answer.into_inner().node.into_iter().collect();
    context.output.data(|| table::nodes(&nodes, wall_now()), || json::list("nodes", &nodes));
    Ok(())
}
