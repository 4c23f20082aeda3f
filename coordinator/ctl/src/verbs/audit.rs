//! `audit`.

use std::time::Duration;

use regent_common::{chain::Link, clock::wall_now, convert::from_wire_time};
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
    /// Check that no record was changed or taken out since it was written, and show the last digest
    #[arg(long, conflicts_with_all = ["cluster", "since", "follow"])]
    verify: bool,
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
    if arguments.verify {
        return verify(context, &records);
    }
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

/// Goes through the chain of all records.
fn verify(context: &Context, records: &[wire::AuditRecord]) -> Result<(), Failure> {
    let broken =
        |record: &wire::AuditRecord, what: &str| Failure::Audit { id: record.id.clone(), what: what.to_owned() };
    let mut last = "";
    let mut chained = 0_usize;
    for record in records {
        // Written before there was a chain.
        if record.digest.is_empty() && last.is_empty() {
            continue;
        }
        if record.previous != last {
            return Err(broken(record, "records before it are missing, or were added"));
        }
        if digest(record).as_ref() != Some(&record.digest) {
            return Err(broken(record, "it was changed since it was written"));
        }
        last = &record.digest;
        chained += 1;
    }
    context.output.data(
        || format!("{chained} records, none changed and none missing; the last digest is {last}\n"),
        || serde_json::json!({ "records": chained, "digest": last }),
    );
    Ok(())
}

/// The digest that a record should have; `None` where its time is none.
fn digest(record: &wire::AuditRecord) -> Option<String> {
    let time = from_wire_time(record.time.as_ref()?)?;
    let said = [&record.actor, &record.source, &record.action, &record.resource, &record.outcome, &record.detail];
    Some(Link { previous: &record.previous, id: &record.id, time, said: said.map(String::as_str) }.digest())
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
