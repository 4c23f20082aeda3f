//! AuditService: lists the records of the audit.

use regent_common::{
    convert::{from_wire_time, to_wire_time},
    error::{Reason, bad_field, refuse},
    ids::ClusterName,
};
use regent_proto::coordinator::v1::{
    AuditRecord as WireRecord, ListAuditRecordsRequest, ListAuditRecordsResponse, audit_service_server::AuditService,
};
use tonic::{Request, Response, Status};
use ulid::Ulid;

use super::failed_store;
use crate::audit::{AuditLog, AuditRecord};

/// Records in one answer when no number is asked for, and the most.
const PAGE: (usize, usize) = (100, 1000);

/// The service.
#[derive(Clone)]
pub struct AuditApi(pub AuditLog);

#[tonic::async_trait]
impl AuditService for AuditApi {
    async fn list_audit_records(
        &self,
        request: Request<ListAuditRecordsRequest>,
    ) -> Result<Response<ListAuditRecordsResponse>, Status> {
        let request = request.into_inner();
        let cluster = optional_cluster(&request.cluster)?;
        let since = match &request.since {
            Some(time) => Some(from_wire_time(time).ok_or_else(|| bad_field("since", "is outside of the calendar"))?),
            None => None,
        };
        let size = match usize::try_from(request.page_size) {
            Err(_) => return Err(bad_field("page_size", "must not be negative")),
            Ok(0) => PAGE.0,
            Ok(size) => size.min(PAGE.1),
        };
        let after = match request.page_token.as_str() {
            "" => None,
            // Ids are compared as text: another spelling of the same id would not be the same place.
            token => match Ulid::from_string(token) {
                Ok(id) => Some(id.to_string()),
                Err(_) => return Err(bad_field("page_token", "is not from an answer before")),
            },
        };
        let found = self.0.list(cluster.as_ref(), since, after.as_deref(), size + 1).await;
        let mut records = found.map_err(failed_store)?;
        let more = records.len() > size;
        records.truncate(size);
        let next_page_token = match records.last() {
            Some(last) if more => last.id.to_string(),
            Some(_) | None => String::new(),
        };
        let records = records.into_iter().map(WireRecord::from).collect();
        Ok(Response::new(ListAuditRecordsResponse { records, next_page_token }))
    }
}

/// Reads a cluster to filter by; empty for none.
pub(super) fn optional_cluster(text: &str) -> Result<Option<ClusterName>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    match ClusterName::from_resource(text) {
        Ok(name) => Ok(Some(name)),
        Err(error) => Err(refuse(Reason::NameInvalid, format!("cluster: {error}"))),
    }
}

// === impl WireRecord ===

impl From<AuditRecord> for WireRecord {
    fn from(record: AuditRecord) -> Self {
        Self {
            id: record.id.to_string(),
            time: Some(to_wire_time(record.time)),
            actor: record.actor,
            source: record.source,
            action: record.action,
            resource: record.resource,
            outcome: record.outcome,
            detail: record.detail,
            previous: record.previous,
            digest: record.digest,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use regent_common::{clock::ManualClock, error::reason_of};

    use super::*;
    use crate::{
        audit::{OK, SELF},
        store::memory::MemoryStore,
    };

    async fn with_records(count: usize) -> AuditApi {
        let log = AuditLog::new(Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
        for number in 0..count {
            log.record(SELF, "", &number.to_string(), "clusters/db", OK, "why").await;
        }
        AuditApi(log)
    }

    async fn list(api: &AuditApi, request: ListAuditRecordsRequest) -> Result<ListAuditRecordsResponse, Status> {
        api.list_audit_records(Request::new(request)).await.map(Response::into_inner)
    }

    #[tokio::test]
    async fn page_tokens_lead_through_all_records_once() {
        let api = with_records(10).await;
        let mut seen = Vec::new();
        let mut request =
            ListAuditRecordsRequest { cluster: "clusters/db".to_owned(), page_size: 5, ..Default::default() };
        for last in [false, true] {
            let answer = list(&api, request.clone()).await.unwrap();
            assert_eq!(answer.next_page_token.is_empty(), last, "10 records are two pages of 5");
            seen.extend(answer.records.into_iter().map(|record| record.action));
            request.page_token = answer.next_page_token;
        }
        assert_eq!(seen, (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
        request = ListAuditRecordsRequest { cluster: "clusters/other".to_owned(), ..Default::default() };
        assert!(list(&api, request).await.unwrap().records.is_empty());
    }

    #[tokio::test]
    async fn bad_fields_are_refused() {
        let api = with_records(0).await;
        let good = ListAuditRecordsRequest::default();
        let far = prost_types::Timestamp { seconds: i64::MAX, nanos: 0 };
        for bad in [
            ListAuditRecordsRequest { page_size: -1, ..good.clone() },
            ListAuditRecordsRequest { page_token: "x".to_owned(), ..good.clone() },
            ListAuditRecordsRequest { since: Some(far), ..good.clone() },
        ] {
            let refused = list(&api, bad).await.unwrap_err();
            assert_eq!(reason_of(&refused), Some(Reason::InvalidField), "{refused}");
        }
        let bad = ListAuditRecordsRequest { cluster: "nodes/x".to_owned(), ..good };
        assert_eq!(reason_of(&list(&api, bad).await.unwrap_err()), Some(Reason::NameInvalid));
    }
}
