//! Renders the engine's configuration, and says which settings are ours.
//!
//! The files are in `ROOT/conf`, outside PGDATA: `postgresql.conf`, `pg_hba.conf` and `pg_ident.conf` ([`access`]), and
//! `upstream.conf`, which alone says whom a replica follows. **Invariant:** passwords are in `pgpass` and in no rendered file.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, time::Duration};

use regent_common::{ids::MemberName, topology::Peer};
use secrecy::{ExposeSecret, SecretString};

use tokio_util::sync::CancellationToken;

use super::{
    layout::Layout,
    tools::{Runner, Section},
};
use crate::engine::DriverError;

pub(super) mod access;

/// Role of the replication stream, of clones and of rewinds.
pub(super) const REPLICATOR: &str = "regent_replicator";
/// Role of the agent's daily sessions.
pub(super) const AGENT: &str = "regent";
/// Role that owns the instance; only for what the agent's own role may not do.
pub(super) const SUPERUSER: &str = "postgres";
/// Role and database of the application.
pub(super) const APPLICATION: &str = "app";

/// Begins the line of `upstream.conf` that names the upstream.
const FOLLOWS: &str = "# follows ";

/// How long the server that sends to a member keeps a connection whose other end takes nothing. A replica that stands still
/// while its kernel goes on would otherwise hold the sender in its last message for ever, and with it the checkpoint that waits
/// for the sender to give up its slot. Sessions of applications have no such limit: a slow reader is not a dead one.
const SENDER_GIVES_UP_MILLIS: u32 = 30_000;

/// How much log the slots of members that are away may hold back, when the cluster says nothing else.
const SLOT_BUDGET: &str = "4GB";

/// Settings that a cluster may change, with the value that they have otherwise.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    ("wal_level", "replica"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "20"),
    ("max_connections", "200"),
    ("superuser_reserved_connections", "5"),
    ("wal_keep_size", "128MB"),
    ("max_slot_wal_keep_size", SLOT_BUDGET),
    ("checkpoint_completion_target", "0.9"),
    ("password_encryption", "scram-sha-256"),
    ("log_line_prefix", "%m [%p] %q%u@%d "),
    ("log_checkpoints", "on"),
    ("log_lock_waits", "on"),
    ("synchronous_commit", "on"),
    ("hot_standby_feedback", "on"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
];

/// Least value of what members take streams and slots from: each needs one, one more while it is cloned, and some are for others.
pub(super) const LEAST_STREAMS: u32 = 10;

/// Settings that replication, failover and rewind stand on: the driver sets them and a cluster may not.
pub(super) const OWNED: &[(&str, &str)] = &[
    ("hot_standby", "on"),
    ("wal_log_hints", "on"),
    ("full_page_writes", "on"),
    ("fsync", "on"),
    ("wal_retrieve_retry_interval", "100ms"),
    ("wal_sender_timeout", "5s"),
    ("wal_receiver_timeout", "5s"),
    ("wal_receiver_status_interval", "1s"),
    // One dead backend must not be a failover: the postmaster recovers in place.
    ("restart_after_crash", "on"),
    ("recovery_target_timeline", "latest"),
    ("archive_mode", "off"),
    ("synchronous_standby_names", ""),
    ("logging_collector", "on"),
    ("log_destination", "stderr"),
    ("log_filename", "postgresql-%u.log"),
    ("log_file_mode", "0600"),
    ("log_rotation_age", "1d"),
    ("log_rotation_size", "0"),
    ("log_truncate_on_rotation", "on"),
    ("lc_messages", "C"),
    ("unix_socket_permissions", "0700"),
];

/// More names that are ours: places, and everything about recovery.
const OWNED_PLACES: &[&str] = &[
    "allow_in_place_tablespaces",
    "archive_cleanup_command",
    "config_file",
    "data_directory",
    "data_sync_retry",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "log_directory",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
    "restore_command",
    "unix_socket_directories",
    "unix_socket_group",
    "wal_consistency_checking",
];

/// What the rendered files depend on, besides the cluster.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub(super) layout: &'a Layout,
    pub(super) section: &'a Section,
    pub(super) member: &'a MemberName,
    pub(super) run_directory: &'a Path,
    pub(super) port: u16,
}

/// Whether a setting is ours.
pub(super) fn is_owned(name: &str) -> bool {
    OWNED_PLACES.contains(&name) || OWNED.iter().any(|(owned, _)| *owned == name)
}

/// Checks names: ours are refused, and so are those that the engine does not know. `known` is the output of
/// `postgres --describe-config`; names with a dot belong to extensions, whose names only the extension knows.
pub(super) fn check_names(settings: &BTreeMap<String, String>, known: &str) -> Result<(), DriverError> {
    let invalid = |name: &String, problem: String| Err(DriverError::InvalidSetting { name: name.clone(), problem });
    for (name, value) in settings {
        if is_owned(&name.to_ascii_lowercase()) {
            return invalid(name, "it is set and kept by regent, as replication and failover depend on it".to_owned());
        }
        let well_formed =
            !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.');
        if !well_formed || (!name.contains('.') && !known.lines().any(|line| is_named(line, name))) {
            return Err(DriverError::UnknownSetting { name: name.clone(), engine: "postgresql" });
        }
        if value.contains(['\n', '\r', '\0']) {
            return invalid(name, "its value must be one line".to_owned());
        }
        if let Some(problem) = unfit(&name.to_ascii_lowercase(), value) {
            return invalid(name, problem);
        }
    }
    Ok(())
}

/// Why replication could not stand on this value.
pub(super) fn unfit(name: &str, value: &str) -> Option<String> {
    match name {
        "wal_level" if !["replica", "logical"].contains(&value.to_ascii_lowercase().as_str()) => {
            Some("replicas need the level replica or logical".to_owned())
        }
        "max_wal_senders" | "max_replication_slots"
            if value.parse().is_ok_and(|streams: u32| streams < LEAST_STREAMS) =>
        {
            Some(format!("members need at least {LEAST_STREAMS}"))
        }
        _ => None,
    }
}

/// Has the engine's own program check names and values; needs no data directory.
pub(super) async fn check(runner: &Runner, settings: &BTreeMap<String, String>) -> Result<(), DriverError> {
    if settings.is_empty() {
        return Ok(());
    }
    let limit = Duration::from_secs(30);
    let known = runner.must("postgres", &["--describe-config".to_owned()], limit).await?;
    check_names(settings, &known)?;
    // Files that are not there to be read: only the settings given here count.
    let nowhere = ["config_file", "hba_file", "ident_file"].map(|file| format!("{file}=/dev/null"));
    let values = settings.iter().map(|(name, value)| format!("{name}={value}"));
    let values = nowhere.into_iter().chain(["data_directory=/".to_owned()]).chain(values);
    let arguments: Vec<String> =
        ["-C".to_owned(), "port".to_owned()].into_iter().chain(values.flat_map(|v| ["-c".to_owned(), v])).collect();
    accepted(runner, &arguments).await
}

/// Whether `postgres -C` takes its arguments, with the name of the setting that it does not take.
pub(super) async fn accepted(runner: &Runner, arguments: &[String]) -> Result<(), DriverError> {
    let limit = Duration::from_secs(30);
    let ended = runner.run("postgres", arguments, None, limit, &CancellationToken::new(), |_| {}).await?;
    if ended.success {
        return Ok(());
    }
    let name = ended.messages.split('"').nth(1).unwrap_or("settings").to_owned();
    Err(DriverError::InvalidSetting { name, problem: ended.messages })
}

fn is_named(line: &str, name: &str) -> bool {
    line.split('\t').next().is_some_and(|known| known.eq_ignore_ascii_case(name))
}

/// Renders `postgresql.conf`.
pub(super) fn postgresql_conf(place: &Place<'_>, settings: &BTreeMap<String, String>) -> String {
    let conf = place.layout.conf();
    let mut text = format!(
        "# Written by regent-agent for member {}. Changes made here are lost: change the settings of the cluster.\n",
        place.member
    );
    let mut set = |name: &str, value: &str| {
        writeln!(text, "{name} = '{}'", quoted(value)).expect("writing to a string does not fail");
    };
    let listen = place.section.listen_addresses.as_deref().unwrap_or("*");
    set("data_directory", &place.layout.data().display().to_string());
    set("hba_file", &place.layout.hba_conf().display().to_string());
    set("ident_file", &conf.join("pg_ident.conf").display().to_string());
    set("listen_addresses", listen);
    set("port", &place.port.to_string());
    set("unix_socket_directories", &place.run_directory.display().to_string());
    set("log_directory", &place.layout.log().display().to_string());
    set("cluster_name", place.member.as_str());
    for (name, value) in DEFAULTS {
        if !settings.keys().any(|wanted| wanted.eq_ignore_ascii_case(name)) {
            set(name, value);
        }
    }
    for (name, value) in settings {
        set(name, value);
    }
    for (name, value) in OWNED {
        set(name, value);
    }
    text.push_str("include = 'upstream.conf'\n");
    text
}

/// Renders `upstream.conf`: whom a replica follows; for `None` nobody, which is what a cut writes.
pub(super) fn upstream_conf(layout: &Layout, member: &MemberName, upstream: Option<&Peer>) -> String {
    let (name, conninfo, slot) = match upstream {
        None => (String::new(), String::new(), String::new()),
        Some(peer) => {
            let conninfo = connection_string(layout, member, &peer.engine.host, peer.engine.port, None);
            (format!("{FOLLOWS}{}\n", peer.member), conninfo, slot_name(member))
        }
    };
    format!("{name}primary_conninfo = '{}'\nprimary_slot_name = '{}'\n", quoted(&conninfo), quoted(&slot))
}

/// Whom the text of `upstream.conf` says that this member follows.
pub(super) fn followed(upstream_conf: &str) -> Option<MemberName> {
    MemberName::new(upstream_conf.lines().next()?.strip_prefix(FOLLOWS)?).ok()
}

/// How a tool or the stream reaches another member. The password comes from the password file.
pub(super) fn connection_string(
    layout: &Layout,
    member: &MemberName,
    host: &str,
    port: u16,
    database: Option<&str>,
) -> String {
    let part = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
    let passfile = layout.password_file().display().to_string();
    let mut text = format!(
        "host='{}' port={port} user={REPLICATOR} passfile='{}' application_name='{member}' sslmode=prefer \
         connect_timeout=3 keepalives=1 keepalives_idle=3 keepalives_interval=1 keepalives_count=3 \
         tcp_user_timeout=5000 options='-c tcp_user_timeout={SENDER_GIVES_UP_MILLIS}'",
        part(host),
        part(&passfile)
    );
    if let Some(database) = database {
        write!(text, " dbname='{}'", part(database)).expect("writing to a string does not fail");
    }
    text
}

/// Renders the password file of the tools and of the stream.
pub(super) fn password_file(replication: &SecretString) -> String {
    let password = replication.expose_secret().replace('\\', "\\\\").replace(':', "\\:");
    format!("*:*:*:{REPLICATOR}:{password}\n")
}

/// Name of a member's slot on its upstream.
pub(super) fn slot_name(member: &MemberName) -> String {
    member.as_str().replace('-', "_")
}

/// Name of the slot that holds the log back while the member is cloned and until its new copy streams.
pub(super) fn clone_slot_name(member: &MemberName) -> String {
    format!("{}_clone", slot_name(member))
}

/// Removes from `postgresql.auto.conf` what is ours: it would override our files, and copies bring the source's.
pub(super) fn without_owned(auto_conf: &str) -> String {
    let kept = auto_conf.lines().filter(|line| {
        let name = line.split(['=', ' ', '\t']).next().unwrap_or_default().to_ascii_lowercase();
        !is_owned(&name)
    });
    kept.fold(String::new(), |text, line| text + line + "\n")
}

/// A value within single quotes of the configuration file.
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

#[cfg(test)]
mod tests;
