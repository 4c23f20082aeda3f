//! `operation show`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, operation},
    verbs::arguments::resource,
};

/// Show an operation with its steps
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Id of the operation
    id: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading(format!("show operation {}", arguments.id));
    let connection = context.connect(&call).await?;
    let message = wire::GetOperationRequest { name: resource("operations", &arguments.id) };
    let answer = connection.operations().get_operation(request(message)).await.map_err(|status| call.failed(status))?;
    let shown = answer.into_inner();
    context.output.data(|| operation::page(&shown, wall_now()), || json::object(&shown));
    Ok(())
}
