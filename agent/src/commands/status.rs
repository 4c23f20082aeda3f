//! `status`: the state of this node, without the coordinator.

use regent_common::{
    identity::{IdentityDirectory, Principal},
    tls::ReloadingIdentity,
};

use super::{Common, Failure, Output, output};
use crate::{
    config::Config,
    ledger::{LedgerStore, RealDisk},
    status::Status,
};

/// Arguments of `status`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Form of what is shown
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.common.load()?;
    let status = match Status::of_running_agent(&config.status_socket()) {
        Some(status) => status,
        None => by_files(&config)?,
    };
    match arguments.output {
        Output::Json => output::result(serde_json::to_string_pretty(&status).expect("a status has only text keys")),
        Output::Table => output::result(table(&status)),
    }
    Ok(())
}

/// What can be known while no agent runs.
fn by_files(config: &Config) -> Result<Status, Failure> {
    let ledger = LedgerStore::peek(&RealDisk, &config.state_dir).map_err(|error| Failure::of(&error))?;
    let mut status = Status::of_ledger(&ledger.unwrap_or_default());
    if let Ok(identity) = ReloadingIdentity::open(&IdentityDirectory::new(config.identity_dir())) {
        let identity = identity.identity();
        status.coordinator_id = Some(identity.coordinator_id);
        if let Principal::Node(name) = identity.principal {
            status.node = Some(name.to_string());
        }
    }
    Ok(status)
}

/// The status for people, one fact a line.
fn table(status: &Status) -> String {
    let none = || "-".to_owned();
    let yes_no = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let mut lines = vec![
        ("node", status.node.clone().unwrap_or_else(|| "has not joined".to_owned())),
        ("coordinator", status.coordinator_id.clone().unwrap_or_else(none)),
        ("agent", if status.running { "running" } else { "not running" }.to_owned()),
        ("sessions", status.sessions.to_string()),
        ("heard last", status.heard_at.map_or_else(none, |at| at.to_string())),
        ("automatic failover", status.automatic_failover.clone()),
    ];
    if let Some(reason) = &status.quarantine {
        lines.push(("quarantine", reason.clone()));
    }
    match &status.member {
        None => lines.push(("member", "none (a spare)".to_owned())),
        Some(member) => {
            lines.push(("member", format!("{} of cluster {}", member.member, member.cluster)));
            lines.push(("role", member.role.map_or_else(none, |role| format!("{role:?}").to_lowercase())));
            lines.push(("epoch", member.epoch.to_string()));
            lines.push(("writable in epoch", member.writable_epoch.map_or_else(none, |epoch| epoch.to_string())));
            lines.push(("fenced", yes_no(member.fenced)));
            lines.push(("data must not start", yes_no(member.dirty)));
            lines.push(("port", member.port.to_string()));
        }
    }
    if let Some(engine) = &status.engine {
        lines.push(("engine", format!("{:?}", engine.state).to_lowercase()));
        lines.push(("process", engine.pid.map_or_else(none, |pid| pid.to_string())));
        lines.push(("position", engine.position.as_ref().map_or_else(none, |at| at.display().to_owned())));
        if !engine.reason.is_empty() {
            lines.push(("why", engine.reason.clone()));
        }
    }
    if !status.jobs.is_empty() {
        lines.push(("doing", status.jobs.join(", ")));
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    lines.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect::<Vec<_>>().join("\n")
}
