//! Ending a reign without ending the engine.
//!
//! A process that is killed forgets what was written since its last snapshot, and comes back by a synchronization in full as soon as that
//! is further back than its upstream remembers. One that is told to follow nobody keeps its data and its place in the history, and takes
//! no write any more.
//!
//! That is airtight, as commands are carried out one after the other: once the answer is there no write is under way, and the next is
//! refused. What a client had sent goes with its connection; so do the connections of this agent, as on one of them a method that was
//! ended half-way may have left the command that makes a primary. An engine that does not do all of this at once, because it
//! hangs, runs a script or is full, is killed.

use std::time::Duration;

use redis::Cmd;
use tokio::time;

use super::{
    Redis,
    access::{AGENT, COPY, REPLICATOR},
    config::NOBODY,
    session::{Session, SessionError},
};

/// How long all of it may take.
const AT_ONCE: Duration = Duration::from_millis(100);
/// Pause between two looks at connections that go.
const POLL: Duration = Duration::from_millis(1);

// === impl Redis ===

impl Redis {
    /// Makes the running engine a replica of nobody, for good. False where it must be killed instead.
    pub(super) async fn stays_fenced(&self) -> bool {
        if self.flavor.is_demoted_by_a_start {
            return false;
        }
        let deposing = async {
            let _control = self.begin().await;
            if !self.is_alive() {
                return Ok(false);
            }
            self.depose().await.map(|()| true)
        };
        let deposed = time::timeout(AT_ONCE, deposing).await.unwrap_or(Err(SessionError::Silent(AT_ONCE)));
        deposed.unwrap_or_else(|error| {
            tracing::warn!(%error, "the engine does not stop being a primary at once: it is killed");
            false
        })
    }

    async fn depose(&self) -> Result<(), SessionError> {
        // A connection of its own: what the kept one waits for would be in the way.
        let session = self.connect(AT_ONCE).await?;
        let own: u64 = session.ask(Cmd::new().arg("CLIENT").arg("ID"), AT_ONCE).await?;
        let info = session
            .tell_and_look(&[
                &["ACL", "SETUSER", REPLICATOR, &format!("-{COPY}")],
                &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"],
                &["CLIENT", "KILL", "TYPE", "pubsub", "SKIPME", "yes"],
                &["REPLICAOF", NOBODY.0, &NOBODY.1.to_string()],
            ])
            .await?;
        self.drop_session().await;
        if info.is_primary() {
            return Err(SessionError::Refused("it is still a primary".to_owned()));
        }
        // Where several threads serve connections they go a moment later.
        while has_older_session(&session, own).await? {
            time::sleep(POLL).await;
        }
        let info = session.info("replication", AT_ONCE).await?;
        if info.is_primary() {
            return Err(SessionError::Refused("it was made a primary again meanwhile".to_owned()));
        }
        // Whoever was kept out by a drain may read.
        self.let_in(&session, false).await?;
        tracing::info!(offset = info.offset(), "the engine is read-only and follows nobody");
        Ok(())
    }
}

/// Whether the agent has a connection that is older than this one.
async fn has_older_session(session: &Session, own: u64) -> Result<bool, SessionError> {
    let clients: String = session.ask(Cmd::new().arg("CLIENT").arg("LIST"), AT_ONCE).await?;
    let word = |line: &str, name: &str| {
        line.split(' ').find_map(|word| Some(word.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
    };
    let is_older = |line: &str| {
        word(line, "user").as_deref() == Some(AGENT)
            && word(line, "id").and_then(|id| id.parse::<u64>().ok()).is_none_or(|id| id < own)
    };
    Ok(clients.lines().any(is_older))
}
