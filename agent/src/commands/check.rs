//! `check`: looks whether this machine has what the agent needs, and says what to do where it has not. Changes nothing.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
    sync::Arc,
};

use regent_common::{
    clock::{SystemClock, wall_now},
    error::ErrorChain,
    topology::EngineOffer,
};
use serde::Serialize;

use super::{Common, Failure, Output, output};
use crate::{
    config::Config,
    engine::{DriverError, ENGINES, Factory},
    firewall::{Firewall, nftables::NftablesFirewall},
    gate::{Gate, nftables::NftablesGate},
    host,
    status::Status,
};

/// Below this much free space a clone of anything is unlikely to fit.
const LITTLE_SPACE: u64 = 1 << 30;

/// Arguments of `check`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Form of what is shown
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    verdict: Verdict,
    found: String,
    to_do: String,
}

// === impl Finding ===

impl Finding {
    fn ok(what: impl Into<String>, found: impl Into<String>) -> Self {
        Self { what: what.into(), verdict: Verdict::Ok, found: found.into(), to_do: String::new() }
    }

    fn warn(what: impl Into<String>, found: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, to_do: to_do.into(), ..Self::ok(what, found) }
    }

    fn fail(what: impl Into<String>, found: impl Into<String>, to_do: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, to_do: to_do.into(), ..Self::ok(what, found) }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.common.load()?;
    let findings = look(&config);
    match arguments.output {
        Output::Json => output::result(serde_json::to_string_pretty(&findings).expect("findings have only text keys")),
        Output::Table => output::result(table(&findings)),
    }
    let failed = findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count();
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::new(Failure::FAILED, format!("{failed} of {} checks failed", findings.len())))
    }
}

fn look(config: &Config) -> Vec<Finding> {
    let running = Status::of_running_agent(&config.status_socket()).is_some();
    let mut findings = vec![fence(), allow_list(config), clock(), state(config), space(config)];
    findings.push(port("port for the agent", config.listen, "listen", running));
    if let Some(address) = config.http_listen {
        findings.push(port("port for health", address, "http_listen", running));
    }
    findings.extend(engines(config));
    findings
}

/// Which engines can be run. One that nobody has installed or configured is missed only where there is no other.
fn engines(config: &Config) -> Vec<Finding> {
    let offers: Vec<_> = ENGINES.iter().map(|factory| factory.offer(config.engine.get(factory.name()))).collect();
    let has_another = offers.iter().any(|offer| offer.problem.is_empty());
    let finding = |offer: EngineOffer| {
        let what = format!("engine {}", offer.engine);
        if offer.problem.is_empty() {
            Finding::ok(what, offer.versions.join(", "))
        } else if has_another && !config.engine.contains_key(&offer.engine) {
            Finding::ok(what, "not on this machine")
        } else {
            Finding::warn(what, "cannot be used", offer.problem)
        }
    };
    offers.into_iter().map(finding).chain(ENGINES.iter().filter_map(|factory| encryption(config, *factory))).collect()
}

/// Whether members whose ports speak TLS can be here, where a certificate for that is configured.
fn encryption(config: &Config, factory: &dyn Factory) -> Option<Finding> {
    let what = format!("TLS of {}", factory.name());
    let problem = match factory.connection_with_tls(config.engine.get(factory.name()), &config.advertise_host()) {
        Ok(None) => return None,
        Ok(Some(_)) => return Some(Finding::ok(what, "its certificate is usable")),
        Err(DriverError::NoTls { problem }) => problem,
        Err(error) => ErrorChain(&error).to_string(),
    };
    Some(Finding::warn(what, "no member whose port speaks TLS can be here", problem))
}

/// What the kernel can do for the fence, tried in a table of its own that is gone afterwards.
fn fence() -> Finding {
    let what = "fence";
    let table = format!("regent-check-{}", std::process::id());
    let abilities = NftablesGate::open(&table, Arc::new(SystemClock)).abilities();
    if abilities.problems.is_empty() {
        return Finding::ok(what, "the gate closes by itself, sockets are destroyed, a foreign flush is survived");
    }
    let found = if abilities.timed_gate { "not all of it" } else { "no gate: a frozen agent is not covered" };
    Finding::warn(what, found, abilities.problems.join("; "))
}

/// Whether an allow-list can be in force.
fn allow_list(config: &Config) -> Finding {
    let what = "allow-list";
    if config.allow_table.is_empty() {
        return Finding::warn(what, "switched off", "set allow_table in agent.toml to have one");
    }
    match NftablesFirewall::open(&format!("regent-check-{}-allow", std::process::id())).problem() {
        None => Finding::ok(what, "can be in force"),
        Some(problem) => Finding::warn(what, "none can be in force", problem),
    }
}

fn clock() -> Finding {
    let what = "clock";
    let synchronized = Command::new("timedatectl").args(["show", "--property=NTPSynchronized", "--value"]).output();
    match synchronized.map(|shown| String::from_utf8_lossy(&shown.stdout).trim().to_owned()) {
        Ok(answer) if answer == "yes" => Finding::ok(what, "kept by NTP"),
        Ok(_) | Err(_) => Finding::warn(
            what,
            format!("{}; nothing says that it is kept by NTP", wall_now()),
            "run chrony or systemd-timesyncd; certificates need a clock that is right within minutes",
        ),
    }
}

/// Whether files can be made in a folder, or where it will be.
fn writable(folder: &Path) -> io::Result<()> {
    let existing = folder.ancestors().find(|folder| folder.exists()).unwrap_or_else(|| Path::new("/"));
    let facts = rustix::fs::statvfs(existing)?;
    if facts.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) || existing.starts_with("/proc") {
        return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem));
    }
    Ok(rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)?)
}

fn state(config: &Config) -> Finding {
    let (what, shown) = ("state directory", config.state_dir.display());
    match writable(&config.state_dir) {
        Ok(()) => Finding::ok(what, shown.to_string()),
        Err(error) => Finding::fail(
            what,
            format!("{shown}: {error}"),
            "run as the agent's user, or set state_dir in agent.toml to a folder that it can write to",
        ),
    }
}

fn space(config: &Config) -> Finding {
    let (what, shown) = ("engine data", config.data_root.display());
    if let Err(error) = writable(&config.data_root) {
        let to_do = "set data_root in agent.toml to a folder that can be written to";
        return Finding::fail(what, format!("{shown}: {error}"), to_do);
    }
    let Some((size, free)) = host::disk(&config.data_root) else {
        return Finding::warn(what, format!("{shown}: its file system tells no size"), "look at the disk");
    };
    let found = format!("{shown}: {} MiB of {} MiB free", free >> 20, size >> 20);
    if free < LITTLE_SPACE {
        Finding::warn(what, found, "make room: a resync that keeps the old data needs space for two copies")
    } else {
        Finding::ok(what, found)
    }
}

fn port(what: &str, address: SocketAddr, key: &str, running: bool) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok(what, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && running => {
            Finding::ok(what, format!("{address}, held by the running agent"))
        }
        Err(error) => Finding::fail(
            what,
            format!("{address}: {error}"),
            format!("set {key} in agent.toml to another address, or stop what listens there"),
        ),
    }
}

fn table(findings: &[Finding]) -> String {
    let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or_default();
    let line = |finding: &Finding| {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let advice = if finding.to_do.is_empty() { String::new() } else { format!("\n      -> {}", finding.to_do) };
        format!("{verdict}  {:width$}  {}{advice}", finding.what, finding.found)
    };
    findings.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_a_failure_unless_the_agent_itself_holds_it() {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        assert_eq!(port("p", address, "listen", false).verdict, Verdict::Fail);
        assert_eq!(port("p", address, "listen", true).verdict, Verdict::Ok);
    }

    #[test]
    fn every_finding_that_is_not_ok_says_what_to_do() {
        let config =
            Config { state_dir: "/proc/no/such".into(), data_root: "/proc/no/such".into(), ..Config::default() };
        let findings = look(&config);
        for what in ["state directory", "engine data"] {
            assert!(findings.iter().any(|finding| finding.what == what && finding.verdict == Verdict::Fail), "{what}");
        }
        for finding in findings {
            assert_eq!(finding.verdict == Verdict::Ok, finding.to_do.is_empty(), "{finding:?}");
        }
    }
}
