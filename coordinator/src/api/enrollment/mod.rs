//! EnrollmentService: how a machine becomes a node, the only service that answers without a client certificate.

use std::{future::Future, sync::Arc};

use regent_common::{
    convert::from_wire_time,
    error::{Reason, bad_field, refuse},
    identity::Principal,
    ids::{ClusterName, NodeName},
    token::JoinToken,
    transport::Caller,
};
use regent_proto::coordinator::v1::{
    AnnounceNodeRequest, AnnounceNodeResponse, JoinNodeRequest, JoinNodeResponse,
    enrollment_service_server::EnrollmentService,
};
use tonic::{Request, Response, Status};

use crate::{
    identity::{Addresses, Identities, IdentityError, Join},
    pki::PublicKey,
};

/// The service.
pub struct EnrollmentApi(pub Arc<Identities>);

#[tonic::async_trait]
impl EnrollmentService for EnrollmentApi {
    async fn join_node(&self, request: Request<JoinNodeRequest>) -> Result<Response<JoinNodeResponse>, Status> {
        let request = request.into_inner();
        let clock = request.clock.as_ref().ok_or_else(|| bad_field("clock", "is missing"))?;
        let join = Join {
            token: request
                .token
                .parse::<JoinToken>()
                .map_err(|error| refuse(Reason::TokenUnknown, format!("{error}; nothing was changed")))?,
            node: NodeName::new(request.node.as_str())
                .map_err(|error| refuse(Reason::NameInvalid, format!("node: {error}; nothing was changed")))?,
            key: public_key(&request.certificate_request_pem)?,
            addresses: Addresses::new(&request.agent_address, &request.public_address, &request.private_address)?,
            clock: from_wire_time(clock).ok_or_else(|| bad_field("clock", "is not a time"))?,
            labels: request.labels,
            ledger_empty: request.ledger_empty,
        };
        let identities = Arc::clone(&self.0);
        let joined = to_the_end(async move { identities.join(&join).await }).await?;
        Ok(Response::new(JoinNodeResponse {
            coordinator_id: self.0.coordinator_id().to_owned(),
            certificate_pem: joined.certificate,
            ca_pem: self.0.ca_pem().to_owned(),
            cluster: joined.cluster.as_ref().map(ClusterName::resource).unwrap_or_default(),
        }))
    }

    async fn announce_node(
        &self,
        request: Request<AnnounceNodeRequest>,
    ) -> Result<Response<AnnounceNodeResponse>, Status> {
        let caller = Caller::of(&request).map_err(|status| *status)?;
        let name = match &caller.authenticated().map_err(|status| *status)?.principal {
            Principal::Node(name) => name.clone(),
            Principal::User(_) | Principal::Coordinator(_) => {
                return Err(refuse(Reason::WrongCaller, "only a node announces itself; nothing was changed"));
            }
        };
        let serial = caller.serial.clone();
        let request = request.into_inner();
        let addresses = Addresses::new(&request.agent_address, &request.public_address, &request.private_address)?;
        let identities = Arc::clone(&self.0);
        let incarnation = request.incarnation;
        let announcing = async move { identities.announce(&name, serial.as_deref(), &addresses, &incarnation).await };
        to_the_end(announcing).await?;
        Ok(Response::new(AnnounceNodeResponse {}))
    }
}

/// Reads the key out of a certificate request.
pub(super) fn public_key(pem: &str) -> Result<PublicKey, Status> {
    PublicKey::of_request(pem).map_err(|error| bad_field("certificate_request_pem", error.to_string()))
}

/// Carries a change out to its end even when the caller hangs up: what is stored must also be told.
pub(super) async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, IdentityError>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(change).await {
        Ok(outcome) => outcome.map_err(Status::from),
        Err(error) => Err(refuse(Reason::Internal, format!("the change ended by a fault of this program: {error}"))),
    }
}

#[cfg(test)]
mod tests;
