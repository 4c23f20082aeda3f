//! Judges each member by the evidence: a pure function, exhaustive, table-tested.
//!
//! Evidence is tri-state. *Silence is never taken for death*: a node that is not heard is [`Verdict::NodeUnreachable`]. A
//! primary that is not heard becomes [`Verdict::NodeLost`] only when no lease can stand any more, and
//! [`Verdict::Partitioned`] when other members report that its lease stands (rules P1 c, E4). The agent's own word that its
//! engine is dead or hung starts a failover whose first step is the fence (rule P1 a).

use std::time::Duration;

use regent_common::{
    ids::{ClusterId, MemberName},
    topology::{EngineState, Observation, Role, Ternary},
};

pub mod succession;

pub use succession::Succession;

/// What is known of one member.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Whether a session with its node's agent stands.
    pub connected: bool,
    /// How long ago it was heard; `None` for never.
    pub silent_for: Option<Duration>,
    /// How long this coordinator has been listening.
    pub listening_for: Duration,
    /// What its agent said last.
    pub observation: Option<Observation>,
    /// Why its node is in quarantine; `None` when it is not (rule T5).
    pub quarantine: Option<String>,
}

/// What a member should be, by the stored topology.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Cluster.
    pub cluster_id: ClusterId,
    /// Member.
    pub member: MemberName,
    /// Role.
    pub role: Role,
    /// Who the primary is.
    pub primary: Option<MemberName>,
    /// Of a pair: the other side, which it follows; `None` while that one has to be brought back, and nothing may reach it from there.
    pub other: Option<MemberName>,
}

/// When silence is worth a word.
#[derive(Debug, Clone, Copy)]
pub struct Thresholds {
    /// Silence after which a connected node is suspect, and one without a session unreachable.
    pub suspect_after: Duration,
    /// How long a coordinator listens before one that it has never heard is unreachable.
    pub startup_grace: Duration,
}

/// What the evidence says, with the reason in a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Healthy,
    /// On its way to where it should be.
    Starting,
    /// Not heard for a while; too early to say more.
    Suspect,
    /// The agent says that the engine's process has ended, or was never started.
    EngineDown,
    /// The process lives and does not answer.
    EngineHung,
    /// The data volume does not take a write within its deadline.
    StorageHung,
    /// The node is not heard. Whether its engine runs is not known.
    NodeUnreachable,
    /// The primary's node is not heard, and its lease is over: nobody accepts writes there.
    NodeLost,
    /// The primary's node is not heard here, and others report that its lease stands: it serves, on their endorsement.
    Partitioned,
    /// The primary's engine runs and it holds no lease: its gate is closed.
    WithoutLease,
    /// The engine runs in another role, or follows another member, than the stored topology says; or it is a side of a pair that lets
    /// nobody in.
    Astray,
    /// A replica that receives nothing from its upstream, or a side of a pair that receives nothing from the other one and serves.
    NotStreaming,
    /// A replica that can never catch up by its stream: only a new copy brings it back.
    Stale,
    /// The data must not be started.
    Dirty,
    /// The node has no data or no ledger of this cluster.
    Lost,
    /// Its ledger is not to be believed, or another process speaks for its node (rule T5): nothing that it says counts.
    Quarantined,
}

/// A verdict with its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// One sentence for people; empty when healthy.
    pub reason: String,
}

// === impl Verdict ===

impl Verdict {
    /// The verdict's name on the wire.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Starting => "Starting",
            Self::Suspect => "Suspect",
            Self::EngineDown => "EngineDown",
            Self::EngineHung => "EngineHung",
            Self::StorageHung => "StorageHung",
            Self::NodeUnreachable => "NodeUnreachable",
            Self::NodeLost => "NodeLost",
            Self::Partitioned => "Partitioned",
            Self::WithoutLease => "WithoutLease",
            Self::Astray => "Astray",
            Self::NotStreaming => "NotStreaming",
            Self::Stale => "Stale",
            Self::Dirty => "Dirty",
            Self::Lost => "Lost",
            Self::Quarantined => "Quarantined",
        }
    }
}

/// Judges one member.
pub fn judge(expected: &Expected, evidence: &Evidence, thresholds: &Thresholds) -> Judgement {
    let say = |verdict, reason: String| Judgement { verdict, reason };
    let member = &expected.member;
    if !evidence.connected {
        let (silence, allowed) = match evidence.silent_for {
            Some(silence) => (silence, thresholds.suspect_after),
            None => (evidence.listening_for, thresholds.startup_grace),
        };
        if silence < allowed {
            return say(Verdict::Suspect, format!("the agent of {member} is being called"));
        }
        let since = match evidence.silent_for {
            Some(silence) => format!("for {} s", silence.as_secs()),
            None => "since this coordinator started".to_owned(),
        };
        return say(
            Verdict::NodeUnreachable,
            format!("the agent of {member} has not been heard {since}; whether its engine runs is not known"),
        );
    }
    if let Some(silence) = evidence.silent_for.filter(|silence| *silence > thresholds.suspect_after) {
        return say(
            Verdict::NodeUnreachable,
            format!(
                "the agent of {member} has been silent for {} ms, although its connection stands; whether its engine runs is \
                 not known",
                silence.as_millis()
            ),
        );
    }
    if let Some(why) = &evidence.quarantine {
        return say(Verdict::Quarantined, format!("{member} is in quarantine: {why}"));
    }
    let Some(seen) = &evidence.observation else {
        return say(
            Verdict::Lost,
            format!(
                "the node of {member} says that it is a spare: its disk was lost; resync {member} to make it whole"
            ),
        );
    };
    if seen.cluster_id != expected.cluster_id || seen.member != *member {
        return say(
            Verdict::Lost,
            format!("the node of {member} says that it is member {} of cluster {}", seen.member, seen.cluster_id),
        );
    }
    if seen.dirty {
        return say(Verdict::Dirty, format!("the data of {member} is half-copied or half-rewound; it is not started"));
    }
    let engine = &seen.engine;
    let because = if engine.reason.is_empty() { String::new() } else { format!(": {}", engine.reason) };
    match engine.state {
        EngineState::Absent => say(Verdict::Lost, format!("there is no data of {member} on its node")),
        EngineState::Crashed => {
            say(Verdict::EngineDown, format!("the engine of {member} has ended by itself{because}"))
        }
        EngineState::Stopped => say(Verdict::EngineDown, format!("the engine of {member} is stopped{because}")),
        EngineState::Stopping => say(Verdict::Starting, format!("the engine of {member} is stopping")),
        EngineState::Starting => say(Verdict::Starting, format!("the engine of {member} is starting{because}")),
        EngineState::Hung => {
            say(Verdict::EngineHung, format!("the engine of {member} does not answer a new connection{because}"))
        }
        EngineState::Running => match engine.storage_writable {
            Ternary::No => {
                say(Verdict::StorageHung, format!("the data volume of {member} does not take a write{because}"))
            }
            Ternary::Yes | Ternary::Unknown => judge_running(expected, seen),
        },
    }
}

/// Judges a member whose engine answers.
fn judge_running(expected: &Expected, seen: &Observation) -> Judgement {
    let say = |verdict, reason: String| Judgement { verdict, reason };
    let member = &expected.member;
    match (expected.role, seen.engine.role) {
        (_, None) => say(Verdict::Starting, format!("the role of {member} is not known yet")),
        (Role::Primary, Some(Role::Primary)) => match &seen.authority.lease {
            Some(lease) if !lease.stands => say(
                Verdict::WithoutLease,
                format!("{member} runs and holds no lease now: its gate is closed until one is granted"),
            ),
            Some(_) | None => say(Verdict::Healthy, String::new()),
        },
        (Role::Primary, Some(Role::Replica)) => {
            say(Verdict::Astray, format!("{member} is the stored primary and its engine runs read-only"))
        }
        (Role::Replica, Some(Role::Primary)) => say(
            Verdict::Astray,
            format!("{member} is a replica by the stored topology and its engine runs as a primary"),
        ),
        (Role::Active, Some(Role::Active)) => judge_side(expected, seen),
        (Role::Active, Some(Role::Primary | Role::Replica)) => {
            say(Verdict::Astray, format!("{member} is a side of a pair and its engine runs in another mode"))
        }
        (Role::Primary | Role::Replica, Some(Role::Active)) => {
            say(Verdict::Astray, format!("{member} belongs to no pair and its engine runs as a side of one"))
        }
        (Role::Replica, Some(Role::Replica)) => match (&expected.primary, &seen.engine.upstream) {
            (Some(primary), upstream) if upstream.as_ref() != Some(primary) => say(
                Verdict::Astray,
                match upstream {
                    Some(upstream) => format!("{member} follows {upstream} instead of {primary}"),
                    None => format!("{member} follows nobody instead of {primary}"),
                },
            ),
            (Some(_) | None, _) if seen.engine.streaming == Ternary::No && !seen.engine.stale.is_empty() => {
                say(Verdict::Stale, format!("{member} cannot catch up: {}", seen.engine.stale))
            }
            (Some(_) | None, _) => match seen.engine.streaming {
                Ternary::No => say(
                    Verdict::NotStreaming,
                    format!("{member} receives nothing from its upstream: {}", seen.engine.reason),
                ),
                Ternary::Yes | Ternary::Unknown => say(Verdict::Healthy, String::new()),
            },
        },
    }
}

/// Whether a side of a pair, whose engine answers, accepts the writes of applications.
pub fn is_open(seen: &Observation) -> bool {
    let engine = &seen.engine;
    engine.state == EngineState::Running && engine.role == Some(Role::Active) && engine.is_open()
}

/// Judges a side of a pair whose engine answers as one.
fn judge_side(expected: &Expected, seen: &Observation) -> Judgement {
    let say = |verdict, reason: String| Judgement { verdict, reason };
    let member = &expected.member;
    if !is_open(seen) {
        return say(Verdict::Astray, format!("{member} runs and lets nobody in"));
    }
    let Some(other) = &expected.other else { return say(Verdict::Healthy, String::new()) };
    match (&seen.engine.upstream, seen.engine.streaming) {
        (Some(upstream), Ternary::No) if upstream == other && !seen.engine.stale.is_empty() => {
            say(Verdict::Stale, format!("{member} cannot catch up: {}", seen.engine.stale))
        }
        (Some(upstream), Ternary::No) if upstream == other => {
            say(Verdict::NotStreaming, format!("{member} receives nothing from {other}: {}", seen.engine.reason))
        }
        (Some(upstream), Ternary::Yes | Ternary::Unknown) if upstream == other => say(Verdict::Healthy, String::new()),
        (Some(upstream), _) => say(Verdict::Astray, format!("{member} follows {upstream} instead of {other}")),
        (None, _) => say(Verdict::Astray, format!("{member} follows nobody instead of {other}")),
    }
}

/// Says more of a primary that is not heard, by what is known of its lease.
pub fn refine(judgement: Judgement, primary: &MemberName, succession: &Succession) -> Judgement {
    if judgement.verdict != Verdict::NodeUnreachable {
        return judgement;
    }
    let reason = judgement.reason;
    match &succession.reported_by {
        Some(member) => Judgement {
            verdict: Verdict::Partitioned,
            reason: format!(
                "{reason}; {member} reports that the lease of {primary} stands: it serves, cut off from here"
            ),
        },
        None if succession.lease_left.is_zero() && succession.gated => Judgement {
            verdict: Verdict::NodeLost,
            reason: format!("{reason}; its lease is over, so that it accepts no writes"),
        },
        None => Judgement { verdict: Verdict::NodeUnreachable, reason },
    }
}

#[cfg(test)]
mod tests;
