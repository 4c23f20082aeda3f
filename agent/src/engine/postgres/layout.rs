//! The files that only PostgreSQL has; the rest is in [`crate::engine::layout`].
//!
//! ```text
//! ROOT/data                PGDATA
//! ROOT/own-log             log of the engine that a rewind under way must not lose (see `rewind/own_log.rs`)
//! ```

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::engine::DriverError;
pub(super) use crate::engine::layout::{
    EngineUser, Layout, Shape, io_error, is_in_a_members_folder, offload, tree_bytes,
};

/// What a member's folder has besides what all have.
pub(super) static SHAPE: Shape = Shape { holds_data: |data| data.join("PG_VERSION").exists(), folders: &["own-log"] };

/// What a `postmaster.pid` says; its lines are the engine's own (`miscadmin.h`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claimed {
    pub(super) pid: u32,
    pub(super) port: Option<u16>,
    pub(super) socket_folder: Option<PathBuf>,
}

impl Claimed {
    pub(super) fn read(data: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(data.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The process, the data directory, the start, the port, the first folder of sockets. The last ones come a little later.
        let line = |number: usize| text.lines().nth(number).map(str::trim).filter(|line| !line.is_empty());
        Some(Self {
            pid: line(0)?.parse().ok()?,
            port: line(3).and_then(|port| port.parse().ok()),
            socket_folder: line(4).map(PathBuf::from),
        })
    }
}

// === impl Layout ===

impl Layout {
    pub(super) fn log_segments(&self) -> PathBuf {
        self.data().join("pg_wal")
    }
    pub(super) fn own_log(&self) -> PathBuf {
        self.root.join("own-log")
    }
    pub(super) fn main_conf(&self) -> PathBuf {
        self.conf().join("postgresql.conf")
    }
    pub(super) fn ident_conf(&self) -> PathBuf {
        self.conf().join("pg_ident.conf")
    }
    pub(super) fn hba_conf(&self) -> PathBuf {
        self.conf().join("pg_hba.conf")
    }
    pub(super) fn password_file(&self) -> PathBuf {
        self.conf().join("pgpass")
    }
    pub(super) fn standby_signal(&self) -> PathBuf {
        self.data().join("standby.signal")
    }
    pub(super) fn pid_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    /// What the data directory says of its postmaster.
    pub(super) fn claimed(&self) -> Option<Claimed> {
        Claimed::read(&self.data())
    }

    /// The process that the data directory names as its postmaster.
    pub(super) fn claimed_process(&self) -> Option<u32> {
        Some(self.claimed()?.pid)
    }

    /// Makes `standby.signal`, with which the engine never starts as a primary.
    pub(super) fn make_standby(&self) -> Result<(), DriverError> {
        if self.standby_signal().exists() {
            return Ok(());
        }
        self.write_for_engine(&self.standby_signal(), b"")
    }
}
