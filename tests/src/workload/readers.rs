//! Readers: one for each member, which read without pause, and try to write beside that. They count the sessions that they
//! needed, for how long nothing could be read, and how little there was to read.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Client, Dialect, Login, now_nanos, postgres::PostgresSession, redis::RedisSession, writer::Session};

/// Pause after each read.
const PAUSE: Duration = Duration::from_millis(5);
/// How long an answer may take before another session is tried.
const PATIENCE: Duration = Duration::from_secs(1);

/// Readers that run.
#[derive(Debug)]
pub struct Readers {
    stop: CancellationToken,
    running: Vec<JoinHandle<Reading>>,
}

/// What one reader has seen.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// host:port of the member.
    pub member: String,
    /// How often it read.
    pub reads: u64,
    /// Sessions in which it read.
    pub sessions: u64,
    /// The longest time between two reads.
    pub longest_gap: Duration,
    /// The fewest rows that it was shown.
    pub fewest_rows: u64,
    /// Writes that were taken.
    pub taken: u64,
    /// Writes that were refused because the member is a replica.
    pub refused: u64,
}

// === impl Readers ===

impl Readers {
    /// Starts one for each member, and waits until each has read.
    pub async fn start(client: impl Into<Client>, members: &[&str]) -> Result<Self> {
        let client = client.into();
        let mut readers = Self { stop: CancellationToken::new(), running: Vec::new() };
        for member in members {
            match client.dialect {
                Dialect::Postgres => readers.add::<PostgresSession>(&client.login, member).await,
                Dialect::Redis => readers.add::<RedisSession>(&client.login, member).await,
            }
            .with_context(|| format!("{member} cannot be read"))?;
        }
        Ok(readers)
    }

    async fn add<S: Session<Login = Login> + Send + Sync + 'static>(
        &mut self,
        login: &Login,
        member: &str,
    ) -> Result<()> {
        let session = S::connect(login, member).await.map_err(|error| anyhow!(error))?;
        let fewest_rows = session.count().await.map_err(|error| anyhow!(error))?;
        let seen = Reading { member: member.to_owned(), sessions: 1, fewest_rows, ..Reading::default() };
        self.running.push(tokio::spawn(read(seen, login.clone(), session, self.stop.clone())));
        Ok(())
    }

    /// Stops them; what they have seen, in the order of the members.
    pub async fn stop(self) -> Result<Vec<Reading>> {
        self.stop.cancel();
        let mut seen = Vec::new();
        for reader in self.running {
            seen.push(reader.await?);
        }
        Ok(seen)
    }
}

async fn read<S: Session<Login = Login> + Send + Sync>(
    mut seen: Reading,
    login: Login,
    first: S,
    stop: CancellationToken,
) -> Reading {
    let (mut open, mut last) = (Some(first), now_nanos());
    while !stop.is_cancelled() {
        tokio::time::sleep(PAUSE).await;
        let session = match open.take() {
            Some(session) => session,
            None => match tokio::time::timeout(PATIENCE, S::connect(&login, &seen.member)).await {
                Ok(Ok(session)) => session,
                Ok(Err(_)) | Err(_) => continue,
            },
        };
        let Ok(Ok(rows)) = tokio::time::timeout(PATIENCE, session.count()).await else {
            seen.sessions += 1;
            continue;
        };
        let now = now_nanos();
        (seen.reads, seen.longest_gap) = (seen.reads + 1, seen.longest_gap.max(Duration::from_nanos(now - last)));
        seen.fewest_rows = seen.fewest_rows.min(rows);
        last = now;
        match tokio::time::timeout(PATIENCE, session.touch()).await {
            Ok(Ok(())) => seen.taken += 1,
            Ok(Err(refusal)) if refusal.certain => seen.refused += 1,
            Ok(Err(_)) | Err(_) => {}
        }
        open = Some(session);
    }
    // What has not ended yet counts as well.
    seen.longest_gap = seen.longest_gap.max(Duration::from_nanos(now_nanos() - last));
    seen
}
