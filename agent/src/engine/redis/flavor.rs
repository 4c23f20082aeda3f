//! Redis, Valkey and KeyDB: one driver, and what differs between them as data.

use std::path::{Path, PathBuf};

use regent_common::topology::Mode;
use serde::Deserialize;

use super::certificate::Files;
use crate::engine::{DriverError, layout::EngineUser};

/// One of the engines of the family.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Flavor {
    /// Name on the wire and in the store.
    pub(super) name: &'static str,
    /// How the program calls itself in the answer to `--version`.
    pub(super) title: &'static str,
    /// Name of the server's program.
    pub(super) program: &'static str,
    /// User that Debian's package makes for it.
    pub(super) user: &'static str,
    /// Settings that only it has and that replication and failover stand on: the driver sets them and a cluster may not.
    pub(super) owned: &'static [(&'static str, &'static str)],
    /// More names of its own that a cluster may not set.
    pub(super) owned_names: &'static [&'static str],
    /// Whether a primary becomes a replica by another start only, and not by being told to.
    pub(super) is_demoted_by_a_start: bool,
    /// Whether instances that run already can be adopted.
    pub(super) is_adopted: bool,
    /// The modes that it has, the default first.
    pub(super) modes: &'static [Mode],
}

pub(super) static REDIS: Flavor = Flavor {
    name: "redis",
    title: "Redis",
    program: "redis-server",
    user: "redis",
    owned: &[],
    owned_names: &[],
    is_demoted_by_a_start: false,
    is_adopted: true,
    modes: &[Mode::PrimaryReplica],
};

pub(super) static VALKEY: Flavor = Flavor {
    name: "valkey",
    title: "Valkey",
    program: "valkey-server",
    user: "valkey",
    owned: &[],
    owned_names: &[],
    is_demoted_by_a_start: false,
    is_adopted: true,
    modes: &[Mode::PrimaryReplica],
};

/// A fork of Redis 6.2, whose features it has by its version. It may have several threads, which take turns under one lock: what is
/// done by one command is done by no other at that time, as in the others.
pub(super) static KEYDB: Flavor = Flavor {
    name: "keydb",
    title: "KeyDB",
    program: "keydb-server",
    user: "keydb",
    owned: &[
        ("active-replica", "no"),
        ("multi-master", "no"),
        // It loads from the wire what is lost when the wire breaks.
        ("enable-keydb-fastsync", "no"),
        // Snapshots are written by a child, which a kill ends with its server.
        ("use-fork", "yes"),
        // It ends when it is told to, and not when the last client has gone.
        ("soft-shutdown", "no"),
        // It would ask a server in the Internet for news whenever it starts.
        ("enable-motd", "no"),
    ],
    // Other places for the data than the snapshot.
    owned_names: &["db-s3-object", "storage-cache-mode", "storage-provider", "storage-provider-options", "testmode"],
    // What it notes of a new upstream begins with descriptor 0 for the file of a synchronization, which it closes when its first attempt
    // to connect fails (6.3.4: initMasterInfo sets no repl_transfer_fd). With the first upstream of a process that is its standard
    // input; with a later one it is whatever was opened next, a client's connection or that of a replica.
    is_demoted_by_a_start: true,
    // Its configuration has values that are more than one text.
    is_adopted: false,
    modes: &[Mode::PrimaryReplica, Mode::MultiMaster],
};

/// `[engine.NAME]` of the agent's configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Section {
    /// The server's program; unset: the one of Debian's package.
    pub(super) server: Option<PathBuf>,
    /// User that the engine runs as when the agent is root.
    pub(super) user: Option<String>,
    /// Port when the cluster names none.
    pub(super) port: Option<u16>,
    /// Addresses to listen on, parted by commas; unset: all.
    pub(super) listen_addresses: Option<String>,
    /// The certificate for clusters whose members' ports speak TLS only.
    pub(super) tls: Option<Files>,
}

/// The installed server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) program: PathBuf,
    /// Such as "7.0.15".
    pub(super) version: String,
    /// Such as (7, 0).
    pub(super) release: (u32, u32),
}

// === impl Section ===

impl Section {
    pub(super) fn read(flavor: &Flavor, table: Option<&toml::Table>) -> Result<Self, DriverError> {
        let Some(table) = table else { return Ok(Self::default()) };
        table.clone().try_into().map_err(|error: toml::de::Error| DriverError::InvalidSetting {
            name: format!("engine.{}", flavor.name),
            problem: error.message().to_owned(),
        })
    }

    pub(super) fn engine_user(&self, flavor: &Flavor) -> Result<EngineUser, DriverError> {
        EngineUser::find(flavor.name, self.user.as_deref(), flavor.user)
    }
}

// === impl Server ===

impl Server {
    /// The installed server, if it is of the wanted version ("7", "7.0" or in full; empty for any).
    pub(super) fn find(flavor: &'static Flavor, section: &Section, wanted: &str) -> Result<Self, DriverError> {
        let program = match &section.server {
            Some(program) => program.clone(),
            None => Path::new("/usr/bin").join(flavor.program),
        };
        let searched = program.display().to_string();
        let missing = |program: String| DriverError::MissingProgram {
            program,
            searched: searched.clone(),
            package: flavor.program.to_owned(),
            engine: flavor.name,
        };
        if !program.is_file() {
            return Err(missing(flavor.program.to_owned()));
        }
        let output = std::process::Command::new(&program).arg("--version").env_clear().output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        let version = version_in(flavor, &text).ok_or_else(|| DriverError::InvalidSetting {
            name: format!("engine.{}.server", flavor.name),
            problem: format!("{searched} is no server of {}: it says {:?}", flavor.title, text.trim()),
        })?;
        let numbers: Vec<u32> = version.split('.').map(|number| number.parse().unwrap_or(0)).collect();
        let server = Self {
            program,
            release: (numbers.first().copied().unwrap_or(0), numbers.get(1).copied().unwrap_or(0)),
            version,
        };
        let fits = wanted.is_empty()
            || server.version == wanted
            || server.version.strip_prefix(wanted).is_some_and(|rest| rest.starts_with('.'));
        if fits { Ok(server) } else { Err(missing(format!("{} {wanted}", flavor.program))) }
    }
}

/// The version in `Redis server v=7.0.15 sha=...`; `None` for another engine's answer.
fn version_in(flavor: &Flavor, text: &str) -> Option<String> {
    let rest = text.trim().strip_prefix(flavor.title)?.trim_start().strip_prefix("server v=")?;
    rest.split_whitespace().next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_what_it_is() {
        let redis = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=1\n";
        assert_eq!(version_in(&REDIS, redis).as_deref(), Some("7.0.15"));
        assert_eq!(version_in(&VALKEY, redis), None, "another engine");
        assert_eq!(version_in(&VALKEY, "Valkey server v=8.1.1 sha=0 bits=64").as_deref(), Some("8.1.1"));
        assert_eq!(version_in(&KEYDB, "KeyDB server v=6.3.4 sha=00000000:0 malloc=libc").as_deref(), Some("6.3.4"));
    }
}
