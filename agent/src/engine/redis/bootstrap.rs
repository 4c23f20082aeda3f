//! What a member is to be, as it is kept on its disk; making its files and its first data, and giving them up.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, PoisonError},
};

use regent_common::{
    position::Position,
    topology::{ClusterSpec, Mode, Peer},
};
use ring::rand::SecureRandom;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{
    Redis,
    access::{Secrets, is_ours, name_of, side_acl, users_acl},
    adoption::found::Found,
    config::{self, Place},
    lifecycle::Force,
    session::{BRIEF, Session},
};
use crate::engine::{
    DriverError, StartAs, check_port,
    layout::{Layout, io_error},
};

/// What the member was configured with.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) members: Vec<Peer>,
    pub(super) secrets: Secrets,
    pub(super) settings: BTreeMap<String, String>,
    pub(super) mode: Mode,
    pub(super) tls: bool,
}

/// The same on the disk, in a file that only we may read.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    members: Vec<Peer>,
    secrets: BTreeMap<String, String>,
    settings: BTreeMap<String, String>,
    /// The users of an adopted instance.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    access_rules: String,
    /// How the members stand to each other.
    #[serde(default, skip_serializing_if = "is_usual")]
    mode: Mode,
    /// Whether the members' ports speak TLS only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tls: bool,
}

fn is_usual(mode: &Mode) -> bool {
    *mode == Mode::default()
}

// === impl Wanted ===

impl Wanted {
    fn of(spec: &ClusterSpec, agent: SecretString) -> Result<Self, DriverError> {
        let needed = |purpose: &str| {
            spec.secrets.get(purpose).cloned().ok_or_else(|| DriverError::InvalidSetting {
                name: "secrets".to_owned(),
                problem: format!("the cluster has no secret for {purpose}"),
            })
        };
        Ok(Self {
            members: spec.members.clone(),
            secrets: Secrets {
                agent,
                replication: needed("replication")?,
                // Who was there before has a login already.
                application: match spec.access_rules.is_empty() {
                    true => Some(needed("application")?),
                    false => spec.secrets.get("application").cloned(),
                },
                adopted: adopted_users(&spec.access_rules)?,
            },
            settings: spec.settings.clone(),
            mode: spec.mode,
            tls: spec.tls,
        })
    }

    pub(super) fn load(layout: &Layout) -> Option<Self> {
        let stored: Stored = serde_json::from_slice(&fs::read(layout.wanted()).ok()?).ok()?;
        let secret = |purpose| stored.secrets.get(purpose).map(|text| SecretString::from(text.clone()));
        let secrets = Secrets {
            agent: secret("agent")?,
            replication: secret("replication")?,
            application: secret("application"),
            adopted: stored.access_rules,
        };
        Some(Self { members: stored.members, secrets, settings: stored.settings, mode: stored.mode, tls: stored.tls })
    }

    fn store(&self, layout: &Layout) -> Result<(), DriverError> {
        let Secrets { agent, replication, application, adopted } = &self.secrets;
        let secrets =
            [("agent", Some(agent)), ("replication", Some(replication)), ("application", application.as_ref())];
        let exposed =
            |(name, secret): (&str, Option<&SecretString>)| Some((name.to_owned(), secret?.expose_secret().to_owned()));
        let stored = Stored {
            members: self.members.clone(),
            secrets: secrets.into_iter().filter_map(exposed).collect(),
            settings: self.settings.clone(),
            access_rules: adopted.clone(),
            mode: self.mode,
            tls: self.tls,
        };
        layout.write_ours(&layout.wanted(), &serde_json::to_vec(&stored).expect("names and texts are JSON"))
    }
}

/// Checks the users of an adopted instance: each is a line of the engine's file, and none is one of ours.
fn adopted_users(rules: &str) -> Result<String, DriverError> {
    let invalid = |user: &str| DriverError::InvalidSetting {
        name: "access_rules".to_owned(),
        problem: format!("{user:?} is no user of an instance that was adopted"),
    };
    for user in rules.lines() {
        let name = user.strip_prefix("user ").map(|_| name_of(user)).filter(|name| !name.is_empty() && !is_ours(name));
        name.ok_or_else(|| invalid(user))?;
    }
    Ok(rules.to_owned())
}

/// A password that nobody has to type.
fn new_secret() -> Result<SecretString, DriverError> {
    let mut bytes = [0; 32];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| DriverError::Refused {
        doing: "make a password".to_owned(),
        detail: "the kernel gave no random bytes".to_owned(),
    })?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into())
}

// === impl Redis ===

impl Redis {
    /// Checks what is wanted, writes the files, and brings a running engine to them.
    pub(super) async fn apply_spec(&self, spec: &ClusterSpec) -> Result<(), DriverError> {
        if !self.flavor.modes.contains(&spec.mode) {
            return Err(DriverError::NoSuchMode { mode: spec.mode });
        }
        if spec.mode == Mode::MultiMaster && !spec.access_rules.is_empty() {
            return Err(DriverError::OtherMode { doing: "users of an adopted instance", mode: spec.mode });
        }
        let known = self.known_wanted();
        if known.as_ref().is_some_and(|known| known.tls != spec.tls) {
            return Err(DriverError::InvalidSetting {
                name: "tls".to_owned(),
                problem: "whether the members' ports speak TLS is decided when the cluster is created".to_owned(),
            });
        }
        if spec.tls {
            self.check_encryption().await?;
        }
        let agent = match known {
            Some(known) => known.secrets.agent.clone(),
            None => new_secret()?,
        };
        let wanted = Arc::new(Wanted::of(spec, agent)?);
        let conf = config::server_conf(&self.place_of_files(), &wanted);
        let upstream = match spec.mode {
            Mode::PrimaryReplica => config::upstream_conf(None),
            Mode::MultiMaster => config::side_conf(None),
        };
        self.on_disk(move |layout| {
            layout.claim()?;
            layout.make_folders()?;
            // The engine checks that its folder is there before anything else.
            layout.make_folder(&layout.data(), 0o700, true)?;
            if layout.upstream_conf().exists() {
                return Ok(());
            }
            layout.write_for_engine(&layout.upstream_conf(), upstream.as_bytes())
        })
        .await?;
        if wanted.tls {
            self.keep_credentials().await?;
        }
        // What stands there already was accepted when it was written, by a run of the engine's program.
        let standing = fs::read(self.layout.server_conf()).ok();
        if standing.as_deref() != Some(conf.as_bytes()) {
            config::check(self.flavor, &self.server, &self.agent_program, &self.layout.user, &spec.settings).await?;
        }
        let (stored, users) = (Arc::clone(&wanted), self.users_at_start(&wanted));
        self.on_disk(move |layout| {
            for (path, text) in [(layout.server_conf(), conf), (layout.users_acl(), users)] {
                if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                    layout.write_for_engine(&path, text.as_bytes())?;
                }
            }
            stored.store(layout)
        })
        .await?;
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&wanted));
        match self.session_if_alive().await.map_err(|error| error.refused("be configured"))? {
            Some(session) => self.apply_to_running(&session, &wanted).await,
            None => Ok(()),
        }
    }

    /// The file of users with which the engine starts: it lets nobody in whom a person or the coordinator has not let in since.
    pub(super) fn users_at_start(&self, wanted: &Wanted) -> String {
        match wanted.mode {
            Mode::PrimaryReplica => users_acl(&self.server, &wanted.secrets, self.line().as_ref(), false),
            Mode::MultiMaster => side_acl(&self.server, &wanted.secrets, false),
        }
    }

    /// What the files depend on, besides the cluster.
    pub(super) fn place_of_files(&self) -> Place<'_> {
        Place {
            flavor: self.flavor,
            layout: &self.layout,
            section: &self.section,
            server: &self.server,
            member: &self.member,
            socket: &self.socket,
            host: &self.endpoint.host,
            port: self.endpoint.port,
        }
    }

    /// Brings a running engine to what the files say. What it only takes at a start waits for one.
    async fn apply_to_running(&self, session: &Session, wanted: &Wanted) -> Result<(), DriverError> {
        let failed = |error: super::session::SessionError| error.refused("be configured");
        let users = match wanted.mode {
            Mode::PrimaryReplica => {
                let is_primary = self.is_primary().await.map_err(failed)?;
                users_acl(&self.server, &wanted.secrets, self.line().as_ref(), is_primary)
            }
            // It stays as open as it is.
            Mode::MultiMaster => {
                side_acl(&self.server, &wanted.secrets, session.is_open_side(BRIEF).await.map_err(failed)?)
            }
        };
        session.bring_to(&users).await.map_err(failed)?;
        // Whether a side has the password of the other one says whether it may take up a stream.
        if wanted.mode == Mode::PrimaryReplica {
            let password = wanted.secrets.replication.expose_secret();
            session.tell(&["CONFIG", "SET", "masterauth", password]).await.map_err(failed)?;
        }
        for (name, value) in config::changeable(&wanted.settings) {
            let value = if value == "\"\"" { "" } else { value.as_str() };
            if let Err(error) = session.tell(&["CONFIG", "SET", &name, value]).await {
                if error.is_broken() {
                    return Err(failed(error));
                }
                tracing::info!(name, %error, "the setting comes into force with the next start");
            }
        }
        Ok(())
    }

    /// A new instance, running as the primary.
    pub(super) async fn make_instance(&self) -> Result<Position, DriverError> {
        self.wanted()?;
        if self.on_disk(|layout| layout.claim().map(|()| layout.has_data())).await? {
            // Done before, or somebody else's doing: only a primary is what this method makes.
            if self.following().is_some() {
                return Err(DriverError::Refused {
                    doing: "initialize".to_owned(),
                    detail: format!("member {} has the data of a replica", self.member),
                });
            }
            self.start_as(&StartAs::Primary).await?;
            return Ok(self.find_place().await?.position());
        }
        self.begin_data().await?;
        self.become_primary_of(Force::Unfinished).await?;
        self.finish_data().await?;
        Ok(self.find_place().await?.position())
    }

    /// Starts the engine with nothing. What an attempt that was broken off has left goes before.
    pub(super) async fn begin_data(&self) -> Result<(), DriverError> {
        if self.on_disk(|layout| Ok(layout.initializing().exists())).await? {
            self.kill().await?;
        }
        let member = self.member.clone();
        self.on_disk(move |layout| {
            if layout.initializing().exists() {
                layout.remove_tree(&layout.data())?;
            }
            if fs::read_dir(layout.data()).is_ok_and(|mut entries| entries.next().is_some()) {
                return Err(DriverError::ForeignData { path: layout.data(), member });
            }
            Ok(())
        })
        .await?;
        check_port(self.section.listen_addresses.as_deref(), self.endpoint.port)?;
        self.on_disk(|layout| {
            layout.write_ours(&layout.initializing(), b"")?;
            layout.make_folder(&layout.data(), 0o700, true)
        })
        .await?;
        self.forget_line();
        self.write_upstream(None).await?;
        self.launch(Force::Unfinished).await
    }

    /// What the engine has now is the member's first data.
    pub(super) async fn finish_data(&self) -> Result<(), DriverError> {
        self.save().await?;
        self.on_disk(|layout| layout.unmark(&layout.initializing())).await
    }

    /// Stops the engine and removes the member's files, or leaves the data in `kept`.
    pub(super) async fn give_up(&self, keep_data: bool) -> Result<(), DriverError> {
        if self.on_disk(Layout::is_ours_or_nobodys).await? {
            let stopped = if keep_data { self.stop_fast().await } else { self.kill().await };
            if let Err(error) = stopped {
                tracing::warn!(%error, "the engine does not stop cleanly and is killed");
                self.kill().await?;
            }
            self.on_disk(move |layout| {
                Found::load(layout)?.map_or(Ok(()), |found| found.forget(layout))?;
                layout.give_up(keep_data)
            })
            .await?;
            self.wanted.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.set_credentials(None);
            self.forget_line();
        }
        // Also where it is nobody's: a release whose end could not be noted is asked for again, and to open the driver made the folder.
        self.on_disk(|layout| layout.remove_root_if_empty()).await
    }
}

// === impl Layout ===

impl Layout {
    fn wanted(&self) -> std::path::PathBuf {
        self.conf().join("wanted.json")
    }
    pub(super) fn server_conf(&self) -> std::path::PathBuf {
        self.conf().join("server.conf")
    }
    pub(super) fn users_acl(&self) -> std::path::PathBuf {
        self.conf().join("users.acl")
    }
    /// Where the engine writes the number of its process.
    pub(super) fn server_pid(&self) -> std::path::PathBuf {
        self.data().join("server.pid")
    }
    pub(super) fn snapshot(&self) -> std::path::PathBuf {
        self.data().join("dump.rdb")
    }
    /// Begins a new log where the engine's is larger than so many bytes; the one before it is kept.
    pub(super) fn turn_log_over(&self, at: u64) -> Result<(), DriverError> {
        let log = self.startup_log();
        if fs::metadata(&log).is_ok_and(|facts| facts.len() > at) {
            let former = log.with_extension("log.1");
            fs::rename(&log, &former).map_err(io_error("rename", &log))?;
        }
        Ok(())
    }
}
