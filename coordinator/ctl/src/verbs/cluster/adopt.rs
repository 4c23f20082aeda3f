//! `cluster adopt`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, PROFILES, map, pair},
    watch::{self, Waiting},
};

/// Take a running instance, with the replicas that stream from it, under management as a cluster, without stopping them
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster: a DNS label that does not end in a digit
    name: String,
    /// Node on which the instance or one of its replicas runs; give all of them
    #[arg(long = "node", value_name = "NODE", required = true, value_delimiter = ',')]
    nodes: Vec<String>,
    /// Folder of the data that is meant, for a node on which more than one instance runs; can be given several times
    #[arg(long = "data-directory", value_name = "NODE=PATH", value_parser = pair)]
    data_directories: Vec<(String, String)>,
    /// Label of the cluster; can be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// How fast the loss of a node is noticed [default: as the coordinator is configured]
    #[arg(long, value_parser = PROFILES)]
    profile: Option<String>,
    /// Refuse deletion until it is unprotected
    #[arg(long)]
    protected: bool,
    /// Go on although the instance has what a cluster would not, such as an archive of its log; a dry run names it
    #[arg(long)]
    accept_losses: bool,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("adopt cluster {}", arguments.name));
    let message = wire::AdoptClusterRequest {
        cluster: arguments.name.clone(),
        nodes: arguments.nodes,
        data_directories: map(arguments.data_directories)?,
        labels: map(arguments.labels)?,
        protected: arguments.protected,
        profile: arguments.profile.unwrap_or_default(),
        accept_losses: arguments.accept_losses,
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().adopt_cluster(request(message)).await.map_err(|status| call.failed(status))?;
    let operation = answer.into_inner();
    let checked = operation.validate_only;
    watch::finish(context, &connection, &call, operation, arguments.waiting).await?;
    if !checked {
        let name = arguments.name;
        context
            .output
            .note(format!("See `regentctl cluster show {name}`; its applications keep the logins that they have."));
    }
    Ok(())
}
