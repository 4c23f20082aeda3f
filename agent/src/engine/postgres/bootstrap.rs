//! What the cluster wants of the instance, a new instance, and the roles in it.
//!
//! **Invariant:** a new instance is marked as unfinished before its first byte, and until its roles are made; only such a
//! one is ever removed to begin anew. Passwords go to the engine as verifiers only.

use std::{collections::BTreeMap, fs, num::NonZeroU32, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use nix::sys::signal::Signal;
use regent_common::{ids::MemberName, position::Position, topology::ClusterSpec};
use secrecy::{ExposeSecret, SecretString};

use super::{
    Postgres,
    adoption::places::Found,
    config::{
        self, AGENT, APPLICATION, REPLICATOR, SUPERUSER,
        access::{AdoptedRules, Applications, hba_conf, ident_conf},
    },
    layout::Layout,
    lifecycle::Force,
    session::{Session, Who, literal},
};
use crate::{
    engine::{DriverError, check_port},
    supervisor::Status,
};

/// The engine's own configuration file.
const MAIN_FILE: &str = "postgresql.conf";

/// What was last configured, as far as later methods need it.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) members: Vec<MemberName>,
    pub(super) replication: SecretString,
    /// None where applications have logins of their own, as in an adopted cluster.
    pub(super) application: Option<SecretString>,
    /// Who may log in from where, as an adopted instance had it.
    pub(super) rules: AdoptedRules,
}

/// As [`Wanted`], in `conf/wanted.json`, which only the agent may read.
#[derive(serde::Serialize, serde::Deserialize)]
struct Stored {
    members: Vec<MemberName>,
    secrets: BTreeMap<String, String>,
    #[serde(default)]
    access_rules: String,
}

// === impl Wanted ===

impl Wanted {
    fn of(spec: &ClusterSpec) -> Result<Self, DriverError> {
        let secret =
            |purpose: &str| spec.secrets.get(purpose).filter(|secret| !secret.expose_secret().is_empty()).cloned();
        let needed = |purpose: &str| {
            secret(purpose).ok_or_else(|| DriverError::InvalidSetting {
                name: format!("secrets.{purpose}"),
                problem: "this engine needs a password for it".to_owned(),
            })
        };
        let rules = AdoptedRules::parse(&spec.access_rules);
        Ok(Self {
            members: spec.members.iter().map(|peer| peer.member.clone()).collect(),
            replication: needed("replication")?,
            application: if rules.is_empty() { Some(needed("application")?) } else { secret("application") },
            rules,
        })
    }

    pub(super) fn load(layout: &Layout) -> Option<Self> {
        let stored: Stored = serde_json::from_slice(&fs::read(layout.conf().join("wanted.json")).ok()?).ok()?;
        let secret = |purpose| stored.secrets.get(purpose).map(|text| SecretString::from(text.clone()));
        Some(Self {
            replication: secret("replication")?,
            application: secret("application"),
            members: stored.members,
            rules: AdoptedRules::parse(&stored.access_rules),
        })
    }

    fn store(&self, layout: &Layout) -> Result<(), DriverError> {
        let secrets = [("replication", Some(&self.replication)), ("application", self.application.as_ref())];
        let exposed =
            |(name, secret): (&str, Option<&SecretString>)| Some((name.to_owned(), secret?.expose_secret().to_owned()));
        let stored = Stored {
            members: self.members.clone(),
            secrets: secrets.into_iter().filter_map(exposed).collect(),
            access_rules: if self.rules.is_empty() { String::new() } else { self.rules.text() },
        };
        let text = serde_json::to_vec(&stored).expect("names and texts are JSON");
        layout.write_ours(&layout.conf().join("wanted.json"), &text)
    }
}

// === impl Postgres ===

impl Postgres {
    /// Checks what is wanted, writes the files, and brings a running engine to them.
    pub(super) async fn apply_spec(&self, spec: &ClusterSpec) -> Result<(), DriverError> {
        if spec.tls {
            let problem = "PostgreSQL has TLS by settings of its own".to_owned();
            return Err(DriverError::NoTls { problem });
        }
        let wanted = Wanted::of(spec)?;
        let place = config::Place {
            layout: &self.layout,
            section: &self.section,
            member: &self.member,
            run_directory: &self.run_directory,
            port: self.endpoint.port,
        };
        let conf = config::postgresql_conf(&place, &spec.settings);
        let agent_user = nix::unistd::User::from_uid(nix::unistd::geteuid())
            .ok()
            .flatten()
            .map_or_else(|| "root".to_owned(), |user| user.name);
        let owner = self.runner.user.name.as_ref().unwrap_or(&agent_user);
        let ident = ident_conf(&agent_user, owner, &wanted.rules);
        let member = self.member.clone();
        self.on_disk(move |layout| {
            layout.claim()?;
            layout.make_folders()?;
            if !layout.upstream_conf().exists() {
                let nobody = config::upstream_conf(layout, &member, None);
                layout.write_for_engine(&layout.upstream_conf(), nobody.as_bytes())?;
            }
            Ok(())
        })
        .await?;
        // What stands there already was accepted when it was written, by two runs of the engine's program.
        let standing = fs::read(self.layout.conf().join(MAIN_FILE)).ok();
        if standing.as_deref() != Some(conf.as_bytes()) {
            self.check_settings_text(spec, &conf).await?;
        }
        let stored = wanted.clone();
        self.on_disk(move |layout| {
            let files = [
                (MAIN_FILE, conf),
                ("pg_hba.conf", hba_conf(Applications::Admitted, &stored.rules)),
                ("pg_ident.conf", ident),
                ("pgpass", config::password_file(&stored.replication)),
            ];
            for (name, text) in files {
                let path = layout.conf().join(name);
                if fs::read(&path).ok().as_deref() != Some(text.as_bytes()) {
                    layout.write_for_engine(&path, text.as_bytes())?;
                }
            }
            stored.store(layout)
        })
        .await?;
        *self.wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::new(wanted));
        if !matches!(self.supervisor.status(), Status::Alive { .. }) {
            return Ok(());
        }
        self.supervisor.signal(Signal::SIGHUP).map_err(|error| super::refused("reload the configuration", &error))?;
        if self.is_primary().await.unwrap_or(false) {
            self.apply_roles().await?;
            self.apply_slots().await?;
        }
        Ok(())
    }

    /// Has the engine itself check the names and the values.
    async fn check_settings_text(&self, spec: &ClusterSpec, conf: &str) -> Result<(), DriverError> {
        let brief = Duration::from_secs(30);
        let known = self.runner.must("postgres", &["--describe-config".to_owned()], brief).await?;
        config::check_names(&spec.settings, &known)?;
        let candidate = self.layout.conf().join("postgresql.conf.candidate");
        let (path, text) = (candidate.clone(), conf.to_owned());
        self.on_disk(move |layout| layout.write_for_engine(&path, text.as_bytes())).await?;
        let arguments = ["-C", "port", "-c"].map(str::to_owned).into_iter();
        let arguments: Vec<String> = arguments.chain([format!("config_file={}", candidate.display())]).collect();
        config::accepted(&self.runner, &arguments).await?;
        self.on_disk(move |layout| layout.unmark(&candidate)).await
    }

    /// A new instance with its roles, running as the primary.
    pub(super) async fn make_instance(&self) -> Result<Position, DriverError> {
        self.wanted()?;
        if self.on_disk(|layout| layout.claim().map(|()| layout.has_data())).await? {
            // Done before, or somebody else's doing: only a primary is what this method makes.
            if self.on_disk(|layout| Ok(layout.standby_signal().exists())).await? {
                return Err(DriverError::Refused {
                    doing: "initialize".to_owned(),
                    detail: format!("member {} has the data of a replica", self.member),
                });
            }
            self.start_as(&crate::engine::StartAs::Primary).await?;
            return Ok(self.find_place().await?.position());
        }
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
        let data = self.layout.data().display().to_string();
        let arguments = [
            "--pgdata",
            &data,
            "--username",
            SUPERUSER,
            // Our own access rules apply; these are what a start by hand without them would see.
            "--auth-local=peer",
            "--auth-host=reject",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--data-checksums",
            "--no-instructions",
        ];
        self.runner.must("initdb", &arguments.map(str::to_owned), Duration::from_secs(120)).await?;
        self.write_upstream(None).await?;
        self.launch(Force::Unfinished).await?;
        let superuser = self.superuser().await?;
        let wanted = self.wanted()?;
        let failed = |error: super::session::SqlError| error.refused("create the roles");
        self.make_own_roles(&superuser).await?;
        if let Some(secret) = &wanted.application {
            let role = format!("CREATE ROLE {APPLICATION} LOGIN CREATEDB PASSWORD {}", verifier(secret));
            superuser.execute(&role).await.map_err(failed)?;
            superuser.execute(&format!("CREATE DATABASE {APPLICATION} OWNER {APPLICATION}")).await.map_err(failed)?;
        }
        superuser.execute("CHECKPOINT").await.map_err(failed)?;
        self.apply_slots().await?;
        let place = self.find_place().await?;
        self.on_disk(|layout| layout.unmark(&layout.initializing())).await?;
        Ok(place.position())
    }

    /// Makes the roles of the agent and of the members, with what belongs to them; those that are there already are brought to it.
    pub(super) async fn make_own_roles(&self, superuser: &Session) -> Result<(), DriverError> {
        let wanted = self.wanted()?;
        let checkpoint = if self.runner.tools.major >= 15 { ", pg_checkpoint" } else { "" };
        let roles = format!(
            "DO $regent$ BEGIN
                 IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{AGENT}') THEN
                     CREATE ROLE {AGENT}; END IF;
                 IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = '{REPLICATOR}') THEN
                     CREATE ROLE {REPLICATOR}; END IF;
             END $regent$;
             ALTER ROLE {AGENT} LOGIN REPLICATION;
             GRANT pg_monitor{checkpoint} TO {AGENT};
             ALTER ROLE {AGENT} SET search_path = pg_catalog;
             ALTER ROLE {AGENT} SET synchronous_commit = 'local';
             ALTER ROLE {AGENT} SET log_statement = 'none';
             ALTER ROLE {AGENT} SET log_min_error_statement = 'panic';
             ALTER ROLE {AGENT} SET log_min_duration_statement = -1;
             ALTER ROLE {AGENT} SET pg_stat_statements.track = 'none';
             ALTER ROLE {REPLICATOR} LOGIN REPLICATION PASSWORD {};
             GRANT pg_read_all_stats TO {REPLICATOR};
             ALTER ROLE {REPLICATOR} SET search_path = pg_catalog;
             ALTER ROLE {REPLICATOR} SET synchronous_commit = 'local';
             GRANT EXECUTE ON FUNCTION pg_catalog.pg_ls_dir(text, boolean, boolean) TO {REPLICATOR};
             GRANT EXECUTE ON FUNCTION pg_catalog.pg_stat_file(text, boolean) TO {REPLICATOR};
             GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text) TO {REPLICATOR};
             GRANT EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) TO {REPLICATOR};
             CREATE SCHEMA IF NOT EXISTS {AGENT} AUTHORIZATION {AGENT};
             CREATE TABLE IF NOT EXISTS {AGENT}.timeline (number bigint PRIMARY KEY, name text NOT NULL);
             ALTER TABLE {AGENT}.timeline OWNER TO {AGENT};
             GRANT USAGE ON SCHEMA {AGENT} TO {REPLICATOR};
             GRANT SELECT ON {AGENT}.timeline TO {REPLICATOR};",
            verifier(&wanted.replication),
        );
        superuser.execute(&roles).await.map_err(|error| error.refused("make the roles of the agent and of the members"))
    }

    pub(super) async fn superuser(&self) -> Result<Session, DriverError> {
        self.connect(Who::Superuser, Duration::from_secs(5))
            .await
            .map_err(|error| error.refused("open a session of the instance's owner"))
    }

    /// Brings the passwords of our roles to what is wanted; writes only what differs.
    async fn apply_roles(&self) -> Result<(), DriverError> {
        let wanted = self.wanted()?;
        let superuser = self.superuser().await?;
        let failed = |error: super::session::SqlError| error.refused("set the passwords of the roles");
        let roles = [(REPLICATOR, Some(&wanted.replication)), (APPLICATION, wanted.application.as_ref())];
        for (role, secret) in roles.into_iter().filter_map(|(role, secret)| Some((role, secret?))) {
            let sql = format!("SELECT rolpassword FROM pg_authid WHERE rolname = {}", literal(role));
            let stored = superuser.value(&sql, Duration::from_secs(5)).await.map_err(failed)?;
            if stored.is_some_and(|verifier| is_verifier_of(&verifier, secret)) {
                continue;
            }
            let verifier = postgres_protocol::password::scram_sha_256(secret.expose_secret().as_bytes());
            superuser.execute(&format!("ALTER ROLE {role} PASSWORD {}", literal(&verifier))).await.map_err(failed)?;
        }
        Ok(())
    }

    /// Stops the engine and removes the member's files, or leaves the data in `kept`.
    pub(super) async fn give_up(&self, keep_data: bool) -> Result<(), DriverError> {
        if self.on_disk(Layout::is_ours_or_nobodys).await? {
            super::tools::end_leftovers(&self.target()).await;
            match self.stop_fast().await {
                Ok(()) => {}
                Err(error) => {
                    tracing::warn!(%error, "the engine does not stop cleanly and is killed");
                    self.kill().await?;
                }
            }
            self.on_disk(move |layout| {
                let found = Found::load(layout)?;
                found.as_ref().map_or(Ok(()), Found::lead_back)?;
                found.map_or(Ok(()), |found| found.forget_old_place(layout))?;
                layout.give_up(keep_data)
            })
            .await?;
            self.wanted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        }
        // Also where it is nobody's: a release whose end could not be noted is asked for again, and to open the driver made the folder.
        self.on_disk(|layout| layout.remove_root_if_empty()).await
    }
}

/// A password as the engine stores it, as an SQL literal.
fn verifier(secret: &SecretString) -> String {
    literal(&postgres_protocol::password::scram_sha_256(secret.expose_secret().as_bytes()))
}

/// Whether a stored SCRAM verifier is one of this password.
fn is_verifier_of(verifier: &str, secret: &SecretString) -> bool {
    let parse = || {
        let (iterations_salt, keys) = verifier.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (iterations, salt) = iterations_salt.split_once(':')?;
        let (stored_key, _) = keys.split_once(':')?;
        let iterations: NonZeroU32 = iterations.parse().ok()?;
        Some((iterations, BASE64.decode(salt).ok()?, BASE64.decode(stored_key).ok()?))
    };
    let Some((iterations, salt, stored_key)) = parse() else { return false };
    let mut salted = [0; 32];
    let password = secret.expose_secret().as_bytes();
    ring::pbkdf2::derive(ring::pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, password, &mut salted);
    let client_key = ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &salted), b"Client Key");
    ring::digest::digest(&ring::digest::SHA256, client_key.as_ref()).as_ref() == stored_key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifier_is_recognised() {
        let verifier = postgres_protocol::password::scram_sha_256(b"correct horse");
        assert!(is_verifier_of(&verifier, &SecretString::from("correct horse")));
        assert!(!is_verifier_of(&verifier, &SecretString::from("correct hors")));
        assert!(!is_verifier_of("md5nonsense", &SecretString::from("correct horse")));
    }
}
