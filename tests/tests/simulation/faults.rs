//! What goes wrong, and how it is over again. A fault strikes at the state that is reached then, mostly at the primary's node.

use std::{fmt, time::Duration};

use super::{
    chance::Chance,
    trace::traced,
    world::{COORDINATOR, Simulation},
};

/// The kinds of faults, as they stand in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// Two hosts do not hear each other.
    Partition,
    /// One host does not hear another.
    OneWay,
    /// A host hears nobody and nobody hears it.
    Isolation,
    /// Packets between two hosts take long.
    Delay,
    /// Packets between two hosts are held and then arrive all at once, other than sent.
    Hold,
    /// An agent's process ends and starts again.
    AgentCrash,
    /// An agent is told to end, hands its lease over, and starts again.
    AgentRestart,
    /// An agent stands still, which its clocks count.
    AgentPause,
    /// A machine stands still and its clocks with it.
    MachinePause,
    /// A machine sleeps: CLOCK_BOOTTIME counts it and CLOCK_MONOTONIC_RAW does not.
    Sleep,
    /// A machine loses its power.
    PowerCut,
    /// All machines lose their power and come back in any order.
    AllPower,
    /// An engine's process ends.
    EngineCrash,
    /// An engine does not answer.
    EngineHang,
    /// Somebody starts an engine who knows nothing of its agent, a machine's own service manager say.
    StartedByHand,
    /// The volume with an engine's data is lost.
    DataLost,
    /// An engine's stream brings little.
    SlowStream,
    /// The disk of an agent's ledger does not answer.
    DiskStall,
    /// The disk of an agent's ledger refuses to write.
    DiskFailure,
    /// The coordinator's process ends and starts again.
    CoordinatorCrash,
    /// The coordinator is put back to an old backup.
    Restored,
    /// The coordinator's store takes no commits.
    StoreFailure,
}

/// A fault that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    kind: Kind,
    /// The host that it is about.
    host: String,
    /// The other host, where there are two.
    other: String,
    /// When it is over.
    pub(crate) until: Duration,
}

/// How often each kind is chosen.
const WEIGHTS: &[(Kind, u64)] = &[
    (Kind::Partition, 8),
    (Kind::OneWay, 6),
    (Kind::Isolation, 10),
    (Kind::Delay, 4),
    (Kind::Hold, 6),
    (Kind::AgentCrash, 10),
    (Kind::AgentRestart, 8),
    (Kind::AgentPause, 8),
    (Kind::MachinePause, 6),
    (Kind::Sleep, 3),
    (Kind::PowerCut, 10),
    (Kind::AllPower, 2),
    (Kind::EngineCrash, 14),
    (Kind::EngineHang, 4),
    (Kind::StartedByHand, 3),
    // Only in scripts: with chance alone to choose the last copy is lost now and then, and that is nobody's fault.
    (Kind::DataLost, 0),
    (Kind::SlowStream, 5),
    (Kind::DiskStall, 6),
    (Kind::DiskFailure, 3),
    (Kind::CoordinatorCrash, 10),
    (Kind::Restored, 2),
    (Kind::StoreFailure, 3),
];

/// Faults that the code cannot stand yet, and what is missing. They are left out, and the report says so; this is to become empty.
pub(crate) const NOT_YET: &[(Kind, &str)] = &[];

// === impl Kind ===

impl Kind {
    /// All kinds.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        WEIGHTS.iter().map(|(kind, _)| *kind)
    }

    fn choose(chance: &mut Chance) -> Self {
        let there = || WEIGHTS.iter().filter(|(kind, _)| !NOT_YET.iter().any(|(later, _)| later == kind));
        let mut left = chance.within(0..there().map(|(_, weight)| weight).sum());
        for (kind, weight) in there() {
            if left < *weight {
                return *kind;
            }
            left -= weight;
        }
        Self::EngineCrash
    }

    /// How long it lasts, in milliseconds.
    fn lasts(self) -> std::ops::Range<u64> {
        match self {
            Self::EngineCrash | Self::Restored | Self::StartedByHand | Self::DataLost => 1..2000,
            Self::AgentCrash | Self::CoordinatorCrash => 50..6000,
            Self::AgentRestart => 300..12_000,
            Self::PowerCut | Self::AllPower => 500..9000,
            Self::Partition | Self::OneWay | Self::Isolation | Self::Hold | Self::Delay => 200..10_000,
            Self::AgentPause | Self::MachinePause | Self::Sleep => 100..8000,
            Self::EngineHang | Self::SlowStream | Self::DiskStall | Self::DiskFailure | Self::StoreFailure => 200..7000,
        }
    }
}

// === impl Fault ===

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Partition | Kind::OneWay | Kind::Delay | Kind::Hold => {
                write!(f, "{:?} {} {}", self.kind, self.host, self.other)
            }
            Kind::AllPower | Kind::CoordinatorCrash | Kind::Restored | Kind::StoreFailure => {
                write!(f, "{:?}", self.kind)
            }
            Kind::Isolation
            | Kind::AgentCrash
            | Kind::AgentRestart
            | Kind::AgentPause
            | Kind::MachinePause
            | Kind::Sleep
            | Kind::PowerCut
            | Kind::EngineCrash
            | Kind::EngineHang
            | Kind::StartedByHand
            | Kind::DataLost
            | Kind::SlowStream
            | Kind::DiskStall
            | Kind::DiskFailure => write!(f, "{:?} {}", self.kind, self.host),
        }
    }
}

/// Lets something go wrong; the faults that have begun.
pub(crate) fn strike(simulation: &mut Simulation<'_>, chance: &mut Chance) -> Vec<Fault> {
    let kind = Kind::choose(chance);
    let now = simulation.now();
    let primary = simulation.primary();
    let nodes: Vec<String> = simulation.machines().iter().map(|machine| machine.name.clone()).collect();
    let node = match primary {
        Some(primary) if chance.percent(60) => primary,
        Some(_) | None => chance.pick(&nodes).clone(),
    };
    let others: Vec<String> = simulation.network.hosts().iter().filter(|host| **host != node).cloned().collect();
    let mut host = node;
    let mut other = chance.pick(&others).clone();
    if kind == Kind::OneWay && chance.percent(50) {
        (host, other) = (other, host);
    }
    let until = now + chance.millis(kind.lasts());
    let mut begun = vec![Fault { kind, host, other, until }];
    if kind == Kind::AllPower {
        begun = nodes
            .into_iter()
            .map(|host| (Kind::PowerCut, host))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|(kind, host)| {
                let until = now + chance.millis(Kind::AllPower.lasts());
                Fault { kind, host, other: String::new(), until }
            })
            .collect();
        let until = now + chance.millis(Kind::AllPower.lasts());
        begun.push(Fault { kind: Kind::CoordinatorCrash, host: String::new(), other: String::new(), until });
    }
    if begun.iter().any(|fault| simulation.is_beyond_limit(kind, &fault.host, &fault.other)) {
        traced!("{kind:?} is beyond the limit now");
        return Vec::new();
    }
    simulation.reached(kind);
    for fault in &begun {
        traced!("FAULT {fault} for {} ms", fault.until.saturating_sub(now).as_millis());
        fault.change(simulation, true);
    }
    simulation.follow_network();
    begun
}

impl Fault {
    /// Begins one that is over then.
    pub(crate) fn begin(
        simulation: &mut Simulation<'_>,
        kind: Kind,
        (host, other): (String, String),
        until: Duration,
    ) -> Self {
        let fault = Self { kind, host, other, until };
        traced!("FAULT {fault} for {} ms", until.saturating_sub(simulation.now()).as_millis());
        simulation.reached(kind);
        fault.change(simulation, true);
        fault
    }

    /// Whether it is one of this kind about this host; about any for an empty name.
    pub(crate) fn is(&self, kind: Kind, host: &str) -> bool {
        self.kind == kind && (host.is_empty() || self.host == host)
    }

    /// Ends it.
    pub(crate) fn end(&self, simulation: &mut Simulation<'_>) {
        traced!("OVER {self}");
        self.change(simulation, false);
        simulation.follow_network();
    }

    fn change(&self, simulation: &mut Simulation<'_>, begins: bool) {
        let (host, other) = (self.host.as_str(), self.other.as_str());
        match self.kind {
            Kind::Partition => {
                simulation.network.cut(host, other, begins);
                simulation.network.cut(other, host, begins);
            }
            Kind::OneWay => simulation.network.cut(host, other, begins),
            Kind::Isolation => simulation.network.isolate(host, begins),
            Kind::Delay => simulation.network.slow(host, other, begins.then_some(Duration::from_millis(700))),
            Kind::Hold => simulation.network.hold(host, other, begins),
            Kind::AgentCrash => simulation.kill(host, begins),
            Kind::AgentRestart => simulation.leave(host, begins),
            Kind::AgentPause => {
                simulation.machine(host).stop_agent(begins);
                simulation.network.stand(host, begins);
            }
            Kind::MachinePause | Kind::Sleep => {
                simulation.machine(host).stop(begins, self.kind == Kind::Sleep);
                simulation.network.stand(host, begins);
                simulation.hang(host, begins);
            }
            Kind::PowerCut | Kind::AllPower => simulation.power(host, !begins),
            Kind::EngineCrash if begins => {
                let endpoint = simulation.machine(host).endpoint();
                simulation.engines.crash(&endpoint);
            }
            Kind::StartedByHand if begins => {
                // Stated limit: after a boot no gate stands before the agent is there, so that what somebody else starts sooner is
                // in front of none.
                let watched = simulation.down.get(host).is_none_or(|reasons| *reasons == 0);
                let machine = simulation.machine(host);
                if watched && machine.stalls.runs() && simulation.engines.start_by_hand(&machine.endpoint()) {
                    traced!("the engine of {host} was started by hand");
                }
            }
            Kind::DataLost if begins => simulation.lose_data(host),
            Kind::EngineCrash | Kind::StartedByHand | Kind::DataLost => {}
            Kind::EngineHang => simulation.hang(host, begins),
            Kind::SlowStream => simulation.slow_stream(host, begins),
            Kind::DiskStall => simulation.machine(host).stalls.stop_disk(begins),
            Kind::DiskFailure => simulation.machine(host).disk.fail(begins),
            Kind::CoordinatorCrash => simulation.kill(COORDINATOR, begins),
            Kind::Restored => simulation.want_put_back(begins),
            Kind::StoreFailure => simulation.store.fail(begins),
        }
    }
}
