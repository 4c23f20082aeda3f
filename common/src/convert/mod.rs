//! Translation between the wire and the vocabulary, in one place and exhaustively.
//!
//! To the wire is `From`, from the wire is `TryFrom`: what is not specified, not a name, or out of range is refused.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use prost_types::Timestamp as WireTimestamp;
use regent_proto::{agent::v1 as agent, types::v1 as wire};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    allow_list::{AllowList, AllowListError},
    ids::{Epoch, NameError, OperationToken},
    lease::Authority,
    position::{IntervalSet, Position},
    topology::{
        AllowListState, ClusterSpec, ConnectionFormat, Difference, Divergence, Endpoint, EngineObservation,
        EngineOffer, EngineState, HostFacts, Mode, Observation, Peer, Progress, Role, Ternary,
    },
};

mod authority;

pub use self::authority::to_millis;

/// Why a message from the wire was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConvertError {
    /// A field that must be there is not.
    #[error("field {field} is missing")]
    Missing {
        /// Name of the field.
        field: &'static str,
    },
    /// A number that names nothing, or too large.
    #[error("field {field} has the value {value}, which is out of range")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What was sent.
        value: i64,
    },
    /// A mode that this version does not know.
    #[error("mode {name:?} is not known here: upgrade this daemon")]
    UnknownMode {
        /// What was sent.
        name: String,
    },
    /// A name or an id is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// An allow-list is none.
    #[error("field allow_list: {0}")]
    AllowList(#[from] AllowListError),
}

fn missing(field: &'static str) -> ConvertError {
    ConvertError::Missing { field }
}

/// Wall time to the wire.
pub fn to_wire_time(time: Timestamp) -> WireTimestamp {
    WireTimestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// Wall time from the wire; `None` when it is out of the calendar's range.
pub fn from_wire_time(time: &WireTimestamp) -> Option<Timestamp> {
    Timestamp::new(time.seconds, time.nanos).ok()
}

fn time_or_epoch(time: Option<&WireTimestamp>) -> Timestamp {
    time.and_then(from_wire_time).unwrap_or(Timestamp::UNIX_EPOCH)
}

// === impl Position ===

impl From<&Position> for wire::Position {
    fn from(position: &Position) -> Self {
        Self {
            origins: position
                .origins()
                .map(|(origin, set)| wire::OriginIntervals {
                    origin: origin.to_owned(),
                    intervals: set.iter().map(|(start, end)| wire::Interval { start, end }).collect(),
                })
                .collect(),
            display: position.display().to_owned(),
        }
    }
}

impl From<wire::Position> for Position {
    fn from(message: wire::Position) -> Self {
        Position::new(
            message.origins.into_iter().map(|origin| {
                let intervals: Vec<_> = origin.intervals.iter().map(|i| (i.start, i.end)).collect();
                (origin.origin, IntervalSet::from(intervals))
            }),
            message.display,
        )
    }
}

// === impl Role, Ternary, EngineState ===

impl From<Role> for wire::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Primary => Self::Primary,
            Role::Replica => Self::Replica,
            Role::Active => Self::Active,
        }
    }
}

/// A role from the wire; unspecified is "not known".
pub fn role_from_wire(role: i32) -> Result<Option<Role>, ConvertError> {
    match wire::Role::try_from(role) {
        Ok(wire::Role::Unspecified) => Ok(None),
        Ok(wire::Role::Primary) => Ok(Some(Role::Primary)),
        Ok(wire::Role::Replica) => Ok(Some(Role::Replica)),
        Ok(wire::Role::Active) => Ok(Some(Role::Active)),
        Err(_) => Err(ConvertError::OutOfRange { field: "role", value: role.into() }),
    }
}

/// A role to the wire; not known is unspecified.
pub fn role_to_wire(role: Option<Role>) -> i32 {
    role.map_or(wire::Role::Unspecified, wire::Role::from).into()
}

impl From<Ternary> for wire::Ternary {
    fn from(value: Ternary) -> Self {
        match value {
            Ternary::Yes => Self::Yes,
            Ternary::No => Self::No,
            Ternary::Unknown => Self::Unspecified,
        }
    }
}

impl From<wire::Ternary> for Ternary {
    fn from(value: wire::Ternary) -> Self {
        match value {
            wire::Ternary::Yes => Self::Yes,
            wire::Ternary::No => Self::No,
            wire::Ternary::Unspecified => Self::Unknown,
        }
    }
}

impl From<EngineState> for wire::EngineState {
    fn from(state: EngineState) -> Self {
        match state {
            EngineState::Absent => Self::Absent,
            EngineState::Stopped => Self::Stopped,
            EngineState::Starting => Self::Starting,
            EngineState::Running => Self::Running,
            EngineState::Stopping => Self::Stopping,
            EngineState::Crashed => Self::Crashed,
            EngineState::Hung => Self::Hung,
        }
    }
}

impl TryFrom<wire::EngineState> for EngineState {
    type Error = ConvertError;
    fn try_from(state: wire::EngineState) -> Result<Self, ConvertError> {
        match state {
            wire::EngineState::Unspecified => Err(missing("engine_state")),
            wire::EngineState::Absent => Ok(Self::Absent),
            wire::EngineState::Stopped => Ok(Self::Stopped),
            wire::EngineState::Starting => Ok(Self::Starting),
            wire::EngineState::Running => Ok(Self::Running),
            wire::EngineState::Stopping => Ok(Self::Stopping),
            wire::EngineState::Crashed => Ok(Self::Crashed),
            wire::EngineState::Hung => Ok(Self::Hung),
        }
    }
}

// === impl Observation ===

impl From<&Observation> for wire::MemberObservation {
    fn from(seen: &Observation) -> Self {
        let engine = &seen.engine;
        Self {
            cluster_id: seen.cluster_id.to_string(),
            member: seen.member.to_string(),
            epoch: seen.epoch.0,
            token: seen.token.0,
            engine_state: wire::EngineState::from(engine.state).into(),
            role: role_to_wire(engine.role),
            storage_writable: wire::Ternary::from(engine.storage_writable).into(),
            position: engine.position.as_ref().map(Into::into),
            streaming: wire::Ternary::from(engine.streaming).into(),
            upstream: engine.upstream.as_ref().map(ToString::to_string).unwrap_or_default(),
            replay_lag_bytes: engine.replay_lag_bytes,
            pid: engine.pid.unwrap_or_default(),
            engine_version: engine.version.clone(),
            dirty: seen.dirty,
            reason: engine.reason.clone(),
            details: engine.details.clone(),
            observed_at: Some(to_wire_time(seen.observed_at)),
            observed_ago_millis: authority::to_millis(seen.observed_ago),
            fenced: seen.fenced,
            data_bytes: engine.data_bytes,
            stale: engine.stale.clone(),
            authority: Some((&seen.authority).into()),
            endpoint: seen.endpoint.as_ref().map(Into::into),
            configuration: seen.configuration.clone(),
            allow_list: seen.allow_list.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<wire::MemberObservation> for Observation {
    type Error = ConvertError;
    fn try_from(message: wire::MemberObservation) -> Result<Self, ConvertError> {
        let state = message.engine_state();
        Ok(Self {
            cluster_id: message.cluster_id.parse()?,
            member: message.member.parse()?,
            epoch: Epoch(message.epoch),
            token: OperationToken(message.token),
            fenced: message.fenced,
            dirty: message.dirty,
            observed_at: time_or_epoch(message.observed_at.as_ref()),
            observed_ago: Duration::from_millis(message.observed_ago_millis),
            engine: EngineObservation {
                state: state.try_into()?,
                role: role_from_wire(message.role)?,
                storage_writable: message.storage_writable().into(),
                streaming: message.streaming().into(),
                position: message.position.map(Into::into),
                upstream: if message.upstream.is_empty() { None } else { Some(message.upstream.parse()?) },
                replay_lag_bytes: message.replay_lag_bytes,
                pid: (message.pid != 0).then_some(message.pid),
                version: message.engine_version,
                reason: message.reason,
                details: message.details,
                data_bytes: message.data_bytes,
                stale: message.stale,
            },
            endpoint: message.endpoint.map(Endpoint::try_from).transpose()?,
            authority: message.authority.map(Authority::try_from).transpose()?.unwrap_or_default(),
            configuration: message.configuration,
            allow_list: message.allow_list.map(Into::into),
        })
    }
}

// === impl AllowListState ===

impl From<&AllowListState> for wire::AllowListState {
    fn from(state: &AllowListState) -> Self {
        Self { fingerprint: state.fingerprint.clone(), problem: state.problem.clone() }
    }
}

impl From<wire::AllowListState> for AllowListState {
    fn from(message: wire::AllowListState) -> Self {
        Self { fingerprint: message.fingerprint, problem: message.problem }
    }
}

// === impl HostFacts, EngineOffer, Endpoint, Progress ===

impl From<&HostFacts> for wire::HostFacts {
    fn from(facts: &HostFacts) -> Self {
        Self {
            cpus: facts.cpus,
            cpu_percent: facts.cpu_percent,
            memory_bytes: facts.memory_bytes,
            memory_available_bytes: facts.memory_available_bytes,
            disk_bytes: facts.disk_bytes,
            disk_free_bytes: facts.disk_free_bytes,
            kernel: facts.kernel.clone(),
            distribution: facts.distribution.clone(),
            boot_id: facts.boot_id.clone(),
        }
    }
}

impl From<wire::HostFacts> for HostFacts {
    fn from(message: wire::HostFacts) -> Self {
        Self {
            cpus: message.cpus,
            cpu_percent: message.cpu_percent,
            memory_bytes: message.memory_bytes,
            memory_available_bytes: message.memory_available_bytes,
            disk_bytes: message.disk_bytes,
            disk_free_bytes: message.disk_free_bytes,
            kernel: message.kernel,
            distribution: message.distribution,
            boot_id: message.boot_id,
        }
    }
}

impl From<&EngineOffer> for wire::EngineOffer {
    fn from(offer: &EngineOffer) -> Self {
        Self {
            engine: offer.engine.clone(),
            versions: offer.versions.clone(),
            modes: offer.modes.clone(),
            min_replicas: offer.min_replicas,
            default_replicas: offer.default_replicas,
            max_replicas: offer.max_replicas,
            can_rewind: offer.can_rewind,
            forgets_on_crash: offer.forgets_on_crash,
            problem: offer.problem.clone(),
            connection: Some((&offer.connection).into()),
            connection_with_tls: offer.connection_with_tls.as_ref().map(Into::into),
        }
    }
}

impl From<wire::EngineOffer> for EngineOffer {
    fn from(message: wire::EngineOffer) -> Self {
        Self {
            engine: message.engine,
            versions: message.versions,
            modes: message.modes,
            min_replicas: message.min_replicas,
            default_replicas: message.default_replicas,
            max_replicas: message.max_replicas,
            can_rewind: message.can_rewind,
            forgets_on_crash: message.forgets_on_crash,
            problem: message.problem,
            connection: message.connection.map(Into::into).unwrap_or_default(),
            connection_with_tls: message.connection_with_tls.map(Into::into),
        }
    }
}

impl From<&Endpoint> for wire::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self { host: endpoint.host.clone(), port: endpoint.port.into() }
    }
}

impl TryFrom<wire::Endpoint> for Endpoint {
    type Error = ConvertError;
    fn try_from(message: wire::Endpoint) -> Result<Self, ConvertError> {
        let port = u16::try_from(message.port)
            .map_err(|_| ConvertError::OutOfRange { field: "port", value: message.port.into() })?;
        Ok(Self { host: message.host, port })
    }
}

impl From<&Progress> for wire::Progress {
    fn from(progress: &Progress) -> Self {
        Self {
            phase: progress.phase.clone(),
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            bytes_per_second: progress.bytes_per_second,
            eta_seconds: progress.eta_seconds,
            entries_done: progress.entries_done,
            entries_total: progress.entries_total,
        }
    }
}

impl From<wire::Progress> for Progress {
    fn from(message: wire::Progress) -> Self {
        Self {
            phase: message.phase,
            bytes_done: message.bytes_done,
            bytes_total: message.bytes_total,
            bytes_per_second: message.bytes_per_second,
            eta_seconds: message.eta_seconds,
            entries_done: message.entries_done,
            entries_total: message.entries_total,
        }
    }
}

impl From<&ConnectionFormat> for wire::ConnectionFormat {
    fn from(format: &ConnectionFormat) -> Self {
        Self {
            user: format.user.clone(),
            database: format.database.clone(),
            any: format.any.clone(),
            primary: format.primary.clone(),
        }
    }
}

impl From<wire::ConnectionFormat> for ConnectionFormat {
    fn from(message: wire::ConnectionFormat) -> Self {
        Self { user: message.user, database: message.database, any: message.any, primary: message.primary }
    }
}

// === impl Divergence ===

impl From<&Divergence> for wire::DivergenceReport {
    fn from(report: &Divergence) -> Self {
        Self {
            member: report.member.to_string(),
            lost: Some((&report.lost).into()),
            amount: report.amount,
            unit: report.unit.clone(),
            resolution: report.resolution.clone(),
            found_at: Some(to_wire_time(report.found_at)),
            detail: report.detail.clone(),
        }
    }
}

// === impl Peer, ClusterSpec ===

impl From<&Peer> for agent::Peer {
    fn from(peer: &Peer) -> Self {
        Self {
            member: peer.member.to_string(),
            node: peer.node.to_string(),
            engine: Some((&peer.engine).into()),
            agent_address: peer.agent_address.clone(),
        }
    }
}

impl TryFrom<agent::Peer> for Peer {
    type Error = ConvertError;
    fn try_from(message: agent::Peer) -> Result<Self, ConvertError> {
        Ok(Self {
            member: message.member.parse()?,
            node: message.node.parse()?,
            engine: message.engine.ok_or_else(|| missing("engine"))?.try_into()?,
            agent_address: message.agent_address,
        })
    }
}

impl From<&ClusterSpec> for agent::ClusterSpec {
    /// Secrets leave their wrapper here, on the way to a connection that is encrypted.
    fn from(spec: &ClusterSpec) -> Self {
        Self {
            cluster: spec.cluster.to_string(),
            engine: spec.engine.clone(),
            version: spec.version.clone(),
            members: spec.members.iter().map(Into::into).collect(),
            settings: spec.settings.clone(),
            secrets: spec.secrets.iter().map(|(name, s)| (name.clone(), s.expose_secret().to_owned())).collect(),
            allow_list: spec.allow_list.networks().map(|network| network.to_string()).collect(),
            access_rules: spec.access_rules.clone(),
            // A cluster of before there were modes has the same fingerprint as one of today.
            mode: match spec.mode {
                Mode::PrimaryReplica => String::new(),
                mode @ Mode::MultiMaster => mode.label().to_owned(),
            },
            tls: spec.tls,
        }
    }
}

impl TryFrom<agent::ClusterSpec> for ClusterSpec {
    type Error = ConvertError;
    fn try_from(message: agent::ClusterSpec) -> Result<Self, ConvertError> {
        Ok(Self {
            cluster: message.cluster.parse()?,
            engine: message.engine,
            version: message.version,
            members: message.members.into_iter().map(Peer::try_from).collect::<Result<_, _>>()?,
            settings: message.settings,
            secrets: message
                .secrets
                .into_iter()
                .map(|(name, secret)| (name, SecretString::from(secret)))
                .collect::<BTreeMap<_, _>>(),
            allow_list: AllowList::parse(message.allow_list)?,
            access_rules: message.access_rules,
            mode: match message.mode.as_str() {
                "" => Mode::PrimaryReplica,
                name => Mode::named(name).ok_or_else(|| ConvertError::UnknownMode { name: name.to_owned() })?,
            },
            tls: message.tls,
        })
    }
}

// === impl Difference ===

impl From<&Difference> for agent::Difference {
    fn from(difference: &Difference) -> Self {
        Self {
            compared: difference.compared,
            only_here: difference.only_here,
            examples: difference.examples.clone(),
            delivered: difference.delivered,
            values: difference.values,
            differing: difference.differing,
            differing_examples: difference.differing_examples.clone(),
            undecided: difference.undecided,
        }
    }
}

impl From<agent::Difference> for Difference {
    fn from(message: agent::Difference) -> Self {
        Self {
            compared: message.compared,
            only_here: message.only_here,
            examples: message.examples,
            delivered: message.delivered,
            values: message.values,
            differing: message.differing,
            differing_examples: message.differing_examples,
            undecided: message.undecided,
        }
    }
}

#[cfg(test)]
mod tests;
