//! Members whose ports speak TLS only: what the engine is given, how a renewed certificate reaches it, and connections to the other
//! members.
//!
//! Who administers the machine has certificate, key and authorities where he likes, and renews them there ([`super::certificate`]). The
//! engine, whose user may not read them, gets copies in `ROOT/conf`, which it reads at its start and when it is told to: one and the
//! same setting, given anew, has every release read all three files, and a release that does not like them goes on with what it had.
//! Files that cannot be used never take the place of what can.
//!
//! The engines believe whomever an authority has signed, whatever name he has. The agent, which asks a member before its engine follows
//! it or is copied from it, wants the member's host in the certificate, too.
//!
//! **Invariant:** a member of such a cluster asks no other in plain text, and its port answers nobody in plain text.

use std::{
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::{Arc, PoisonError},
    time::Duration,
};

use regent_common::transport::ByteStream;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, task::JoinHandle, time};
use tokio_rustls::TlsConnector;

use super::{
    Redis,
    certificate::{Credentials, Part, Stamps, why_not},
    flavor::Server,
    session::{BRIEF, SessionError},
};
use crate::engine::{
    DriverError,
    layout::{EngineUser, Layout, offload},
};

/// The setting that is given anew for the engine to read its files.
const READ_ANEW: &str = "tls-cert-file";
/// A server that knows TLS ends with this word when it is to stream by it and has no certificate; any other says that it does not know
/// the setting, or finds no support of it.
const MISSES_CERTIFICATE: &str = "No tls-cert-file configured";

/// How long a look waits for the engine to read a renewed certificate.
const LOOK: Duration = Duration::from_secs(1);

/// What is in force.
#[derive(Default)]
pub(super) struct Encryption {
    in_force: std::sync::Mutex<Option<Arc<Credentials>>>,
    /// Held while the files, or what the engine has read of them, change.
    changing: tokio::sync::Mutex<()>,
}

/// Watches the files of the configuration, without ever waiting for the disk that they are on.
#[derive(Default)]
pub(super) struct Renewal {
    reading: Option<JoinHandle<Read>>,
    /// What the last look saw.
    seen: Option<Stamps>,
    /// What was read last, with whatever result.
    tried: Option<Stamps>,
    /// Whether the engine has read what is in force, for all that this agent knows.
    told: bool,
}

/// What a look at the files found.
struct Read {
    stamps: Stamps,
    /// What is in them, where they are others than those that were read last.
    credentials: Option<Result<Credentials, DriverError>>,
}

/// Checks that a server's program was built with TLS.
pub(super) fn check_server(server: &Server, user: &EngineUser) -> Result<(), DriverError> {
    // It has nowhere to listen, and ends at once.
    const SETTINGS: &[&str] =
        &["--port", "0", "--tls-replication", "yes", "--save", "", "--daemonize", "no", "--logfile", ""];
    let mut command = Command::new(&server.program);
    command.args(SETTINGS).current_dir("/").env_clear().stdin(Stdio::null());
    if user.name.is_some() {
        command.uid(user.uid).gid(user.gid);
    }
    let output =
        command.output().map_err(|source| DriverError::Io { doing: "run", path: server.program.clone(), source })?;
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    if said.contains(MISSES_CERTIFICATE) {
        return Ok(());
    }
    let (program, last) = (server.program.display(), said.trim().lines().last().unwrap_or_default());
    let problem = format!("{program} was built without TLS (it says {last:?}): install one that has it");
    Err(DriverError::NoTls { problem })
}

// === impl Redis ===

impl Redis {
    /// What is in force of this node's certificate.
    pub(super) fn credentials(&self) -> Option<Arc<Credentials>> {
        self.encryption.in_force.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_credentials(&self, credentials: Option<Arc<Credentials>>) {
        *self.encryption.in_force.lock().unwrap_or_else(PoisonError::into_inner) = credentials;
    }

    /// Refuses where this node has never had a certificate that its engine could use, and has none now.
    pub(super) async fn check_encryption(&self) -> Result<(), DriverError> {
        if self.credentials().is_some() {
            return Ok(());
        }
        let (server, user) = (self.server.clone(), self.layout.user.clone());
        offload(move || check_server(&server, &user)).await?;
        self.read_credentials().await.map(drop)
    }

    async fn read_credentials(&self) -> Result<Credentials, DriverError> {
        let (flavor, host) = (self.flavor, self.endpoint.host.clone());
        let files = self.section.tls.clone().ok_or_else(|| DriverError::NoTls {
            problem: format!(
                "the node has no certificate for {0}: name certificate, key and ca in [engine.{0}.tls] of agent.toml, and \
                 restart its agent",
                flavor.name
            ),
        })?;
        // An engine that has them already is not to wait for the disk of the originals.
        let reading = offload(move || Credentials::of_files(flavor, &files, &host));
        time::timeout(BRIEF, reading).await.unwrap_or_else(|_| Err(late("reading the certificate for the engine")))
    }

    /// Gives the engine what the files have now. Where they cannot be used it keeps what it has.
    pub(super) async fn keep_credentials(&self) -> Result<(), DriverError> {
        let read = self.read_credentials().await;
        let renewed = match read {
            Ok(fresh) => self.take_credentials(fresh, false).await,
            Err(error) => Err(error),
        };
        match renewed {
            Err(error) if self.credentials().is_some() => {
                tracing::warn!(%error, "the certificate for the engine cannot be renewed: it keeps the one that it has");
                Ok(())
            }
            renewed => renewed,
        }
    }

    /// Copies these for the engine, and has it read them when it runs and they are new, or `anyhow`.
    async fn take_credentials(&self, fresh: Credentials, anyhow: bool) -> Result<(), DriverError> {
        let _changing = self.encryption.changing.lock().await;
        let fresh = Arc::new(fresh);
        let former = self.credentials();
        let is_new = former.as_ref().is_none_or(|former| !former.is_same(&fresh));
        if is_new {
            self.write_copies(&fresh).await?;
        }
        if (is_new || anyhow) && self.is_alive() {
            let path = self.layout.tls_copy(Part::Certificate).display().to_string();
            let told = match self.session().await {
                Ok(session) => session.tell(&["CONFIG", "SET", READ_ANEW, &path]).await,
                Err(error) => Err(error),
            };
            if let Err(error) = told {
                // It has read nothing, or not liked it: its next start is to find what it has now.
                if let Some(former) = former.filter(|_| is_new) {
                    self.write_copies(&former).await?;
                }
                return Err(error.refused("take its renewed certificate"));
            }
        }
        if is_new {
            tracing::info!(until = %fresh.until(), "the engine has a new certificate");
        }
        self.set_credentials(Some(fresh));
        Ok(())
    }

    async fn write_copies(&self, credentials: &Arc<Credentials>) -> Result<(), DriverError> {
        let credentials = Arc::clone(credentials);
        self.on_disk(move |layout| {
            Part::ALL
                .iter()
                .try_for_each(|part| layout.write_for_engine(&layout.tls_copy(*part), credentials.text(*part)))
        })
        .await
    }

    /// Brings the running engine to files that were renewed. The first time in any case: the agent that copied them may have ended
    /// before it told the engine.
    pub(super) async fn follow_renewal(&self, renewal: &mut Renewal) {
        let Some(files) = self.section.tls.clone().filter(|_| self.known_wanted().is_some_and(|wanted| wanted.tls))
        else {
            return;
        };
        let Some(reading) = renewal.reading.take_if(|reading| reading.is_finished()) else {
            let (flavor, host) = (self.flavor, self.endpoint.host.clone());
            let (seen, tried) = (renewal.seen, renewal.tried);
            renewal.reading.get_or_insert_with(|| {
                tokio::task::spawn_blocking(move || {
                    let stamps = files.stamps();
                    // One file is put there after the other: they are read when they stay as they are.
                    let is_due = seen == Some(stamps) && tried != Some(stamps);
                    let credentials = is_due.then(|| Credentials::of_files(flavor, &files, &host));
                    Read { stamps, credentials }
                })
            });
            return;
        };
        let Ok(Read { stamps, credentials }) = reading.await else { return };
        renewal.seen = Some(stamps);
        let Some(credentials) = credentials else { return };
        renewal.tried = Some(stamps);
        let renewed = match credentials {
            Ok(fresh) => time::timeout(LOOK, self.take_credentials(fresh, !renewal.told)).await,
            Err(error) => Ok(Err(error)),
        };
        match renewed {
            Ok(Ok(())) => renewal.told = true,
            Ok(Err(error)) => {
                tracing::warn!(%error, "the certificate for the engine cannot be renewed: it keeps the one that it has");
            }
            // It has no time for that now.
            Err(_) => renewal.tried = None,
        }
    }

    /// Connects to the port of another member, as the members of this cluster do.
    pub(super) async fn dial(&self, host: &str, port: u16) -> Result<Box<dyn ByteStream>, SessionError> {
        let wanted = self.known_wanted().ok_or_else(SessionError::never_configured)?;
        let dialing = async {
            let stream = TcpStream::connect((host, port)).await.map_err(|error| SessionError::of_io(&error))?;
            stream.set_nodelay(true).map_err(|error| SessionError::of_io(&error))?;
            if !wanted.tls {
                return Ok(Box::new(stream) as Box<dyn ByteStream>);
            }
            let credentials = self.credentials().ok_or_else(|| {
                SessionError::Untrusted("this node has no certificate to ask with: configure the member".to_owned())
            })?;
            let name = ServerName::try_from(host.to_owned())
                .map_err(|_| SessionError::Untrusted(format!("{host} is nothing that a certificate can name")))?;
            let greeted = TlsConnector::from(credentials.client()).connect(name, stream).await;
            Ok(Box::new(greeted.map_err(|error| of_greeting(&error, host))?) as Box<dyn ByteStream>)
        };
        time::timeout(BRIEF, dialing).await.unwrap_or(Err(SessionError::Silent(BRIEF)))
    }
}

fn late(doing: &str) -> DriverError {
    DriverError::Deadline {
        doing: doing.to_owned(),
        seconds: BRIEF.as_secs(),
        last: "its disk does not answer".to_owned(),
    }
}

/// Why somebody who listens is no member of ours, by the error of the greeting.
fn of_greeting(error: &std::io::Error, host: &str) -> SessionError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(error)) => {
            SessionError::Untrusted(format!("its certificate is not accepted: {}", why_not(error, host)))
        }
        Some(error) => SessionError::Untrusted(format!("it does not speak TLS as a member does: {error}")),
        None => SessionError::Untrusted(format!("it does not answer in TLS: {error}")),
    }
}

// === impl Layout ===

impl Layout {
    /// The engine's copy of a file.
    pub(super) fn tls_copy(&self, part: Part) -> std::path::PathBuf {
        self.conf().join(match part {
            Part::Certificate => "tls.crt",
            Part::Key => "tls.key",
            Part::Ca => "tls-ca.crt",
        })
    }
}
