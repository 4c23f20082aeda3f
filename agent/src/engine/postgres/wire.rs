//! Speaks the replication sub-protocol, which the SQL client library does not: who is at the other end, on which timeline
//! and how far; and the histories of timelines.
//!
//! `IDENTIFY_SYSTEM` is the one sound source of a standby's timeline: the columns of `pg_stat_wal_receiver` vanish with the
//! receiver, and `pg_control` lags behind. Only the simple query protocol with text results is spoken.

use std::{io, path::PathBuf, time::Duration};

use bytes::BytesMut;
use fallible_iterator::FallibleIterator;
use postgres_protocol::{
    authentication::sasl::{self, ChannelBinding, ScramSha256},
    message::{
        backend::{ErrorFields, Message},
        frontend,
    },
};
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time,
};

use super::position::{History, Lsn, parse_lsn};

/// Where to connect, and as whom.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// The engine of this member, over its socket; the kernel says who we are.
    Local { socket: PathBuf, user: &'static str },
    /// Another member's engine.
    Remote { host: String, port: u16, user: &'static str, password: SecretString },
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    #[error("no connection: {0}")]
    Io(#[from] io::Error),
    #[error("no answer within {0:?}")]
    Silent(Duration),
    #[error("{message} (SQLSTATE {code})")]
    Refused { code: String, message: String },
    #[error("unexpected answer: {0}")]
    Unexpected(&'static str),
}

/// Who a server is and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identified {
    pub(super) system_id: u64,
    pub(super) timeline: u32,
    pub(super) flushed: Lsn,
    /// How the timeline came to be.
    pub(super) history: History,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

struct Wire {
    stream: Box<dyn Stream>,
    input: BytesMut,
}

type Row = Vec<Option<Vec<u8>>>;

/// Asks a server who it is, on which timeline, and how far it has come.
pub(super) async fn identify(target: &Target, limit: Duration) -> Result<Identified, WireError> {
    let asking = async {
        let mut wire = Box::pin(Wire::connect(target)).await?;
        let row = wire.one_row("IDENTIFY_SYSTEM").await?;
        let system_id = number(&row, 0)?;
        let timeline = number(&row, 1)?;
        let flushed =
            text(&row, 2).and_then(parse_lsn).ok_or(WireError::Unexpected("IDENTIFY_SYSTEM gave no position"))?;
        let history = if timeline == 1 {
            History::default()
        } else {
            let row = wire.one_row(&format!("TIMELINE_HISTORY {timeline}")).await?;
            let text = text(&row, 1).ok_or(WireError::Unexpected("the timeline history is no text"))?;
            History::parse(text).ok_or(WireError::Unexpected("the timeline history cannot be read"))?
        };
        wire.end().await;
        Ok(Identified { system_id, timeline, flushed, history })
    };
    time::timeout(limit, asking).await.map_err(|_| WireError::Silent(limit))?
}

fn text(row: &Row, column: usize) -> Option<&str> {
    std::str::from_utf8(row.get(column)?.as_deref()?).ok()
}

fn number<T: std::str::FromStr>(row: &Row, column: usize) -> Result<T, WireError> {
    text(row, column).and_then(|text| text.parse().ok()).ok_or(WireError::Unexpected("a number was expected"))
}

// === impl Wire ===

impl Wire {
    async fn connect(target: &Target) -> Result<Self, WireError> {
        let (stream, user, password): (Box<dyn Stream>, _, _) = match target {
            Target::Local { socket, user } => (Box::new(UnixStream::connect(socket).await?), *user, None),
            Target::Remote { host, port, user, password } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                (Box::new(stream), *user, Some(password))
            }
        };
        let mut wire = Self { stream, input: BytesMut::new() };
        let mut out = BytesMut::new();
        let parameters = [
            ("user", user),
            ("replication", "true"),
            ("application_name", "regent-agent"),
            ("client_encoding", "UTF8"),
        ];
        frontend::startup_message(parameters, &mut out)?;
        wire.send(&out).await?;
        wire.authenticate(password).await?;
        loop {
            if let Message::ReadyForQuery(_) = wire.next().await? {
                return Ok(wire);
            }
        }
    }

    async fn authenticate(&mut self, password: Option<&SecretString>) -> Result<(), WireError> {
        let mechanism = match self.next().await? {
            Message::AuthenticationOk => return Ok(()),
            Message::AuthenticationSasl(body) => {
                if !body.mechanisms().any(|offered| Ok(offered == sasl::SCRAM_SHA_256))? {
                    return Err(WireError::Unexpected("the server does not offer SCRAM-SHA-256"));
                }
                sasl::SCRAM_SHA_256
            }
            _ => return Err(WireError::Unexpected("the server wants another way of authentication than SCRAM")),
        };
        let password = password.ok_or(WireError::Unexpected("the server wants a password on its local socket"))?;
        let mut scram = ScramSha256::new(password.expose_secret().as_bytes(), ChannelBinding::unsupported());
        let mut out = BytesMut::new();
        frontend::sasl_initial_response(mechanism, scram.message(), &mut out)?;
        self.send(&out).await?;
        let Message::AuthenticationSaslContinue(body) = self.next().await? else {
            return Err(WireError::Unexpected("SCRAM was not continued"));
        };
        scram.update(body.data())?;
        out.clear();
        frontend::sasl_response(scram.message(), &mut out)?;
        self.send(&out).await?;
        let Message::AuthenticationSaslFinal(body) = self.next().await? else {
            return Err(WireError::Unexpected("SCRAM was not finished"));
        };
        scram.finish(body.data())?;
        match self.next().await? {
            Message::AuthenticationOk => Ok(()),
            _ => Err(WireError::Unexpected("SCRAM ended without a verdict")),
        }
    }

    async fn one_row(&mut self, command: &str) -> Result<Row, WireError> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out)?;
        self.send(&out).await?;
        let mut first = None;
        loop {
            match self.next().await? {
                Message::DataRow(body) => {
                    let row: Row =
                        body.ranges().map(|range| Ok(range.map(|range| body.buffer()[range].to_vec()))).collect()?;
                    first.get_or_insert(row);
                }
                Message::ReadyForQuery(_) => return first.ok_or(WireError::Unexpected("no row")),
                _ => {}
            }
        }
    }

    /// The next message; an error message is an error.
    async fn next(&mut self) -> Result<Message, WireError> {
        loop {
            match Message::parse(&mut self.input)? {
                Some(Message::ErrorResponse(body)) => return Err(refusal(body.fields())?),
                Some(message) => return Ok(message),
                None => {
                    if self.stream.read_buf(&mut self.input).await? == 0 {
                        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                    }
                }
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Takes leave, so that the server logs no lost connection. That it may not arrive does not matter.
    async fn end(mut self) {
        let mut out = BytesMut::new();
        frontend::terminate(&mut out);
        drop(self.send(&out).await);
    }
}

fn refusal(mut fields: ErrorFields<'_>) -> io::Result<WireError> {
    let (mut code, mut message) = (String::new(), String::new());
    while let Some(field) = fields.next()? {
        let value = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => code = value(),
            b'M' => message = value(),
            _ => {}
        }
    }
    Ok(WireError::Refused { code, message })
}
