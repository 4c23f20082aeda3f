//! Connections of the agent: over the socket to our own engine, over TCP to another member's.
//!
//! **Invariant:** every connection and every answer has a deadline; nothing here is ever tried again.

use std::{io, path::Path, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, aio::MultiplexedConnection,
};
use regent_common::transport::ByteStream;
use secrecy::{ExposeSecret, SecretString};
use tokio::time;

use super::{
    access::{AGENT, COPY, REPLICATOR, commands, is_open_side},
    info::Info,
};
use crate::engine::DriverError;

/// For what answers at once.
pub(super) const BRIEF: Duration = Duration::from_secs(5);

/// An open connection; clones share it.
#[derive(Clone)]
pub(super) struct Session {
    connection: MultiplexedConnection,
}

/// Why there is no connection or no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    /// "LOADING": an answer of an engine that reads its data.
    #[error("it is loading its data")]
    Loading,
    /// Nobody listens.
    #[error("nobody listens: {0}")]
    NobodyListens(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// Another error of the engine.
    #[error("{0}")]
    Refused(String),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// Who listens does not prove that he is a member; he was asked nothing.
    #[error("{0}")]
    Untrusted(String),
}

// === impl Session ===

impl Session {
    /// Connects to our own engine.
    pub(super) async fn local(socket: &Path, secret: &SecretString, limit: Duration) -> Result<Self, SessionError> {
        let session = Self::open(ConnectionAddr::Unix(socket.to_owned()), limit).await?;
        session.log_in(AGENT, secret, limit).await
    }

    /// Speaks with another member's engine, as the members do, over a connection to it.
    pub(super) async fn remote(stream: Box<dyn ByteStream>, secret: &SecretString) -> Result<Self, SessionError> {
        let greeting = greeting();
        let connecting = MultiplexedConnection::new_with_config(&greeting, stream, manners());
        let connected = time::timeout(BRIEF, Box::pin(connecting)).await.map_err(|_| SessionError::Silent(BRIEF))?;
        let (connection, speaking) = connected.map_err(|error| SessionError::of(&error))?;
        // Ends with the last session that is a clone of this one.
        tokio::spawn(speaking);
        Self { connection }.log_in(REPLICATOR, secret, BRIEF).await
    }

    async fn log_in(self, user: &str, secret: &SecretString, limit: Duration) -> Result<Self, SessionError> {
        // Not with the connection: the library would say of an engine that is full, too, that the password is wrong.
        let login = [user, secret.expose_secret()];
        self.ask::<redis::Value>(Cmd::new().arg("AUTH").arg(&login), limit).await?;
        Ok(self)
    }

    /// Connects, and says no name.
    pub(super) async fn open(address: ConnectionAddr, limit: Duration) -> Result<Self, SessionError> {
        let client = address
            .into_connection_info()
            .and_then(|info| Client::open(info.set_redis_settings(greeting())))
            .map_err(|error| SessionError::of(&error))?;
        let config = manners();
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        let connected = time::timeout(limit, Box::pin(connecting)).await.map_err(|_| SessionError::Silent(limit))?;
        Ok(Self { connection: connected.map_err(|error| SessionError::of(&error))? })
    }

    /// Sends one command and waits for its answer.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd, limit: Duration) -> Result<T, SessionError> {
        let mut connection = self.connection.clone();
        match time::timeout(limit, command.query_async(&mut connection)).await {
            Err(_) => Err(SessionError::Silent(limit)),
            Ok(answer) => answer.map_err(|error| SessionError::of(&error)),
        }
    }

    /// Sends one command for its effect.
    pub(super) async fn tell(&self, words: &[&str]) -> Result<(), SessionError> {
        let mut command = Cmd::new();
        command.arg(words);
        self.ask::<redis::Value>(&command, BRIEF).await.map(drop)
    }

    /// Lets the other members copy its data, or not.
    pub(super) async fn let_copy(&self, may: bool) -> Result<(), SessionError> {
        let sign = if may { '+' } else { '-' };
        self.tell(&["ACL", "SETUSER", REPLICATOR, &format!("{sign}{COPY}")]).await
    }

    /// Whether this is one of two sides that lets applications, and the other side, in.
    pub(super) async fn is_open_side(&self, limit: Duration) -> Result<bool, SessionError> {
        let users: Vec<String> = self.ask(Cmd::new().arg("ACL").arg("LIST"), limit).await?;
        Ok(is_open_side(&users))
    }

    /// Which of these keys it has.
    pub(super) async fn exist(&self, keys: &[Vec<u8>]) -> Result<Vec<bool>, SessionError> {
        self.ask_of_each(&["EXISTS"], keys).await
    }

    /// Of which kind each of these keys is; "none" for one that it has not.
    pub(super) async fn kinds(&self, keys: &[Vec<u8>]) -> Result<Vec<String>, SessionError> {
        self.ask_of_each(&["TYPE"], keys).await
    }

    /// About how many bytes each of these keys takes; 0 for one that it has not. They are of a kind that every engine has: KeyDB 6.3 ends
    /// when it is asked for the size of a `KEYDB.CRON`.
    pub(super) async fn sizes(&self, keys: &[Vec<u8>]) -> Result<Vec<u64>, SessionError> {
        let sizes: Vec<Option<u64>> = self.ask_of_each(&["MEMORY", "USAGE"], keys).await?;
        Ok(sizes.into_iter().map(Option::unwrap_or_default).collect())
    }

    /// A digest of the value of each of these keys, in which the order of what has none does not count; `None` for one that it has
    /// not. Nothing else is carried out meanwhile.
    pub(super) async fn digests(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<String>>, SessionError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = Cmd::new();
        command.arg("DEBUG").arg("DIGEST-VALUE").arg(keys);
        let digests: Vec<String> = self.ask(&command, BRIEF).await?;
        Ok(digests
            .into_iter()
            .map(|digest| Some(digest).filter(|digest| digest.bytes().any(|byte| byte != b'0')))
            .collect())
    }

    /// Asks the same of each of these keys, all together.
    async fn ask_of_each<T: FromRedisValue>(
        &self,
        question: &[&str],
        keys: &[Vec<u8>],
    ) -> Result<Vec<T>, SessionError> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let mut together = Pipeline::new();
        for key in keys {
            let mut command = Cmd::new();
            command.arg(question).arg(key);
            together.add_command(command);
        }
        let mut connection = self.connection.clone();
        match time::timeout(BRIEF, together.query_async(&mut connection)).await {
            Err(_) => Err(SessionError::Silent(BRIEF)),
            Ok(answer) => answer.map_err(|error| SessionError::of(&error)),
        }
    }

    /// Brings its users to those of the file.
    pub(super) async fn bring_to(&self, users_acl: &str) -> Result<(), SessionError> {
        for words in commands(users_acl) {
            self.tell(&words).await?;
        }
        Ok(())
    }

    /// Commands for their effect and what the engine says of replication right after them: nothing comes between.
    pub(super) async fn tell_and_look(&self, commands: &[&[&str]]) -> Result<Info, SessionError> {
        let mut together = Pipeline::new();
        together.atomic();
        for words in commands {
            let mut command = Cmd::new();
            command.arg(*words);
            together.add_command(command).ignore();
        }
        together.cmd("INFO").arg("replication");
        let mut connection = self.connection.clone();
        match time::timeout(BRIEF, together.query_async::<Vec<String>>(&mut connection)).await {
            Err(_) => Err(SessionError::Silent(BRIEF)),
            Ok(Err(error)) => Err(SessionError::of(&error)),
            Ok(Ok(answers)) => Ok(Info::parse(answers.first().map_or("", String::as_str))),
        }
    }

    /// What the engine says of itself.
    pub(super) async fn info(&self, section: &str, limit: Duration) -> Result<Info, SessionError> {
        let text: String = self.ask(Cmd::new().arg("INFO").arg(section), limit).await?;
        Ok(Info::parse(&text))
    }
}

/// What is said first: not every flavor knows `CLIENT SETINFO`.
fn greeting() -> RedisConnectionInfo {
    RedisConnectionInfo::default().set_skip_set_lib_name()
}

/// Each question has a deadline of its own.
fn manners() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None)
}

// === impl SessionError ===

impl SessionError {
    /// Nobody has said yet how the engine is logged in to.
    pub(super) fn never_configured() -> Self {
        Self::Refused("the member was never configured".to_owned())
    }

    /// As the driver reports it.
    pub(super) fn refused(self, doing: impl Into<String>) -> DriverError {
        DriverError::Refused { doing: doing.into(), detail: self.to_string() }
    }

    /// Whether the connection is of no more use.
    pub(super) fn is_broken(&self) -> bool {
        matches!(self, Self::Broken(_) | Self::NobodyListens(_))
    }

    /// A connection could not be made.
    pub(super) fn of_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Self::NobodyListens(error.to_string()),
            _ => Self::Broken(error.to_string()),
        }
    }

    fn of(error: &RedisError) -> Self {
        if error.is_connection_refusal() {
            return Self::NobodyListens(error.to_string());
        }
        let text = error.to_string();
        match error.code() {
            Some("LOADING") => Self::Loading,
            Some(_) => Self::Refused(text),
            None => Self::Broken(text),
        }
    }
}
