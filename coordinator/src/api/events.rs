//! EventService: streams what happened.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use regent_common::{convert::to_wire_time, ids::ClusterName};
use regent_proto::coordinator::v1::{Event, WatchEventsRequest, event_service_server::EventService};
use tonic::{Request, Response, Status};

use super::audit::optional_cluster;
use crate::events::{EventLog, EventRecord};

/// The service.
#[derive(Clone)]
pub struct EventApi(pub EventLog);

#[tonic::async_trait]
impl EventService for EventApi {
    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<Event, Status>> + Send>>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let request = request.into_inner();
        let cluster = optional_cluster(&request.cluster)?;
        let events = self.0.watch(&request.resume_after, cluster).await?;
        Ok(Response::new(Box::pin(events.map(|event| event.map(Event::from).map_err(Status::from)))))
    }
}

// === impl Event ===

impl From<EventRecord> for Event {
    fn from(record: EventRecord) -> Self {
        Self {
            id: record.id.to_string(),
            time: Some(to_wire_time(record.time)),
            kind: record.kind,
            cluster: record.cluster.as_ref().map(ClusterName::resource).unwrap_or_default(),
            resource: record.resource,
            message: record.message,
            facts: record.facts,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use regent_common::{
        clock::ManualClock,
        error::{Reason, reason_of},
    };

    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_stream_can_be_resumed_where_it_broke_off() {
        let log = EventLog::new(Arc::new(MemoryStore::default()), Arc::new(ManualClock::default()));
        let api = EventApi(log.clone());
        let cluster = ClusterName::new("db").unwrap();
        for kind in ["FIRST", "SECOND"] {
            log.publish(kind, Some(&cluster), "clusters/db", "text", BTreeMap::new()).await;
        }
        let watch = |resume_after: &str| {
            let request = WatchEventsRequest { resume_after: resume_after.to_owned(), cluster: "db".to_owned() };
            api.watch_events(Request::new(request))
        };
        let first = watch("0").await.unwrap().into_inner().next().await.unwrap().unwrap();
        assert_eq!((first.kind.as_str(), first.cluster.as_str()), ("FIRST", "clusters/db"));
        let second = watch(&first.id).await.unwrap().into_inner().next().await.unwrap().unwrap();
        assert_eq!(second.kind, "SECOND");
        let refused = watch("nonsense").await.err().unwrap();
        assert_eq!(reason_of(&refused), Some(Reason::InvalidField));
    }
}
