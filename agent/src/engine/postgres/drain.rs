//! Handing everything over to a successor before a planned promotion, and letting applications in again.
//!
//! New logins are rejected by the access rules, sessions that there are are ended, and so is every process that is in the midst of a
//! login by the rules of before: after that nobody is left who could be told that a write is done. Workers of autovacuum are ended
//! too: what they write after the hand-over the successor has not, and this copy would have to be rewound to follow it. What stays
//! is the agent, over the socket, and the stream.
//!
//! **Invariant:** the rules that keep applications out are undone by every start of the engine, as by [`Postgres::admit`].

use std::{collections::BTreeSet, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use regent_common::{ids::MemberName, position::Position};
use tokio::time;

use super::{
    Postgres,
    config::{
        AGENT, REPLICATOR, SUPERUSER,
        access::{Applications, hba_conf},
    },
    position::{Place, parse_lsn},
    refused,
    session::{Session, SqlError, literal},
};
use crate::{engine::DriverError, supervisor::Status};

/// For one statement.
const STATEMENT: Duration = Duration::from_secs(2);
/// Ends of the titles of processes that the engine never lists and that acknowledge nothing: the one that writes the log, and
/// what versions before 15 have besides.
const NEVER_LISTED: &[&str] = &[": logger", ": stats collector"];
/// Pause between two looks.
const POLL: Duration = Duration::from_millis(2);

// === impl Postgres ===

impl Postgres {
    /// Keeps applications out and waits until `successor` has everything; the final position.
    pub(super) async fn hand_over_to(&self, successor: &MemberName) -> Result<Position, DriverError> {
        let failed = |error: SqlError| error.refused("hand over");
        let superuser = self.superuser().await?;
        self.write_access_rules(Applications::Rejected).await?;
        let before = superuser.value("SELECT clock_timestamp()", STATEMENT).await.map_err(failed)?.unwrap_or_default();
        self.reload()?;
        self.wait_loaded(&before).await?;
        // What logs in from here on is rejected; who had begun before may still be let in.
        let mut logins = self.unlisted(&listed(&superuser).await?.0)?;
        loop {
            let (listed, sessions) = listed(&superuser).await?;
            for pid in &sessions {
                superuser.execute(&format!("SELECT pg_terminate_backend({pid})")).await.map_err(failed)?;
            }
            // Looked at after the list: whoever was let in meanwhile is in the next one.
            let unlisted = self.unlisted(&listed)?;
            logins.retain(|login| unlisted.contains(login));
            for login in &logins {
                // One that has ended meanwhile is what is wanted.
                let _ = kill(Pid::from_raw(*login), Signal::SIGTERM);
            }
            if sessions.is_empty() && logins.is_empty() {
                break;
            }
            time::sleep(POLL).await;
        }
        // A commit that is flushed, and with it all that was acknowledged before it was. The place of the message, not where the
        // log has been flushed to: that may be in the midst of a record of the engine's own, which nobody else can replay.
        let commit = "SELECT pg_logical_emit_message(true, 'regent', 'handed over')";
        let message = superuser.value(commit, STATEMENT).await.map_err(failed)?.as_deref().and_then(parse_lsn);
        let last = message.ok_or_else(|| DriverError::Refused {
            doing: "hand over".to_owned(),
            detail: "the engine did not say where it wrote its last message".to_owned(),
        })?;
        let place = self.place().await?;
        let behind = format!(
            "SELECT pg_wal_lsn_diff({}, flush_lsn) FROM pg_stat_replication WHERE application_name = {}",
            literal(&place.lsn.to_string()),
            literal(successor.as_str())
        );
        loop {
            let behind = superuser.value(&behind, STATEMENT).await.map_err(failed)?;
            if behind.and_then(|bytes| bytes.parse::<i64>().ok()).is_some_and(|bytes| bytes <= 0) {
                let flushed = place.lsn;
                let place = Place { lsn: last, ..place }.position();
                tracing::info!(%place, %flushed, %successor, "everything is handed over");
                return Ok(place);
            }
            time::sleep(POLL).await;
        }
    }

    /// Lets applications in again.
    pub(super) async fn admit(&self) -> Result<(), DriverError> {
        self.write_access_rules(Applications::Admitted).await?;
        // Also where nothing was written: an earlier try may have ended before it.
        if self.is_alive() { self.reload() } else { Ok(()) }
    }

    async fn write_access_rules(&self, applications: Applications) -> Result<(), DriverError> {
        let text = hba_conf(applications, &self.wanted()?.rules);
        self.on_disk(move |layout| layout.write_for_engine(&layout.hba_conf(), text.as_bytes())).await
    }

    /// Waits until the postmaster has read its files after `moment`: a session that begins inherits when that was.
    async fn wait_loaded(&self, moment: &str) -> Result<(), DriverError> {
        let failed = |error: SqlError| error.refused("wait for the access rules");
        loop {
            let session = self.superuser().await?;
            let loaded = format!("SELECT pg_conf_load_time() > {}::timestamptz", literal(moment));
            if session.value(&loaded, STATEMENT).await.map_err(failed)?.as_deref() == Some("t") {
                return Ok(());
            }
            time::sleep(POLL).await;
        }
    }

    /// Processes of the engine that are not in its own list, but for those that never are.
    fn unlisted(&self, listed: &BTreeSet<i32>) -> Result<BTreeSet<i32>, DriverError> {
        let Status::Alive { pid: postmaster } = self.supervisor.status() else { return Ok(BTreeSet::new()) };
        // One that cannot be looked at might be a login.
        let processes = procfs::process::all_processes().map_err(|error| refused("list its processes", &error))?;
        let own = |process: &procfs::process::Process| {
            let stat = process.stat().ok().filter(|stat| u32::try_from(stat.ppid) == Ok(postmaster))?;
            let title = process.cmdline().ok().map(|words| words.join(" ")).unwrap_or_default();
            let never_listed = NEVER_LISTED.iter().any(|name| title.trim_end().ends_with(name));
            (!listed.contains(&stat.pid) && !never_listed && stat.state != 'Z').then_some(stat.pid)
        };
        Ok(processes.filter_map(Result::ok).filter_map(|process| own(&process)).collect())
    }
}

/// All processes that the engine lists, and of them those that are to end.
async fn listed(superuser: &Session) -> Result<(BTreeSet<i32>, BTreeSet<i32>), DriverError> {
    let sql = format!(
        "SELECT pid, backend_type IN ('client backend', 'walsender', 'autovacuum worker') \
         AND coalesce(usename, '') <> '{REPLICATOR}' \
         AND NOT (coalesce(usename, '') IN ('{AGENT}', '{SUPERUSER}') AND application_name = 'regent-agent') \
         FROM pg_stat_activity"
    );
    let rows = superuser.rows(&sql, STATEMENT).await.map_err(|error| error.refused("list the sessions"))?;
    let (mut all, mut ending) = (BTreeSet::new(), BTreeSet::new());
    for row in &rows {
        let [Some(pid), ends] = row.as_slice() else { continue };
        let Ok(pid) = pid.parse() else { continue };
        all.insert(pid);
        if ends.as_deref() == Some("t") {
            ending.insert(pid);
        }
    }
    Ok((all, ending))
}
