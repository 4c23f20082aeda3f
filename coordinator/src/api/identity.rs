//! IdentityService: join tokens, users, revocation, renewal. Translates; decides nothing.

use std::{sync::Arc, time::Duration};

use regent_common::{
    convert::to_wire_time,
    error::{Reason, bad_field, refuse},
    ids::{ClusterName, NodeName, UserName},
    transport::Caller,
};
use regent_proto::coordinator::v1::{
    CreateTokenRequest, CreateUserRequest, CreateUserResponse, ListUsersRequest, ListUsersResponse, Node,
    RenewCertificateRequest, RenewCertificateResponse, RevokeNodeRequest, RevokeNodeResponse, RevokeUserRequest,
    RevokeUserResponse, Token, User, UserRole as WireRole, identity_service_server::IdentityService,
};
use tonic::{Request, Response, Status};

use super::enrollment::{public_key, to_the_end};
use crate::{
    identity::{Identities, IdentityError, TokenWish, UserWish},
    model::{
        Assignment,
        node::NodeRecord,
        user::{UserRecord, UserRole},
    },
};

/// Renders a node with what is heard of it.
pub type RenderNode = Arc<dyn Fn(&NodeRecord, Option<&Assignment>) -> Node + Send + Sync>;

/// The service.
pub struct IdentityApi {
    /// What it stands on.
    pub identities: Arc<Identities>,
    /// Renders a node as NodeService does.
    pub render_node: RenderNode,
}

#[tonic::async_trait]
impl IdentityService for IdentityApi {
    async fn create_token(&self, request: Request<CreateTokenRequest>) -> Result<Response<Token>, Status> {
        let actor = actor(&request)?;
        let request = request.into_inner();
        let wish = TokenWish {
            node: optional(&request.node, NodeName::from_resource)
                .map_err(|error| refuse(Reason::NameInvalid, format!("node: {error}")))?,
            cluster: optional(&request.cluster, ClusterName::from_resource)
                .map_err(|error| refuse(Reason::NameInvalid, format!("cluster: {error}")))?,
            life: Duration::from_secs(request.ttl_seconds.into()),
        };
        let identities = Arc::clone(&self.identities);
        let cluster = wish.cluster.as_ref().map(ClusterName::resource).unwrap_or_default();
        let new = to_the_end(async move { identities.create_token(wish, &actor, request.validate_only).await }).await?;
        Ok(Response::new(Token {
            token: new.token.map(|token| token.to_string()).unwrap_or_default(),
            expire_time: Some(to_wire_time(new.expires_at)),
            cluster,
        }))
    }

    async fn create_user(&self, request: Request<CreateUserRequest>) -> Result<Response<CreateUserResponse>, Status> {
        let actor = actor(&request)?;
        let request = request.into_inner();
        let wish = UserWish {
            name: user_name("user", &request.user)?,
            role: role_from_wire(request.role)?,
            key: public_key(&request.certificate_request_pem)?,
        };
        let identities = Arc::clone(&self.identities);
        let new = to_the_end(async move { identities.create_user(&wish, &actor, request.validate_only).await }).await?;
        Ok(Response::new(CreateUserResponse {
            user: Some(user(&new.record)),
            certificate_pem: new.certificate.unwrap_or_default(),
            ca_pem: self.identities.ca_pem().to_owned(),
        }))
    }

    async fn list_users(&self, _request: Request<ListUsersRequest>) -> Result<Response<ListUsersResponse>, Status> {
        let users = self.identities.users().await.map_err(IdentityError::from)?;
        Ok(Response::new(ListUsersResponse { users: users.iter().map(user).collect() }))
    }

    async fn revoke_user(&self, request: Request<RevokeUserRequest>) -> Result<Response<RevokeUserResponse>, Status> {
        let request = request.into_inner();
        let name = user_name("name", &request.name)?;
        confirm(&request.confirm_name, name.as_str())?;
        let identities = Arc::clone(&self.identities);
        let record = to_the_end(async move { identities.revoke_user(&name).await }).await?;
        Ok(Response::new(RevokeUserResponse { user: Some(user(&record)) }))
    }

    async fn revoke_node(&self, request: Request<RevokeNodeRequest>) -> Result<Response<RevokeNodeResponse>, Status> {
        let request = request.into_inner();
        let name = NodeName::from_resource(&request.name)
            .map_err(|error| refuse(Reason::NameInvalid, format!("name: {error}")))?;
        confirm(&request.confirm_name, name.as_str())?;
        let identities = Arc::clone(&self.identities);
        let (record, assignment) = to_the_end(async move { identities.revoke_node(&name).await }).await?;
        Ok(Response::new(RevokeNodeResponse { node: Some((self.render_node)(&record, assignment.as_ref())) }))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = Caller::of(&request).map_err(|status| *status)?;
        let identity = caller.authenticated().map_err(|status| *status)?.clone();
        let serial = caller.serial.clone();
        let key = public_key(&request.get_ref().certificate_request_pem)?;
        let identities = Arc::clone(&self.identities);
        let certificate_pem =
            to_the_end(async move { identities.renew(&identity, serial.as_deref(), &key).await }).await?;
        let ca_pem = self.identities.ca_pem().to_owned();
        Ok(Response::new(RenewCertificateResponse { certificate_pem, ca_pem }))
    }
}

/// The caller, for records of who did it.
fn actor<T>(request: &Request<T>) -> Result<String, Status> {
    let caller = Caller::of(request).map_err(|status| *status)?;
    Ok(caller.authenticated().map_err(|status| *status)?.to_string())
}

fn optional<T, E>(text: &str, read: impl FnOnce(&str) -> Result<T, E>) -> Result<Option<T>, E> {
    if text.is_empty() { Ok(None) } else { read(text).map(Some) }
}

fn user_name(field: &str, text: &str) -> Result<UserName, Status> {
    UserName::from_resource(text).map_err(|error| refuse(Reason::NameInvalid, format!("{field}: {error}")))
}

fn confirm(given: &str, wanted: &str) -> Result<(), Status> {
    if given == wanted {
        return Ok(());
    }
    let message = format!(
        "this ends all certificates of {wanted}: confirm it with the name {wanted:?} (given: {given:?}); nothing was changed"
    );
    Err(refuse(Reason::ConfirmNameWrong, message))
}

fn role_from_wire(role: i32) -> Result<UserRole, Status> {
    match WireRole::try_from(role) {
        Ok(WireRole::Viewer) => Ok(UserRole::Viewer),
        Ok(WireRole::Operator) => Ok(UserRole::Operator),
        Ok(WireRole::Admin) => Ok(UserRole::Admin),
        Ok(WireRole::Unspecified) | Err(_) => Err(bad_field("role", "must be viewer, operator or admin")),
    }
}

fn user(record: &UserRecord) -> User {
    let role = match record.role {
        UserRole::Viewer => WireRole::Viewer,
        UserRole::Operator => WireRole::Operator,
        UserRole::Admin => WireRole::Admin,
    };
    User {
        name: record.name.resource(),
        role: role.into(),
        revoked: record.revoked,
        create_time: Some(to_wire_time(record.created_at)),
        created_by: record.created_by.clone(),
        certificate_expire_time: record.certificate_not_after.map(to_wire_time),
    }
}
