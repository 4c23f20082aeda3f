//! Calling: a channel that checks whom it found, and that reconnects with the certificate of the moment. The bytes go over
//! what a [`Dialer`] opens: sockets, or a simulated network.

use std::{fmt, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::TransportError;
use crate::tls::{ExpectedServer, ReloadingIdentity, client_config};

/// How long a connection may take, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a quiet connection is tested, and how long the answer may take.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection before TLS: bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<IO: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for IO {}

/// Opens connections.
#[async_trait]
pub trait Dialer: fmt::Debug + Send + Sync + 'static {
    /// Opens one to a port of a host; the caller sets the deadline.
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn ByteStream>>;
}

/// The operating system's TCP.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpDialer;

#[async_trait]
impl Dialer for TcpDialer {
    async fn dial(&self, host: &str, port: u16) -> io::Result<Box<dyn ByteStream>> {
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}

/// Connects now to `address` (`host:port`). After a break the channel reconnects by itself at the next call.
pub async fn connect(
    address: &str,
    identity: Option<ReloadingIdentity>,
    expected: ExpectedServer,
) -> Result<Channel, TransportError> {
    connect_through(Arc::new(TcpDialer), address, identity, expected).await
}

/// Like [`connect`], through any dialer.
pub async fn connect_through(
    dialer: Arc<dyn Dialer>,
    address: &str,
    identity: Option<ReloadingIdentity>,
    expected: ExpectedServer,
) -> Result<Channel, TransportError> {
    // What can never work is said at once, not at the first call.
    client_config(identity.as_ref(), expected.clone())?;
    let connector = tower::service_fn(move |uri| open(Arc::clone(&dialer), uri, identity.clone(), expected.clone()));
    endpoint(address)?
        .connect_with_connector(connector)
        .await
        .map_err(|source| TransportError::Connect { address: address.to_owned(), source })
}

/// Like [`connect`], but connects at the first call. Needs a runtime.
pub fn connect_lazy(
    address: &str,
    identity: Option<ReloadingIdentity>,
    expected: ExpectedServer,
) -> Result<Channel, TransportError> {
    connect_lazy_through(Arc::new(TcpDialer), address, identity, expected)
}

/// Like [`connect_lazy`], through any dialer.
pub fn connect_lazy_through(
    dialer: Arc<dyn Dialer>,
    address: &str,
    identity: Option<ReloadingIdentity>,
    expected: ExpectedServer,
) -> Result<Channel, TransportError> {
    client_config(identity.as_ref(), expected.clone())?;
    let connector = tower::service_fn(move |uri| open(Arc::clone(&dialer), uri, identity.clone(), expected.clone()));
    Ok(endpoint(address)?.connect_with_connector_lazy(connector))
}

fn endpoint(address: &str) -> Result<Endpoint, TransportError> {
    let wrong = || TransportError::Address(address.to_owned());
    // The scheme is `http` for tonic's eyes only: `open` puts TLS below it, always.
    let uri: Uri = format!("http://{address}").parse().map_err(|_| wrong())?;
    if uri.port_u16().is_none() || uri.authority().is_none_or(|authority| authority.as_str() != address) {
        return Err(wrong());
    }
    Ok(Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_PERIOD)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

async fn open(
    dialer: Arc<dyn Dialer>,
    uri: Uri,
    identity: Option<ReloadingIdentity>,
    expected: ExpectedServer,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<Box<dyn ByteStream>>>> {
    let config = client_config(identity.as_ref(), expected).map_err(io::Error::other)?;
    let authority = uri.authority().ok_or_else(|| io::Error::other("the address has no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().ok_or_else(|| io::Error::other("the address has no port"))?;
    // The name matters to nobody: the identity in the certificate decides.
    let name = ServerName::try_from(host.clone())
        .or_else(|_| ServerName::try_from("regent.invalid"))
        .map_err(io::Error::other)?;
    let opening = async {
        let stream = dialer.dial(&host, port).await?;
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, opening)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no secured connection within 3 s"))?
        .map(TokioIo::new)
}
