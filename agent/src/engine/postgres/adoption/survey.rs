//! Looks for instances that could be adopted, and says what an adoption would change, lose and be hindered by. Changes nothing.
//!
//! An instance is asked through its own socket as its owner, by `psql`, as its access rules let its owner in without a password on
//! Debian (`local all postgres peer`).

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use procfs::process::{Process, all_processes};
use regent_common::topology::Endpoint;
use serde::Deserialize;

use super::super::{
    config::{self, SUPERUSER, access::AdoptedRules},
    layout::{Claimed, is_in_a_members_folder, offload},
    tools::{Runner, Section, Tools},
};
use crate::engine::{DriverError, FoundInstance, Ground, SettingChange, foreign};

/// For one question.
const ANSWERS_WITHIN: Duration = Duration::from_secs(20);
/// Before it a replica follows another upstream only after a restart.
const FIRST_MAJOR: u32 = 13;
/// Settings of a place that is not the cluster's, beside those that are ours.
const OF_THE_PLACE: &[&str] =
    &["cluster_name", "data_checksums", "stats_temp_directory", "syslog_ident", "event_source", "lc_messages"];
/// Programs that manage instances, by the name of the program or of the script that an interpreter runs.
const MANAGERS: &[(&str, &str)] = &[
    ("patroni", "Patroni"),
    ("repmgrd", "repmgr"),
    ("pg_autoctl", "pg_auto_failover"),
    ("stolon-keeper", "stolon"),
    ("edb-efm", "EDB Failover Manager"),
];

/// What an instance says of itself.
#[derive(Debug, Deserialize)]
pub(super) struct Facts {
    pub(super) config_file: PathBuf,
    pub(super) hba_file: PathBuf,
    pub(super) ident_file: PathBuf,
    sockets: String,
    pub(super) standby: bool,
    system_identifier: String,
    superuser: bool,
    upstream: Option<Endpoint>,
    replicas: Vec<Replica>,
    settings: BTreeMap<String, Setting>,
    tablespaces: u32,
    logical_slots: u32,
    libraries: String,
    extensions: Vec<String>,
    databases: Vec<String>,
    /// Slot from which a replica streams; empty for none.
    pub(super) slot: String,
}

#[derive(Debug, Deserialize)]
struct Replica {
    name: String,
    address: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Setting {
    value: String,
    source: String,
    context: String,
}

/// A postmaster that runs.
struct Running {
    data: PathBuf,
    claimed: Claimed,
    owner: u32,
}

/// See [`crate::engine::Factory::survey`].
pub(in super::super) async fn look_around(ground: &Ground<'_>) -> Result<Vec<FoundInstance>, DriverError> {
    let section = Section::read(ground.section)?;
    let data_root = ground.data_root.to_owned();
    let (running, managers) = offload(move || Ok((running(&data_root), managers()))).await?;
    let mut found = Vec::new();
    for instance in running {
        found.push(look_at(&section, ground, &instance, &managers).await?);
    }
    found.sort_by(|one, other| one.data_directory.cmp(&other.data_directory));
    Ok(found)
}

/// Postmasters that are no member's.
fn running(data_root: &Path) -> Vec<Running> {
    let data_root = data_root.canonicalize().unwrap_or_else(|_| data_root.to_owned());
    let processes = all_processes().into_iter().flatten().filter_map(Result::ok);
    let postmaster = |process: Process| {
        let data = process.cwd().ok()?;
        let claimed = Claimed::read(&data)?;
        let is_members = data.starts_with(&data_root) || is_in_a_members_folder(&data);
        let is_it = i64::from(claimed.pid) == i64::from(process.pid) && !is_members;
        let owner = fs::metadata(&data).ok()?.uid();
        is_it.then_some(Running { data, claimed, owner })
    };
    processes
        .filter(|process| process.stat().is_ok_and(|stat| stat.comm == "postgres"))
        .filter_map(postmaster)
        .collect()
}

/// What else manages instances on this machine.
fn managers() -> Vec<&'static str> {
    let processes = all_processes().into_iter().flatten().filter_map(Result::ok);
    let words: Vec<String> = processes
        .filter_map(|process| process.cmdline().ok())
        // The program, or the script of an interpreter.
        .flat_map(|words| words.into_iter().take(2))
        .filter_map(|word| Some(Path::new(&word).file_name()?.to_str()?.to_owned()))
        .collect();
    let runs = |program: &str| words.iter().any(|word| word == program);
    MANAGERS.iter().filter(|(program, _)| runs(program)).map(|(_, name)| *name).collect()
}

async fn look_at(
    section: &Section,
    ground: &Ground<'_>,
    instance: &Running,
    managers: &[&'static str],
) -> Result<FoundInstance, DriverError> {
    let version = fs::read_to_string(instance.data.join("PG_VERSION")).unwrap_or_default().trim().to_owned();
    let mut found = FoundInstance {
        version: version.clone(),
        data_directory: instance.data.clone(),
        port: instance.claimed.port.unwrap_or_default(),
        ..FoundInstance::default()
    };
    let user = section.engine_user()?;
    if instance.owner != user.uid {
        let name = user.name.unwrap_or_else(|| user.uid.to_string());
        found.problems.push(format!(
            "its files belong to user {}, and engines of this node run as {name}: set engine.postgresql.user in agent.toml",
            instance.owner
        ));
        return Ok(found);
    }
    let tools = match Tools::find(section, &version) {
        Ok(tools) => tools,
        Err(error) => {
            found.problems.push(error.to_string());
            return Ok(found);
        }
    };
    found.version.clone_from(&tools.version);
    let runner = Runner { agent_program: ground.agent_program.to_owned(), user, tools };
    let facts = match ask(&runner, &instance.claimed).await {
        Ok(facts) => facts,
        Err(problem) => {
            found.problems.push(problem);
            return Ok(found);
        }
    };
    let (hba, ident) = (facts.hba_file.clone(), facts.ident_file.clone());
    let rules = offload(move || {
        let text = |path: &Path| fs::read_to_string(path).unwrap_or_default();
        Ok(AdoptedRules::of_files(&text(&hba), &text(&ident)))
    })
    .await?;
    found.problems.extend(problems(&facts, &rules, instance, &runner, managers, ground.data_root));
    found.losses = losses(&facts);
    found.changes = changes(section, &facts);
    found.settings = settings(&facts);
    found.access_rules = rules.text();
    found.replica = facts.standby;
    found.history = facts.system_identifier;
    found.upstream = facts.upstream;
    let name = |replica: Replica| match replica.address {
        Some(address) => format!("{} at {address}", replica.name),
        None => format!("{} on this machine", replica.name),
    };
    found.replicas = facts.replicas.into_iter().map(name).collect();
    Ok(found)
}

/// Asks a running instance; the error is a sentence with what to do.
pub(super) async fn ask(runner: &Runner, claimed: &Claimed) -> Result<Facts, String> {
    let (Some(port), Some(folder)) = (claimed.port, &claimed.socket_folder) else {
        return Err(
            "it has no socket through which it could be asked: set unix_socket_directories, and restart it".to_owned()
        );
    };
    let known: Vec<String> = named().map(|(name, _)| super::literal(name)).collect();
    let sql = format!(
        "SELECT json_build_object( \
         'config_file', current_setting('config_file'), 'hba_file', current_setting('hba_file'), \
         'ident_file', current_setting('ident_file'), \
         'sockets', current_setting('unix_socket_directories'), \
         'standby', pg_is_in_recovery(), \
         'system_identifier', (SELECT system_identifier::text FROM pg_control_system()), \
         'superuser', EXISTS (SELECT FROM pg_roles WHERE rolname = '{SUPERUSER}' AND rolsuper), \
         'upstream', (SELECT json_build_object('host', sender_host, 'port', sender_port) FROM pg_stat_wal_receiver \
             WHERE sender_host IS NOT NULL), \
         'replicas', (SELECT coalesce(json_agg(json_build_object('name', r.application_name, \
             'address', host(r.client_addr))), '[]') FROM pg_stat_replication r WHERE r.state = 'streaming' \
             AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')), \
         'settings', (SELECT coalesce(json_object_agg(name, json_build_object('value', current_setting(name), \
             'source', source, 'context', context)), '{{}}') FROM pg_settings \
             WHERE source IN ('configuration file', 'command line', 'environment variable') OR name IN ({})), \
         'tablespaces', (SELECT count(*) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')), \
         'logical_slots', (SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'), \
         'libraries', current_setting('shared_preload_libraries'), \
         'extensions', (SELECT coalesce(json_agg(extname), '[]') FROM pg_extension), \
         'databases', (SELECT json_agg(datname) FROM pg_database), \
         'slot', current_setting('primary_slot_name'))",
        known.join(", ")
    );
    let arguments = [
        "--no-psqlrc",
        "--no-password",
        "--tuples-only",
        "--no-align",
        "--quiet",
        "--host",
        &folder.display().to_string(),
        "--port",
        &port.to_string(),
        "--username",
        SUPERUSER,
        "--dbname",
        "postgres",
        "--command",
        &sql,
    ];
    let answer = runner.must("psql", &arguments.map(str::to_owned), ANSWERS_WITHIN).await.map_err(|error| {
        format!(
            "it does not answer its owner on its socket in {} ({error}): its pg_hba.conf has to begin with \
             \"local all {SUPERUSER} peer\"",
            folder.display()
        )
    })?;
    serde_json::from_str(&answer).map_err(|error| format!("its answer is not understood ({error}): report this"))
}

/// Settings that a member has, with their values.
fn named() -> impl Iterator<Item = (&'static str, &'static str)> {
    config::OWNED.iter().chain(config::DEFAULTS).copied().chain([("listen_addresses", "*")])
}

fn problems(
    facts: &Facts,
    rules: &AdoptedRules,
    instance: &Running,
    runner: &Runner,
    managers: &[&'static str],
    data_root: &Path,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut managed: Vec<String> = managers.iter().map(|name| (*name).to_owned()).collect();
    let loads = |library: &str| facts.libraries.split(',').any(|name| name.trim() == library);
    let has = |extension: &str| facts.extensions.iter().any(|name| name == extension);
    let keeps = |file: &str| instance.data.join(file).exists() || facts.config_file.with_file_name(file).exists();
    if keeps("patroni.dynamic.json") || keeps("postgresql.base.conf") {
        managed.push("Patroni".to_owned());
    }
    // What it keeps is in a database of its own, where its extension is.
    if loads("repmgr") || has("repmgr") || facts.databases.iter().any(|name| name == "repmgr") {
        managed.push("repmgr".to_owned());
    }
    if loads("pgautofailover") || has("pgautofailover") || keeps("postgresql-auto-failover.conf") {
        managed.push("pg_auto_failover".to_owned());
    }
    managed.sort();
    managed.dedup();
    if !managed.is_empty() {
        problems.push(format!(
            "it is managed by {}: two managers would work against each other; stop and remove that one first, with what it left in \
             the data directory and among the extensions",
            managed.join(" and ")
        ));
    }
    let major = runner.tools.major;
    if major < FIRST_MAJOR {
        problems.push(format!("it is version {major}, and only {FIRST_MAJOR} and later are adopted: upgrade it"));
    }
    if !facts.superuser {
        problems.push(format!("it has no superuser {SUPERUSER}: create this role"));
    }
    if facts.tablespaces > 0 {
        problems.push(format!(
            "it has {} tablespaces outside its data directory, which members cannot copy: move their tables into pg_default and drop them",
            facts.tablespaces
        ));
    }
    if rules.is_empty() {
        problems.push(format!("the access rules in {} cannot be read, or there are none", facts.hba_file.display()));
    }
    if let Some(line) = rules.reaches_out() {
        problems.push(format!(
            "its access rules speak of other files ({line:?}), which would not come along: write them into one"
        ));
    }
    problems.extend(foreign::unfit_place(&instance.data, data_root));
    problems
}

fn losses(facts: &Facts) -> Vec<String> {
    let value = |name: &str| facts.settings.get(name).map(|setting| setting.value.as_str()).unwrap_or_default();
    let mut losses = Vec::new();
    if !["", "off"].contains(&value("archive_mode")) {
        losses.push("archive_mode is on, and members archive nothing: its archive ends with its next start".to_owned());
    }
    let synchronous = value("synchronous_standby_names");
    if !synchronous.is_empty() {
        losses.push(format!(
            "synchronous_standby_names is {synchronous:?}, and a primary does not wait for its replicas: writes are acknowledged \
             without them from the adoption on"
        ));
    }
    if !["", "0"].contains(&value("recovery_min_apply_delay")) {
        losses.push(
            "recovery_min_apply_delay is set, and a member replays at once: it is no delayed copy any more".to_owned(),
        );
    }
    if facts.logical_slots > 0 {
        losses.push(format!(
            "it has {} logical replication slots, which do not go to another member with a failover",
            facts.logical_slots
        ));
    }
    losses
}

fn changes(section: &Section, facts: &Facts) -> Vec<SettingChange> {
    let kept = settings(facts);
    let wanted = named().map(|(name, value)| match (name, &section.listen_addresses) {
        ("listen_addresses", Some(own)) => (name, own.as_str()),
        _ => (name, value),
    });
    let change = |(name, then): (&str, &str)| {
        let now = facts.settings.get(name).filter(|now| now.value != then && !kept.contains_key(name))?;
        Some(SettingChange {
            name: name.to_owned(),
            now: now.value.clone(),
            then: then.to_owned(),
            needs_restart: now.context == "postmaster",
        })
    };
    // Who may use our socket has no gate before him that would keep him from a primary whose lease is over: nobody but us does.
    let sockets = SettingChange {
        name: "unix_socket_directories".to_owned(),
        now: facts.sockets.clone(),
        then: "a folder of the agent's: applications of its machine log in by TCP".to_owned(),
        needs_restart: true,
    };
    wanted.filter_map(change).chain([sockets]).collect()
}

/// What the cluster's settings are to be: what its files say, and what members must not have less of than their primary.
fn settings(facts: &Facts) -> BTreeMap<String, String> {
    let is_default = |name: &str| config::DEFAULTS.iter().any(|(known, _)| *known == name);
    let carried = |(name, setting): (&String, &Setting)| {
        let said = setting.source != "default" && setting.source != "override";
        let compared = is_default(name) && setting.context == "postmaster";
        let cluster_wide = !config::is_owned(name) && !OF_THE_PLACE.contains(&name.as_str());
        let fits = config::unfit(name, &setting.value).is_none() && !setting.value.contains('\n');
        (cluster_wide && fits && (said || compared)).then(|| (name.clone(), setting.value.clone()))
    };
    facts.settings.iter().filter_map(carried).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(settings: &[(&str, &str, &str, &str)]) -> Facts {
        let of = |(name, value, source, context): &(&str, &str, &str, &str)| {
            let setting =
                Setting { value: (*value).to_owned(), source: (*source).to_owned(), context: (*context).to_owned() };
            ((*name).to_owned(), setting)
        };
        Facts {
            config_file: PathBuf::new(),
            hba_file: PathBuf::new(),
            ident_file: PathBuf::new(),
            sockets: "/run/postgresql".to_owned(),
            standby: false,
            system_identifier: "7".to_owned(),
            superuser: true,
            upstream: None,
            replicas: Vec::new(),
            settings: settings.iter().map(of).collect(),
            tablespaces: 0,
            logical_slots: 0,
            libraries: String::new(),
            extensions: Vec::new(),
            databases: Vec::new(),
            slot: String::new(),
        }
    }

    #[test]
    fn settings_of_a_place_and_those_that_are_ours_stay_behind() {
        let facts = facts(&[
            ("work_mem", "64MB", "configuration file", "user"),
            ("max_connections", "100", "default", "postmaster"),
            ("wal_keep_size", "0", "default", "sighup"),
            ("port", "5433", "configuration file", "postmaster"),
            ("cluster_name", "15/main", "configuration file", "postmaster"),
            ("max_wal_senders", "5", "configuration file", "postmaster"),
            ("wal_level", "logical", "configuration file", "postmaster"),
            ("fsync", "off", "configuration file", "sighup"),
        ]);
        let carried = settings(&facts);
        let carried: Vec<_> = carried.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(carried, [("max_connections", "100"), ("wal_level", "logical"), ("work_mem", "64MB")]);
    }

    #[test]
    fn what_changes_is_told_with_what_needs_a_restart() {
        let facts = facts(&[
            ("wal_log_hints", "off", "default", "postmaster"),
            ("wal_sender_timeout", "1min", "default", "user"),
            ("fsync", "on", "default", "sighup"),
            ("max_connections", "100", "default", "postmaster"),
            ("listen_addresses", "localhost", "default", "postmaster"),
        ]);
        let told = changes(&Section::default(), &facts);
        let told: Vec<_> = told
            .iter()
            .map(|change| (change.name.as_str(), change.now.as_str(), change.then.as_str(), change.needs_restart))
            .collect();
        assert_eq!(
            told,
            [
                ("wal_log_hints", "off", "on", true),
                ("wal_sender_timeout", "1min", "5s", false),
                ("listen_addresses", "localhost", "*", true),
                (
                    "unix_socket_directories",
                    "/run/postgresql",
                    "a folder of the agent's: applications of its machine log in by TCP",
                    true
                ),
            ]
        );
    }

    #[test]
    fn what_would_be_lost_is_told() {
        let none = facts(&[("archive_mode", "off", "default", "postmaster")]);
        assert_eq!(losses(&none), Vec::<String>::new());
        let all = Facts {
            logical_slots: 1,
            ..facts(&[
                ("archive_mode", "on", "configuration file", "postmaster"),
                ("synchronous_standby_names", "*", "configuration file", "sighup"),
                ("recovery_min_apply_delay", "1h", "configuration file", "sighup"),
            ])
        };
        let told = losses(&all);
        assert_eq!(told.len(), 4, "{told:?}");
    }
}
