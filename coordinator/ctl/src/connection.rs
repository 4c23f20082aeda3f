//! What a verb has at hand: the options, and the secured connection that is made when the verb needs it.
//!
//! **Invariant:** the coordinator must show a certificate of the CA that signed our own, in the name of its coordinator.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use regent_common::{
    error::ErrorChain,
    identity::IdentityDirectory,
    tls::{ExpectedServer, ReloadingIdentity},
    transport::{self, TransportError},
};
use regent_proto::coordinator::v1::{
    audit_service_client::AuditServiceClient, catalog_service_client::CatalogServiceClient,
    cluster_service_client::ClusterServiceClient, event_service_client::EventServiceClient,
    identity_service_client::IdentityServiceClient, node_service_client::NodeServiceClient,
    operation_service_client::OperationServiceClient,
};
use tonic::transport::Channel;

use crate::{
    cli::Globals,
    failure::{Call, Failure},
    output::Output,
};

/// A change may wait for a write to disk and for probes of nodes, never for the operation itself.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where an administrator of the coordinator's own machine finds the first identity.
const FIRST_ADMIN: &str = "/var/lib/regent/coordinator/admin";

/// Options of this run.
#[derive(Debug)]
pub(crate) struct Context {
    /// The two streams.
    pub(crate) output: Output,
    coordinator: String,
    identity: Option<PathBuf>,
    request_id: String,
}

/// Clients of the coordinator's services over one connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    channel: Channel,
}

// === impl Context ===

impl Context {
    pub(crate) fn new(globals: &Globals) -> Self {
        Self {
            output: Output { format: globals.output },
            coordinator: globals.coordinator.clone(),
            identity: globals.identity.clone(),
            request_id: globals.request_id.clone().unwrap_or_else(|| ulid::Ulid::generate().to_string()),
        }
    }

    /// The id of the change of this run.
    pub(crate) fn request_id(&self) -> String {
        self.request_id.clone()
    }

    /// Where the coordinator is.
    pub(crate) fn coordinator(&self) -> &str {
        &self.coordinator
    }

    /// A call that changes nothing.
    pub(crate) fn reading(&self, action: impl Into<String>) -> Call {
        Call { action: action.into(), coordinator: self.coordinator.clone(), request_id: None }
    }

    /// A call that changes something.
    pub(crate) fn changing(&self, action: impl Into<String>) -> Call {
        Call { request_id: Some(self.request_id.clone()), ..self.reading(action) }
    }

    /// Connects for a call.
    pub(crate) async fn connect(&self, call: &Call) -> Result<Connection, Failure> {
        let directory = self.identity_directory()?;
        let identity = ReloadingIdentity::open(&IdentityDirectory::new(&directory))
            .map_err(|error| Failure::Identity(format!("{}: {}", directory.display(), ErrorChain(&error))))?;
        let expected = ExpectedServer::AnyCoordinatorOf(identity.identity().coordinator_id);
        let channel =
            transport::connect(&self.coordinator, Some(identity), expected).await.map_err(|error| match error {
                TransportError::Address(_) => Failure::Usage(error.to_string()),
                TransportError::Tls(_) => Failure::Identity(ErrorChain(&error).to_string()),
                TransportError::Connect { .. } | TransportError::Serve(_) => call.unconnected(&error),
            })?;
        Ok(Connection { channel })
    }

    fn identity_directory(&self) -> Result<PathBuf, Failure> {
        if let Some(given) = &self.identity {
            return Ok(given.clone());
        }
        let own = std::env::var_os("HOME").map(|home| Path::new(&home).join(".config/regent"));
        let candidates: Vec<PathBuf> = own.into_iter().chain([PathBuf::from(FIRST_ADMIN)]).collect();
        let found = candidates.iter().find(|directory| std::fs::File::open(directory.join("cert.pem")).is_ok());
        found.cloned().ok_or_else(|| {
            let places: Vec<_> = candidates.iter().map(|place| place.display().to_string()).collect();
            Failure::Identity(format!("none was given, and there is none to read in {}", places.join(" nor in ")))
        })
    }
}

// === impl Connection ===

impl Connection {
    pub(crate) fn clusters(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel.clone())
    }

    pub(crate) fn nodes(&self) -> NodeServiceClient<Channel> {
        NodeServiceClient::new(self.channel.clone())
    }

    pub(crate) fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel.clone())
    }

    pub(crate) fn identities(&self) -> IdentityServiceClient<Channel> {
        IdentityServiceClient::new(self.channel.clone())
    }

    pub(crate) fn catalog(&self) -> CatalogServiceClient<Channel> {
        CatalogServiceClient::new(self.channel.clone())
    }

    pub(crate) fn audit(&self) -> AuditServiceClient<Channel> {
        AuditServiceClient::new(self.channel.clone())
    }

    pub(crate) fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }
}

/// A request with a deadline; streams have none.
pub(crate) fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(PATIENCE);
    request
}

/// Reads all pages of a list. `page` gets the page token and answers items and the next token.
pub(crate) async fn all_pages<T, E>(
    mut page: impl AsyncFnMut(String) -> Result<(Vec<T>, String), E>,
) -> Result<Vec<T>, E> {
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let (more, next) = page(token).await?;
        items.extend(more);
        if next.is_empty() {
            return Ok(items);
        }
        token = next;
    }
}
