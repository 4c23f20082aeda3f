//! `engine list`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, table},
};

/// List engines with their versions, modes and the nodes that have them
#[derive(Debug, clap::Args)]
pub struct Arguments {}

pub(crate) async fn run(context: &Context, _arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading("list engines");
    let connection = context.connect(&call).await?;
    let answer = connection.catalog().list_engines(request(wire::ListEnginesRequest {})).await;
    let engines = answer.map_err(|status| call.failed(status))?.into_inner().engines;
    context.output.data(|| table::engines(&engines), || json::list("engines", &engines));
    Ok(())
}
