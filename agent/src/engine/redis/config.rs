//! Renders the engine's configuration, and says which settings are ours.
//!
//! The files are in `ROOT/conf`, outside the data: `server.conf`, `upstream.conf`, which alone says whom the engine follows, and
//! `users.acl` ([`super::access`]). The engine never writes them. **Invariant:** no file says that the engine is a primary: it
//! starts as a replica, and only the agent makes it a primary, under a lease.

use std::{collections::BTreeMap, fmt::Write as _, path::Path, process::Stdio, time::Duration};

use regent_common::{
    ids::MemberName,
    topology::{Mode, Peer},
};
use secrecy::ExposeSecret;
use tokio::{io::AsyncWriteExt, process::Command, time};

use super::{
    access::{REPLICATOR, SIDE, Secrets},
    backlog,
    bootstrap::Wanted,
    certificate::Part,
    flavor::{Flavor, Section, Server},
};
use crate::engine::{
    DriverError,
    layout::{EngineUser, Layout},
};

/// Settings that a cluster may change, with the value that they have otherwise.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    // What a member that was away for a while, or is being cloned, still finds. It grows with the rate of writing.
    (backlog::SETTING, "64mb"),
    // A replica that loads a copy takes nothing meanwhile; a limit that cuts it off makes it begin again, for ever.
    ("client-output-buffer-limit", "replica 1gb 512mb 120"),
    ("tcp-keepalive", "60"),
];

/// Settings that replication and failover stand on: the driver sets them and a cluster may not.
pub(super) const OWNED: &[(&str, &str)] = &[
    ("daemonize", "no"),
    ("supervised", "no"),
    // Logins are by name and password; the port is behind the agent's gate and firewall.
    ("protected-mode", "no"),
    ("logfile", "\"\""),
    ("dbfilename", "dump.rdb"),
    // A file of the log of commands loses the id of the history when it is loaded: every start would be a full synchronization.
    ("appendonly", "no"),
    ("replica-read-only", "yes"),
    ("replica-serve-stale-data", "yes"),
    ("repl-diskless-sync", "yes"),
    ("repl-diskless-sync-delay", "1"),
    // The old data stays until the new is there: one that is loaded from the wire is lost when the wire breaks.
    ("repl-diskless-load", "disabled"),
    ("repl-backlog-ttl", "0"),
    ("repl-timeout", "10"),
    ("repl-ping-replica-period", PING_PERIOD),
    ("rdbchecksum", "yes"),
    // The snapshot is what tells that there is data.
    ("rdb-del-sync-files", "no"),
    // Copies at one place have the same data: only the primary evicts.
    ("replica-ignore-maxmemory", "yes"),
    // From then on it says of itself that it is busy, and is known to live.
    ("busy-reply-threshold", "5000"),
    ("unixsocketperm", "700"),
];

/// Those of them that an engine takes only at its start. A log of commands is left to it by choice: it goes on until then.
pub(super) const AT_START: &[&str] =
    &["appendonly", "daemonize", "dbfilename", "logfile", "rdbchecksum", "supervised", "unixsocketperm"];

/// More names that are ours: places, logins, other ways to be a replica, and what the engine is asked to be besides.
const OWNED_NAMES: &[&str] = &[
    "acl-pubsub-default",
    "aclfile",
    "appenddirname",
    "appendfilename",
    "bind",
    "bind-source-addr",
    "dir",
    "include",
    "io-threads-do-reads",
    "loadmodule",
    "lua-time-limit",
    "masterauth",
    "masteruser",
    "pidfile",
    "port",
    "primaryauth",
    "primaryuser",
    "rename-command",
    "replica-announce-ip",
    "replica-announce-port",
    "replicaof",
    "requirepass",
    "shutdown-on-sigterm",
    "unixsocket",
    "unixsocketgroup",
    "user",
];

/// Beginnings of names that are ours.
const OWNED_BEGINNINGS: &[&str] = &["cluster-", "tls-", "sentinel"];

/// What is other for one of two sides that both take writes. The first two have to come before anything that names an upstream.
const OF_A_SIDE: &[(&str, &str)] = &[
    ("active-replica", "yes"),
    ("multi-master", "yes"),
    ("replica-read-only", "no"),
    // It takes writes while what the other side has is merged in, instead of refusing them.
    ("allow-write-during-load", "yes"),
    ("repl-diskless-sync-delay", "0"),
];

/// Names by which several members would be primaries at once, in whichever flavor they are asked for.
const SEVERAL_PRIMARIES: &[&str] = &["active-replica", "multi-master", "multi-master-no-forward"];

/// Seconds between two words with which a primary keeps its replicas awake.
pub(super) const PING_PERIOD: &str = "1";

/// What the engine says when it takes its configuration and has nowhere to listen, as it has in a check.
const TAKEN: &str = "Configured to not listen anywhere";
/// What it says before what it does not take.
const NOT_TAKEN: &str = "FATAL CONFIG FILE ERROR";
/// What release 8 says before names that it does not know: they might be a module's.
const UNKNOWN: &str = "Unresolved Configuration(s) Detected";

/// What the rendered files depend on, besides the cluster.
#[derive(Debug, Clone)]
pub(super) struct Place<'a> {
    pub(super) flavor: &'static Flavor,
    pub(super) layout: &'a Layout,
    pub(super) section: &'a Section,
    pub(super) server: &'a Server,
    pub(super) member: &'a MemberName,
    pub(super) socket: &'a Path,
    pub(super) host: &'a str,
    pub(super) port: u16,
}

/// Names that the engine still knows by an older word.
pub(super) fn canonical(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    match name.as_str() {
        "slaveof" | "primaryof" => "replicaof".to_owned(),
        _ => name.replace("slave", "replica"),
    }
}

/// Whether a setting is ours.
fn is_owned(flavor: &Flavor, name: &str) -> bool {
    let name = canonical(name);
    OWNED_NAMES.iter().chain(flavor.owned_names).any(|owned| *owned == name)
        || OWNED.iter().chain(flavor.owned).any(|(owned, _)| *owned == name)
        || OWNED_BEGINNINGS.iter().any(|begin| name.starts_with(begin))
}

/// Checks names, as far as that can be done without the engine.
pub(super) fn check_names(flavor: &Flavor, settings: &BTreeMap<String, String>) -> Result<(), DriverError> {
    let invalid = |name: &String, problem: &str| {
        Err(DriverError::InvalidSetting { name: name.clone(), problem: problem.to_owned() })
    };
    for (name, value) in settings {
        if canonical(name) == "appendonly" && value.eq_ignore_ascii_case("no") {
            continue;
        }
        if canonical(name) == "appendonly" {
            return invalid(
                name,
                "members keep snapshots: a log of commands does not know the place in the history that it ends at, and every \
                 restart would be a full synchronization; set save to how often a snapshot is to be made",
            );
        }
        if SEVERAL_PRIMARIES.contains(&canonical(name).as_str()) {
            let problem = match flavor.modes.contains(&Mode::MultiMaster) {
                true => "whether both members take writes is the cluster's mode, which is chosen when it is created",
                false => "a cluster has one primary: members that all take writes are not supported",
            };
            return invalid(name, problem);
        }
        if is_owned(flavor, name) {
            return invalid(name, "it is set and kept by regent, as replication and failover depend on it");
        }
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(DriverError::UnknownSetting { name: name.clone(), engine: flavor.name });
        }
        if value.contains(['\n', '\r', '\0']) {
            return invalid(name, "its value must be one line");
        }
    }
    Ok(())
}

/// Has the engine's own program check names and values; needs no folder.
pub(super) async fn check(
    flavor: &Flavor,
    server: &Server,
    agent_program: &Path,
    user: &EngineUser,
    settings: &BTreeMap<String, String>,
) -> Result<(), DriverError> {
    check_names(flavor, settings)?;
    let mut text = String::new();
    for (name, value) in settings {
        set(&mut text, name, value);
    }
    let said = try_configuration(server, agent_program, user, &text).await?;
    if said.contains(TAKEN) {
        return Ok(());
    }
    let first_name = |problem: &str| {
        let line = problem.split_once(">>> '").and_then(|(_, rest)| rest.split_whitespace().next());
        line.unwrap_or_default().trim_end_matches('\'').to_owned()
    };
    if let Some((_, unknown)) = said.split_once(UNKNOWN) {
        return Err(DriverError::UnknownSetting { name: first_name(unknown), engine: flavor.name });
    }
    let Some((_, problem)) = said.split_once(NOT_TAKEN) else {
        return Err(DriverError::Program {
            program: flavor.program.to_owned(),
            status: "an unknown end".to_owned(),
            stderr: said,
        });
    };
    let name = first_name(problem);
    let why = problem.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    if why.contains("Bad directive") && !settings.is_empty() {
        return Err(DriverError::UnknownSetting { name, engine: flavor.name });
    }
    Err(DriverError::InvalidSetting { name, problem: why.to_owned() })
}

/// Starts the server on this configuration, with nowhere to listen, so that it ends at once; what it said.
async fn try_configuration(
    server: &Server,
    agent_program: &Path,
    user: &EngineUser,
    settings: &str,
) -> Result<String, DriverError> {
    const LIMIT: Duration = Duration::from_secs(10);
    let program = &server.program;
    let failed = |source| DriverError::Io { doing: "run", path: program.clone(), source };
    let mut command = Command::new(agent_program);
    command.args(["helper", "attached", "--parent", &std::process::id().to_string()]);
    if let Some(user) = &user.name {
        command.args(["--user", user]);
    }
    command.arg("--").arg(program).arg("-").current_dir("/");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    // What it says at its end is to be heard whatever it is to log later.
    let text = format!("{settings}\nport 0\nsave \"\"\ndaemonize no\nlogfile \"\"\nloglevel warning\n");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let told = async {
        // One that does not take the first line may have ended before it was told the last.
        drop(stdin.write_all(text.as_bytes()).await);
        drop(stdin);
        child.wait_with_output().await
    };
    let output = time::timeout(LIMIT, told).await.map_err(|_| DriverError::Deadline {
        doing: "checking the settings".to_owned(),
        seconds: LIMIT.as_secs(),
        last: "the server did not end".to_owned(),
    })?;
    let output = output.map_err(failed)?;
    Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Renders `server.conf`.
pub(super) fn server_conf(place: &Place<'_>, wanted: &Wanted) -> String {
    let Wanted { settings, secrets, .. } = wanted;
    let (stream, other) = match wanted.mode {
        Mode::PrimaryReplica => (REPLICATOR, [].as_slice()),
        Mode::MultiMaster => (SIDE, OF_A_SIDE),
    };
    let mut text = format!(
        "# Written by regent-agent for member {}. Changes made here are lost: change the settings of the cluster.\n",
        place.member
    );
    if wanted.tls {
        let copy = |part| quoted(&place.layout.tls_copy(part).display().to_string());
        set(&mut text, "port", "0");
        set(&mut text, "tls-port", &place.port.to_string());
        set(&mut text, "tls-cert-file", &copy(Part::Certificate));
        set(&mut text, "tls-key-file", &copy(Part::Key));
        set(&mut text, "tls-ca-cert-file", &copy(Part::Ca));
        set(&mut text, "tls-replication", "yes");
        // Who comes proves who he is by his password, as in every cluster: an application needs no certificate for that.
        set(&mut text, "tls-auth-clients", "no");
    } else {
        set(&mut text, "port", &place.port.to_string());
    }
    set(&mut text, "bind", &listening(place.section));
    set(&mut text, "unixsocket", &quoted(&place.socket.display().to_string()));
    set(&mut text, "dir", &quoted(&place.layout.data().display().to_string()));
    set(&mut text, "pidfile", &quoted(&place.layout.server_pid().display().to_string()));
    set(&mut text, "aclfile", &quoted(&place.layout.users_acl().display().to_string()));
    set(&mut text, "masteruser", stream);
    set(&mut text, "masterauth", &quoted(secrets.replication.expose_secret()));
    set(&mut text, "replica-announce-ip", place.host);
    set(&mut text, "replica-announce-port", &place.port.to_string());
    for (name, value) in DEFAULTS {
        if !settings.keys().any(|wanted| canonical(wanted) == *name) {
            set(&mut text, name, value);
        }
    }
    for (name, value) in settings {
        set(&mut text, name, value);
    }
    let is_other = |name: &str| other.iter().any(|(own, _)| *own == name);
    let usual = OWNED.iter().chain(place.flavor.owned).filter(|(name, _)| !is_other(name));
    for (name, value) in usual.chain(other) {
        // Before release 7 it has another name, and the same value by itself.
        if *name != "busy-reply-threshold" || place.server.release >= (7, 0) {
            set(&mut text, name, value);
        }
    }
    if place.server.release >= (7, 0) {
        // When the machine goes down: what is not saved would be synchronized in full afterwards.
        set(&mut text, "shutdown-on-sigterm", "save");
    }
    set(&mut text, "include", &quoted(&place.layout.upstream_conf().display().to_string()));
    text
}

/// Settings that can be changed while the engine runs, as the file has them: our own are set by the file alone.
pub(super) fn changeable(settings: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    // What the backlog has grown to stays.
    let stays = |name: &str| name == backlog::SETTING || settings.keys().any(|wanted| canonical(wanted) == name);
    let usual = DEFAULTS.iter().filter(|(name, _)| !stays(name));
    let usual = usual.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    usual.chain(settings.iter().map(|(name, value)| (name.clone(), value.clone()))).collect()
}

/// What makes a running engine one of a member's, as far as it takes that while it runs: all but places, what only a start changes,
/// and the log of commands, which goes on until then.
pub(super) fn at_run_time(
    place: &Place<'_>,
    settings: &BTreeMap<String, String>,
    secrets: &Secrets,
) -> BTreeMap<String, String> {
    let (host, port) = (place.host.to_owned(), place.port.to_string());
    let mut text = BTreeMap::from([
        ("masteruser".to_owned(), REPLICATOR.to_owned()),
        ("masterauth".to_owned(), secrets.replication.expose_secret().to_owned()),
        ("replica-announce-ip".to_owned(), host),
        ("replica-announce-port".to_owned(), port),
    ]);
    if place.server.release >= (7, 0) {
        text.insert("shutdown-on-sigterm".to_owned(), "save".to_owned());
    }
    let ours = OWNED.iter().filter(|(name, _)| !AT_START.contains(name));
    let ours = ours.filter(|(name, _)| *name != "busy-reply-threshold" || place.server.release >= (7, 0));
    text.extend(ours.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    text.extend(changeable(settings));
    text
}

/// The words of `bind`. Addresses that the machine does not have are no reason not to start.
pub(super) fn listening(section: &Section) -> String {
    match section.listen_addresses.as_deref().map(str::trim) {
        None | Some("" | "*") => "* -::*".to_owned(),
        Some(addresses) => addresses.split(',').map(str::trim).collect::<Vec<_>>().join(" "),
    }
}

fn set(text: &mut String, name: &str, value: &str) {
    let value = if value.is_empty() { "\"\"" } else { value };
    writeln!(text, "{name} {value}").expect("writing to a string does not fail");
}

/// A value as one word of the configuration file.
fn quoted(value: &str) -> String {
    let mut text = String::from("\"");
    for byte in value.bytes() {
        match byte {
            b'"' | b'\\' => text.extend(['\\', char::from(byte)]),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => write!(text, "\\x{byte:02x}").expect("writing to a string does not fail"),
        }
    }
    text.push('"');
    text
}

/// Begins the line of `upstream.conf` that names the upstream.
const FOLLOWS: &str = "# follows ";
/// An address at which nobody listens.
pub(super) const NOBODY: (&str, u16) = ("127.0.0.1", 1);

/// Renders `upstream.conf` of one of two sides that both take writes: for the agent's memory alone. Its engine follows nobody from a
/// start on, and so gives its history another id with each: an id that came back with older data would let the other side go on at a
/// place that has other words in it.
pub(super) fn side_conf(other: Option<&Peer>) -> String {
    other.map_or_else(String::new, |other| format!("{FOLLOWS}{}\n", other.member))
}

/// Renders `upstream.conf`: whom the engine follows from its next start; for `None` an address at which nobody is. While it follows
/// nobody it also refuses to be copied from, so that an emptied primary that comes back empties nobody.
pub(super) fn upstream_conf(upstream: Option<&Peer>) -> String {
    match upstream {
        None => format!("replicaof {} {}\n", NOBODY.0, NOBODY.1),
        Some(peer) => format!("{FOLLOWS}{}\nreplicaof {} {}\n", peer.member, peer.engine.host, peer.engine.port),
    }
}

/// Whom the text of `upstream.conf` says that this member follows.
pub(super) fn followed(upstream_conf: &str) -> Option<MemberName> {
    MemberName::new(upstream_conf.lines().next()?.strip_prefix(FOLLOWS)?).ok()
}

#[cfg(test)]
mod tests {
    use regent_common::{
        ids::{ClusterName, NodeName},
        topology::Endpoint,
    };

    use super::{
        super::{
            SHAPE,
            flavor::{KEYDB, REDIS, VALKEY},
        },
        *,
    };

    fn settings(settings: &[(&str, &str)]) -> BTreeMap<String, String> {
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn server_conf_is_rendered() {
        let cluster = ClusterName::new("cache").unwrap();
        let user = EngineUser { name: None, uid: 0, gid: 0 };
        let layout = Layout::new("/srv/engines/cache".into(), user, cluster.clone(), cluster.member(1), &SHAPE);
        let place = Place {
            flavor: &REDIS,
            layout: &layout,
            section: &Section { listen_addresses: Some("10.0.0.1, ::1".to_owned()), ..Section::default() },
            server: &Server { program: "/usr/bin/redis-server".into(), version: "7.0.15".into(), release: (7, 0) },
            member: &cluster.member(1),
            socket: Path::new("/run/regent/cache/engine.sock"),
            host: "10.0.0.1",
            port: 6379,
        };
        let secrets = Secrets {
            agent: "a".into(),
            replication: "it's \"so\" \\ ü".into(),
            application: None,
            adopted: String::new(),
        };
        let mut wanted = Wanted {
            members: Vec::new(),
            secrets,
            settings: settings(&[("maxmemory", "1gb"), ("save", ""), ("slave-priority", "5")]),
            mode: Mode::PrimaryReplica,
            tls: false,
        };
        insta::assert_snapshot!(server_conf(&place, &wanted));

        let server = Server { program: "/usr/bin/keydb-server".into(), version: "6.3.4".into(), release: (6, 3) };
        let place = Place { flavor: &KEYDB, server: &server, ..place };
        let text = server_conf(&place, &wanted);
        let has = |name: &str| text.lines().any(|line| line.starts_with(name));
        assert!(has("active-replica no") && has("multi-master no"), "{text}");
        assert!(
            !has("busy-reply-threshold") && !has("shutdown-on-sigterm"),
            "it knows them only from release 7 on: {text}"
        );
        wanted.mode = Mode::MultiMaster;
        let text = server_conf(&place, &wanted);
        let lines = |name: &str| text.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>();
        assert_eq!(lines("active-replica"), ["active-replica yes"]);
        assert_eq!(lines("multi-master"), ["multi-master yes"]);
        assert_eq!(lines("replica-read-only"), ["replica-read-only no"]);
        assert_eq!(lines("masteruser"), ["masteruser regent-side"]);
        assert_eq!(lines("replicaof"), Vec::<&str>::new());
        assert_eq!(lines("tls-"), Vec::<&str>::new());
        wanted.tls = true;
        let text = server_conf(&place, &wanted);
        let lines = |name: &str| text.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>();
        assert_eq!(lines("port"), ["port 0"]);
        assert_eq!(lines("replica-announce-port"), ["replica-announce-port 6379"]);
        let of_tls = [
            "tls-port 6379",
            "tls-cert-file \"/srv/engines/cache/conf/tls.crt\"",
            "tls-key-file \"/srv/engines/cache/conf/tls.key\"",
            "tls-ca-cert-file \"/srv/engines/cache/conf/tls-ca.crt\"",
            "tls-replication yes",
            "tls-auth-clients no",
        ];
        assert_eq!(lines("tls-"), of_tls);
    }

    #[test]
    fn whom_a_member_follows_is_read_back() {
        let cluster = ClusterName::new("db").unwrap();
        let peer = Peer {
            member: cluster.member(1),
            node: NodeName::new("n1").unwrap(),
            engine: Endpoint { host: "10.0.0.1".to_owned(), port: 6379 },
            agent_address: String::new(),
        };
        let text = upstream_conf(Some(&peer));
        assert_eq!(text, "# follows db1\nreplicaof 10.0.0.1 6379\n");
        assert_eq!(followed(&text), Some(peer.member.clone()));
        assert_eq!(followed(&upstream_conf(None)), None);
        let peer = Peer { member: cluster.member(2), ..peer };
        assert_eq!(side_conf(Some(&peer)), "# follows db2\n");
        assert_eq!((followed(&side_conf(Some(&peer))), followed(&side_conf(None))), (Some(peer.member), None));
    }

    #[test]
    fn what_replication_stands_on_is_ours_under_every_name() {
        for name in
            ["port", "slaveof", "REPLICAOF", "rename-command", "cluster-enabled", "slave-read-only", "tls-port", "user"]
        {
            let refused = check_names(&REDIS, &settings(&[(name, "x")]));
            assert!(matches!(refused, Err(DriverError::InvalidSetting { .. })), "{name}: {refused:?}");
        }
        for (name, value) in [("maxmemory", "1gb"), ("slave-priority", "5"), ("appendonly", "no")] {
            check_names(&REDIS, &settings(&[(name, value)])).unwrap();
        }
        for flavor in [&REDIS, &VALKEY, &KEYDB] {
            for name in ["active-replica", "multi-master"] {
                let refused = check_names(flavor, &settings(&[(name, "yes")])).unwrap_err();
                assert!(matches!(refused, DriverError::InvalidSetting { .. }), "{name}: {refused:?}");
                let why = if *flavor == KEYDB { "the cluster's mode" } else { "one primary" };
                assert!(refused.to_string().contains(why), "{name}: {refused}");
            }
        }
        for name in ["enable-keydb-fastsync", "storage-provider"] {
            check_names(&KEYDB, &settings(&[(name, "x")])).unwrap_err();
        }
        check_names(&KEYDB, &settings(&[("server-threads", "2")])).unwrap();
        let refused = check_names(&REDIS, &settings(&[("appendonly", "yes")])).unwrap_err().to_string();
        assert!(refused.contains("snapshots"), "{refused}");
        assert!(check_names(&REDIS, &settings(&[("maxmemory", "1gb\nport 1")])).is_err());
        assert!(matches!(
            check_names(&REDIS, &settings(&[("max memory", "1")])),
            Err(DriverError::UnknownSetting { .. })
        ));
    }
}
