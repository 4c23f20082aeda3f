//! The agent's configuration: `agent.toml`. Every key has a default; an unknown key is an error with its line.
//!
//! The engines' own sections, `[engine.NAME]`, are opaque here: only the engine's driver reads its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use regent_common::{
    config::{self, ConfigError},
    ids::NodeName,
    telemetry::LogFormat,
};
use serde::{Deserialize, Serialize};

use crate::{firewall, gate, supervisor::Backend};

/// Where the configuration lies unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/regent/agent.toml";
/// Port of the agent's gRPC services.
pub const DEFAULT_PORT: u16 = 7421;
/// Ports of coordinators and agents where nothing else is configured.
const OWN_PORTS: std::ops::RangeInclusive<u16> = 7420..=7423;
/// Port of remote administration: a list that closed it would lock people out of the machine.
const SSH_PORT: u16 = 22;

/// Everything in `agent.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Name of the node.
    pub name: Option<NodeName>,
    /// Coordinators as host:port, the first that answers is used.
    pub coordinator: Vec<String>,
    /// Address and port of the gRPC services.
    pub listen: SocketAddr,
    /// Address and port for health and measurements; empty text for none.
    #[serde(with = "optional_address")]
    pub http_listen: Option<SocketAddr>,
    /// Host under which this node is reached.
    pub advertise: String,
    /// Public address, for display; empty when it has none.
    pub public_address: String,
    /// Private address, for display; empty when it has none.
    pub private_address: String,
    /// Folder of identity, ledger and secrets.
    pub state_dir: PathBuf,
    /// Folder of all engine data.
    pub data_root: PathBuf,
    /// Folder of sockets and pid files.
    pub run_dir: PathBuf,
    /// Ports from which an engine gets one when its cluster names none, as FROM-TO; empty for the engine's usual one.
    #[serde(with = "optional_ports")]
    pub engine_ports: Option<PortRange>,
    /// What engines are started in.
    pub supervisor: Supervision,
    /// Name of the gate's table in nftables; empty for no gate.
    pub gate_table: String,
    /// Name of the allow-list's table in nftables; empty for no allow-list.
    pub allow_table: String,
    /// Form of the log.
    pub log_format: LogForm,
    /// What the allow-list holds for.
    pub firewall: Firewall,
    /// The engines' own sections.
    pub engine: BTreeMap<String, toml::Table>,
}

/// What the allow-list holds for beside the engine's port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Firewall {
    /// More ports.
    pub extra_ports: BTreeSet<u16>,
}

/// Ports from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogForm {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What engines are started in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Supervision {
    /// Transient units where systemd runs the machine and the agent is root, else processes.
    #[default]
    Auto,
    /// A transient unit of systemd's for each engine.
    Systemd,
    /// A detached process for each engine: where several agents share a machine, or there is no systemd.
    Process,
}

/// A range of ports that may be missing, as text that may be empty.
mod optional_ports {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::PortRange;

    pub(super) fn serialize<S: Serializer>(range: &Option<PortRange>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&range.map(|range| range.to_string()).unwrap_or_default())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PortRange>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() { Ok(None) } else { text.parse().map(Some).map_err(D::Error::custom) }
    }
}

/// An address that may be missing, as text that may be empty.
mod optional_address {
    use std::net::SocketAddr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(address: &Option<SocketAddr>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&address.map(|address| address.to_string()).unwrap_or_default())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
        let text = String::deserialize(from)?;
        if text.is_empty() {
            return Ok(None);
        }
        text.parse()
            .map(Some)
            .map_err(|_| D::Error::custom(format!("{text:?} is not ADDRESS:PORT, nor empty for none")))
    }
}

// === impl PortRange ===

impl PortRange {
    /// The ports, in order.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }

    /// The last port.
    pub fn last(self) -> u16 {
        self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let malformed = || format!("{text:?} is not a range of ports: write FROM-TO, such as 15432-15439");
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last) =
            (first.trim().parse().map_err(|_| malformed())?, last.trim().parse().map_err(|_| malformed())?);
        if first == 0 || first > last { Err(malformed()) } else { Ok(Self { first, last }) }
    }
}

// === impl LogForm ===

impl From<LogForm> for LogFormat {
    fn from(form: LogForm) -> Self {
        match form {
            LogForm::Text => Self::Text,
            LogForm::Json => Self::Json,
        }
    }
}

// === impl Supervision ===

impl Supervision {
    /// The backend on this machine.
    pub fn backend(self) -> Backend {
        match self {
            Self::Auto => Backend::of_this_machine(),
            Self::Systemd => Backend::Systemd,
            Self::Process => Backend::Process,
        }
    }
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        let port_of = |port| SocketAddr::from(([0, 0, 0, 0], port));
        Self {
            name: None,
            coordinator: Vec::new(),
            listen: port_of(DEFAULT_PORT),
            http_listen: Some(port_of(7423)),
            advertise: String::new(),
            public_address: String::new(),
            private_address: String::new(),
            state_dir: PathBuf::from("/var/lib/regent/agent"),
            data_root: PathBuf::from("/var/lib/regent/engines"),
            run_dir: PathBuf::from("/run/regent"),
            engine_ports: None,
            supervisor: Supervision::default(),
            gate_table: gate::nftables::DEFAULT_TABLE.to_owned(),
            allow_table: firewall::nftables::DEFAULT_TABLE.to_owned(),
            firewall: Firewall::default(),
            log_format: LogForm::Text,
            engine: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Reads a file; one that does not exist at the default place is an empty one.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let path = match path {
            Some(path) => path,
            None if Path::new(DEFAULT_PATH).exists() => Path::new(DEFAULT_PATH),
            None => return Ok(Self::default()),
        };
        let config: Self = config::load(path)?;
        config.check().map_err(|(key, problem)| ConfigError::Value { path: path.to_owned(), key, problem })?;
        Ok(config)
    }

    /// What keys must not say beside one another; which key, and what is wrong with it.
    fn check(&self) -> Result<(), (&'static str, String)> {
        if !self.allow_table.is_empty() && self.allow_table == self.gate_table {
            let problem = format!("{:?} is the table of the gate: the two need one each", self.allow_table);
            return Err(("allow_table", problem));
        }
        let own = [Some(self.listen), self.http_listen].into_iter().flatten().map(|address| address.port());
        let own: BTreeSet<u16> = own.chain(OWN_PORTS).collect();
        for port in &self.firewall.extra_ports {
            let whose = match *port {
                0 => "no port",
                SSH_PORT => "ssh's port, which an allow-list never closes",
                port if own.contains(&port) => "a port of Regent's own, which an allow-list never closes",
                _ => continue,
            };
            return Err(("firewall.extra_ports", format!("{port} is {whose}")));
        }
        Ok(())
    }

    /// Folder of the node's identity.
    pub fn identity_dir(&self) -> PathBuf {
        self.state_dir.join("identity")
    }

    /// Socket on which the running agent tells its state to people of this machine.
    pub fn status_socket(&self) -> PathBuf {
        self.run_dir.join("agent.sock")
    }

    /// Host under which this node is reached: what is configured, else its host name.
    pub fn advertise_host(&self) -> String {
        if self.advertise.is_empty() { hostname() } else { self.advertise.clone() }
    }

    /// Where its agent is reached, as host:port.
    pub fn agent_address(&self) -> String {
        let host = self.advertise_host();
        let port = self.listen.port();
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// The host name of this machine.
pub fn hostname() -> String {
    nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_else(|| "localhost".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../deploy/config/agent.example.toml");

    fn parse(text: &str) -> Result<Config, ConfigError> {
        config::parse(Path::new("agent.toml"), text)
    }

    /// The example with its commented-out keys put in force.
    fn all_keys() -> String {
        let is_key = |line: &str| {
            let key = line.split(['=', ']']).next().unwrap_or_default().trim_start_matches('[').trim();
            !key.is_empty()
                && key.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '.')
                && (line.contains(" = ") || line.starts_with('['))
        };
        EXAMPLE
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(rest) if is_key(rest) => rest,
                Some(_) | None => line,
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_example_names_every_key_with_its_default() {
        let example = parse(EXAMPLE).expect("the example is valid as it stands");
        assert_eq!(example, Config::default(), "the example, as it stands, changes nothing");
        let text = all_keys();
        parse(&text).expect("the example is valid with every key in force");
        let keys: toml::Table = text.parse().unwrap();
        let full = Config { name: Some("n".parse().unwrap()), ..Config::default() };
        let known = toml::Table::try_from(full).unwrap();
        let missing: Vec<_> = known.keys().filter(|key| !keys.contains_key(*key)).collect();
        assert!(missing.is_empty(), "deploy/config/agent.example.toml does not name {missing:?}");
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused() {
        for bad in [
            "nmae = \"a\"",
            "listen = \"7421\"",
            "http_listen = \"x\"",
            "engine_ports = \"9-1\"",
            "name = \"Not A Label\"",
        ] {
            assert!(parse(bad).is_err(), "{bad} was taken");
        }
        let ports = parse("engine_ports = \"15432-15433\"").unwrap().engine_ports.unwrap();
        assert_eq!(ports.ports().collect::<Vec<_>>(), [15432, 15433]);
        assert_eq!(parse("http_listen = \"\"").unwrap().http_listen, None);
    }

    #[test]
    fn an_allow_list_never_closes_ssh_nor_regents_own_ports() {
        let with = |text: &str| parse(text).unwrap().check().err();
        assert_eq!(with("[firewall]\nextra_ports = [6432, 9187]"), None);
        for port in [0, 22, 7420, 7421, 7423, 9001, 9002] {
            let text = format!(
                "listen = \"0.0.0.0:9001\"\nhttp_listen = \"0.0.0.0:9002\"\n[firewall]\nextra_ports = [{port}]"
            );
            let (key, problem) = with(&text).unwrap_or_else(|| panic!("{port} was taken"));
            assert!(key == "firewall.extra_ports" && problem.starts_with(&format!("{port} is ")), "{problem}");
        }
        assert_eq!(with("allow_table = \"regent\"").unwrap().0, "allow_table");
        assert_eq!(with("allow_table = \"\"\ngate_table = \"\""), None);
    }

    #[test]
    fn an_engines_section_is_not_read_here() {
        let config = parse("[engine.some]\nanything = 1\n").unwrap();
        assert!(config.engine["some"].contains_key("anything"));
    }

    #[test]
    fn addresses_are_made_of_host_and_port() {
        let config = parse("advertise = \"::1\"\nlisten = \"127.0.0.1:9\"").unwrap();
        assert_eq!(config.agent_address(), "[::1]:9");
    }
}
