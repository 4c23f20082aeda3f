//! Calling: a channel that checks whom it found, and that reconnects with the certificate of the moment.

use std::{io, time::Duration};

use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use super::TransportError;
use crate::tls::{ExpectedServer, ReloadingIdentity, client_config};

/// How long a connection may take, handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a quiet connection is tested, and how long the answer may take.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects now to `address` (`host:port`). After a break the channel reconnects by itself at the next call.
pub async fn connect(
    address: &str,
    identity: Option<ReloadingIdentity>,
    expected: ExpectedServer,
) -> Result<Channel, TransportError> {
    // What can never work is said at once, not at the first call.
    client_config(identity.as_ref(), expected.clone())?;
    endpoint(address)?
        .connect_with_connector(tower::service_fn(move |uri| open(uri, identity.clone(), expected.clone())))
        .await
        .map_err(|source| TransportError::Connect { address: address.to_owned(), source })
}

/// Like [`connect`], but connects at the first call. Needs a runtime.
pub fn connect_lazy(
    address: &str,
    identity: Option<ReloadingIdentity>,
    expected: ExpectedServer,
) -> Result<Channel, TransportError> {
    client_config(identity.as_ref(), expected.clone())?;
    Ok(endpoint(address)?
        .connect_with_connector_lazy(tower::service_fn(move |uri| open(uri, identity.clone(), expected.clone()))))
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
    uri: Uri,
    identity: Option<ReloadingIdentity>,
    expected: ExpectedServer,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let config = client_config(identity.as_ref(), expected).map_err(io::Error::other)?;
    let authority = uri.authority().ok_or_else(|| io::Error::other("the address has no host"))?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = authority.port_u16().ok_or_else(|| io::Error::other("the address has no port"))?;
    // The name matters to nobody: the identity in the certificate decides.
    let name = ServerName::try_from(host.clone())
        .or_else(|_| ServerName::try_from("regent.invalid"))
        .map_err(io::Error::other)?;
    let opening = async {
        let stream = TcpStream::connect((host.as_str(), port)).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(config).connect(name, stream).await
    };
    tokio::time::timeout(CONNECT_TIMEOUT, opening)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no secured connection within 3 s"))?
        .map(TokioIo::new)
}
