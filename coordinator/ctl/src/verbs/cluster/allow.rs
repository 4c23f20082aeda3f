//! `cluster allow`.

use clap::Subcommand;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, request},
    failure::Failure,
    output::{json, page},
    verbs::arguments::{DryRun, Unchanged, resource},
    watch::{self, Waiting},
};

/// Say which addresses reach the engines of a cluster; its members and the coordinator always do
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name of the cluster
    name: String,
    #[command(subcommand)]
    what: What,
}

/// What is done with the list.
#[derive(Debug, Subcommand)]
enum What {
    /// Show the list; an empty one lets everybody in
    List,
    /// Let these addresses in as well; the first ones on an empty list keep everybody else out
    Add(Ranges),
    /// Let addresses in no more, each range as it was written; open connections of whoever is not let in any more are cut
    Remove(ChangedRanges),
    /// Let these addresses in and no others; open connections of whoever is not let in any more are cut
    Set(NewRanges),
}

/// What is added.
#[derive(Debug, clap::Args)]
struct Ranges {
    /// Addresses and ranges, such as 192.0.2.7, 192.0.2.0/24 and 2001:db8::/32
    #[arg(value_name = "CIDR", required = true)]
    ranges: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// What is taken away.
#[derive(Debug, clap::Args)]
struct ChangedRanges {
    /// Addresses and ranges, each as it was written
    #[arg(value_name = "CIDR", required = true)]
    ranges: Vec<String>,
    /// Nothing may be left of the list, which lets everybody in
    #[arg(long)]
    open_to_all: bool,
    #[command(flatten)]
    how: How,
}

/// What takes the place of all that is there.
#[derive(Debug, clap::Args)]
struct NewRanges {
    /// Addresses and ranges, such as 192.0.2.7, 192.0.2.0/24 and 2001:db8::/32
    #[arg(value_name = "CIDR", required_unless_present = "open_to_all")]
    ranges: Vec<String>,
    /// The list becomes empty, which lets everybody in
    #[arg(long, conflicts_with = "ranges")]
    open_to_all: bool,
    #[command(flatten)]
    how: How,
}

/// How a change is made.
#[derive(Debug, clap::Args)]
struct How {
    #[command(flatten)]
    unchanged: Unchanged,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    check: DryRun,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let name = arguments.name;
    let (change, ranges, open_to_all, how) = match arguments.what {
        What::List => return list(context, &name).await,
        What::Add(Ranges { ranges, how }) => (wire::AllowListChange::Add, ranges, false, how),
        What::Remove(ChangedRanges { ranges, open_to_all, how }) => {
            (wire::AllowListChange::Remove, ranges, open_to_all, how)
        }
        What::Set(NewRanges { ranges, open_to_all, how }) => (wire::AllowListChange::Set, ranges, open_to_all, how),
    };
    let call = context.changing(format!("change the allow-list of cluster {name}"));
    let message = wire::SetAllowListRequest {
        name: resource("clusters", &name),
        change: change.into(),
        ranges,
        open_to_all,
        request_id: context.request_id(),
        validate_only: how.check.dry_run,
        etag: how.unchanged.etag,
    };
    let connection = context.connect(&call).await?;
    let answer = connection.clusters().set_allow_list(request(message)).await.map_err(|status| call.failed(status))?;
    watch::finish(context, &connection, &call, answer.into_inner(), how.waiting).await
}

async fn list(context: &Context, name: &str) -> Result<(), Failure> {
    let call = context.reading(format!("show the allow-list of cluster {name}"));
    let connection = context.connect(&call).await?;
    let message = wire::GetClusterRequest { name: resource("clusters", name) };
    let answer = connection.clusters().get_cluster(request(message)).await.map_err(|status| call.failed(status))?;
    let list = answer.into_inner().allow_list.unwrap_or_default();
    context.output.data(|| page::allow_list(&list), || json::object(&list));
    Ok(())
}
