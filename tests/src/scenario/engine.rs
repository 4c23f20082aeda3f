//! Engines of which a cluster of the tests and the bench can be.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::{cluster::server_of, engines::postgres_bin, workload::Dialect};

/// An engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// PostgreSQL.
    Postgresql,
    /// Redis.
    Redis,
    /// Valkey.
    Valkey,
}

// === impl Engine ===

impl Engine {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgresql => "postgresql",
            Self::Redis => "redis",
            Self::Valkey => "valkey",
        }
    }

    /// How it is spoken to.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Postgresql => Dialect::Postgres,
            Self::Redis | Self::Valkey => Dialect::Redis,
        }
    }

    /// Its server's program, as the agents of a fleet find it. The error says what is missing.
    pub fn server(self) -> Result<PathBuf> {
        if self == Self::Postgresql {
            return Ok(postgres_bin()?.join("postgres"));
        }
        let name = self.name();
        let variable = format!("REGENT_{}_SERVER", name.to_uppercase());
        let missing = || format!("there is no {name}-server on the path, and {variable} names none");
        let server = server_of(name).with_context(missing)?;
        ensure!(server.is_file(), "{variable}={} is no program", server.display());
        Ok(server)
    }
}
