//! SQL sessions of the agent: over the socket to our own engine, over TCP to another member's.
//!
//! **Invariant:** every session has a statement timeout, a pinned search path and `synchronous_commit=local`, so that the
//! agent can neither be fooled nor hang; and leaves nothing in logs and statement statistics.

use std::{path::Path, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio::{task::JoinHandle, time};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, config::SslMode, error::SqlState};

use super::config::{AGENT, REPLICATOR, SUPERUSER};
use crate::engine::DriverError;

/// An open session; closed when dropped.
pub(super) struct Session {
    client: Client,
    connection: JoinHandle<()>,
}

/// As which of the agent's roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The agent's own role.
    Agent,
    /// The owner of the instance.
    Superuser,
}

/// Why a session or a statement failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SqlError {
    /// "starting up", "not yet accepting connections": an answer.
    #[error("{0}")]
    Starting(String),
    /// "shutting down": an answer.
    #[error("{0}")]
    ShuttingDown(String),
    /// "too many connections": an answer of a running engine.
    #[error("{0}")]
    TooMany(String),
    /// Nobody listens.
    #[error("nobody listens: {0}")]
    NobodyListens(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// Another error of the server.
    #[error("{message} (SQLSTATE {code})")]
    Refused { code: String, message: String },
    /// The session broke.
    #[error("the session broke: {0}")]
    Broken(String),
}

/// A row, as text.
pub(super) type Row = Vec<Option<String>>;

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

// === impl Session ===

impl Session {
    /// Connects to our own engine.
    pub(super) async fn local(run: &Path, port: u16, who: Who, limit: Duration) -> Result<Self, SqlError> {
        let mut config = Config::new();
        config.host_path(run).port(port).dbname("postgres").application_name("regent-agent");
        let common = "-c search_path=pg_catalog -c synchronous_commit=local";
        match who {
            Who::Agent => config.user(AGENT).options(format!("{common} -c statement_timeout=10s")),
            // Only this role may turn these off; the daily role has them turned off by ALTER ROLE.
            Who::Superuser => config.user(SUPERUSER).options(format!(
                "{common} -c statement_timeout=30s -c log_statement=none -c log_min_error_statement=panic \
                 -c log_min_duration_statement=-1 -c pg_stat_statements.track=none"
            )),
        };
        Self::connect(&config, limit).await
    }

    /// Connects to another member's engine, as the replication role.
    pub(super) async fn remote(host: &str, port: u16, password: &SecretString) -> Result<Self, SqlError> {
        let limit = Duration::from_secs(5);
        let mut config = Config::new();
        config
            .host(host)
            .port(port)
            .user(REPLICATOR)
            .password(password.expose_secret())
            .dbname("postgres")
            .application_name("regent-agent")
            .ssl_mode(SslMode::Disable)
            .tcp_user_timeout(limit)
            .options("-c search_path=pg_catalog -c synchronous_commit=local -c statement_timeout=30s");
        Self::connect(&config, limit).await
    }

    async fn connect(config: &Config, limit: Duration) -> Result<Self, SqlError> {
        let connected = time::timeout(limit, Box::pin(config.connect(NoTls))).await;
        let (client, connection) = connected.map_err(|_| SqlError::Silent(limit))?.map_err(|error| classify(&error))?;
        let connection = tokio::spawn(async move {
            // How it ended is told by the statement that was running, or by the next one.
            drop(connection.await);
        });
        Ok(Self { client, connection })
    }

    pub(super) fn is_closed(&self) -> bool {
        self.client.is_closed()
    }

    /// Runs statements and gives back the rows, as text.
    pub(super) async fn rows(&self, sql: &str, limit: Duration) -> Result<Vec<Row>, SqlError> {
        let answer = time::timeout(limit, self.client.simple_query(sql)).await;
        let messages = answer.map_err(|_| SqlError::Silent(limit))?.map_err(|error| classify(&error))?;
        let rows = messages.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).map(str::to_owned)).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// The first column of the first row.
    pub(super) async fn value(&self, sql: &str, limit: Duration) -> Result<Option<String>, SqlError> {
        let rows = self.rows(sql, limit).await?;
        Ok(rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten())
    }

    /// Runs statements for their effect.
    pub(super) async fn execute(&self, sql: &str) -> Result<(), SqlError> {
        self.rows(sql, Duration::from_secs(30)).await.map(drop)
    }
}

// === impl SqlError ===

impl SqlError {
    /// As the driver reports it.
    pub(super) fn refused(self, doing: impl Into<String>) -> DriverError {
        DriverError::Refused { doing: doing.into(), detail: self.to_string() }
    }

    pub(super) fn has_code(&self, wanted: &SqlState) -> bool {
        matches!(self, Self::Refused { code, .. } if code == wanted.code())
    }
}

fn classify(error: &tokio_postgres::Error) -> SqlError {
    let Some(server) = error.as_db_error() else {
        use std::error::Error;
        let source = error.source().map(ToString::to_string).unwrap_or_default();
        let io = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
        return match io.map(std::io::Error::kind) {
            Some(std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) => {
                SqlError::NobodyListens(source)
            }
            Some(_) | None => SqlError::Broken(format!("{error}: {source}")),
        };
    };
    let message = server.message().to_owned();
    match server.code() {
        code if *code == SqlState::CANNOT_CONNECT_NOW && message.contains("shutting down") => {
            SqlError::ShuttingDown(message)
        }
        code if *code == SqlState::CANNOT_CONNECT_NOW => SqlError::Starting(message),
        code if *code == SqlState::TOO_MANY_CONNECTIONS => SqlError::TooMany(message),
        code if *code == SqlState::ADMIN_SHUTDOWN || *code == SqlState::CRASH_SHUTDOWN => SqlError::Broken(message),
        code => SqlError::Refused { code: code.code().to_owned(), message },
    }
}

/// A text as an SQL literal.
pub(super) fn literal(text: &str) -> String {
    // Backslashes are plain characters in literals, as standard_conforming_strings is on.
    format!("'{}'", text.replace('\'', "''"))
}
