//! Who a certificate speaks for, and the directory in which an identity lies.
//!
//! It does not judge certificates (that is `tls`). The directory holds `cert.pem`, `key.pem`, `ca.pem`. [`IdentityDirectory::store`]
//! writes a new generation folder, then renames the symbolic link `current` onto it; the three names are links through `current`.
//! Plain files, as copied by a person, are read as well, and become links at the next store.
//!
//! **Invariant:** whenever the machine stops, a load finds three files of one generation; the key is readable by its owner alone.

use std::{
    fmt,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    str::FromStr,
};

use secrecy::{ExposeSecret as _, SecretString};
use ulid::Ulid;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};

use crate::ids::{NameError, NodeName, UserName};

/// What kind of party, and which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Principal {
    /// An agent on a node.
    Node(NodeName),
    /// A person or a program.
    User(UserName),
    /// A coordinator process.
    Coordinator(String),
}

/// Who: `regent://COORDINATOR_ID/{node,user,coordinator}/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// The installation that issued it.
    pub coordinator_id: String,
    /// Who it is there.
    pub principal: Principal,
}

/// Why something is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Not of the form.
    #[error("{0:?} is not of the form regent://COORDINATOR_ID/{{node,user,coordinator}}/NAME")]
    Form(String),
    /// The name in it is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Not a certificate.
    #[error("not an X.509 certificate")]
    NotACertificate,
    /// No identity, or several.
    #[error("the certificate carries {0} regent:// identities instead of one")]
    Count(usize),
}

/// A directory with `cert.pem`, `key.pem` and `ca.pem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityDirectory(pub PathBuf);

/// What the directory holds, as PEM.
#[derive(Debug, Clone)]
pub struct IdentityFiles {
    /// The certificate, possibly followed by intermediate ones.
    pub certificate: String,
    /// Its private key.
    pub key: SecretString,
    /// The authority's certificates.
    pub authority: String,
}

/// Reading or writing the directory failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct DirectoryError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

const NAMES: [&str; 3] = ["cert.pem", "key.pem", "ca.pem"];
const CURRENT: &str = "current";
const GENERATION: &str = "generation-";

// === impl Identity ===

impl Identity {
    /// Reads the one `regent://` URI among the subject alternative names of a certificate (DER).
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
        let mut found = Vec::new();
        for extension in certificate.extensions() {
            if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
                found.extend(names.general_names.iter().filter_map(|name| match name {
                    GeneralName::URI(uri) if uri.starts_with("regent://") => Some(*uri),
                    _ => None,
                }));
            }
        }
        match found.as_slice() {
            [one] => one.parse(),
            several => Err(IdentityError::Count(several.len())),
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = match &self.principal {
            Principal::Node(name) => ("node", name.as_str()),
            Principal::User(name) => ("user", name.as_str()),
            Principal::Coordinator(name) => ("coordinator", name.as_str()),
        };
        write!(f, "regent://{}/{kind}/{name}", self.coordinator_id)
    }
}

impl FromStr for Identity {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let form = || IdentityError::Form(text.to_owned());
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        let mut parts = text.strip_prefix("regent://").ok_or_else(form)?.split('/');
        let (Some(id), Some(kind), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(form());
        };
        if !plain(id) || !plain(name) {
            return Err(form());
        }
        let principal = match kind {
            "node" => Principal::Node(NodeName::new(name)?),
            "user" => Principal::User(UserName::new(name)?),
            "coordinator" => Principal::Coordinator(name.to_owned()),
            _ => return Err(form()),
        };
        Ok(Self { coordinator_id: id.to_owned(), principal })
    }
}

// === impl IdentityDirectory ===

impl IdentityDirectory {
    /// The directory at `path`, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Reads the three files, all of one generation.
    pub fn load(&self) -> Result<IdentityFiles, DirectoryError> {
        match self.load_once() {
            // Two stores during one load remove the generation being read: the next look finds the newest.
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => self.load_once(),
            outcome => outcome,
        }
    }

    fn load_once(&self) -> Result<IdentityFiles, DirectoryError> {
        let folder = self.folder();
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(doing("read", &path))
        };
        Ok(IdentityFiles { certificate: read(NAMES[0])?, key: read(NAMES[1])?.into(), authority: read(NAMES[2])? })
    }

    /// The folder with the three files: the generation when `cert.pem` is a link of ours, else the directory itself.
    pub(crate) fn folder(&self) -> PathBuf {
        let linked = fs::read_link(self.0.join(NAMES[0])).is_ok_and(|target| target.starts_with(CURRENT));
        match fs::read_link(self.0.join(CURRENT)) {
            Ok(target) if linked => self.0.join(target),
            _ => self.0.clone(),
        }
    }

    /// Replaces all three at once (PEM texts); makes the directory when it is missing.
    pub fn store(&self, certificate: &str, key: &SecretString, authority: &str) -> Result<(), DirectoryError> {
        let generation = format!("{GENERATION}{}", Ulid::generate());
        let folder = self.0.join(&generation);
        fs::create_dir_all(&folder).map_err(doing("make", &folder))?;
        fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(doing("protect", &folder))?;
        for (name, text, mode) in
            [(NAMES[0], certificate, 0o644), (NAMES[1], key.expose_secret(), 0o600), (NAMES[2], authority, 0o644)]
        {
            let path = folder.join(name);
            write_durably(&path, text, mode).map_err(doing("write", &path))?;
        }
        sync(&folder)?;
        let previous = fs::read_link(self.0.join(CURRENT)).ok();
        self.link(CURRENT, Path::new(&generation))?;
        sync(&self.0)?;
        // `cert.pem` first: it decides where a load looks.
        for name in NAMES {
            self.link(name, &Path::new(CURRENT).join(name))?;
        }
        sync(&self.0)?;
        self.remove_old(&generation, previous.as_deref());
        Ok(())
    }

    /// Puts a symbolic link in place of whatever bears the name.
    fn link(&self, name: &str, target: &Path) -> Result<(), DirectoryError> {
        let (path, temporary) = (self.0.join(name), self.0.join(format!(".{name}.new")));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(doing("remove", &temporary)(error)),
            _ => {}
        }
        symlink(target, &temporary).map_err(doing("make", &temporary))?;
        fs::rename(&temporary, &path).map_err(doing("replace", &path))
    }

    /// Removes all generations but the newest and the one that a reader may just be reading.
    fn remove_old(&self, newest: &str, previous: Option<&Path>) {
        let Ok(entries) = fs::read_dir(&self.0) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let old = name.to_string_lossy().starts_with(GENERATION)
                && name != newest
                && previous.is_none_or(|kept| kept.as_os_str() != name);
            if old && let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove an old identity");
            }
        }
    }
}

fn doing(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError { action, path, source }
}

fn write_durably(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync(folder: &Path) -> Result<(), DirectoryError> {
    File::open(folder).and_then(|file| file.sync_all()).map_err(doing("sync", folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_as_printed() {
        for text in ["regent://01ABC/node/n1", "regent://01ABC/user/admin", "regent://01ABC/coordinator/c.example"] {
            assert_eq!(text.parse::<Identity>().unwrap().to_string(), text);
        }
        for bad in ["", "regent://", "regent://a/node", "regent://a/node/", "regent:///node/n", "regent://a/node/n/x"] {
            assert!(bad.parse::<Identity>().is_err(), "{bad:?} was taken");
        }
        assert!("regent://a/robot/n".parse::<Identity>().is_err());
        assert!("regent://a/node/N".parse::<Identity>().is_err());
    }

    #[test]
    fn a_store_replaces_all_three_and_keeps_the_key_private() {
        let folder = tempfile::tempdir().unwrap();
        let directory = IdentityDirectory::new(folder.path().join("identity"));
        for round in 0..4 {
            directory.store(&format!("c{round}"), &format!("k{round}").into(), &format!("a{round}")).unwrap();
            let files = directory.load().unwrap();
            assert_eq!((files.certificate, files.authority), (format!("c{round}"), format!("a{round}")));
            assert_eq!(files.key.expose_secret(), format!("k{round}"));
            let plain = fs::read_to_string(directory.0.join("key.pem")).unwrap();
            assert_eq!(plain, format!("k{round}"));
        }
        let mode = fs::metadata(directory.0.join("key.pem")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Three links, `current`, the newest generation and the one before.
        assert_eq!(fs::read_dir(&directory.0).unwrap().count(), 6);
    }

    #[test]
    fn plain_files_are_read_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for name in NAMES {
            fs::write(folder.path().join(name), name).unwrap();
        }
        let directory = IdentityDirectory::new(folder.path());
        assert_eq!(directory.load().unwrap().certificate, "cert.pem");
        directory.store("c", &"k".to_owned().into(), "a").unwrap();
        assert_eq!(directory.load().unwrap().certificate, "c");
        assert_eq!(fs::read_to_string(folder.path().join("cert.pem")).unwrap(), "c");
    }

    #[test]
    fn a_crash_before_the_names_are_links_still_gives_one_generation() {
        let folder = tempfile::tempdir().unwrap();
        let directory = IdentityDirectory::new(folder.path());
        directory.store("c", &"k".to_owned().into(), "a").unwrap();
        // As a crash right after the first link of a migration leaves it.
        fs::remove_file(folder.path().join("key.pem")).unwrap();
        fs::write(folder.path().join("key.pem"), "old").unwrap();
        assert_eq!(directory.load().unwrap().key.expose_secret(), "k");
    }
}
