//! Engines of which a cluster of the tests and the bench can be.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;

use crate::{
    engines::{postgres_bin, server_of},
    workload::Dialect,
};

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
    /// KeyDB, as a primary with replicas.
    Keydb,
}

// === impl Engine ===

impl Engine {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Postgresql => "postgresql",
            Self::Redis => "redis",
            Self::Valkey => "valkey",
            Self::Keydb => "keydb",
        }
    }

    /// How it is spoken to.
    pub fn dialect(self) -> Dialect {
        match self {
            Self::Postgresql => Dialect::Postgres,
            Self::Redis | Self::Valkey | Self::Keydb => Dialect::Redis,
        }
    }

    /// Its server's program, as the agents of a fleet find it. The error says what is missing.
    pub fn server(self) -> Result<PathBuf> {
        if self == Self::Postgresql {
            return Ok(postgres_bin()?.join("postgres"));
        }
        server_of(self.name())
    }
}
