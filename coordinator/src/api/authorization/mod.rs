//! Decides, in front of all services, who may call what, and writes to the audit who changed something or was refused.
//!
//! It does not verify certificates (the transport did, and says so in the request's [`Caller`]) and knows of a call its path, its
//! outcome, and for the audit what its message says. A user's role is read from the store at every call, so that a revocation holds for the next one.
//!
//! **Invariant:** a call reaches a service only when the [`table`] permits it; it then carries an [`Authorized`]. An audited
//! call that has begun is finished and recorded even when its caller goes away.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use axum::body::Body;
use http::{HeaderMap, Request, Response};
use regent_common::{
    error::{ErrorChain, Reason, reason_of, refuse},
    identity::{Identity, Principal},
    ids::UserName,
    transport::{AuthenticationError, Caller},
};
use serde::{Deserialize, Serialize};
use tonic::{Code, Status, service::Routes};
use tower::{Layer, Service};
use tracing::Instrument as _;

use self::asked::Asked;
pub use self::table::{METHODS, Requirement, UserRole, requirement};
use super::failed_store;
use crate::{
    audit::{AuditLog, OK},
    store::{Store, StoreError, get_json, keys},
};

mod asked;
pub mod table;
#[cfg(test)]
mod tests;

/// The actor of a call without a valid certificate, where none is needed.
pub const ANONYMOUS: &str = "anonymous";

/// Most bytes of a call that changes something; what tonic takes as well.
const LARGEST_REQUEST: usize = 4 * 1024 * 1024;

/// Who calls; in the extensions of every request that reaches a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authorized {
    /// Such as `user/alice` or `node/n1`.
    pub actor: String,
    /// Where it calls from; empty while unknown.
    pub address: String,
}

/// What is known of a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What the user may do.
    pub role: UserRole,
    /// Whether the user has been revoked.
    pub revoked: bool,
}

/// Knows the users.
#[async_trait]
pub trait Roles: Send + Sync + 'static {
    /// What is known of a user; `None` when there is no such user.
    async fn role_of(&self, user: &UserName) -> Result<Option<Standing>, StoreError>;
}

/// Reads the users' records of the store.
#[derive(Clone)]
pub struct StoredRoles(pub Arc<dyn Store>);

/// Puts [`Authorization`] in front of services.
#[derive(Clone)]
pub struct AuthorizationLayer(Arc<Policy>);

/// Lets through what the table permits.
#[derive(Clone)]
pub struct Authorization<S> {
    inner: S,
    policy: Arc<Policy>,
}

struct Policy {
    roles: Arc<dyn Roles>,
    audit: AuditLog,
}

/// Why a call is refused.
struct Refusal {
    /// The answer; boxed because it is large.
    status: Box<Status>,
    /// Whether a known party lacks a right. What nobody we know sends is not recorded: it could fill the store.
    recorded: bool,
}

/// Puts the authorization in front of these routes.
pub fn protect(routes: Routes, roles: Arc<dyn Roles>, audit: AuditLog) -> Routes {
    routes.into_axum_router().layer(AuthorizationLayer::new(roles, audit)).into()
}

/// Whether this party may call a method of this name that has this requirement.
fn permit(requirement: Requirement, method: &str, who: &Principal, standing: Option<Standing>) -> Result<(), Refusal> {
    let wrong_caller = |wanted: &str| {
        Refusal::recorded(Reason::WrongCaller, format!("{method} is for {wanted}, and the caller is {}", actor(who)))
    };
    if let Principal::User(user) = who {
        match standing {
            Some(Standing { revoked: true, .. }) => {
                return Err(Refusal::recorded(Reason::CertificateRevoked, format!("user {user} was revoked")));
            }
            None => {
                let message = format!("there is no user {user} (any more): ask an administrator");
                return Err(Refusal::recorded(Reason::CertificateRevoked, message));
            }
            Some(Standing { revoked: false, .. }) => {}
        }
    }
    match (requirement, who) {
        (Requirement::Open | Requirement::Certificate, _) | (Requirement::Node, Principal::Node(_)) => Ok(()),
        (Requirement::Node, Principal::User(_) | Principal::Coordinator(_)) => Err(wrong_caller("nodes")),
        (Requirement::User(_), Principal::Node(_) | Principal::Coordinator(_)) => Err(wrong_caller("users")),
        (Requirement::User(needed), Principal::User(user)) => match standing {
            Some(standing) if standing.role >= needed => Ok(()),
            Some(Standing { role, .. }) => {
                let (needed, role) = (needed.as_str(), role.as_str());
                let message = format!("{method} needs the role {needed}; user {user} has the role {role}");
                Err(Refusal::recorded(Reason::RoleTooLow, message))
            }
            None => Err(Refusal::recorded(Reason::RoleTooLow, format!("user {user} has no role"))),
        },
    }
}

/// A party, as it stands in the audit and in records.
pub fn actor(who: &Principal) -> String {
    match who {
        Principal::Node(name) => format!("node/{name}"),
        Principal::User(name) => format!("user/{name}"),
        Principal::Coordinator(name) => format!("coordinator/{name}"),
    }
}

/// What came of a call, and its message: an error of a call with one answer always stands in the head of the response.
fn outcome(headers: &HeaderMap) -> (String, String) {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => (outcome_of(&status), status.message().to_owned()),
        Some(_) | None => (OK.to_owned(), String::new()),
    }
}

fn outcome_of(status: &Status) -> String {
    match reason_of(status) {
        Some(reason) => reason.as_str().to_owned(),
        None => format!("{:?}", status.code()),
    }
}

// === impl StoredRoles ===

#[async_trait]
impl Roles for StoredRoles {
    async fn role_of(&self, user: &UserName) -> Result<Option<Standing>, StoreError> {
        let found = get_json::<Standing>(self.0.as_ref(), &keys::user(user)).await?;
        Ok(found.map(|stored| stored.value))
    }
}

// === impl Refusal ===

impl Refusal {
    fn recorded(reason: Reason, message: String) -> Self {
        Self { status: Box::new(refuse(reason, message)), recorded: true }
    }

    fn unrecorded(status: Status) -> Self {
        Self { status: Box::new(status), recorded: false }
    }
}

// === impl AuthorizationLayer ===

impl AuthorizationLayer {
    /// Asks these roles and writes to this audit.
    pub fn new(roles: Arc<dyn Roles>, audit: AuditLog) -> Self {
        Self(Arc::new(Policy { roles, audit }))
    }
}

impl<S> Layer<S> for AuthorizationLayer {
    type Service = Authorization<S>;

    fn layer(&self, inner: S) -> Authorization<S> {
        Authorization { inner, policy: Arc::clone(&self.0) }
    }
}

// === impl Policy ===

impl Policy {
    /// Decides about a call; gives whether it is audited.
    async fn decide(
        &self,
        path: &str,
        identity: Result<&Identity, &AuthenticationError>,
    ) -> Result<Requirement, Refusal> {
        let requirement = requirement(path);
        if requirement == Some(Requirement::Open) {
            return Ok(Requirement::Open);
        }
        let identity = identity.map_err(|error| Refusal::unrecorded(refuse(error.reason(), error.to_string())))?;
        let Some(requirement) = requirement else {
            let message = format!("this coordinator has no method {path}: is it older than the client?");
            return Err(Refusal::unrecorded(Status::unimplemented(message)));
        };
        let standing = match &identity.principal {
            Principal::User(user) => {
                self.roles.role_of(user).await.map_err(|error| Refusal::unrecorded(failed_store(error)))?
            }
            Principal::Node(_) | Principal::Coordinator(_) => None,
        };
        permit(requirement, method_name(path), &identity.principal, standing)?;
        Ok(requirement)
    }
}

/// The method's name in its path.
fn method_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

// === impl Authorization ===

impl<S, R> Service<Request<Body>> for Authorization<S>
where
    S: Service<Request<Body>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    R: Default + Send + 'static,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<R>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // The one that was asked for readiness makes the call; its clone waits for the next.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let policy = Arc::clone(&self.policy);
        Box::pin(async move {
            let caller = request.extensions().get::<Caller>();
            let identity = match caller {
                Some(caller) => caller.identity.clone(),
                None => Err(AuthenticationError::NoCertificate),
            };
            let address = caller.and_then(|caller| caller.address).map(|a| a.to_string()).unwrap_or_default();
            let actor = identity.as_ref().map_or_else(|_| ANONYMOUS.to_owned(), |known| actor(&known.principal));
            let path = request.uri().path().to_owned();
            let method = method_name(&path).to_owned();
            let requirement = match policy.decide(&path, identity.as_ref()).await {
                Ok(requirement) => requirement,
                Err(Refusal { status, recorded }) => {
                    let outcome = outcome_of(&status);
                    tracing::info!(actor, address, path, outcome, "a call was refused");
                    if recorded {
                        policy.audit.record(&actor, &address, &method, "", &outcome, status.message()).await;
                    }
                    return Ok(status.into_http());
                }
            };
            request.extensions_mut().insert(Authorized { actor: actor.clone(), address: address.clone() });
            if !requirement.is_audited() {
                return inner.call(request).await;
            }
            let (head, body) = request.into_parts();
            let body = match axum::body::to_bytes(body, LARGEST_REQUEST).await {
                Ok(body) => body,
                Err(error) => {
                    let message = format!("the request was not received: {}", ErrorChain(&error));
                    return Ok(Status::invalid_argument(message).into_http());
                }
            };
            let Asked { resource, said } = Asked::read(&path, &body);
            // A task of its own: a caller that hangs up must not leave a change half made, or made but not recorded.
            let call = inner.call(Request::from_parts(head, Body::from(body)));
            let audit = policy.audit.clone();
            let recorded = async move {
                // One more task, so that a call that panicked is recorded too.
                let (answer, outcome, detail) = match tokio::spawn(call.in_current_span()).await {
                    Ok(Ok(response)) => {
                        let (outcome, detail) = outcome(response.headers());
                        (Ok(response), outcome, detail)
                    }
                    Ok(Err(error)) => (Err(error), Reason::Internal.to_string(), String::new()),
                    Err(error) => {
                        let message = format!("the call broke off: {}", ErrorChain(&error));
                        tracing::error!(actor, method, message, "a call failed");
                        let status = refuse(Reason::Internal, &message);
                        (Ok(status.into_http()), Reason::Internal.to_string(), message)
                    }
                };
                let parts = [said, detail];
                let detail: Vec<_> = parts.iter().filter(|part| !part.is_empty()).map(String::as_str).collect();
                audit.record(&actor, &address, &method, &resource, &outcome, &detail.join(" ")).await;
                answer
            };
            match tokio::spawn(recorded.in_current_span()).await {
                Ok(answer) => answer,
                Err(error) => Ok(refuse(Reason::Internal, ErrorChain(&error).to_string()).into_http()),
            }
        })
    }
}
