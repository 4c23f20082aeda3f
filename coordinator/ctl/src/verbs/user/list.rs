//! `user list`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, table},
};

/// List users
#[derive(Debug, clap::Args)]
pub struct Arguments {}

pub(crate) async fn run(context: &Context, _arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading("list users");
    let connection = context.connect(&call).await?;
    let answer = connection.identities().list_users(request(wire::ListUsersRequest {})).await;
    let users = answer.map_err(|status| call.failed(status))?.into_inner().users;
    context.output.data(|| table::users(&users, wall_now()), || json::list("users", &users));
    Ok(())
}
