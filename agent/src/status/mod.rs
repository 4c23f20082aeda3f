//! What a person on this machine can know of the agent without the coordinator: from the running agent over its own socket
//! ([`crate::local`]), else from the ledger alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use jiff::Timestamp;
use regent_common::{
    clock::Moment,
    convert::to_millis,
    ids::{ClusterName, Epoch, MemberName},
    lease::{Authority, Electorate, FenceStages, Forced, LeaseSource},
    topology::{EngineObservation, Role},
};
use serde::{Deserialize, Serialize};

use self::outlook::Outlook;
use crate::{
    answers::Answering,
    gate::{Gate, GateState, Open},
    ledger::Ledger,
    local,
    node::Node,
};

mod outlook;

/// The state of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Name of the node; absent when it has not joined.
    pub node: Option<String>,
    /// Id of the coordinator that it belongs to.
    pub coordinator_id: Option<String>,
    /// Whether the agent runs; what is below `member` is then current.
    pub running: bool,
    /// Sessions that coordinators have open.
    pub sessions: usize,
    /// When a coordinator was heard last.
    pub heard_at: Option<Timestamp>,
    /// One sentence on whether a failover would happen by itself.
    pub automatic_failover: String,
    /// Why the ledger is not to be believed.
    pub quarantine: Option<String>,
    /// The member, by the ledger; absent for a spare.
    pub member: Option<MemberStatus>,
    /// What is seen of the engine; absent when the agent does not run.
    pub engine: Option<EngineObservation>,
    /// Names of the actions that are being carried out.
    pub jobs: Vec<String>,
    /// The lease; absent unless this member is the primary, and while the agent does not run.
    #[serde(default)]
    pub lease: Option<LeaseStatus>,
    /// The gate in the kernel; absent while the agent does not run.
    #[serde(default)]
    pub gate: Option<GateStatus>,
    /// What this host can do of the fence; absent while the agent does not run.
    #[serde(default)]
    pub fence: Option<FenceStages>,
    /// What this member has promised to a primary; absent for nothing.
    #[serde(default)]
    pub promise: Option<PromiseStatus>,
    /// What those answer who are being asked for endorsement now.
    #[serde(default)]
    pub answers: BTreeMap<MemberName, Answering>,
    /// One sentence on what would happen if the coordinator stayed away.
    #[serde(default)]
    pub without_coordinator: String,
}

/// The lease of a primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseStatus {
    /// Of which epoch.
    pub epoch: Epoch,
    /// Whether it stands, and the gate with it.
    pub stands: bool,
    /// From whom it is; absent when none stands.
    pub source: Option<LeaseSource>,
    /// Milliseconds that it still stands unless it is renewed; absent when it does not stand, or has no end.
    pub remaining_millis: Option<u64>,
    /// The same as a time of day.
    pub until: Option<Timestamp>,
}

/// The gate in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateStatus {
    /// How it stands.
    pub state: GateStands,
    /// Ports that are dropped unless it is open.
    pub ports: BTreeSet<u16>,
    /// Milliseconds until the kernel closes it; absent when it is closed, or has no end.
    pub closes_in_millis: Option<u64>,
    /// Why it could not be read; empty when it could.
    #[serde(default)]
    pub problem: String,
}

/// How a gate stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateStands {
    /// Nothing is gated: this member does not reign, or the host has no gate.
    Unarmed,
    /// Nothing passes.
    Closed,
    /// Open until the kernel closes it.
    Open,
    /// Open until the agent closes it.
    OpenWithoutEnd,
    /// It could not be read.
    Unknown,
}

/// What this member has promised to a primary, or may have promised before it was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromiseStatus {
    /// The primary that asked last; absent when none did since the agent started.
    pub asked_by: Option<MemberName>,
    /// Of which epoch that is the primary.
    pub epoch: Option<Epoch>,
    /// Milliseconds for which this member is not promoted, and follows nobody else.
    pub remaining_millis: u64,
}

/// The member, by the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its cluster.
    pub cluster: ClusterName,
    /// Its name.
    pub member: MemberName,
    /// Role that the last step gave it.
    pub role: Option<Role>,
    /// Highest epoch.
    pub epoch: Epoch,
    /// Highest epoch in which its engine may have been writable.
    pub writable_epoch: Option<Epoch>,
    /// Whether the primary of this epoch was granted a lease once.
    #[serde(default)]
    pub established: bool,
    /// Whom the primary has to ask for endorsement; absent while it is not known.
    #[serde(default)]
    pub electorate: Option<Electorate>,
    /// That a person has made it the primary of this epoch without a coordinator; absent when nobody has.
    #[serde(default)]
    pub forced: Option<Forced>,
    /// Whether a fence stands.
    pub fenced: bool,
    /// Whether the data must not be started.
    pub dirty: bool,
    /// Port of its engine.
    pub port: u16,
}

// === impl Status ===

impl Status {
    /// What the ledger alone tells.
    pub fn of_ledger(ledger: &Ledger) -> Self {
        Self {
            node: None,
            coordinator_id: None,
            running: false,
            sessions: 0,
            heard_at: None,
            automatic_failover: "off: the agent does not run".to_owned(),
            quarantine: ledger.quarantine.clone(),
            member: ledger.membership.as_ref().map(|membership| MemberStatus {
                cluster: membership.spec.cluster.clone(),
                member: membership.member.clone(),
                role: membership.role,
                epoch: membership.epoch,
                writable_epoch: membership.writable_epoch,
                established: membership.established,
                electorate: membership.electorate.clone(),
                forced: membership.forced.clone(),
                fenced: membership.fenced,
                dirty: membership.must_not_start(),
                port: membership.port,
            }),
            engine: None,
            jobs: Vec::new(),
            lease: None,
            gate: None,
            fence: None,
            promise: None,
            answers: BTreeMap::new(),
            without_coordinator: without_agent(ledger).to_owned(),
        }
    }

    /// The state of a running agent.
    pub async fn of_node(node: &Node) -> Self {
        let contact = node.contact.borrow().clone();
        let observation = node.observation();
        let ledger = node.ledger().read();
        let authority = node.lease.authority(&ledger);
        let answers = node.answers.of_late(node.lease.timing().heartbeat);
        let lease = authority.lease.as_ref().map(|report| LeaseStatus::of(report, node.wall()));
        let promise = PromiseStatus::of(&authority);
        let without_coordinator = ledger.believed().map(|membership| {
            let outlook = Outlook {
                membership,
                rebooted: membership.writable_boot_id.as_ref().is_some_and(|boot| *boot != node.boot_id),
                lease: lease.as_ref(),
                gated: authority.fence.timed_gate,
                answers: &answers,
                endorses: promise.as_ref().and_then(|promise| promise.asked_by.as_ref()),
            };
            outlook.sentence()
        });
        let mut status = Self {
            node: Some(node.name.to_string()),
            coordinator_id: Some(node.coordinator_id.clone()),
            running: true,
            sessions: contact.sessions,
            heard_at: contact.heard_at,
            automatic_failover: automatic_failover(contact.sessions, contact.stale_store, &ledger, &authority),
            jobs: node.jobs().into_iter().map(|job| job.action).collect(),
            gate: Some(GateStatus::read(node.gate.as_ref(), node.lease.clock().now()).await),
            lease,
            promise,
            answers,
            without_coordinator: match &ledger.quarantine {
                Some(_) => QUARANTINED.to_owned(),
                None => without_coordinator.unwrap_or_default(),
            },
            fence: Some(authority.fence),
            ..Self::of_ledger(&ledger)
        };
        if let (Some(member), Some(seen)) = (&mut status.member, &observation) {
            member.dirty = seen.dirty;
        }
        status.engine = observation.map(|seen| seen.engine);
        status
    }

    /// Asks the running agent; `None` when none answers.
    pub fn of_running_agent(socket: &Path) -> Option<Self> {
        serde_json::from_str(&local::get_status(socket).ok()?.body).ok()
    }
}

/// Whether another member would take over by itself if this one were lost now, as far as this node can know.
fn automatic_failover(sessions: usize, stale_store: bool, ledger: &Ledger, authority: &Authority) -> String {
    if stale_store {
        return "off: the coordinator's store is older than one that this node has seen; endorsement carries on"
            .to_owned();
    }
    if sessions == 0 {
        return "off until a coordinator is connected: only a coordinator promotes anybody".to_owned();
    }
    if ledger.quarantine.is_some() {
        return "off for this node: it is in quarantine".to_owned();
    }
    let Some(membership) = &ledger.membership else { return "on: a coordinator is connected".to_owned() };
    if membership.role == Some(Role::Active) {
        return "not needed: the other side takes writes already".to_owned();
    }
    if membership.role != Some(Role::Primary) {
        return "on: a coordinator is connected".to_owned();
    }
    if authority.electorate.as_ref().is_some_and(Electorate::is_empty) {
        return "on for an engine that fails, off for the loss of this machine: the electorate is empty".to_owned();
    }
    if !authority.fence.timed_gate {
        return "on for an engine that fails, off for the loss of this machine: no gate closes here by itself"
            .to_owned();
    }
    "on: a coordinator is connected, unless the cluster has it switched off".to_owned()
}

/// What a node in quarantine does (rule T5).
const QUARANTINED: &str =
    "stays as it is, in quarantine: gate closed, engine stopped, it endorses nobody; a person has to act";

/// What the end of the agent means, by the ledger alone.
fn without_agent(ledger: &Ledger) -> &'static str {
    if ledger.quarantine.is_some() {
        return QUARANTINED;
    }
    match ledger.membership.as_ref().and_then(|membership| membership.role) {
        None => "",
        Some(Role::Primary) => {
            "the agent does not run and renews no lease: where this host has a gate it closes, and writes stop; start the agent"
        }
        Some(Role::Replica) => "the agent does not run: the replica goes on, and endorses nobody; start the agent",
        Some(Role::Active) => {
            "the agent does not run: the side goes on taking writes, and is not brought back if it ends; start the agent"
        }
    }
}

// === impl LeaseStatus ===

impl LeaseStatus {
    fn of(report: &regent_common::lease::LeaseReport, now: Timestamp) -> Self {
        let left = Some(report.remaining).filter(|left| report.stands && !left.is_zero());
        Self {
            epoch: report.epoch,
            stands: report.stands,
            source: report.source,
            remaining_millis: left.map(to_millis),
            until: left.and_then(|left| now.checked_add(left).ok()),
        }
    }
}

// === impl GateStatus ===

impl GateStatus {
    async fn read(gate: &dyn Gate, now: Moment) -> Self {
        match gate.state().await {
            Ok(state) => Self::of(state, now),
            Err(error) => Self {
                state: GateStands::Unknown,
                ports: BTreeSet::new(),
                closes_in_millis: None,
                problem: error.to_string(),
            },
        }
    }

    fn of(GateState { gated, open }: GateState, now: Moment) -> Self {
        let (state, closes_in_millis) = match open {
            _ if gated.is_empty() => (GateStands::Unarmed, None),
            Open::Closed => (GateStands::Closed, None),
            Open::Until(end) if end.held_for(now).is_zero() => (GateStands::Closed, None),
            Open::Until(end) => (GateStands::Open, Some(to_millis(end.held_for(now)))),
            Open::Untimed => (GateStands::OpenWithoutEnd, None),
        };
        Self { state, ports: gated, closes_in_millis, problem: String::new() }
    }
}

// === impl PromiseStatus ===

impl PromiseStatus {
    fn of(authority: &Authority) -> Option<Self> {
        let remaining_millis = to_millis(authority.prepare_in);
        let heard = authority.heard.as_ref();
        (remaining_millis > 0).then(|| Self {
            asked_by: heard.map(|heard| heard.member.clone()),
            epoch: heard.map(|heard| heard.lease.epoch),
            remaining_millis,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
