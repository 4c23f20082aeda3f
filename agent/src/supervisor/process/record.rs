//! The record of the engine's process, so that a restarted agent finds it again.
//!
//! **Invariant:** the record is replaced by rename after an fsync; it is whole or it is the old one. A process id alone
//! proves nothing, as ids are used again: the record names a process only together with its start time and the boot.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Which process it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    pub(super) pid: u32,
    pub(super) start_time: u64,
    pub(super) boot_id: String,
}

/// Where the record is kept.
#[derive(Debug)]
pub(super) struct RecordFile(pub(super) PathBuf);

// === impl RecordFile ===

impl RecordFile {
    /// The record; `None` when there is none or it cannot be read (a record that cannot be read names no process).
    pub(super) fn load(&self) -> Option<Record> {
        serde_json::from_slice(&fs::read(&self.0).ok()?).ok()
    }

    pub(super) fn store(&self, record: &Record) -> std::io::Result<()> {
        let new = self.0.with_extension("new");
        let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(record)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.0)?;
        File::open(self.0.parent().unwrap_or_else(|| Path::new("/")))?.sync_all()
    }

    pub(super) fn remove(&self) -> std::io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
