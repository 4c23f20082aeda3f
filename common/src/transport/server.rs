//! Serving: handshakes beside each other, a verdict on each caller, the caller in each request.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    service::Routes,
    transport::{Server, server::Connected},
};

use super::{AuthenticationError, Caller, Revocations, TransportError};
use crate::{
    clock::wall_now,
    error::ErrorChain,
    tls::{ReloadingIdentity, not_after_of, serial_of},
};

/// How long a client may take for its handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How many may shake hands at once: beyond it, connections wait in the backlog, not in memory.
const HANDSHAKES: usize = 256;
/// How often a quiet connection is tested, and how long the answer may take.
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long calls may go on after the shutdown was asked for.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);

/// What can be set about serving.
#[derive(Debug, Clone, Default)]
pub struct ServeOptions {
    /// Certificates that count no more.
    pub revocations: Revocations,
}

/// A connection after its handshake.
struct Secured<IO> {
    stream: TlsStream<IO>,
    peer: Arc<Peer>,
}

/// What the handshake told about the other side.
#[derive(Debug)]
struct Peer {
    caller: Caller,
    not_after: Option<Timestamp>,
}

/// Serves `routes` until `shutdown`; running calls then get a few seconds to end.
pub async fn serve(
    listener: TcpListener,
    identity: ReloadingIdentity,
    routes: Routes,
    shutdown: CancellationToken,
) -> Result<(), TransportError> {
    serve_with(listener, identity, routes, ServeOptions::default(), shutdown).await
}

/// Like [`serve`], with options.
pub async fn serve_with(
    listener: TcpListener,
    identity: ReloadingIdentity,
    routes: Routes,
    options: ServeOptions,
    shutdown: CancellationToken,
) -> Result<(), TransportError> {
    let incoming = futures::stream::unfold(listener, |listener| async { Some((accept(&listener).await, listener)) });
    serve_incoming(Box::pin(incoming), identity, routes, options, shutdown).await
}

async fn accept(listener: &TcpListener) -> (TcpStream, Option<SocketAddr>) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                // Without it small messages wait for acknowledgements; a connection that refuses it is broken anyway.
                if stream.set_nodelay(true).is_ok() {
                    return (stream, Some(address));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Out of file descriptors, most likely: do not spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Like [`serve_with`], over any stream of byte streams: sockets, or a simulated network.
pub async fn serve_incoming<IO>(
    incoming: impl Stream<Item = (IO, Option<SocketAddr>)> + Send + Unpin + 'static,
    identity: ReloadingIdentity,
    routes: Routes,
    options: ServeOptions,
    shutdown: CancellationToken,
) -> Result<(), TransportError>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let acceptor = TlsAcceptor::from(identity.server_config()?);
    let (sender, secured) = mpsc::channel(16);
    let stop = shutdown.child_token();
    let _stop_on_return = stop.clone().drop_guard();
    let accepting = tokio::spawn(accept_all(incoming, acceptor, identity, sender, stop));
    let revocations = options.revocations;
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_PERIOD))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .layer(tower::util::MapRequestLayer::new(move |mut request: http::Request<tonic::body::Body>| {
            if let Some(peer) = request.extensions().get::<Arc<Peer>>() {
                let caller = peer.now(&revocations);
                request.extensions_mut().insert(caller);
            }
            request
        }))
        .add_routes(routes)
        .serve_with_incoming_shutdown(
            ReceiverStream::new(secured).map(Ok::<_, Infallible>),
            shutdown.clone().cancelled_owned(),
        );
    let outcome = tokio::select! {
        outcome = serving => outcome.map_err(TransportError::Serve),
        // Streams that nobody ends would hold the process forever.
        () = async { shutdown.cancelled().await; tokio::time::sleep(SHUTDOWN_GRACE).await } => Ok(()),
    };
    accepting.abort();
    outcome
}

/// Shakes hands with everybody at the same time, so that a slow client delays nobody else.
async fn accept_all<IO>(
    mut incoming: impl Stream<Item = (IO, Option<SocketAddr>)> + Unpin,
    acceptor: TlsAcceptor,
    identity: ReloadingIdentity,
    sender: mpsc::Sender<Secured<IO>>,
    stop: CancellationToken,
) where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut handshakes = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = handshakes.join_next() => {}
            next = incoming.next(), if handshakes.len() < HANDSHAKES => {
                let Some((stream, address)) = next else { break };
                let (acceptor, identity, sender) = (acceptor.clone(), identity.clone(), sender.clone());
                handshakes.spawn(async move {
                    match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let peer = Arc::new(Peer::of(&stream, &identity, address));
                            // An error means that serving ended.
                            let _ = sender.send(Secured { stream, peer }).await;
                        }
                        Ok(Err(error)) => {
                            tracing::debug!(?address, error = %ErrorChain(&error), "a handshake failed");
                        }
                        Err(_) => tracing::debug!(?address, "a handshake took too long"),
                    }
                });
            }
        }
    }
    while handshakes.join_next().await.is_some() {}
}

// === impl Peer ===

impl Peer {
    fn of<IO>(stream: &TlsStream<IO>, identity: &ReloadingIdentity, address: Option<SocketAddr>) -> Self {
        let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
        let leaf = chain.first();
        Self {
            caller: Caller {
                identity: identity.judge(chain),
                serial: leaf.and_then(|leaf| serial_of(leaf).ok()),
                address,
            },
            not_after: leaf.and_then(|leaf| not_after_of(leaf).ok()),
        }
    }

    /// The verdict of this moment: a certificate can end, or be revoked, while its connection goes on.
    fn now(&self, revocations: &Revocations) -> Caller {
        let mut caller = self.caller.clone();
        if caller.identity.is_ok() {
            if caller.serial.as_deref().is_some_and(|serial| revocations.contains(serial)) {
                caller.identity = Err(AuthenticationError::Revoked);
            } else if self.not_after.is_none_or(|end| end < wall_now()) {
                caller.identity = Err(AuthenticationError::Expired);
            }
        }
        caller
    }
}

// === impl Secured ===

impl<IO> Connected for Secured<IO> {
    type ConnectInfo = Arc<Peer>;
    fn connect_info(&self) -> Arc<Peer> {
        self.peer.clone()
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
