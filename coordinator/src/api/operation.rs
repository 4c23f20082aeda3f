//! OperationService: shows, watches and cancels operations.

use std::{sync::Arc, time::Duration};

use regent_common::{
    error::{Reason, refuse},
    ids::{ClusterName, OperationId},
};
use regent_proto::coordinator::v1::{
    CancelOperationRequest, GetOperationRequest, ListOperationsRequest, ListOperationsResponse, Operation,
    WatchOperationRequest, operation_service_server::OperationService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Api, failed_store, page};
use crate::{
    cluster::actor::ActorHandle,
    model::operation::OperationRecord,
    operation::{executor, kind, log::Failure, log::StepStatus},
    store::{get_json, keys, list_json},
};

/// How late a watcher sees a change that woke nobody.
const WATCH_PERIOD: Duration = Duration::from_millis(500);

/// The service.
pub struct OperationApi(pub Arc<Api>);

impl OperationApi {
    async fn find(&self, name: &str) -> Result<(OperationRecord, Option<ActorHandle>), Status> {
        let id = OperationId::from_resource(name).map_err(|e| refuse(Reason::NameInvalid, format!("name: {e}")))?;
        let store = self.0.directory.environment().store.as_ref();
        let found = get_json::<OperationRecord>(store, &keys::operation(&id)).await.map_err(failed_store)?;
        let record = found.map(|stored| stored.value).ok_or_else(|| {
            refuse(Reason::OperationNotFound, format!("there is no operation {id}: see `regentctl operation list`"))
        })?;
        let actor = self.0.directory.get(&record.cluster);
        Ok((record, actor))
    }
}

#[tonic::async_trait]
impl OperationService for OperationApi {
    type WatchOperationStream = ReceiverStream<Result<Operation, Status>>;

    async fn get_operation(&self, request: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        let (record, actor) = self.find(&request.get_ref().name).await?;
        Ok(Response::new(self.0.render_operation(&record, actor.as_ref()).await?))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let wanted = if request.cluster.is_empty() {
            None
        } else {
            let name = ClusterName::from_resource(&request.cluster);
            Some(name.map_err(|e| refuse(Reason::NameInvalid, format!("cluster: {e}")))?)
        };
        let store = self.0.directory.environment().store.as_ref();
        let records = list_json::<OperationRecord>(store, keys::OPERATIONS).await.map_err(failed_store)?;
        let mut rows = Vec::new();
        for (_, stored) in records {
            let record = stored.value;
            if wanted.as_ref().is_some_and(|name| *name != record.cluster) {
                continue;
            }
            let actor = self.0.directory.get(&record.cluster);
            let rendered = self.0.render_operation(&record, actor.as_ref()).await?;
            if !(request.running_only && rendered.done) {
                // Ids sort by time; the newest comes first.
                let newest_first: String =
                    record.id.to_string().bytes().map(|byte| char::from(b'0' + (b'Z' - byte))).collect();
                rows.push((newest_first, rendered));
            }
        }
        let (operations, next_page_token) = page(rows, request.page_size, &request.page_token)?;
        Ok(Response::new(ListOperationsResponse { operations, next_page_token }))
    }

    async fn watch_operation(
        &self,
        request: Request<WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        let (record, actor) = self.find(&request.get_ref().name).await?;
        let (sender, receiver) = mpsc::channel(4);
        let api = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut last = None;
            let mut changes = actor.as_ref().map(|actor| (actor.cluster.watch(), actor.progress.clone()));
            loop {
                let now = match api.render_operation(&record, actor.as_ref()).await {
                    Ok(now) => now,
                    Err(status) => {
                        // A watcher that has gone needs no reason.
                        let _ = sender.send(Err(status)).await;
                        return;
                    }
                };
                let done = now.done;
                if last.as_ref() != Some(&now) {
                    if sender.send(Ok(now.clone())).await.is_err() {
                        return;
                    }
                    last = Some(now);
                }
                if done {
                    return;
                }
                let changed = async {
                    match &mut changes {
                        Some((record, progress)) => {
                            tokio::select! { _ = record.changed() => {}, _ = progress.changed() => {} }
                        }
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    _ = tokio::time::timeout(WATCH_PERIOD, changed) => {}
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Result<Response<Operation>, Status> {
        let caller = self.0.caller(&request);
        let (record, actor) = self.find(&request.get_ref().name).await?;
        let status = executor::status(self.0.directory.environment(), &record).await;
        let status = status.map_err(|error| Status::internal(error.to_string()))?;
        if status.has_ended() {
            return Err(refuse(Reason::OperationEnded, format!("operations/{} has ended already", record.id)));
        }
        let past_return = record
            .steps
            .iter()
            .zip(&status.steps)
            .any(|(planned, log)| planned.point_of_no_return && log.status != StepStatus::Pending);
        if past_return || !kind(&record.kind).is_some_and(|kind| kind.cancellable()) {
            let message = format!("operations/{} ({}) can only go forward now", record.id, record.kind);
            return Err(refuse(Reason::OperationPastReturn, message));
        }
        let failure =
            Failure { reason: Reason::Cancelled.as_str().to_owned(), message: format!("cancelled by {caller}") };
        if let Some(actor) = &actor {
            self.0.directory.cancel(actor, record.id, failure).await;
        }
        Ok(Response::new(self.0.render_operation(&record, actor.as_ref()).await?))
    }
}
