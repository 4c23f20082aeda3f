//! `audit`.

use std::time::Duration;

use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::{Connection, Context, all_pages, request},
    failure::{Call, Failure, unreachable},
    output::{json, table, units::Since},
    verbs::arguments::{cluster_or_empty, since},
};

/// How often `--follow` asks: the audit is a list, not a stream.
const PERIOD: Duration = Duration::from_secs(1);

/// Who did what, and what was decided by itself and why
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only records of this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Only records since then: a duration such as 1h, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Since>,
    /// Go on with new records as they come
    #[arg(long)]
    follow: bool,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading("read the audit");
    let cluster = cluster_or_empty(arguments.cluster.as_deref());
    let connection = context.connect(&call).await?;
    let since = arguments.since.map(|since| since.wire(wall_now()));
    if arguments.follow {
        return follow(context, &connection, &call, cluster, since).await;
    }
    let records = read(&connection, &call, &cluster, since).await?;
    context.output.data(|| table::audit(&records), || json::list("records", &records));
    Ok(())
}

async fn read(
    connection: &Connection,
    call: &Call,
    cluster: &str,
    since: Option<prost_types::Timestamp>,
) -> Result<Vec<wire::AuditRecord>, Failure> {
    all_pages(async |page_token| {
        let cluster = cluster.to_owned();
        let message = wire::ListAuditRecordsRequest { cluster, since, page_size: 0, page_token };
        let page = connection.audit().list_audit_records(request(message)).await?.into_inner();
        Ok((page.records, page.next_page_token))
    })
    .await
    .map_err(|status| call.failed(status))
}

/// Shows records as they come. Each answer begins with the time of the last one that was shown; ids are ordered, so that
/// none is shown twice.
async fn follow(
    context: &Context,
    connection: &Connection,
    call: &Call,
    cluster: String,
    mut since: Option<prost_types::Timestamp>,
) -> Result<(), Failure> {
    let mut last = String::new();
    let mut away = false;
    loop {
        match read(connection, call, &cluster, since).await {
            Ok(records) => {
                away = false;
                for record in records {
                    if record.id <= last {
                        continue;
                    }
                    context.output.item(|| table::audit_line(&record), || json::object(&record));
                    since = record.time.or(since);
                    last = record.id;
                }
            }
            Err(Failure::Answer { call, status }) if !unreachable(&status) => {
                return Err(Failure::Answer { call, status });
            }
            Err(failure) if !away => {
                away = true;
                context.output.note(format!("{failure}; trying again"));
            }
            Err(_) => {}
        }
        tokio::time::sleep(PERIOD).await;
    }
}
