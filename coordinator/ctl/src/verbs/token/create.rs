//! `token create`.

use std::time::Duration;

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, units, words::short},
    verbs::arguments::{DryRun, cluster_or_empty, duration},
};

/// Make a one-time join token for a new node
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The joining node becomes a replica of this cluster [default: it stays a spare]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// How long the token can be used
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration)]
    ttl: Duration,
    /// The token admits only a node of this name [default: any]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    node: String,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing("create a join token");
    let ttl_seconds = u32::try_from(arguments.ttl.as_secs()).ok().filter(|seconds| *seconds > 0);
    let ttl_seconds = ttl_seconds.ok_or_else(|| Failure::Usage("--ttl must be at least one second".to_owned()))?;
    let message = wire::CreateTokenRequest {
        cluster: cluster_or_empty(arguments.cluster.as_deref()),
        ttl_seconds,
        node: arguments.node,
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.identities().create_token(request(message)).await.map_err(|status| call.failed(status))?;
    let token = answer.into_inner();
    let becomes = match short(&token.cluster) {
        "" => "a spare".to_owned(),
        cluster => format!("a replica of cluster {cluster}"),
    };
    if arguments.check.dry_run {
        context.output.note(format!("Dry run: nothing has been changed. The node would become {becomes}."));
    } else {
        context.output.note(format!(
            "The node will become {becomes}. The token works once and ends {}.",
            units::when(token.expire_time.as_ref(), wall_now())
        ));
        context.output.note("On the new machine: regent-agent join COORDINATOR --token TOKEN");
    }
    if !token.token.is_empty() || !arguments.check.dry_run {
        context.output.data(|| token.token.clone(), || json::object(&token));
    }
    Ok(())
}
