//! Puts the services together, behind the layer that decides who may call what.

use std::sync::Arc;

use regent_proto::coordinator::v1::{
    audit_service_server::AuditServiceServer, catalog_service_server::CatalogServiceServer,
    cluster_service_server::ClusterServiceServer, enrollment_service_server::EnrollmentServiceServer,
    event_service_server::EventServiceServer, identity_service_server::IdentityServiceServer,
    node_service_server::NodeServiceServer, operation_service_server::OperationServiceServer,
};
use tonic::service::Routes;

use super::{
    Api,
    audit::AuditApi,
    authorization::{StoredRoles, protect},
    catalog::CatalogApi,
    cluster::ClusterApi,
    enrollment::EnrollmentApi,
    events::EventApi,
    identity::{IdentityApi, RenderNode},
    node::NodeApi,
    operation::OperationApi,
    view,
};
use crate::identity::Identities;

/// All services of the coordinator, with health and reflection.
pub async fn routes(api: &Arc<Api>, identities: &Arc<Identities>) -> Result<Routes, tonic_reflection::server::Error> {
    let environment = api.directory.environment();
    let table = Arc::clone(&api.table);
    let own_machine = environment.own_machine.clone();
    let clock = Arc::clone(&environment.clock);
    let render_node: RenderNode = Arc::new(move |stored, assignment| {
        view::node(stored, &table.view(&stored.name), assignment, &own_machine, clock.boottime())
    });
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(regent_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = Routes::new(health)
        .add_service(reflection().build_v1()?)
        // Python's own client of reflection still speaks this one only.
        .add_service(reflection().build_v1alpha()?)
        .add_service(ClusterServiceServer::new(ClusterApi(Arc::clone(api))))
        .add_service(NodeServiceServer::new(NodeApi(Arc::clone(api))))
        .add_service(OperationServiceServer::new(OperationApi(Arc::clone(api))))
        .add_service(CatalogServiceServer::new(CatalogApi(Arc::clone(api))))
        .add_service(AuditServiceServer::new(AuditApi(environment.audit.clone())))
        .add_service(EventServiceServer::new(EventApi(environment.events.clone())))
        .add_service(IdentityServiceServer::new(IdentityApi { identities: Arc::clone(identities), render_node }))
        .add_service(EnrollmentServiceServer::new(EnrollmentApi(Arc::clone(identities))));
    Ok(protect(routes, Arc::new(StoredRoles(Arc::clone(&environment.store))), environment.audit.clone()))
}
