//! Readers: one for each member, which read without pause, and try to write beside that. They count the sessions that they
//! needed, and for how long nothing could be read.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, error::SqlState};
use tokio_util::sync::CancellationToken;

use super::{
    Login, now_nanos,
    postgres::{TABLE, connect},
};

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
    /// Writes that were taken.
    pub taken: u64,
    /// Writes that were refused because the member is a replica.
    pub refused: u64,
}

// === impl Readers ===

impl Readers {
    /// Starts one for each member, and waits until each has read.
    pub async fn start(login: &Login, members: &[&str]) -> Result<Self> {
        let stop = CancellationToken::new();
        let mut running = Vec::new();
        for member in members {
            let (client, _) = connect(login, member).await?;
            client.query_one("SELECT 1", &[]).await.with_context(|| format!("{member} cannot be read"))?;
            running.push(tokio::spawn(read((*member).to_owned(), login.clone(), client, stop.clone())));
        }
        Ok(Self { stop, running })
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

async fn read(member: String, login: Login, first: Client, stop: CancellationToken) -> Reading {
    let mut seen = Reading { member, sessions: 1, ..Reading::default() };
    let select = format!("SELECT count(*) FROM {TABLE}");
    // Changes nothing where it is taken.
    let update = format!("UPDATE {TABLE} SET writer = writer WHERE false");
    let (mut session, mut last) = (Some(first), now_nanos());
    while !stop.is_cancelled() {
        tokio::time::sleep(PAUSE).await;
        let client = match session.take() {
            Some(client) => client,
            None => match tokio::time::timeout(PATIENCE, connect(&login, &seen.member)).await {
                Ok(Ok((client, _))) => client,
                Ok(Err(_)) | Err(_) => continue,
            },
        };
        let answer = tokio::time::timeout(PATIENCE, client.query_one(&select, &[]));
        if !matches!(answer.await, Ok(Ok(_))) {
            seen.sessions += 1;
            continue;
        }
        let now = now_nanos();
        (seen.reads, seen.longest_gap) = (seen.reads + 1, seen.longest_gap.max(Duration::from_nanos(now - last)));
        last = now;
        let write = client.execute(&update, &[]);
        match tokio::time::timeout(PATIENCE, write).await {
            Ok(Ok(_)) => seen.taken += 1,
            Ok(Err(error)) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => seen.refused += 1,
            Ok(Err(_)) | Err(_) => {}
        }
        session = Some(client);
    }
    // What has not ended yet counts as well.
    seen.longest_gap = seen.longest_gap.max(Duration::from_nanos(now_nanos() - last));
    seen
}
