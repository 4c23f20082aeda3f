//! `operation watch`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::resource,
    watch::{self, Waiting},
};

/// Watch an operation until it has ended; exits 1 when it fails
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Id of the operation
    id: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading(format!("watch operation {}", arguments.id));
    let connection = context.connect(&call).await?;
    let message = wire::GetOperationRequest { name: resource("operations", &arguments.id) };
    let answer = connection.operations().get_operation(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), Waiting::default()).await
}
