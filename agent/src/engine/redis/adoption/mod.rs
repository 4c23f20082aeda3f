//! Taking over an instance that runs and is nobody's, without stopping it; and giving it back.
//!
//! Nothing of it restarts the engine. The agent reaches it through the socket that it has, to which a link leads from where a member's is;
//! the data directory changes its place under it ([`found`]); its users and settings become those of a member as far as an engine
//! takes that while it runs; and a replica's stream begins anew as a member's, where it was. What only a start brings into force
//! [`survey`] says before.
//!
//! **Invariants:** what [`Redis::leave_as_found`] needs is noted before the first change. In the engine itself the agent's user is the
//! first thing that is made and the last that goes: where there is none, nothing of it is changed. Nothing here stops or starts an
//! engine, and its own configuration file is never written by it.

use std::{fs, os::unix::fs::symlink, path::Path, sync::PoisonError};

use redis::Cmd;
use regent_common::{
    position::Position,
    topology::{Endpoint, Peer},
};

use self::{door::Door, facts::Facts, found::Found};
use super::{
    Redis,
    access::{AGENT, REPLICATOR, TELLER, commands, is_ours, name_of, users_acl},
    bootstrap::Wanted,
    config::{self, NOBODY},
    session::{BRIEF, Session, SessionError},
};
use crate::{
    engine::{
        DriverError, foreign,
        layout::{Layout, io_error, offload},
        refused,
    },
    supervisor::Status,
};

mod defaults;
mod door;
mod facts;
pub(super) mod found;
pub(super) mod survey;

// === impl Redis ===

impl Redis {
    /// See [`crate::engine::Driver::adopt`].
    pub(super) async fn take_over(
        &self,
        data_directory: &Path,
        upstream: Option<&Peer>,
    ) -> Result<Position, DriverError> {
        let wanted = self.wanted()?;
        if wanted.tls {
            let problem = "a cluster whose ports speak TLS only is made of new members".to_owned();
            return Err(unfit(data_directory, problem));
        }
        let found = match self.on_disk(Found::load).await? {
            Some(found) if found.data == data_directory => found,
            Some(found) => return Err(unfit(data_directory, format!("{} was adopted here", found.data.display()))),
            None => self.find(data_directory, upstream).await?,
        };
        self.adopt_process()?;
        if let Status::Alive { pid } = self.supervisor.status()
            && pid != found.pid
        {
            return Err(unfit(data_directory, "its process has ended, and another has taken its place".to_owned()));
        }
        let place = found.clone();
        self.on_disk(move |layout| place.store(layout)).await?;
        self.lead_to_socket(&found.socket).await?;
        self.make_own_user(&found, &wanted).await?;
        let place = found.clone();
        self.on_disk(move |layout| place.move_in(layout)).await?;
        self.adopt_process()?;
        if !self.is_alive() {
            return Err(unfit(data_directory, "its process has ended".to_owned()));
        }
        self.reload_line();
        let failed = |error: SessionError| error.refused("make it a member");
        let session = self.session().await.map_err(failed)?;
        if self.is_primary().await.map_err(failed)? != upstream.is_none() {
            return Err(unfit(data_directory, "its role has changed: survey it again".to_owned()));
        }
        self.bring_to_members(&session, &wanted, upstream.is_none()).await?;
        // Without a snapshot there would be nothing to start from; the log of commands is not read any more.
        let logs = found.settings.get("appendonly").is_some_and(|value| value == "yes");
        if logs || !self.on_disk(|layout| Ok(layout.has_data())).await? {
            self.save().await?;
        }
        let position = match upstream {
            None => self.become_primary().await?,
            Some(upstream) => self.stream_as_member(upstream).await?,
        };
        tracing::info!(data = %data_directory.display(), %position, "an instance is adopted");
        Ok(position)
    }

    /// What is there to be adopted, looked at once more.
    async fn find(&self, data_directory: &Path, upstream: Option<&Peer>) -> Result<Found, DriverError> {
        let (flavor, root, meant) = (self.flavor, self.layout.root.clone(), data_directory.to_owned());
        let seen =
            offload(move || Ok(survey::running(flavor, &root).into_iter().find(|running| running.data == meant)));
        let running = seen.await?.ok_or_else(|| unfit(data_directory, "no engine runs on it".to_owned()))?;
        let facts = Facts::ask(&running.door).await.map_err(|problem| unfit(data_directory, problem))?;
        let problems = survey::problems(flavor, &facts, &running, &self.server, &self.layout.root);
        if !problems.is_empty() {
            return Err(unfit(data_directory, problems.join("; ")));
        }
        if facts.port() != Some(self.endpoint.port) {
            let problem = format!("it does not listen on port {} any more: survey it again", self.endpoint.port);
            return Err(unfit(data_directory, problem));
        }
        if facts.info.is_primary() != upstream.is_none() {
            let role = if facts.info.is_primary() { "a primary" } else { "a replica" };
            return Err(unfit(data_directory, format!("it is {role} by now: survey it again")));
        }
        let (Some(config_file), Some(socket)) = (facts.config_file.clone(), running.door.socket()) else {
            return Err(unfit(data_directory, "it has no socket or no configuration file".to_owned()));
        };
        if found::starts_nothing(&config_file) {
            return Err(unfit(data_directory, "its configuration is that of an adopted instance".to_owned()));
        }
        Ok(Found {
            data: data_directory.to_owned(),
            config_file,
            socket: socket.to_owned(),
            pid: running.pid,
            upstream: facts.upstream(),
            settings: facts.settings,
            users: facts.users,
        })
    }

    /// Where a member's socket is, a link leads to the instance's. Our next start of the engine makes its own there.
    async fn lead_to_socket(&self, socket: &Path) -> Result<(), DriverError> {
        let (link, socket) = (self.socket.clone(), socket.to_owned());
        offload(move || {
            if fs::read_link(&link).is_ok_and(|target| target == socket) {
                return Ok(());
            }
            match fs::remove_file(&link) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", &link)(error)),
                Ok(()) | Err(_) => symlink(&socket, &link).map_err(io_error("create", &link)),
            }
        })
        .await
    }

    /// Makes the agent's user, unless there is one, in a session of an administrator of the instance's.
    async fn make_own_user(&self, found: &Found, wanted: &Wanted) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused("let the agent in");
        match self.session().await {
            Ok(_) => return Ok(()),
            Err(SessionError::Refused(_)) => {}
            Err(error) => return Err(failed(error)),
        }
        let (socket, file) = (found.socket.clone(), found.config_file.clone());
        let door = offload(move || Ok(Door::with_configuration(&socket, &file))).await?;
        let session = door.enter().await.map_err(|problem| unfit(&found.data, problem))?;
        let users = users_acl(&self.server, &wanted.secrets, None, false);
        for words in commands(&users).filter(|words| words.get(2) == Some(&AGENT)) {
            session.tell(&words).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Has the engine be what a member is, as far as it takes that while it runs: users first, so that nobody is let in by a setting
    /// whom they keep out.
    async fn bring_to_members(&self, session: &Session, wanted: &Wanted, is_primary: bool) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused("give it users and settings");
        let users = users_acl(&self.server, &wanted.secrets, self.line().as_ref(), is_primary);
        session.bring_to(&users).await.map_err(failed)?;
        let wanted_users: Vec<&str> = users.lines().map(name_of).collect();
        for user in self.users(session).await.map_err(failed)?.iter().map(|user| name_of(user)) {
            if !wanted_users.contains(&user) && !is_ours(user) {
                session.tell(&["ACL", "DELUSER", user]).await.map_err(failed)?;
            }
        }
        let place = self.place_of_files();
        for (name, value) in config::at_run_time(&place, &wanted.settings, &wanted.secrets) {
            set(session, &name, &value).await?;
        }
        Ok(())
    }

    async fn users(&self, session: &Session) -> Result<Vec<String>, SessionError> {
        session.ask(Cmd::new().arg("ACL").arg("LIST"), BRIEF).await
    }

    /// The stream begins anew where it was, as a member's.
    async fn stream_as_member(&self, upstream: &Peer) -> Result<Position, DriverError> {
        let info = self.look_at_replication().await.map_err(|error| error.refused("ask for its upstream"))?;
        let host = info.text("master_host").unwrap_or_default().to_owned();
        let port = info.number("master_port").and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
        if (host.as_str(), port) != NOBODY {
            // As long as it streams its upstream tells the line of its data; a stream of a user who is kept out begins anew by itself.
            self.wait_streaming(&Peer { engine: Endpoint { host, port }, ..upstream.clone() }).await?;
            self.place().await?;
            self.start_isolated().await?;
        }
        self.follow_upstream(upstream).await?;
        Ok(self.place().await?.position())
    }

    /// See [`crate::engine::Driver::give_back`].
    pub(super) async fn leave_as_found(&self) -> Result<bool, DriverError> {
        let Some(found) = self.on_disk(Found::load).await? else { return Ok(false) };
        self.adopt_process()?;
        let session = match self.connect(BRIEF).await {
            Ok(session) => Some(session),
            // It has no user of ours: nothing of it is changed, or it was put back already. Or it has ended.
            Err(SessionError::Refused(_) | SessionError::NobodyListens(_)) => None,
            Err(error) => return Err(error.refused("give the instance back")),
        };
        if let Some(session) = &session {
            self.put_back(session, &found).await?;
        }
        self.on_disk(move |layout| found.move_out(layout)).await?;
        if let Some(session) = session {
            // Ends this session too, perhaps before its answer.
            match session.tell(&["ACL", "DELUSER", TELLER, REPLICATOR, AGENT]).await {
                Ok(()) | Err(SessionError::Broken(_)) => {}
                Err(error) => return Err(error.refused("remove the users of the agent and of the members")),
            }
        }
        self.drop_session().await;
        let link = self.socket.clone();
        offload(move || foreign::remove_link(&link)).await?;
        // Nothing of it is in the folder any more.
        self.on_disk(|layout| layout.give_up(false)).await?;
        self.supervisor.forget().map_err(|error| refused("forget the engine", &error))?;
        self.on_disk(Layout::remove_root_if_empty).await?;
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.forget_line();
        tracing::info!("the instance goes on as it was found");
        Ok(true)
    }

    /// Role, settings and users are as they were found; only our own users are left.
    async fn put_back(&self, session: &Session, found: &Found) -> Result<(), DriverError> {
        let failed = |error: SessionError| error.refused("put back what was found");
        let now: std::collections::BTreeMap<String, String> =
            session.ask(Cmd::new().arg("CONFIG").arg("GET").arg("*"), BRIEF).await.map_err(failed)?;
        // Where it works is where its data is, and whom it follows is told below.
        let told_otherwise = ["dir", "replicaof", "primaryof"];
        for (name, before) in &found.settings {
            if now.get(name) != Some(before) && !told_otherwise.contains(&&*config::canonical(name)) {
                set(session, name, before).await?;
            }
        }
        for words in found.users.iter().flat_map(|user| commands(user)) {
            session.tell(&words).await.map_err(failed)?;
        }
        let known: Vec<&str> = found.users.iter().map(|user| name_of(user)).collect();
        for user in self.users(session).await.map_err(failed)?.iter().map(|user| name_of(user)) {
            if !known.contains(&user) && !is_ours(user) {
                session.tell(&["ACL", "DELUSER", user]).await.map_err(failed)?;
            }
        }
        let info = session.info("replication", BRIEF).await.map_err(failed)?;
        match &found.upstream {
            Some(Endpoint { host, port }) if !info.follows(host, *port) => {
                session.tell(&["REPLICAOF", host, &port.to_string()]).await.map_err(failed)
            }
            None if !info.is_primary() => session.tell(&["REPLICAOF", "NO", "ONE"]).await.map_err(failed),
            Some(_) | None => Ok(()),
        }
    }
}

fn unfit(data_directory: &Path, problem: String) -> DriverError {
    DriverError::NotAdoptable { path: data_directory.to_owned(), problem }
}

/// Changes a setting of a running engine; what it only takes at a start waits for one.
async fn set(session: &Session, name: &str, value: &str) -> Result<(), DriverError> {
    match session.tell(&["CONFIG", "SET", name, value]).await {
        Err(error) if error.is_broken() => Err(error.refused(format!("set {name}"))),
        Err(error) => {
            tracing::info!(name, %error, "the setting comes into force with the next start");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}
