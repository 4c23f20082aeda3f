//! What can happen to a cluster, as data: each scenario is injected, watched, healed, and accounted for, and says itself what
//! has to come of it. One list ([`SCENARIOS`]) for the tests and the bench.
//!
//! A [`Bed`] is what they happen to: a cluster of three on machines of a network, of one kind or another ([`Rig`]), and writers in the clients' place, one of
//! which follows the primary while others never stop trying, also from the members' own machines and with a patience that
//! sees answers that come too late. [`run`] makes a [`Measured`] of a scenario; [`Measured::complaints`] compares that with
//! what the scenario expects.
//!
//! Not here: what an expectation's limit means on a slow machine; the caller gives a slack.

mod bed;
mod blackout;
mod cast;
mod engine;
mod fault;
mod list;
mod measured;
mod rig;
mod runner;
mod series;

pub use self::{
    bed::{Bed, CLUSTER, NODES},
    blackout::{blackout, write_and_settle},
    cast::{Actor, Cast},
    engine::Engine,
    fault::Injected,
    list::SCENARIOS,
    measured::{Measured, Span},
    rig::Rig,
    runner::{Settings, run},
    series::{run_all, wanted},
};

use std::time::Duration;

use crate::profile::Profile;

/// Somebody in the scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// The primary when the fault strikes, for the whole scenario.
    Primary,
    /// One replica.
    FirstReplica,
    /// The other replica.
    SecondReplica,
    /// The coordinator.
    Coordinator,
    /// The writers and the test.
    Clients,
}

/// A process of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// An engine, with all its processes.
    Engine(Who),
    /// An agent.
    Agent(Who),
    /// The coordinator.
    Coordinator,
}

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Packets from each of the first to each of the second vanish.
    Cut {
        /// Whose packets.
        from: &'static [Who],
        /// To whom.
        to: &'static [Who],
    },
    /// The plug is pulled.
    PowerOff(Who),
    /// SIGKILL; daemons stay down until the scenario is healed.
    Kill(Part),
    /// SIGSTOP until the scenario is healed.
    Stop(Part),
    /// SIGKILL, and started again within a second.
    Bounce(Part),
    /// Its disk hangs.
    FreezeDisk(Who),
    /// No fault, but a plan: a person promotes this replica.
    Promote(Who),
    /// No fault, but a plan: the agent is told to end, and is started again when a lease of the usual length would be over.
    Restart(Who),
}

/// How long clients may be unable to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Not at all, apart from what a busy machine does to any client.
    None,
    /// The primary hands over, and nothing has to be waited for.
    Planned,
    /// An engine's death needs no timeout to be noticed.
    EngineDied,
    /// What the profile promises for a lost node.
    NodeLost,
    /// The same and one lease more: heartbeats still arrive and are answered, until they say that no answer came.
    NodeHalfLost,
    /// The agent has to find out first that its engine hangs.
    EngineHung,
    /// The agent has to find out first that its disk hangs.
    DiskHung,
    /// Writes stop, and go on when the fault is over.
    UntilHealed,
}

/// What has to come of a scenario. That two members never reign at once is expected of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expectation {
    /// Whether another member becomes the primary, once; otherwise the epoch stays.
    pub failover: bool,
    /// How long clients may be unable to write.
    pub outage: Outage,
}

/// A scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Its name, for the bench's `--fault` and for failures.
    pub name: &'static str,
    /// What happens, for people.
    pub about: &'static str,
    /// All at once.
    pub faults: &'static [Fault],
    /// What has to come of it.
    pub expected: Expectation,
}

/// A blip that a busy machine makes without any fault.
const NOISE: Duration = Duration::from_millis(500);
/// What a frozen disk may take beyond a lost node, in each profile: up to a second until the agent's next canary begins, and
/// the two seconds that it is given.
const DISK_HANGS: Duration = Duration::from_secs(3);
/// From the moment in which the primary turns the first application away until writes are accepted elsewhere.
const PLANNED: Duration = Duration::from_millis(500);
/// From an engine's death until writes are accepted elsewhere.
const ENGINE_DIED: Duration = Duration::from_secs(1);

// === impl Outage ===

impl Outage {
    /// The limit for the median of several runs; `None` where there is no limit but the fault's own end.
    pub fn limit(self, profile: Profile) -> Option<Duration> {
        match self {
            Self::None => Some(NOISE),
            Self::Planned => Some(PLANNED),
            Self::EngineDied => Some(ENGINE_DIED),
            Self::NodeLost => Some(profile.node_lost()),
            Self::NodeHalfLost => Some(profile.node_lost() + profile.ttl()),
            Self::EngineHung => Some(profile.node_lost() * 2),
            Self::DiskHung => Some(DISK_HANGS + profile.node_lost()),
            Self::UntilHealed => None,
        }
    }
}

// === impl Scenario ===

impl Scenario {
    /// The scenario of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        SCENARIOS.iter().find(|scenario| scenario.name == name)
    }

    /// Whether nothing that was acknowledged may be lost, whoever is the primary afterwards.
    pub fn is_planned(&self) -> bool {
        self.faults.iter().all(|fault| matches!(fault, Fault::Promote(_) | Fault::Restart(_)))
    }

    /// Whether it happens to the coordinator's process: its own time away is then the caller's choice.
    pub fn takes_the_coordinator_away(&self) -> bool {
        self.faults.contains(&Fault::Kill(Part::Coordinator))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_names_and_unique() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
        for scenario in SCENARIOS {
            assert!(scenario.name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{}", scenario.name);
            assert!(!scenario.about.is_empty() && !scenario.faults.is_empty(), "{}", scenario.name);
        }
    }

    #[test]
    fn nobody_is_cut_from_himself() {
        for scenario in SCENARIOS {
            for fault in scenario.faults {
                if let Fault::Cut { from, to } = fault {
                    assert!(from.iter().all(|who| !to.contains(who)), "{}", scenario.name);
                }
            }
        }
    }
}
