//! `cluster list`.

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Context, all_pages, request},
    failure::Failure,
    output::{json, table},
    verbs::arguments::{map, pair},
};

/// List clusters
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only clusters with this label; can be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading("list clusters");
    let labels = map(arguments.labels)?;
    let connection = context.connect(&call).await?;
    let clusters = all_pages(async |page_token| {
        let message = wire::ListClustersRequest { page_size: 0, page_token, labels: labels.clone() };
        let page = connection.clusters().list_clusters(request(message)).await?.into_inner();
        Ok((page.clusters, page.next_page_token))
    })
    .await
    .map_err(|status| call.failed(status))?;
    context.output.data(|| table::clusters(&clusters, wall_now()), || json::list("clusters", &clusters));
    Ok(())
}
