//! Where everything of the coordinator lies under its state directory.

use std::path::PathBuf;

/// The state directory, default `/var/lib/regent/coordinator`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDirectory(pub PathBuf);

// === impl StateDirectory ===

impl StateDirectory {
    /// The certificate authority's folder.
    pub fn authority(&self) -> PathBuf {
        self.0.join("ca")
    }

    /// The coordinator's own identity directory.
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity")
    }

    /// The first administrator's identity directory, unless another was asked for.
    pub fn admin(&self) -> PathBuf {
        self.0.join("admin")
    }

    /// The store's file.
    pub fn store(&self) -> PathBuf {
        self.0.join("store.db")
    }

    /// The key that seals secrets in the store.
    pub fn secrets_key(&self) -> PathBuf {
        self.0.join("secrets.key")
    }

    /// The file with the installation's id.
    pub fn coordinator_id(&self) -> PathBuf {
        self.0.join("coordinator_id")
    }

    /// Made last by `init`: everything above is complete.
    pub fn initialized(&self) -> PathBuf {
        self.0.join("initialized")
    }
}
