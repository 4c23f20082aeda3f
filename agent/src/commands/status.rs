//! `status`: the state of this node, without the coordinator.

use regent_common::{
    identity::{IdentityDirectory, Principal},
    ids::MemberName,
    lease::{Forced, LeaseSource},
    tls::ReloadingIdentity,
    topology::Role,
};

use super::{Common, Failure, Output, output};
use crate::{
    answers::Answering,
    config::Config,
    ledger::{LedgerStore, RealDisk},
    status::{GateStands, GateStatus, LeaseStatus, MemberStatus, PromiseStatus, Status},
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
        Some(member) => lines.extend(of_member(member)),
    }
    lines.extend(of_authority(status));
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

fn none() -> String {
    "-".to_owned()
}

fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn of_member(member: &MemberStatus) -> Vec<(&'static str, String)> {
    let forced = member.forced.as_ref().map(|forced| ("forced", of_forced(forced)));
    let lines = vec![
        ("member", format!("{} of cluster {}", member.member, member.cluster)),
        ("role", member.role.map_or_else(none, |role| format!("{role:?}").to_lowercase())),
        ("epoch", member.epoch.to_string()),
        ("writable in epoch", member.writable_epoch.map_or_else(none, |epoch| epoch.to_string())),
        ("electorate", of_electorate(member)),
        ("fenced", yes_no(member.fenced)),
        ("data must not start", yes_no(member.dirty)),
        ("port", member.port.to_string()),
    ];
    lines.into_iter().chain(forced).collect()
}

fn of_forced(forced: &Forced) -> String {
    let off = forced.confirmed_off.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
    let at = forced.at;
    if off.is_empty() {
        return format!("by a person at {at}");
    }
    format!("by a person at {at}, who named {off} as off: to stay off until a coordinator has adopted this primary")
}

fn of_electorate(member: &MemberStatus) -> String {
    match (&member.electorate, member.role) {
        (Some(electorate), _) => electorate.to_string(),
        (None, Some(Role::Replica)) => "told to the primary alone".to_owned(),
        (None, Some(Role::Active)) => "none: both sides take writes".to_owned(),
        (None, Some(Role::Primary) | None) => "not known".to_owned(),
    }
}

/// Lease, gate, promises, fence, and what becomes of them without a coordinator.
fn of_authority(status: &Status) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if let Some(lease) = &status.lease {
        lines.push(("lease", of_lease(lease)));
    }
    if let Some(gate) = &status.gate {
        lines.push(("gate", of_gate(gate, status.fence.as_ref().is_some_and(|fence| fence.timed_gate))));
    }
    if !status.answers.is_empty() {
        let told = status.answers.iter().map(|(member, how)| format!("{member} {}", answering(*how)));
        lines.push(("endorsement", told.collect::<Vec<_>>().join(", ")));
    }
    if let Some(promise) = &status.promise {
        lines.push(("promise", of_promise(promise)));
    }
    if let Some(fence) = &status.fence {
        let stages = [
            (fence.timed_gate, "the gate closes by itself"),
            (fence.destroys_sockets, "sockets are destroyed"),
            (fence.survives_flush, "a foreign flush is survived"),
        ];
        let stages = stages.map(|(is, what)| format!("{what}: {}", if is { "yes" } else { "NO" }));
        lines.push(("fence", stages.join(", ")));
        lines.extend(fence.problems.iter().map(|problem| ("", problem.clone())));
    }
    if !status.without_coordinator.is_empty() {
        lines.push(("if no coordinator", status.without_coordinator.clone()));
    }
    lines
}

fn of_lease(lease: &LeaseStatus) -> String {
    if !lease.stands {
        return format!("NONE stands for epoch {}", lease.epoch);
    }
    let source = match lease.source {
        Some(LeaseSource::Coordinator) => "granted by the coordinator",
        Some(LeaseSource::Endorsement) => "by the endorsement of the others",
        Some(LeaseSource::Alone) => "alone: nobody could be promoted",
        None => "from whom is not known",
    };
    let end = match (lease.until, lease.remaining_millis) {
        (Some(until), Some(left)) => format!("until {until} (in {}) unless it is renewed", seconds(left)),
        (Some(_) | None, _) => "without an end".to_owned(),
    };
    format!("stands for epoch {}, {source}, {end}", lease.epoch)
}

fn of_gate(gate: &GateStatus, has_gate: bool) -> String {
    let ports = gate.ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match gate.state {
        GateStands::Unarmed if has_gate => "not armed: this member does not reign".to_owned(),
        GateStands::Unarmed => "there is none on this host".to_owned(),
        GateStands::Closed => format!("CLOSED: nothing passes to or from port {ports}"),
        GateStands::Open => {
            let closes = gate.closes_in_millis.map_or_else(none, seconds);
            format!("open for port {ports}; the kernel closes it in {closes}")
        }
        GateStands::OpenWithoutEnd => format!("open for port {ports}, without an end"),
        GateStands::Unknown => format!("not known: {}", gate.problem),
    }
}

fn of_promise(promise: &PromiseStatus) -> String {
    let whom = match (&promise.asked_by, promise.epoch) {
        (Some(member), Some(epoch)) => format!("to {member}, the primary of epoch {epoch}"),
        (Some(_) | None, _) => "what an earlier run of this agent may have given is waited for".to_owned(),
    };
    format!("{whom}: not promoted and pointed nowhere else for {}", seconds(promise.remaining_millis))
}

fn answering(how: Answering) -> &'static str {
    match how {
        Answering::Endorses => "endorses",
        Answering::Refuses => "refuses",
        Answering::Silent => "does not answer",
    }
}

/// Tenths of seconds are enough for a person.
fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use regent_common::{ids::Epoch, lease::FenceStages};

    use super::*;
    use crate::ledger::Ledger;

    fn line<'a>(shown: &'a str, name: &str) -> &'a str {
        let found = shown.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name} in {shown}"))
    }

    #[test]
    fn lease_gate_promise_and_outlook_have_a_line_each() {
        let mut status = Status::of_ledger(&Ledger::default());
        status.lease = Some(LeaseStatus {
            epoch: Epoch(3),
            stands: true,
            source: Some(LeaseSource::Endorsement),
            remaining_millis: Some(4250),
            until: Some(jiff::Timestamp::UNIX_EPOCH),
        });
        status.gate = Some(GateStatus {
            state: GateStands::Open,
            ports: [5432, 6432].into(),
            closes_in_millis: Some(3800),
            problem: String::new(),
        });
        status.fence = Some(FenceStages {
            timed_gate: true,
            destroys_sockets: true,
            survives_flush: false,
            problems: vec!["the kernel is too old: use 6.9 or newer".to_owned()],
        });
        status.answers =
            [("db2".parse().unwrap(), Answering::Endorses), ("db3".parse().unwrap(), Answering::Silent)].into();
        status.promise = Some(PromiseStatus {
            asked_by: Some("db1".parse().unwrap()),
            epoch: Some(Epoch(3)),
            remaining_millis: 900,
        });
        status.without_coordinator = "stops within 5 s, when its gate closes: db3 does not answer".to_owned();
        let shown = table(&status);
        let expected = [
            ("lease", "stands for epoch 3, by the endorsement of the others, until 1970-01-01T00:00:00Z (in 4.2 s)"),
            ("gate", "open for port 5432, 6432; the kernel closes it in 3.8 s"),
            ("endorsement", "db2 endorses, db3 does not answer"),
            ("promise", "to db1, the primary of epoch 3: not promoted and pointed nowhere else for 0.9 s"),
            ("fence", "the gate closes by itself: yes, sockets are destroyed: yes, a foreign flush is survived: NO"),
            ("if no coordinator", "stops within 5 s, when its gate closes: db3 does not answer"),
        ];
        for (name, said) in expected {
            assert!(line(&shown, name).contains(said), "{said:?} is not in {shown}");
        }
        assert!(shown.contains("  the kernel is too old: use 6.9 or newer"));
    }

    #[test]
    fn what_does_not_stand_is_loud() {
        let lease = LeaseStatus { epoch: Epoch(3), stands: false, source: None, remaining_millis: None, until: None };
        assert_eq!(of_lease(&lease), "NONE stands for epoch 3");
        let gate = GateStatus {
            state: GateStands::Closed,
            ports: [5432].into(),
            closes_in_millis: None,
            problem: String::new(),
        };
        assert!(of_gate(&gate, true).starts_with("CLOSED"));
        let unarmed = GateStatus { state: GateStands::Unarmed, ports: Default::default(), ..gate };
        assert_eq!(of_gate(&unarmed, false), "there is none on this host");
    }
}
