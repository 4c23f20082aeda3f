//! Looks for instances that could be adopted, and says what an adoption would change, lose and be hindered by. Changes nothing.
//!
//! An instance is asked through its socket, else over TCP: as whoever says no name, or else with a password that stands in its
//! configuration, if one is found ([`super::door`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use procfs::process::{FDTarget, Process, all_processes};
use regent_common::topology::Endpoint;

use super::{
    defaults,
    door::Door,
    facts::{Facts, NEEDED},
};
use crate::{
    engine::{
        DriverError, FoundInstance, Ground, SettingChange, foreign,
        layout::{is_in_a_members_folder, offload},
        redis::{
            access::{adopted_user, is_open, is_ours, name_of},
            config::{self, AT_START, DEFAULTS, OWNED},
            flavor::{Flavor, Section, Server},
        },
    },
    host::ports::listening_ports,
};

/// The one name of a snapshot that a member knows, and that an engine does not change while it runs.
const SNAPSHOT: &str = "dump.rdb";
/// The first release with users.
const FIRST_RELEASE: (u32, u32) = (6, 0);
/// Settings of a place that is not the cluster's, beside those that are ours.
const OF_THE_PLACE: &[&str] =
    &["proc-title-template", "set-proc-title", "syslog-enabled", "syslog-facility", "syslog-ident"];
/// Settings whose value is more than one word.
const OF_MANY_WORDS: &[&str] = &["client-output-buffer-limit", "oom-score-adj-values", "save"];

/// A server that runs.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) pid: u32,
    /// Where it works, which is where its data is.
    pub(super) data: PathBuf,
    /// Where it is asked.
    pub(super) door: Door,
    /// TCP ports on which it listens.
    ports: BTreeSet<u16>,
    /// Owner of its data.
    owner: u32,
    /// Whether its folder is the one that we see at this path, and its ports are in our network.
    is_here: bool,
    /// Other servers that work in the same folder.
    others: usize,
}

/// See [`crate::engine::Factory::survey`].
pub(in super::super) async fn look_around(
    flavor: &'static Flavor,
    ground: &Ground<'_>,
) -> Result<Vec<FoundInstance>, DriverError> {
    let section = Section::read(flavor, ground.section)?;
    let data_root = ground.data_root.to_owned();
    let running = offload(move || Ok(running(flavor, &data_root))).await?;
    let mut found = Vec::new();
    for instance in running {
        found.push(look_at(flavor, &section, ground, &instance).await?);
    }
    found.sort_by(|one, other| one.data_directory.cmp(&other.data_directory));
    Ok(found)
}

/// Servers of a flavor that are no member's. What only watches others, or listens on no TCP port, is no instance.
pub(super) fn running(flavor: &Flavor, data_root: &Path) -> Vec<Running> {
    let data_root = data_root.canonicalize().unwrap_or_else(|_| data_root.to_owned());
    let all: Vec<(i32, i32, Process)> = all_processes()
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|process| process.stat().ok().map(|stat| (stat, process)))
        .filter(|(stat, _)| stat.comm == flavor.program)
        .map(|(stat, process)| (stat.pid, stat.ppid, process))
        .collect();
    let is_one = |pid: i32| all.iter().any(|(known, ..)| *known == pid);
    // Who writes its snapshot is a child of it.
    let servers = || all.iter().filter(|(_, parent, _)| !is_one(*parent)).map(|(.., process)| process);
    let others = |running: &Running| {
        let others = servers().filter(|process| u32::try_from(process.pid).is_ok_and(|pid| pid != running.pid));
        others.filter(|process| process.cwd().is_ok_and(|cwd| cwd == running.data)).count()
    };
    servers()
        .filter(|process| !watches_only(process))
        .filter_map(|process| Running::of(flavor, process))
        .filter(|running| !running.data.starts_with(&data_root) && !is_in_a_members_folder(&running.data))
        .map(|running| Running { others: others(&running), ..running })
        .collect()
}

/// Whether a process is a Sentinel, by its title.
fn watches_only(process: &Process) -> bool {
    let words = process.cmdline().unwrap_or_default();
    words.iter().any(|word| word.trim_end().ends_with("[sentinel]") || word == "--sentinel")
}

// === impl Running ===

impl Running {
    fn of(flavor: &Flavor, process: &Process) -> Option<Self> {
        let pid = u32::try_from(process.pid).ok()?;
        let data = process.cwd().ok()?;
        let ports = listening_ports(pid).unwrap_or_default();
        let port = *ports.first()?;
        // Through the process, whatever stands at this path for us.
        let folder = fs::metadata(format!("/proc/{pid}/cwd")).ok()?;
        let seen = fs::metadata(&data).ok();
        let is_here = seen.is_some_and(|seen| (seen.dev(), seen.ino()) == (folder.dev(), folder.ino()));
        let door = Door::of(flavor, process, socket_of(process), port);
        Some(Self { pid, data, door, ports, owner: folder.uid(), is_here, others: 0 })
    }
}

/// The socket on which a process listens, of those with a name.
fn socket_of(process: &Process) -> Option<PathBuf> {
    let named: BTreeMap<u64, PathBuf> =
        process.unix().ok()?.into_iter().filter_map(|entry| Some((entry.inode, entry.path?))).collect();
    let of = |target: FDTarget| match target {
        FDTarget::Socket(inode) => named.get(&inode).filter(|path| path.is_absolute()).cloned(),
        _ => None,
    };
    process.fd().ok()?.filter_map(Result::ok).find_map(|descriptor| of(descriptor.target))
}

async fn look_at(
    flavor: &'static Flavor,
    section: &Section,
    ground: &Ground<'_>,
    instance: &Running,
) -> Result<FoundInstance, DriverError> {
    let mut found = FoundInstance {
        data_directory: instance.data.clone(),
        port: instance.ports.first().copied().unwrap_or_default(),
        ..FoundInstance::default()
    };
    let server = match Server::find(flavor, section, "") {
        Ok(server) => server,
        Err(error) => {
            found.problems.push(error.to_string());
            return Ok(found);
        }
    };
    found.version.clone_from(&server.version);
    if !flavor.is_adopted {
        found.problems.push(format!(
            "running instances of {} are not adopted by this version: make a cluster and have its data written there",
            flavor.title
        ));
        return Ok(found);
    }
    let user = section.engine_user(flavor)?;
    if instance.owner != user.uid {
        let name = user.name.unwrap_or_else(|| user.uid.to_string());
        found.problems.push(format!(
            "its files belong to user {}, and engines of this node run as {name}: set engine.{}.user in agent.toml",
            instance.owner, flavor.name
        ));
        return Ok(found);
    }
    let facts = match Facts::ask(&instance.door).await {
        Ok(facts) => facts,
        Err(problem) => {
            found.problems.extend([problem].into_iter().chain(without_socket(flavor, instance)));
            return Ok(found);
        }
    };
    let usual = defaults::of(&server, ground.agent_program, &user).await?;
    let settings = settings(flavor, &facts, &usual);
    found.port = facts.port().unwrap_or(found.port);
    found.problems = problems(flavor, &facts, instance, &server, ground.data_root);
    // Not when it is done: by then its primary may have kept out as whom it came, and lets it in as a member.
    if !facts.info.is_primary() && !facts.info.streams() {
        found.problems.push("its stream from its upstream does not come in: mend that first".to_owned());
    }
    found.losses = losses(&facts);
    found.changes = changes(section, &server, &facts, &settings);
    found.settings = settings;
    let users = facts.users.iter().filter(|user| !is_ours(name_of(user)));
    found.access_rules = users.map(|user| adopted_user(&server, user) + "\n").collect();
    found.replica = !facts.info.is_primary();
    found.history = facts.info.id().unwrap_or_default().to_owned();
    found.upstream = facts.upstream();
    let name = |address: &str| address.rsplit_once(':').map(|(host, port)| format!("port {port} at {host}"));
    found.replicas = facts.info.downstreams().iter().filter_map(|replica| name(&replica.address)).collect();
    Ok(found)
}

/// Why an instance cannot be adopted, a sentence each with what to do.
pub(super) fn problems(
    flavor: &Flavor,
    facts: &Facts,
    instance: &Running,
    server: &Server,
    data_root: &Path,
) -> Vec<String> {
    let mut problems = Vec::new();
    let mut say = |is_so: bool, sentence: String| {
        if is_so {
            problems.push(sentence);
        }
    };
    let setting = |name: &str| facts.setting(name);
    say(
        facts.sentinels > 0,
        format!(
            "it is managed by Sentinel, of which {} watch it: two managers would work against each other; stop and remove that one \
             first (SENTINEL REMOVE on each of them)",
            facts.sentinels
        ),
    );
    say(
        setting("cluster-enabled") == "yes",
        "it runs in cluster mode, in which its keys are divided among servers: only an instance with all of its keys is adopted"
            .to_owned(),
    );
    say(
        setting("active-replica") == "yes" || setting("multi-master") == "yes",
        "it takes writes as a replica (active-replica or multi-master): a cluster has one primary; turn that off"
            .to_owned(),
    );
    say(
        !facts.modules.is_empty(),
        format!("it has loaded modules ({}), and members load none: unload them", facts.modules.join(", ")),
    );
    say(
        !["", "0"].contains(&setting("tls-port")),
        format!("it listens with TLS on port {}, and members speak without it: set tls-port 0", setting("tls-port")),
    );
    say(
        !facts.missing.is_empty(),
        format!(
            "its commands {} are renamed or removed, and the agent needs them: take rename-command out of its configuration and \
             restart it",
            facts.missing.join(", ")
        ),
    );
    say(
        facts.config_file.is_none(),
        "it was started without a configuration file, so that nobody could keep another from starting it by itself: start it with one"
            .to_owned(),
    );
    say(
        !facts.has_config_file(),
        "the configuration file that it names is not on this machine's disk as we see it (a container?)".to_owned(),
    );
    say(
        !instance.is_here,
        "its folder is not the one that this machine has at the same path (a container?): let it run on the machine itself".to_owned(),
    );
    let socketless = without_socket(flavor, instance);
    say(socketless.is_some(), socketless.unwrap_or_default());
    say(
        setting("dbfilename") != SNAPSHOT,
        format!(
            "its snapshot is called {}, and that of members {SNAPSHOT}: set dbfilename {SNAPSHOT}, and restart it",
            setting("dbfilename")
        ),
    );
    say(
        instance.others > 0,
        format!("{} other servers work in the same folder: give each a folder of its own", instance.others),
    );
    say(
        facts.version() != server.version,
        format!(
            "it runs version {}, and {} is version {}: restart it, or install that one",
            facts.version(),
            server.program.display(),
            server.version
        ),
    );
    say(
        server.release < FIRST_RELEASE,
        format!(
            "it is version {}, and only {}.{} and later have users",
            server.version, FIRST_RELEASE.0, FIRST_RELEASE.1
        ),
    );
    say(facts.info.is("loading", "1"), "it is loading its data: wait until it has".to_owned());
    say(
        !facts.info.is_primary() && setting("replica-read-only") == "no",
        "it takes writes of its own as a replica (replica-read-only no), and may have what its upstream has not: set it to yes, and \
         synchronize it anew"
            .to_owned(),
    );
    let ours: Vec<&str> = facts.users.iter().map(|user| name_of(user)).filter(|name| is_ours(name)).collect();
    say(
        !ours.is_empty(),
        format!("it has users whose names are those of the agent ({}): give them others", ours.join(", ")),
    );
    problems.extend(foreign::unfit_place(&instance.data, data_root).filter(|_| instance.is_here));
    problems
}

/// What there is to do where an instance has no socket.
fn without_socket(flavor: &Flavor, instance: &Running) -> Option<String> {
    instance.door.socket().is_none().then(|| {
        format!(
            "it has no socket, through which the agent reaches it whatever keeps its clients out: set unixsocket (such as \
             /run/{0}/{0}-server.sock), and restart it, replicas first",
            flavor.name
        )
    })
}

fn losses(facts: &Facts) -> Vec<String> {
    let mut losses = Vec::new();
    if facts.setting("appendonly") == "yes" {
        losses.push(
            "appendonly is on, and members keep snapshots only: from its next start on a crash loses what was written since the last one"
                .to_owned(),
        );
    }
    let open: Vec<&str> = facts.users.iter().filter(|user| is_open(user)).map(|user| name_of(user)).collect();
    if !open.is_empty() {
        losses.push(format!(
            "who comes as {} needs no password, and a cluster lets nobody in without one: he is kept out at once; set a password \
             (requirepass), which is kept",
            open.join(" or ")
        ));
    }
    let renamed: Vec<&str> = facts
        .renamed
        .iter()
        .map(String::as_str)
        .filter(|name| !NEEDED.contains(&name.to_ascii_lowercase().as_str()))
        .collect();
    if !renamed.is_empty() {
        losses.push(format!(
            "its commands {} are renamed or removed, and have their own names again from its next start on",
            renamed.join(", ")
        ));
    }
    losses
}

fn changes(section: &Section, server: &Server, facts: &Facts, kept: &BTreeMap<String, String>) -> Vec<SettingChange> {
    let bind = config::listening(section);
    let ours = OWNED.iter().chain(DEFAULTS).copied().chain([("bind", bind.as_str())]);
    let change = |(name, then): (&str, &str)| {
        let now = facts.settings.get(name)?;
        let then = then.trim_matches('"');
        (!same(now, then) && !kept.contains_key(name)).then(|| SettingChange {
            name: name.to_owned(),
            now: now.clone(),
            then: then.to_owned(),
            needs_restart: AT_START.contains(&name) || name == "bind",
        })
    };
    // Who may use this socket has no gate before him that would keep him from a primary whose lease is over: nobody but us does.
    let socket = SettingChange {
        name: "unixsocket".to_owned(),
        now: facts.setting("unixsocket").to_owned(),
        then: "one of the agent's: applications of its machine log in by TCP".to_owned(),
        needs_restart: true,
    };
    let rights = |user: &String| {
        let (now, then) = (user.clone(), adopted_user(server, user));
        SettingChange {
            name: format!("user {}", name_of(user)),
            now: rights_of(&now),
            then: rights_of(&then),
            needs_restart: false,
        }
    };
    ours.filter_map(change).chain([socket]).chain(facts.users.iter().map(rights)).collect()
}

/// What a user may do, without his name and his passwords.
fn rights_of(user: &str) -> String {
    user.split(' ').skip(2).filter(|word| !word.starts_with(['#', '>'])).collect::<Vec<_>>().join(" ")
}

/// Whether a value of the engine's is this one of ours.
fn same(now: &str, then: &str) -> bool {
    let bytes = |text: &str| {
        let (number, unit) = text.split_at(text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic()).len());
        let unit =
            [("", 1), ("kb", 1 << 10), ("mb", 1 << 20), ("gb", 1 << 30)].iter().find(|(name, _)| *name == unit)?.1;
        number.parse::<u64>().ok().map(|number| number * unit)
    };
    let words = |text: &str| {
        let words = text.split_whitespace().map(|word| match word {
            "slave" => "replica".to_owned(),
            word => bytes(word).map_or_else(|| word.to_owned(), |number| number.to_string()),
        });
        words.collect::<Vec<_>>()
    };
    // The engine tells all classes of clients where we set one.
    let (now, then) = (words(now), words(then));
    now == then
        || then.first().is_some_and(|class| class == "replica") && now.windows(then.len()).any(|part| part == then)
}

/// Whether a setting is one that the engine also tells by a newer name.
fn is_older_name(facts: &Facts, name: &str) -> bool {
    let newer = name.replace("slave", "replica").replace("ziplist", "listpack");
    newer != name && facts.settings.contains_key(&newer)
}

/// What the cluster's settings are to be: what differs from the engine's own defaults, and a cluster may have.
fn settings(flavor: &Flavor, facts: &Facts, usual: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let carried = |(name, value): (&String, &String)| {
        let one = BTreeMap::from([(name.clone(), value.clone())]);
        let is_the_clusters = config::check_names(flavor, &one).is_ok()
            && !is_older_name(facts, name)
            && name != "appendonly"
            && !OF_THE_PLACE.contains(&name.as_str());
        let is_plain = !value.contains(['"', '\'', '\\', '#'])
            && (OF_MANY_WORDS.contains(&name.as_str()) || !value.contains(char::is_whitespace));
        (is_the_clusters && is_plain && usual.get(name) != Some(value)).then_some(one)
    };
    facts.settings.iter().filter_map(carried).flatten().collect()
}

impl Facts {
    /// Where a replica's stream comes from.
    pub(super) fn upstream(&self) -> Option<Endpoint> {
        let host = self.info.text("master_host").filter(|_| !self.info.is_primary())?.to_owned();
        let port = u16::try_from(self.info.number("master_port")?).ok()?;
        Some(Endpoint { host, port })
    }
}
