//! `join`: makes this machine a node of a coordinator, known by the fingerprint of its CA in the join token.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use regent_common::{
    clock::SystemClock,
    error::ErrorChain,
    identity::{Identity, IdentityDirectory, Principal},
    ids::NodeName,
    tls::{self, ReloadingIdentity},
};

use super::{Common, Failure, output};
use crate::{
    config::{self, Config},
    enroll::{self, Addresses, EnrollError, Enrollment, Joining},
    ledger::{LedgerStore, RealDisk},
};

/// Arguments of `join`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// The coordinator, as HOST:PORT (port 7420 when none is given)
    coordinator: String,
    /// Join token, made by "regentctl token create"
    #[arg(long, env = "REGENT_JOIN_TOKEN", hide_env_values = true)]
    token: String,
    /// Name of the node [default: that of the configuration, else the host name]
    #[arg(long)]
    name: Option<NodeName>,
    /// Host name or address under which other machines reach this one
    #[arg(long)]
    advertise: Option<String>,
    /// Address and port for the agent's services
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// A label for the platform, KEY=VALUE; may be given several times
    #[arg(long = "label", value_parser = label)]
    labels: Vec<(String, String)>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        Some(_) | None => Err("a label is KEY=VALUE".to_owned()),
    }
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    tls::install_crypto_provider();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| Failure::of(&error))?;
    runtime.block_on(Box::pin(join(arguments)))
}

async fn join(arguments: Arguments) -> Result<(), Failure> {
    let mut config = arguments.common.load()?;
    if let Some(listen) = arguments.listen {
        config.listen = listen;
    }
    if let Some(advertise) = arguments.advertise {
        config.advertise = advertise;
    }
    let node = node_name(arguments.name, &config)?;
    let coordinator = with_port(&arguments.coordinator);
    let fingerprint = enroll::fingerprint_in(&arguments.token).ok_or_else(|| {
        Failure::new(Failure::USAGE, "the token carries no fingerprint of a CA: copy it whole, as it was shown")
    })?;
    let directory = IdentityDirectory::new(config.identity_dir());
    refuse_foreign(&directory, &fingerprint)?;
    let ledger = LedgerStore::peek(&RealDisk, &config.state_dir).map_err(|error| Failure::of(&error))?;
    let made = enroll::new_key(&config.advertise_host()).map_err(|error| failed(&error))?;
    let joining = Joining {
        fingerprint,
        token: arguments.token,
        node: node.clone(),
        request: made.request,
        addresses: Addresses::of(&config),
        labels: arguments.labels.into_iter().collect::<BTreeMap<_, _>>(),
        ledger_empty: ledger.is_none(),
    };
    let joined = enroll::join(&coordinator, joining, &SystemClock).await.map_err(|error| failed(&error))?;
    directory.store(&joined.certificate_pem, &made.key, &joined.ca_pem).map_err(|error| Failure::of(&error))?;
    let enrollment = Enrollment { coordinator: coordinator.clone() };
    enrollment.store(&RealDisk, &config.state_dir).map_err(|error| Failure::of(&error))?;
    if let Some(written) = write_config(arguments.common.config.as_deref(), &config, &node, &coordinator)? {
        output::note(format!("wrote {written}"));
    }
    let place = match joined.cluster.as_str() {
        "" => "a spare".to_owned(),
        cluster => format!("a replica of {cluster}"),
    };
    output::result(format!("joined coordinator {} as node {node}, {place}", joined.coordinator_id));
    output::note("start the agent: regent-agent run (or: systemctl start regent-agent)");
    Ok(())
}

fn failed(error: &EnrollError) -> Failure {
    match error {
        EnrollError::Refused(status) => Failure::of_status(status),
        EnrollError::Transport(_) | EnrollError::Deadline { .. } => {
            Failure::new(Failure::UNREACHABLE, ErrorChain(error).to_string())
        }
        EnrollError::NoCoordinator | EnrollError::Key { .. } => Failure::of(error),
    }
}

fn with_port(coordinator: &str) -> String {
    let has_port = coordinator
        .rsplit_once(':')
        .is_some_and(|(host, port)| port.parse::<u16>().is_ok() && (!host.contains(':') || host.ends_with(']')));
    if has_port { coordinator.to_owned() } else { format!("{coordinator}:7420") }
}

fn node_name(given: Option<NodeName>, config: &Config) -> Result<NodeName, Failure> {
    if let Some(name) = given.or_else(|| config.name.clone()) {
        return Ok(name);
    }
    let host = config::hostname();
    let label = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    NodeName::new(label).map_err(|_| {
        Failure::new(Failure::USAGE, format!("the host name {host:?} is not a node name: give one with --name"))
    })
}

/// A machine obeys one coordinator: leaving one is a person's deed.
fn refuse_foreign(directory: &IdentityDirectory, fingerprint: &str) -> Result<(), Failure> {
    let Ok(files) = directory.load() else { return Ok(()) };
    let known = x509_parser::pem::parse_x509_pem(files.authority.as_bytes())
        .map(|(_, pem)| tls::fingerprint(&pem.contents))
        .unwrap_or_default();
    if known == fingerprint {
        return Ok(());
    }
    let path = directory.0.display();
    let owner = match ReloadingIdentity::open(directory).map(|identity| identity.identity()) {
        Ok(Identity { coordinator_id, principal: Principal::Node(name) }) => {
            format!("node {name} of coordinator {coordinator_id}")
        }
        Ok(identity) => identity.to_string(),
        Err(_) => "a node of another coordinator".to_owned(),
    };
    Err(Failure::new(
        Failure::REFUSED,
        format!(
            "FOREIGN_COORDINATOR: this machine is {owner} already; nothing was changed. To move it: remove it from its \
             cluster there, stop the agent, move {path} away, and join again"
        ),
    ))
}

/// Writes a configuration where there is none; the name of the file that was written.
fn write_config(
    path: Option<&Path>,
    config: &Config,
    node: &NodeName,
    coordinator: &str,
) -> Result<Option<String>, Failure> {
    let path = path.unwrap_or_else(|| Path::new(config::DEFAULT_PATH));
    if path.exists() {
        return Ok(None);
    }
    let default = Config::default();
    let mut table = toml::Table::new();
    let mut put = |key: &str, value: toml::Value| table.insert(key.to_owned(), value);
    put("name", node.to_string().into());
    put("coordinator", vec![coordinator.to_owned()].into());
    if config.listen != default.listen {
        put("listen", config.listen.to_string().into());
    }
    if !config.advertise.is_empty() {
        put("advertise", config.advertise.clone().into());
    }
    if config.state_dir != default.state_dir {
        put("state_dir", config.state_dir.display().to_string().into());
    }
    let text = format!("# Written by \"regent-agent join\"; every key is explained in agent.example.toml.\n{table}");
    let write = || {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(path, text)
    };
    match write() {
        Ok(()) => Ok(Some(path.display().to_string())),
        Err(error) => Err(Failure::new(Failure::FAILED, format!("cannot write {}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinator_without_a_port_gets_the_usual_one() {
        for (given, meant) in [
            ("c.example", "c.example:7420"),
            ("c.example:1", "c.example:1"),
            ("[::1]:1", "[::1]:1"),
            ("[::1]", "[::1]:7420"),
        ] {
            assert_eq!(with_port(given), meant);
        }
    }

    #[test]
    fn a_configuration_is_written_once_and_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc/agent.toml");
        let config = Config {
            listen: "127.0.0.1:1".parse().unwrap(),
            advertise: "127.0.0.1".to_owned(),
            state_dir: folder.path().join("state"),
            ..Config::default()
        };
        let node: NodeName = "a".parse().unwrap();
        assert!(write_config(Some(&path), &config, &node, "c:7420").unwrap().is_some());
        let meant = Config { name: Some(node.clone()), coordinator: vec!["c:7420".to_owned()], ..config.clone() };
        assert_eq!(Config::load(Some(&path)).unwrap(), meant);
        assert!(write_config(Some(&path), &config, &node, "other:1").unwrap().is_none());
        assert_eq!(Config::load(Some(&path)).unwrap(), meant);
    }

    #[test]
    fn labels_have_a_key() {
        assert_eq!(label("zone=a=b"), Ok(("zone".to_owned(), "a=b".to_owned())));
        assert!(label("zone").is_err() && label("=a").is_err());
    }
}
