//! Handing everything over to a successor before a planned promotion, and letting applications in again.
//!
//! The users that are applications are switched off and their connections cut: the engine does one thing after the other, with
//! however many threads, so that afterwards nobody is left who could be told that a write is done. What the engine writes by itself
//! stops too: keys that expire, and the words with which it keeps its replicas awake; a primary that had one such word more than its
//! successor could only come back by a full synchronization (redis#6029). What stays is the agent, over the socket, and the stream.
//!
//! **Invariant:** none of this is in a file, so that every start of the engine undoes it, as [`Redis::admit`] does.

use std::time::Duration;

use redis::Cmd;
use regent_common::{ids::MemberName, position::Position};
use tokio::time;

use super::{
    Redis,
    access::users_acl,
    config::PING_PERIOD,
    position::end_of,
    session::{BRIEF, Session, SessionError},
};
use crate::engine::DriverError;

/// Pause between two looks.
const POLL: Duration = Duration::from_millis(1);
/// How long the engine writes nothing by itself, in milliseconds: longer than any drain is held.
const PAUSE: &str = "60000";
/// No word to keep replicas awake, in seconds.
const SILENT: &str = "3600";

// === impl Redis ===

impl Redis {
    /// Keeps applications out and waits until `successor` has everything; the final position.
    pub(super) async fn hand_over_to(&self, successor: &MemberName) -> Result<Position, DriverError> {
        let failed = |error: SessionError| error.refused("hand over");
        let wanted = self.wanted()?;
        let peer =
            wanted.members.iter().find(|peer| peer.member == *successor).ok_or_else(|| DriverError::Refused {
                doing: "hand over".to_owned(),
                detail: format!("{successor} is no member that it was told of"),
            })?;
        let theirs = self.session_with(&peer.engine.host, peer.engine.port).await.map_err(failed)?;
        let session = self.session().await.map_err(failed)?;
        let users: Vec<String> = session.ask(Cmd::new().arg("ACL").arg("USERS"), BRIEF).await.map_err(failed)?;
        for user in users.iter().filter(|user| wanted.secrets.is_application(user)) {
            session.tell(&["ACL", "SETUSER", user, "off"]).await.map_err(failed)?;
            session.tell(&["CLIENT", "KILL", "USER", user]).await.map_err(failed)?;
        }
        session.tell(&["CLIENT", "PAUSE", PAUSE, "WRITE"]).await.map_err(failed)?;
        session.tell(&["CONFIG", "SET", "repl-ping-replica-period", SILENT]).await.map_err(failed)?;
        loop {
            let place = self.place().await?;
            let seen = theirs.info("replication", BRIEF).await.map_err(failed)?;
            let has_all = seen.offset().map(end_of) >= Some(place.end) && seen.id() == Some(&place.line.id);
            if has_all && seen.streams() {
                let position = place.position();
                tracing::info!(%position, %successor, "everything is handed over");
                return Ok(position);
            }
            time::sleep(POLL).await;
        }
    }

    /// Lets applications in again.
    pub(super) async fn admit(&self) -> Result<(), DriverError> {
        if !self.is_alive() {
            return Ok(());
        }
        let failed = |error: SessionError| error.refused("let applications in again");
        let session = self.session().await.map_err(failed)?;
        let is_primary = self.is_primary().await.map_err(failed)?;
        self.let_in(&session, is_primary).await.map_err(failed)
    }

    /// Takes back whatever keeps applications out of the running engine.
    pub(super) async fn let_in(&self, session: &Session, is_primary: bool) -> Result<(), SessionError> {
        let wanted = self.known_wanted().ok_or_else(SessionError::never_configured)?;
        let users = users_acl(&self.server, &wanted.secrets, self.line().as_ref(), is_primary);
        session.tell(&["CONFIG", "SET", "repl-ping-replica-period", PING_PERIOD]).await?;
        session.tell(&["CLIENT", "UNPAUSE"]).await?;
        session.bring_to(&users).await
    }
}
