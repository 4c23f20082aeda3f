//! Clients of any engine: which protocol it is spoken to in, and what all of them can be asked.

use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{
    Login,
    checker::{Row, Stored},
    postgres, redis,
};
use crate::wait;

/// The protocol in which an engine is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// That of PostgreSQL.
    Postgres,
    /// That of Redis, Valkey and KeyDB.
    Redis,
}

/// Who reads and writes in a cluster: how it speaks, and how it logs in.
#[derive(Debug, Clone)]
pub struct Client {
    /// How it speaks.
    pub dialect: Dialect,
    /// How it logs in.
    pub login: Login,
}

// === impl Dialect ===

impl Dialect {
    /// That of an engine, by the engine's name on the wire.
    pub fn of(engine: &str) -> Result<Self> {
        match engine {
            "postgresql" => Ok(Self::Postgres),
            "redis" | "valkey" | "keydb" => Ok(Self::Redis),
            other => bail!("there is no client for the engine {other}"),
        }
    }

    /// An engine that is spoken to in it, by its name on the wire.
    pub fn engine(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql",
            Self::Redis => "redis",
        }
    }
}

// === impl Client ===

impl From<&Login> for Client {
    /// What has a login alone speaks to PostgreSQL.
    fn from(login: &Login) -> Self {
        Self { dialect: Dialect::Postgres, login: login.clone() }
    }
}

impl From<&Client> for Client {
    fn from(client: &Client) -> Self {
        client.clone()
    }
}

impl Client {
    /// Makes room for rows on `member`, which has to be the primary; rows of an earlier run go.
    pub async fn make_room(&self, member: &str) -> Result<()> {
        match self.dialect {
            Dialect::Postgres => postgres::create_table(&self.login, member).await,
            Dialect::Redis => redis::clear_rows(&self.login, member).await,
        }
    }

    /// Adds about so many mebibytes of data, so that a copy takes a while.
    pub async fn add_ballast(&self, member: &str, mebibytes: u32) -> Result<()> {
        match self.dialect {
            Dialect::Postgres => postgres::add_ballast(&self.login, member, mebibytes).await,
            Dialect::Redis => redis::add_ballast(&self.login, member, mebibytes).await,
        }
    }

    /// Reads all rows that `member` has.
    pub async fn read_rows(&self, member: &str) -> Result<Stored> {
        match self.dialect {
            Dialect::Postgres => postgres::read_rows(&self.login, member).await,
            Dialect::Redis => redis::read_rows(&self.login, member).await,
        }
    }

    /// Takes a row away on `member`, which has to be the primary; how often it was there.
    pub async fn remove_row(&self, member: &str, row: &Row) -> Result<u64> {
        match self.dialect {
            Dialect::Postgres => postgres::remove_row(&self.login, member, row).await,
            Dialect::Redis => redis::remove_row(&self.login, member, row).await,
        }
    }

    /// Whether `member` says that it takes writes.
    pub async fn takes_writes(&self, member: &str) -> Result<bool> {
        match self.dialect {
            Dialect::Postgres => postgres::takes_writes(&self.login, member).await,
            Dialect::Redis => redis::takes_writes(&self.login, member).await,
        }
    }

    /// The first of `members` that says that it takes writes.
    pub async fn find_primary(&self, members: &[String]) -> Result<String> {
        let mut seen = Vec::new();
        for member in members {
            match self.takes_writes(member).await {
                Ok(true) => return Ok(member.clone()),
                Ok(false) => seen.push(format!("{member} is a replica")),
                Err(error) => seen.push(format!("{member}: {error:#}")),
            }
        }
        bail!("none of the members takes writes: {}", seen.join("; "))
    }

    /// The rows of the primary, when every one of `members` has the same.
    pub async fn same_on_all(&self, members: &[String], deadline: Duration) -> Result<Stored> {
        let primary = self.find_primary(members).await?;
        let replicas: Vec<_> = members.iter().filter(|member| **member != primary).collect();
        // All anew at each look: a row of a writer that has ended may still arrive.
        wait::until("the same rows on every member", deadline, || async {
            let stored = self.read_rows(&primary).await?;
            for member in &replicas {
                let copy = self.read_rows(member).await?;
                ensure!(copy == stored, "{member} has {} rows, {primary} has {}", copy.len(), stored.len());
            }
            Ok(stored)
        })
        .await
    }
}
