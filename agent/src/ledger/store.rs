//! Reading and writing the ledger and the secrets beside it.
//!
//! One writer at a time; a change is visible to readers only after it is durable. A caller that is dropped in the middle
//! of a change does not stop it: the write owns the lock and ends by itself, so that no two writes can cross.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::sync::{Mutex, oneshot, watch};

use super::{
    disk::Disk,
    record::{FORMAT, Ledger},
};

/// Name of the ledger's file in the state directory.
pub const FILE: &str = "ledger.json";
/// Name of the file with the cluster's secrets, which the driver needs again after a restart.
pub const SECRETS_FILE: &str = "secrets.json";

/// The ledger of this node, in memory and on disk.
#[derive(Clone)]
pub struct LedgerStore {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    writer: Arc<Mutex<()>>,
    present: Arc<watch::Sender<Arc<Ledger>>>,
}

/// Why the ledger could not be read or written. Nothing was answered that depends on it.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file system said no.
    #[error("cannot {doing} the ledger file {path}; nothing was carried out")]
    Io {
        /// A verb.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not a ledger.
    #[error(
        "{path} cannot be read as a ledger ({problem}): what this node has promised is in it, so nothing is started without it, \
         and nothing was changed; put back a whole copy of it, or move it away and start the agent, which then waits in \
         quarantine until this member is resynced from its cluster or released"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file beside the ledger is not what it should be.
    #[error(
        "{path} cannot be read ({problem}); nothing was changed: it is written anew when the coordinator tells its content again"
    )]
    DamagedBeside {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The file is from the future.
    #[error(
        "{path} has format {found} and this program knows formats up to {FORMAT}: it was written by a newer regent-agent; \
         install that version again (its own release notes say how to go back, if that is possible)"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The thread that writes ended early; only a bug does that.
    #[error("the ledger's writer ended before its work was done")]
    WriterLost,
}

/// All that is read before the rest is believed.
#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

fn read(disk: &dyn Disk, path: &Path) -> Result<Option<Ledger>, LedgerError> {
    let damaged = |problem: String| LedgerError::Damaged { path: path.to_owned(), problem };
    let content = disk.read(path).map_err(|source| LedgerError::Io { doing: "read", path: path.to_owned(), source })?;
    let Some(content) = content else { return Ok(None) };
    let FormatOnly { format } = serde_json::from_slice(&content).map_err(|error| damaged(error.to_string()))?;
    if format > FORMAT {
        return Err(LedgerError::Newer { path: path.to_owned(), found: format });
    }
    serde_json::from_slice(&content).map(Some).map_err(|error| damaged(error.to_string()))
}

// === impl LedgerStore ===

impl LedgerStore {
    /// Reads the ledger of a state directory; `None` when there is none.
    pub fn peek(disk: &dyn Disk, directory: &Path) -> Result<Option<Ledger>, LedgerError> {
        read(disk, &directory.join(FILE))
    }

    /// Opens the ledger of a state directory. Blocking.
    ///
    /// `foreign_data` names engine data that was found on the node: without a ledger it means quarantine (rule T5).
    pub fn open(disk: Arc<dyn Disk>, directory: PathBuf, foreign_data: Option<&Path>) -> Result<Self, LedgerError> {
        let ledger = match (read(&*disk, &directory.join(FILE))?, foreign_data) {
            (Some(ledger), _) => ledger,
            (None, None) => Ledger::default(),
            (None, Some(data)) => Ledger {
                quarantine: Some(format!(
                    "engine data was found in {} and no ledger in {}: what this node has promised is unknown; \
                     resync it from its cluster, or release it, or put the ledger back and restart the agent",
                    data.display(),
                    directory.display()
                )),
                ..Ledger::default()
            },
        };
        let (present, _) = watch::channel(Arc::new(ledger));
        Ok(Self { disk, directory, writer: Arc::new(Mutex::new(())), present: Arc::new(present) })
    }

    /// The ledger as it is on disk.
    pub fn read(&self) -> Arc<Ledger> {
        self.present.borrow().clone()
    }

    /// Follows the ledger.
    pub fn watch(&self) -> watch::Receiver<Arc<Ledger>> {
        self.present.subscribe()
    }

    /// Changes the ledger; returns when the change is durable, with what `change` returned.
    ///
    /// On an error the memory has the old content; the disk may have the new one, of which nothing was answered.
    pub async fn update<T, F>(&self, change: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Ledger) -> T + Send + 'static,
    {
        let writer = self.writer.clone().lock_owned().await;
        let store = self.clone();
        let work = self.offload(move || {
            let _only_writer = writer;
            let mut ledger = Ledger::clone(&store.read());
            let returned = change(&mut ledger);
            if ledger != **store.present.borrow() {
                store.write(FILE, &serde_json::to_vec_pretty(&ledger).expect("a ledger has only text keys"))?;
                store.present.send_replace(Arc::new(ledger));
            }
            Ok(returned)
        });
        work.await.ok_or(LedgerError::WriterLost)?
    }

    /// Carries out work that blocks where the disk has it done; `None` when it came to no end.
    pub async fn offload<T, F>(&self, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let (told, done) = oneshot::channel();
        // Nobody waiting any more is no reason not to do it.
        self.disk.offload(Box::new(move || drop(told.send(work()))));
        done.await.ok()
    }

    /// Keeps the cluster's secrets, readable by the agent's user alone.
    pub async fn store_secrets(&self, secrets: &BTreeMap<String, SecretString>) -> Result<(), LedgerError> {
        let plain: BTreeMap<&str, &str> =
            secrets.iter().map(|(name, secret)| (name.as_str(), secret.expose_secret())).collect();
        let content = serde_json::to_vec(&plain).expect("a map of texts has only text keys");
        self.with_writer(move |store| store.write(SECRETS_FILE, &content)).await
    }

    /// The secrets that were kept; none when there is no file.
    pub async fn load_secrets(&self) -> Result<BTreeMap<String, SecretString>, LedgerError> {
        self.with_writer(|store| {
            let path = store.directory.join(SECRETS_FILE);
            let content = store.disk.read(&path).map_err(|source| LedgerError::Io {
                doing: "read",
                path: path.clone(),
                source,
            })?;
            let Some(content) = content else { return Ok(BTreeMap::new()) };
            // The parser's words could quote the file.
            serde_json::from_slice(&content)
                .map_err(|_| LedgerError::Damaged { path, problem: "not a map of texts".to_owned() })
        })
        .await
    }

    /// Forgets the secrets.
    pub async fn remove_secrets(&self) -> Result<(), LedgerError> {
        self.with_writer(|store| {
            let path = store.directory.join(SECRETS_FILE);
            store.disk.remove_durably(&path).map_err(|source| LedgerError::Io { doing: "remove", path, source })
        })
        .await
    }

    /// Keeps a file beside the ledger, readable by the agent's user alone; durable when this returns.
    pub async fn store_beside(&self, name: &'static str, content: Vec<u8>) -> Result<(), LedgerError> {
        self.with_writer(move |store| store.write(name, &content)).await
    }

    /// The path and the content of a file beside the ledger; `None` when there is none.
    pub async fn load_beside(&self, name: &'static str) -> Result<Option<(PathBuf, Vec<u8>)>, LedgerError> {
        self.with_writer(move |store| {
            let path = store.directory.join(name);
            match store.disk.read(&path) {
                Ok(content) => Ok(content.map(|content| (path, content))),
                Err(source) => Err(LedgerError::Io { doing: "read", path, source }),
            }
        })
        .await
    }

    /// Removes a file beside the ledger.
    pub async fn remove_beside(&self, name: &'static str) -> Result<(), LedgerError> {
        self.with_writer(move |store| {
            let path = store.directory.join(name);
            store.disk.remove_durably(&path).map_err(|source| LedgerError::Io { doing: "remove", path, source })
        })
        .await
    }

    async fn with_writer<T, F>(&self, work: F) -> Result<T, LedgerError>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> Result<T, LedgerError> + Send + 'static,
    {
        let writer = self.writer.clone().lock_owned().await;
        let store = self.clone();
        let work = self.offload(move || {
            let _only_writer = writer;
            work(&store)
        });
        work.await.ok_or(LedgerError::WriterLost)?
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), LedgerError> {
        let path = self.directory.join(name);
        self.disk.write_durably(&path, content).map_err(|source| LedgerError::Io { doing: "write", path, source })
    }
}

impl std::fmt::Debug for LedgerStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LedgerStore").field("directory", &self.directory).finish_non_exhaustive()
    }
}
