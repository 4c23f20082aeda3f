//! JobService: the running steps, seen apart from the calls that began them.

use std::sync::Arc;

use regent_common::{
    error::{Reason, bad_field, refuse},
    ids::OperationId,
};
use regent_proto::agent::v1::{
    CancelJobRequest, CancelJobResponse, ListJobsRequest, ListJobsResponse, job_service_server::JobService,
};
use tonic::{Request, Response, Status};

use crate::{access, node::Node};

/// JobService of a node.
#[derive(Debug, Clone)]
pub struct Jobs(pub Arc<Node>);

#[tonic::async_trait]
impl JobService for Jobs {
    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        access::coordinator(&request, &self.0.coordinator_id)?;
        Ok(Response::new(ListJobsResponse { jobs: self.0.jobs() }))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        access::coordinator(&request, &self.0.coordinator_id)?;
        let CancelJobRequest { operation, step } = request.into_inner();
        let id = OperationId::from_resource(&operation).map_err(|error| bad_field("operation", error.to_string()))?;
        if self.0.executor.cancel(id, &step) {
            Ok(Response::new(CancelJobResponse {}))
        } else {
            let message = format!("step {step} of operation {operation} does not run on this node");
            Err(refuse(Reason::OperationNotFound, message))
        }
    }
}
