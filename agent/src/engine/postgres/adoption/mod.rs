//! Taking over an instance that runs and is nobody's, without stopping it; and giving it back.
//!
//! Nothing of it restarts the engine: the data directory changes its place under it ([`places`]), the configuration leads to ours and
//! is read again, roles and slots are made, and a replica's stream turns to its own slot. What only a restart brings into force is
//! what the engine itself calls pending; [`survey`] says it before.
//!
//! **Invariant:** what [`Postgres::leave_as_found`] needs is noted before the first change (see [`places`]), and nothing here stops or
//! starts an engine.

use std::path::Path;

use nix::sys::signal::Signal;
use regent_common::{position::Position, topology::Peer};
use tokio::time;

use self::places::{Found, OldSlot};
use super::{
    Postgres,
    config::{self, AGENT, REPLICATOR},
    layout::{Claimed, Layout},
    lifecycle::strip_auto_conf,
    refused,
    replication::{drop_slot_soon, make_slot},
    session::{Session, SqlError, Who, literal},
};
use crate::engine::DriverError;

pub(super) mod places;
pub(super) mod survey;

/// How long the engine may take to read its configuration again, and a replica to have the roles that its primary was given.
const IN_FORCE_WITHIN: time::Duration = time::Duration::from_secs(20);
/// How long the slots of members may take to be free when the instance is given back.
const SLOTS_FREE_WITHIN: time::Duration = time::Duration::from_secs(10);
/// Between two looks.
const LOOK: time::Duration = time::Duration::from_millis(20);
/// For one statement.
const STATEMENT: time::Duration = time::Duration::from_secs(10);

// === impl Postgres ===

impl Postgres {
    /// See [`crate::engine::Driver::adopt`].
    pub(super) async fn take_over(
        &self,
        data_directory: &Path,
        upstream: Option<&Peer>,
    ) -> Result<Position, DriverError> {
        self.wanted()?;
        let noted = self.on_disk(Found::load).await?;
        let found = match noted {
            Some(found) if found.data == data_directory => found,
            Some(found) => return Err(self.unfit(data_directory, format!("{} was adopted here", found.data.display()))),
            None => self.find(data_directory, upstream).await?,
        };
        let old_slot = found.slot.clone();
        self.on_disk(move |layout| {
            found.store(layout)?;
            found.move_in(layout)?;
            found.lead_to_ours(layout)?;
            strip_auto_conf(layout)
        })
        .await?;
        self.adopt_process()?;
        if !self.is_alive() {
            return Err(self.unfit(data_directory, "its process has ended".to_owned()));
        }
        let superuser = self.read_again().await?;
        match upstream {
            None => {
                self.make_own_roles(&superuser).await?;
                self.name_timeline().await?;
                self.apply_slots().await?;
            }
            Some(upstream) => {
                self.wait_for_roles(&superuser).await?;
                self.stream_from(upstream).await?;
                if let Some(OldSlot { name, .. }) = old_slot {
                    let session = self.session_with(upstream).await?;
                    drop_slot_soon(&session, &name)
                        .await
                        .map_err(|error| error.refused(format!("drop the slot {name}")))?;
                }
            }
        }
        let position = self.place().await?.position();
        tracing::info!(data = %data_directory.display(), %position, "an instance is adopted");
        Ok(position)
    }

    fn unfit(&self, data_directory: &Path, problem: String) -> DriverError {
        DriverError::NotAdoptable { path: data_directory.to_owned(), problem }
    }

    /// What is there to be adopted, looked at once more.
    async fn find(&self, data_directory: &Path, upstream: Option<&Peer>) -> Result<Found, DriverError> {
        let claimed = Claimed::read(data_directory)
            .ok_or_else(|| self.unfit(data_directory, "no engine runs on it".to_owned()))?;
        if claimed.port != Some(self.endpoint.port) {
            let problem = format!("it does not listen on port {} any more: survey it again", self.endpoint.port);
            return Err(self.unfit(data_directory, problem));
        }
        let facts = survey::ask(&self.runner, &claimed).await.map_err(|problem| self.unfit(data_directory, problem))?;
        if facts.standby != upstream.is_some() {
            let role = if facts.standby { "a replica" } else { "a primary" };
            return Err(self.unfit(data_directory, format!("it is {role} by now: survey it again")));
        }
        let auto_conf = data_directory.join("postgresql.auto.conf");
        Ok(Found {
            data: data_directory.to_owned(),
            config_file: facts.config_file,
            hba_file: facts.hba_file,
            ident_file: facts.ident_file,
            auto_conf: std::fs::read_to_string(auto_conf).ok(),
            slot: upstream
                .filter(|_| !facts.slot.is_empty() && facts.slot != config::slot_name(&self.member))
                .map(|upstream| OldSlot { name: facts.slot.clone(), upstream: upstream.engine.clone() }),
        })
    }

    /// Has the engine read its configuration, and waits until its new rules let the agent in.
    async fn read_again(&self) -> Result<Session, DriverError> {
        self.supervisor.signal(Signal::SIGHUP).map_err(|error| refused("reload the configuration", &error))?;
        let began = time::Instant::now();
        loop {
            match self.connect(Who::Superuser, STATEMENT).await {
                Ok(session) => return Ok(session),
                Err(error) if began.elapsed() > IN_FORCE_WITHIN => {
                    return Err(error.refused("let the agent in by its new access rules"));
                }
                Err(_) => time::sleep(LOOK).await,
            }
        }
    }

    /// A replica has its roles from its primary, a moment later.
    async fn wait_for_roles(&self, superuser: &Session) -> Result<(), DriverError> {
        let failed = |error: SqlError| error.refused("look for the members' roles");
        let table = literal(&format!("{AGENT}.timeline"));
        let there = format!("SELECT count(*) FROM pg_class WHERE oid = to_regclass({table})");
        let began = time::Instant::now();
        while superuser.value(&there, STATEMENT).await.map_err(failed)?.as_deref() != Some("1") {
            if began.elapsed() > IN_FORCE_WITHIN {
                return Err(DriverError::Deadline {
                    doing: "waiting for the roles that the primary was given".to_owned(),
                    seconds: IN_FORCE_WITHIN.as_secs(),
                    last: "they have not come by the stream".to_owned(),
                });
            }
            time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// See [`crate::engine::Driver::give_back`].
    pub(super) async fn leave_as_found(&self) -> Result<bool, DriverError> {
        let Some(found) = self.on_disk(Found::load).await? else { return Ok(false) };
        self.adopt_process()?;
        let primary = self.is_alive() && self.is_primary().await.unwrap_or(false);
        let superuser = self.connect(Who::Superuser, STATEMENT).await.ok();
        if let Some(slot) = &found.slot {
            self.make_old_slot(slot).await;
        }
        let place = found.clone();
        self.on_disk(move |layout| {
            place.lead_back()?;
            let auto_conf = layout.data().join("postgresql.auto.conf");
            match &place.auto_conf {
                // Only where the data is ours: before it was moved in, nothing of it was changed.
                Some(text) if layout.data().join("PG_VERSION").exists() => {
                    layout.write_for_engine(&auto_conf, text.as_bytes())
                }
                Some(_) | None => Ok(()),
            }
        })
        .await?;
        if self.is_alive() {
            self.supervisor.signal(Signal::SIGHUP).map_err(|error| refused("reload the configuration", &error))?;
        }
        self.drop_session().await;
        if let Some(superuser) = superuser.filter(|_| primary) {
            self.remove_own_traces(&superuser).await;
        }
        self.on_disk(move |layout| {
            found.move_out(layout)?;
            // Nothing of it is in the folder any more.
            layout.give_up(false)
        })
        .await?;
        self.supervisor.forget().map_err(|error| refused("forget the engine", &error))?;
        self.on_disk(Layout::remove_root_if_empty).await?;
        self.wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        tracing::info!("the instance goes on as it was found");
        Ok(true)
    }

    /// From which a replica is about to stream again.
    async fn make_old_slot(&self, OldSlot { name, upstream }: &OldSlot) {
        let made = async {
            let secret = &self.wanted()?.replication;
            let failed = |error: SqlError| error.refused(format!("make the slot {name} again"));
            let session = Session::remote(&upstream.host, upstream.port, secret).await.map_err(failed)?;
            make_slot(&session, name).await.map_err(failed)
        };
        if let Err(error) = made.await {
            tracing::warn!(%error, "the replica has to be given its slot on its upstream by hand");
        }
    }

    /// Slots, which would hold its log for ever, and roles. What cannot be removed is said, and keeps nobody.
    async fn remove_own_traces(&self, superuser: &Session) {
        let Ok(wanted) = self.wanted() else { return };
        let names = wanted.members.iter().map(config::slot_name).map(|name| literal(&name));
        let names = names.collect::<Vec<_>>().join(", ");
        let began = time::Instant::now();
        loop {
            let drop_free = format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                 WHERE slot_name IN ({names}) AND NOT active"
            );
            let dropped = superuser.execute(&drop_free).await;
            let left = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name IN ({names})");
            match (dropped, superuser.value(&left, STATEMENT).await) {
                (Ok(()), Ok(Some(left))) if left == "0" => break,
                (Err(error), _) | (Ok(()), Err(error)) => {
                    tracing::warn!(%error, "replication slots of members may be left: they hold the log back");
                    break;
                }
                (Ok(()), Ok(left)) if began.elapsed() > SLOTS_FREE_WITHIN => {
                    tracing::warn!(?left, "replication slots of members are in use still: they hold the log back");
                    break;
                }
                (Ok(()), Ok(_)) => time::sleep(LOOK).await,
            }
        }
        let roles = format!("DROP OWNED BY {AGENT}, {REPLICATOR} CASCADE; DROP ROLE {AGENT}, {REPLICATOR}");
        if let Err(error) = superuser.execute(&roles).await {
            tracing::warn!(%error, "the roles {AGENT} and {REPLICATOR} are left in the instance");
        }
    }
}
