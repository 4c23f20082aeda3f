//! The secured connection: serving gRPC over mutual TLS, and calling it.
//!
//! It does not decide who may do what: it puts a [`Caller`] into the extensions of every request. The accepting part takes
//! any stream of byte streams, so that a simulated network can stand in for sockets.
//!
//! **Invariant:** a request whose caller's certificate ended or was revoked since the handshake says so in its `Caller`.

mod client;
mod server;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

pub use client::{ByteStream, Dialer, TcpDialer, connect, connect_lazy, connect_lazy_through, connect_through};
pub use server::{ServeOptions, serve, serve_incoming, serve_with};

pub use crate::tls::AuthenticationError;
use crate::{
    error::{Reason, Retryable, refuse},
    identity::Identity,
    tls::TlsError,
};

/// Who calls; in the extensions of every request that [`serve`] hands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// Who it is, or why it is nobody to us.
    pub identity: Result<Identity, AuthenticationError>,
    /// The serial number of its certificate.
    pub serial: Option<String>,
    /// Where it calls from.
    pub address: Option<SocketAddr>,
}

/// The serial numbers of revoked certificates (in the form of [`crate::tls::serial_of`]); clones share them.
#[derive(Debug, Clone, Default)]
pub struct Revocations(Arc<RwLock<BTreeSet<String>>>);

/// Why a connection cannot be served or made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The identity or the expectation cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The address is not `host:port`.
    #[error("{0:?} is not an address of the form HOST:PORT")]
    Address(String),
    /// The other side cannot be reached or is not the expected one.
    #[error("cannot connect to {address}")]
    Connect {
        /// Where.
        address: String,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// Serving ended with an error.
    #[error("serving failed")]
    Serve(#[source] tonic::transport::Error),
}

// === impl TransportError ===

impl Retryable for TransportError {
    fn retryable(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Tls(_) | Self::Address(_) | Self::Serve(_) => false,
        }
    }
}

// === impl Caller ===

impl Caller {
    /// The caller's identity, or the refusal to answer with.
    pub fn authenticated(&self) -> Result<&Identity, Box<tonic::Status>> {
        self.identity.as_ref().map_err(|error| Box::new(refuse(error.reason(), error.to_string())))
    }

    /// The caller of a request; a request that did not come through [`serve`] has none.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self, Box<tonic::Status>> {
        request
            .extensions()
            .get()
            .ok_or_else(|| Box::new(refuse(Reason::Internal, "the request did not come through the secured transport")))
    }
}

// === impl Revocations ===

impl Revocations {
    /// Starts with these serial numbers.
    pub fn new(serials: impl IntoIterator<Item = String>) -> Self {
        Self(Arc::new(RwLock::new(serials.into_iter().collect())))
    }

    /// Revokes one more; it holds for the next request, on existing connections as well.
    pub fn revoke(&self, serial: impl Into<String>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(serial.into());
    }

    /// Puts another set in place.
    pub fn replace(&self, serials: BTreeSet<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = serials;
    }

    /// Whether it is revoked.
    pub fn contains(&self, serial: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(serial)
    }
}
