//! `cluster create`.

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    verbs::arguments::{DryRun, PROFILES, map, pair},
    watch::{self, Waiting},
};

/// Create a cluster on named nodes, or on spares
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster: a DNS label that does not end in a digit
    name: String,
    /// Engine, as `engine list` names it
    #[arg(long)]
    engine: String,
    /// Version of the engine [default: the newest that all nodes have]
    #[arg(long, default_value = "", hide_default_value = true)]
    version: String,
    /// Mode, as `engine list` names it [default: the engine's own]
    #[arg(long, default_value = "", hide_default_value = true)]
    mode: String,
    /// Nodes, the first becomes the primary; of a pair (mode multi-master) two
    #[arg(long, value_delimiter = ',', value_name = "NODE,...", conflicts_with = "replicas")]
    nodes: Vec<String>,
    /// Replicas to make from spares; 0 for a single node [default: the engine's own, when no nodes are named]
    #[arg(long, value_name = "N")]
    replicas: Option<u32>,
    /// Port of the engine [default: each node's own choice]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Label of the cluster; can be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
    /// Setting of the engine, by the engine's own name; can be given several times
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    settings: Vec<(String, String)>,
    /// How fast the loss of a node is noticed [default: as the coordinator is configured]
    #[arg(long, value_parser = PROFILES)]
    profile: Option<String>,
    /// Have the members' ports speak TLS only, to clients and to each other; decided once and for all. Each node needs a certificate
    /// for the engine: `engine list` shows which have one
    #[arg(long)]
    tls: bool,
    /// Refuse deletion until it is unprotected
    #[arg(long)]
    protected: bool,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.changing(format!("create cluster {}", arguments.name));
    let message = wire::CreateClusterRequest {
        cluster: arguments.name.clone(),
        engine: arguments.engine,
        version: arguments.version,
        mode: arguments.mode,
        nodes: arguments.nodes,
        replicas: arguments.replicas,
        labels: map(arguments.labels)?,
        settings: map(arguments.settings)?,
        port: arguments.port.map_or(0, u32::from),
        protected: arguments.protected,
        request_id: context.request_id(),
        validate_only: arguments.check.dry_run,
        profile: arguments.profile.unwrap_or_default(),
        tls: arguments.tls,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().create_cluster(request(message)).await.map_err(|status| call.failed(status))?;
    let operation = answer.into_inner();
    let checked = operation.validate_only;
    watch::finish(context, &connection, &call, operation, arguments.waiting).await?;
    if !checked {
        let name = arguments.name;
        context.output.note(format!("See `regentctl cluster show {name}` and `regentctl cluster credentials {name}`."));
    }
    Ok(())
}
