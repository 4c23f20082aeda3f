//! `user revoke`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, table},
    verbs::arguments::resource,
};

/// Revoke a user: its certificates are refused from now on
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the user
    name: String,
    /// The name of the user again
    #[arg(long, value_name = "NAME")]
    confirm: String,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("revoke user {}", arguments.name));
    let connection = context.connect(&call).await?;
    let message = wire::RevokeUserRequest { name: resource("users", &arguments.name), confirm_name: arguments.confirm };
    let answer = connection.identities().revoke_user(request(message)).await.map_err(|status| call.failed(status))?;
    let users: Vec<_> = answer.into_inner().user.into_iter().collect();
    context.output.data(|| table::users(&users, wall_now()), || json::list("users", &users));
    Ok(())
}
