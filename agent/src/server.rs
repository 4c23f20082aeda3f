//! The services of the gRPC port, put together.
//!
//! Everything checks its caller itself (see [`crate::access`]); reflection wants any certificate of our coordinator,
//! the health service wants none.

use std::sync::Arc;

use regent_common::{
    error::{Reason, refuse},
    transport::Revocations,
};
use regent_proto::agent::v1::{
    job_service_server::JobServiceServer, peer_service_server::PeerServiceServer,
    session_service_server::SessionServiceServer, step_service_server::StepServiceServer,
};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Status,
    service::{Routes, interceptor::InterceptedService},
};

use crate::{
    access,
    node::Node,
    peer::PeerAnswers,
    services::{job::Jobs, step::Steps},
    session::Sessions,
};

/// All services of a node. `stop` ends its sessions.
pub async fn routes(node: &Arc<Node>, revocations: Revocations, stop: CancellationToken) -> Result<Routes, Status> {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<StepServiceServer<Steps>>().await;
    reporter.set_serving::<SessionServiceServer<Sessions>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(regent_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let broken = |error: tonic_reflection::server::Error| refuse(Reason::Internal, error.to_string());
    let coordinator_id = node.coordinator_id.clone();
    let certified = move |request: Request<()>| access::certified(&request, &coordinator_id).map(|()| request);
    Ok(Routes::new(health)
        .add_service(InterceptedService::new(reflection().build_v1().map_err(broken)?, certified.clone()))
        // Python's own client of reflection still speaks this one only.
        .add_service(InterceptedService::new(reflection().build_v1alpha().map_err(broken)?, certified))
        .add_service(StepServiceServer::new(Steps(node.clone())))
        .add_service(JobServiceServer::new(Jobs(node.clone())))
        .add_service(SessionServiceServer::new(Sessions::new(node.clone(), revocations, stop)))
        .add_service(PeerServiceServer::new(PeerAnswers(node.clone()))))
}
