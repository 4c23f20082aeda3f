//! `cluster credentials`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, page},
    verbs::arguments::resource,
};

/// Show user, password and ready connection strings of a cluster; the audit keeps who asked
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading(format!("show the credentials of cluster {}", arguments.name));
    let connection = context.connect(&call).await?;
    let message = wire::GetCredentialsRequest { name: resource("clusters", &arguments.name) };
    let answer = connection.clusters().get_credentials(request(message)).await.map_err(|status| call.failed(status))?;
    let credentials = answer.into_inner();
    context.output.data(|| page::credentials(&credentials), || json::object(&credentials));
    Ok(())
}
