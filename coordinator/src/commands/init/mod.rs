//! `regent-coordinator init`: authority, id, key for secrets, store, the coordinator's and the first administrator's identity,
//! configuration file.
//!
//! Each step finds what an earlier, broken run has left and goes on from there; the file `initialized` is made last.
//!
//! **Invariants:** an installation that is complete is never changed; an authority, an id or a key once made is never
//! replaced; certificates of a broken run are revoked.

use std::{
    collections::BTreeSet,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use regent_common::{
    clock::wall_now,
    config::{ConfigError, load},
    identity::{Identity, IdentityDirectory, Principal},
    ids::UserName,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use super::folder::{self, FileError, give_to_owner};
use crate::{
    config::Config,
    identity::USER_CERTIFICATE_LIFE,
    model::{
        certificate::CertificateRecord,
        user::{UserRecord, UserRole},
    },
    pki::{
        Authority, Host, HostError, Issued, PkiError, StateDirectory, Subject,
        files::write_whole,
        renewal::{OwnCertificateError, issue_with_new_key, server_hosts},
    },
    secrets::{SecretError, Secrets},
    store::{Store, StoreError, Transaction, keys, list_json, sqlite::SqliteStore},
};

mod output;

/// The command line of `init`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Name or address under which clients reach the coordinator; may be given several times. Default: as configured.
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    advertise: Vec<String>,
    /// State directory. Default: as configured.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Folder for the first administrator's identity. Default: `admin` in the state directory.
    #[arg(long, value_name = "DIR")]
    admin_dir: Option<PathBuf>,
    /// Name of the first administrator.
    #[arg(long, value_name = "NAME", default_value = "admin")]
    admin: UserName,
}

/// What to make.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// State directory.
    pub state_dir: PathBuf,
    /// Configuration file; written when it is missing.
    pub config_path: PathBuf,
    /// Names and addresses under which clients reach the coordinator.
    pub advertise: Vec<String>,
    /// Identity directory of the first administrator; `None` for STATE_DIR/admin.
    pub admin_dir: Option<PathBuf>,
    /// Name of the first administrator.
    pub admin: UserName,
    /// How long the coordinator's certificate is valid.
    pub certificate_life: Duration,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitReport {
    /// The installation's id.
    pub coordinator_id: String,
    /// SHA-256 of the authority's certificate.
    pub ca_fingerprint: String,
    /// State directory.
    pub state_dir: PathBuf,
    /// Identity directory of the first administrator.
    pub admin_dir: PathBuf,
    /// Name of the first administrator.
    pub admin: UserName,
    /// Hosts in the coordinator's certificate.
    pub hosts: Vec<String>,
    /// Configuration file.
    pub config_path: PathBuf,
    /// Whether it was written now; false when there was one.
    pub config_written: bool,
    /// What a person should look at.
    pub notes: Vec<String>,
}

/// Why nothing, or not all, was made. What was made is used by the next run.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It is complete already.
    #[error(
        "{} is initialized already (coordinator {coordinator_id}, since {since}; it holds {found}): nothing was changed; \
         to begin anew, move the folder away",
        state_dir.display()
    )]
    AlreadyInitialized {
        /// State directory.
        state_dir: PathBuf,
        /// Its id.
        coordinator_id: String,
        /// Since when.
        since: String,
        /// What lies there.
        found: String,
    },
    /// No host was given.
    #[error("name at least one host under which clients reach the coordinator: --advertise HOST")]
    NoHost,
    /// A host is not usable.
    #[error("--advertise: {0}")]
    Advertise(HostError),
    /// The administrator's folder holds another identity.
    #[error("{} holds {holder}, not an identity of this installation: nothing in it was changed; choose another folder", path.display())]
    AdminDirectory {
        /// The folder.
        path: PathBuf,
        /// What it holds.
        holder: String,
    },
    /// A file or a folder.
    #[error(transparent)]
    File(#[from] FileError),
    /// The configuration that is there.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The authority.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The key for secrets.
    #[error(transparent)]
    Secrets(#[from] SecretError),
    /// A certificate or its folder.
    #[error(transparent)]
    Certificate(#[from] OwnCertificateError),
}

/// By whose word the first certificates and the first user are made.
const BY_INIT: &str = "init";

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InitError {
    let failed = folder::failed(action, path);
    move |source| failed(source).into()
}

/// Carries out `init` as asked on the command line; what is not said there is taken from the configuration, if there is one.
pub async fn run(arguments: Arguments, config_path: &Path) -> anyhow::Result<()> {
    let config = existing_config(config_path)?.unwrap_or_default();
    let Arguments { advertise, state_dir, admin_dir, admin } = arguments;
    let options = InitOptions {
        state_dir: state_dir.unwrap_or(config.state_dir),
        config_path: config_path.to_owned(),
        advertise: if advertise.is_empty() { config.advertise } else { advertise },
        admin_dir,
        admin,
        certificate_life: config.certificate_life.0,
    };
    output::print(&init(options).await?);
    Ok(())
}

/// Makes an installation.
pub async fn init(options: InitOptions) -> Result<InitReport, InitError> {
    let state = StateDirectory(options.state_dir.clone());
    refuse_if_complete(&state)?;
    if options.advertise.is_empty() {
        return Err(InitError::NoHost);
    }
    let advertised: Result<Vec<Host>, _> = options.advertise.iter().map(|host| host.parse()).collect();
    let hosts = server_hosts(advertised.map_err(InitError::Advertise)?);
    // Read before anything is made, so that a broken one leaves nothing behind.
    let existing = existing_config(&options.config_path)?;
    let now = wall_now();

    make_private_folder(&state.0)?;
    // Its lock keeps a second run, or a running coordinator, away from all that follows.
    let store = SqliteStore::create(&state.store())?;
    refuse_if_complete(&state)?;
    let coordinator_id = keep_coordinator_id(&state.coordinator_id())?;
    let authority = keep_authority(&state.authority(), &coordinator_id, now)?;
    Secrets::create(&state.secrets_key())?;
    let admin_dir = options.admin_dir.clone().unwrap_or_else(|| state.admin());
    refuse_foreign_identity(&admin_dir, &coordinator_id)?;
    revoke_leftovers(&store, now).await?;

    let identity = |principal| Identity { coordinator_id: coordinator_id.clone(), principal };
    let subject = Subject { identity: identity(Principal::Coordinator(process_name())), hosts: hosts.clone() };
    make_private_folder(&state.identity())?;
    let directory = IdentityDirectory::new(state.identity());
    let terms = (options.certificate_life, now, BY_INIT);
    issue_with_new_key(&store, |all, _| all, &authority, &directory, &subject, terms).await?;

    let subject = Subject { identity: identity(Principal::User(options.admin.clone())), hosts: BTreeSet::new() };
    make_private_folder(&admin_dir)?;
    let directory = IdentityDirectory::new(&admin_dir);
    let terms = (USER_CERTIFICATE_LIFE, now, BY_INIT);
    let with_user = |all: Transaction, issued: &Issued| {
        all.put_json(keys::user(&options.admin), &admin_record(&options.admin, issued, now))
    };
    issue_with_new_key(&store, with_user, &authority, &directory, &subject, terms).await?;

    let mut notes = Vec::new();
    match &existing {
        Some(config) => notes.extend(differences(config, &options)),
        None => write_config(&options)?,
    }
    let done = state.initialized();
    give_to_owner(&state.0)?;
    write_whole(&done, &format!("{now}\n"), 0o644).map_err(failed("write", &done))?;
    give_to_owner(&state.0)?;
    Ok(InitReport {
        coordinator_id,
        ca_fingerprint: authority.fingerprint().to_owned(),
        state_dir: state.0,
        admin_dir,
        admin: options.admin,
        hosts: hosts.iter().map(ToString::to_string).collect(),
        config_path: options.config_path,
        config_written: existing.is_none(),
        notes,
    })
}

fn refuse_if_complete(state: &StateDirectory) -> Result<(), InitError> {
    let done = state.initialized();
    let since = match fs::read_to_string(&done) {
        Ok(since) => since.trim().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", &done)(error)),
    };
    let mut found: Vec<String> = fs::read_dir(&state.0)
        .map_err(failed("read", &state.0))?
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    found.sort();
    let id = fs::read_to_string(state.coordinator_id()).unwrap_or_default().trim().to_owned();
    let state_dir = state.0.clone();
    Err(InitError::AlreadyInitialized { state_dir, coordinator_id: id, since, found: found.join(", ") })
}

fn make_private_folder(path: &Path) -> Result<(), InitError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))?;
    fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed("protect", path))
}

/// The id that is there, or a new one.
fn keep_coordinator_id(path: &Path) -> Result<String, InitError> {
    match fs::read_to_string(path) {
        Ok(text) => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("read", path)(error)),
        Err(_) => {}
    }
    let id = ulid::Ulid::generate().to_string();
    write_whole(path, &format!("{id}\n"), 0o644).map_err(failed("write", path))?;
    Ok(id)
}

/// The authority that is there, or a new one.
fn keep_authority(folder: &Path, coordinator_id: &str, now: Timestamp) -> Result<Authority, InitError> {
    let found = folder.try_exists().map_err(failed("look for", folder))?;
    Ok(if found { Authority::open(folder)? } else { Authority::create(folder, coordinator_id, now)? })
}

/// A folder that a person has named may hold the identity of another installation.
fn refuse_foreign_identity(path: &Path, coordinator_id: &str) -> Result<(), InitError> {
    let file = path.join("cert.pem");
    let pem = match fs::read(&file) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("read", &file)(error)),
    };
    let identity = CertificateDer::from_pem_slice(&pem).ok().and_then(|der| Identity::of_certificate(&der).ok());
    match identity {
        Some(identity) if identity.coordinator_id == coordinator_id => Ok(()),
        other => {
            let holder = other.map_or_else(|| "another certificate".to_owned(), |identity| identity.to_string());
            Err(InitError::AdminDirectory { path: path.to_owned(), holder })
        }
    }
}

/// Whatever a broken run has issued, nobody is to use any more. What others than `init` have made is left alone.
async fn revoke_leftovers(store: &dyn Store, now: Timestamp) -> Result<(), StoreError> {
    for (key, stored) in list_json::<CertificateRecord>(store, keys::CERTIFICATES).await? {
        if stored.value.issued_by != BY_INIT {
            continue;
        }
        let record = CertificateRecord { revoked_at: stored.value.revoked_at.or(Some(now)), ..stored.value };
        store
            .commit(Transaction::default().require_version(key.clone(), stored.version).put_json(key, &record))
            .await?;
    }
    for (key, stored) in list_json::<UserRecord>(store, keys::USERS).await? {
        if stored.value.created_by != BY_INIT {
            continue;
        }
        store.commit(Transaction::default().require_version(key.clone(), stored.version).delete(key)).await?;
    }
    Ok(())
}

fn admin_record(name: &UserName, issued: &Issued, now: Timestamp) -> UserRecord {
    UserRecord {
        name: name.clone(),
        role: UserRole::Admin,
        revoked: false,
        created_at: now,
        created_by: BY_INIT.to_owned(),
        certificate_not_after: Some(issued.not_after),
        serials: vec![issued.serial.clone()],
    }
}

/// The name of this coordinator process in its identity: the machine's.
fn process_name() -> String {
    let name = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
    let fit: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_')).collect();
    if fit.is_empty() { "coordinator".to_owned() } else { fit }
}

fn existing_config(path: &Path) -> Result<Option<Config>, InitError> {
    if path.try_exists().map_err(failed("look for", path))? { Ok(Some(load(path)?)) } else { Ok(None) }
}

/// What an existing configuration says otherwise.
fn differences(config: &Config, options: &InitOptions) -> Vec<String> {
    let path = options.config_path.display();
    let mut notes = Vec::new();
    if config.state_dir != options.state_dir {
        notes.push(format!(
            "{path} says state_dir = {:?}, but this installation lies in {:?}: change it there",
            config.state_dir, options.state_dir
        ));
    }
    if config.advertise != options.advertise {
        notes.push(format!(
            "{path} says advertise = {:?}: that holds when the coordinator starts, not {:?}",
            config.advertise, options.advertise
        ));
    }
    notes
}

fn write_config(options: &InitOptions) -> Result<(), InitError> {
    let path = &options.config_path;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed("make", folder))?;
    }
    write_whole(path, &config_text(options), 0o644).map_err(failed("write", path))
}

fn config_text(options: &InitOptions) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let hosts: Vec<String> = options.advertise.iter().map(|host| quoted(host)).collect();
    let defaults = Config::default();
    format!(
        "# Configuration of the Regent coordinator. What is not set has its default.\n\n\
         # Folder of the store, the certificate authority and the coordinator's identity.\n\
         state_dir = {}\n\n\
         # Names and addresses under which clients reach the coordinator: they stand in its certificate.\n\
         advertise = [{}]\n\n\
         # How long a node's or the coordinator's certificate is valid; it is renewed when a third is left.\n\
         certificate_life = {}\n\n\
         # Address of the gRPC API, and of health and metrics by HTTP.\n\
         # listen = {}\n\
         # http_listen = {}\n",
        quoted(&options.state_dir.to_string_lossy()),
        hosts.join(", "),
        quoted(&regent_common::config::HumanDuration(options.certificate_life).to_string()),
        quoted(&defaults.listen),
        quoted(&defaults.http_listen),
    )
}

#[cfg(test)]
mod tests;
