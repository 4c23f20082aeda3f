//! `operation cancel`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, operation},
    verbs::arguments::resource,
};

/// Cancel an operation that has not passed its point of no return
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Id of the operation
    id: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("cancel operation {}", arguments.id));
    let connection = context.connect(&call).await?;
    let message = wire::CancelOperationRequest { name: resource("operations", &arguments.id) };
    let answer =
        connection.operations().cancel_operation(request(message)).await.map_err(|status| call.failed(status))?;
    let cancelled = answer.into_inner();
    if !cancelled.done {
        context.output.note(format!("It is being undone; see `regentctl operation watch {}`.", arguments.id));
    }
    context.output.data(|| operation::summary(&cancelled, wall_now()), || json::object(&cancelled));
    Ok(())
}
