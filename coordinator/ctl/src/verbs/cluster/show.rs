//! `cluster show`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Connection, Context, request},
    failure::Failure,
    output::{json, page},
    verbs::arguments::resource,
};

/// Show everything that is known of a cluster, and why it is not healthy
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading(format!("show cluster {}", arguments.name));
    let connection = context.connect(&call).await?;
    let message = wire::GetClusterRequest { name: resource("clusters", &arguments.name) };
    let answer = connection.clusters().get_cluster(request(message)).await.map_err(|status| call.failed(status))?;
    let cluster = answer.into_inner();
    let running = running(&connection, &cluster).await;
    context.output.data(|| page::cluster(&cluster, running.as_ref(), wall_now()), || json::object(&cluster));
    Ok(())
}

/// The operation that the cluster names. It may have ended and gone in between: the page does without it then.
async fn running(connection: &Connection, cluster: &wire::Cluster) -> Option<wire::Operation> {
    if cluster.operation.is_empty() {
        return None;
    }
    let message = wire::GetOperationRequest { name: cluster.operation.clone() };
    connection.operations().get_operation(request(message)).await.ok().map(tonic::Response::into_inner)
}
