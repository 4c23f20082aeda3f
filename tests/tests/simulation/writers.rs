//! The clients of the engines: one writer follows the primary, one for each node never stops trying there.
//!
//! A write passes the kernel of the machine twice: as a request on its way in, and as an acknowledgement on its way out. One
//! that was committed and is not let out stays in its socket until that is let out later, or destroyed. **Invariant:** a row
//! counts as acknowledged from the moment at which its acknowledgement leaves the machine, whether the client hears it or not.

use std::{sync::Arc, time::Duration};

use regent_agent::engine::fake::FakeWorld;

use super::{chance::Chance, machine::Machine, network::Network, world::CLIENTS};

/// Time between two writes of a follower, and of one who never stops trying.
const PERIODS: (Duration, Duration) = (Duration::from_millis(25), Duration::from_millis(60));
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a packet that was dropped is sent again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long a socket whose client is gone keeps what it has to send.
const LINGER: Duration = Duration::from_secs(20);

/// A row whose acknowledgement has left its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// When.
    pub(crate) at: Duration,
    /// From which machine.
    pub(crate) node: usize,
    /// Its number.
    pub(crate) row: u64,
    /// The branch on which it was written; each promotion begins a higher one.
    pub(crate) branch: u64,
}

/// All writers.
pub(crate) struct Writers {
    writers: Vec<Writer>,
    leaving: Vec<Leaving>,
    chance: Chance,
}

struct Writer {
    /// The node that it writes to; `None` follows the primary.
    fixed: Option<usize>,
    node: usize,
    next_at: Duration,
    attempt: Option<Attempt>,
}

struct Attempt {
    deadline: Duration,
    stage: Stage,
}

enum Stage {
    /// On its way; arrives then.
    Asked(Duration),
    /// Committed; the answer leaves the machine by itself.
    Answered(u64),
    /// The answer is on its way to the client, and arrives then.
    Told(Duration),
    /// Nobody answers any more.
    Silent,
}

/// An acknowledgement that has not left its machine.
struct Leaving {
    node: usize,
    row: u64,
    branch: u64,
    at: Duration,
    until: Duration,
    /// The socket that it is in.
    sockets: u64,
}

// === impl Writers ===

impl Writers {
    /// The writers of a cluster of so many nodes.
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        let writer =
            |fixed: Option<usize>| Writer { fixed, node: fixed.unwrap_or(0), next_at: Duration::ZERO, attempt: None };
        let writers = std::iter::once(None).chain((0..nodes).map(Some)).map(writer).collect();
        Self { writers, leaving: Vec::new(), chance: Chance::of(seed, "writers") }
    }

    /// Goes on until `now`; the rows whose acknowledgements have left meanwhile.
    pub(crate) fn step(
        &mut self,
        now: Duration,
        engines: &FakeWorld,
        network: &Network,
        machines: &[Arc<Machine>],
    ) -> Vec<Acknowledged> {
        let mut committed = Vec::new();
        for writer in &mut self.writers {
            if let Some(row) = writer.step(now, engines, network, machines, &mut self.chance) {
                committed.push(row);
            }
        }
        self.leaving.extend(committed);
        self.let_out(now, network, machines)
    }

    fn let_out(&mut self, now: Duration, network: &Network, machines: &[Arc<Machine>]) -> Vec<Acknowledged> {
        let mut acknowledged = Vec::new();
        let mut left = Vec::new();
        self.leaving.retain_mut(|leaving| {
            let machine = &machines[leaving.node];
            if leaving.sockets != machine.passage.sockets() || now >= leaving.until {
                return false;
            }
            if now < leaving.at {
                return true;
            }
            // The kernel sends it, whether its process still lives or not.
            if !machine.stalls.runs() || !machine.passage.lets_out() {
                leaving.at = now + AGAIN;
                return true;
            }
            let Leaving { node, row, branch, .. } = *leaving;
            acknowledged.push(Acknowledged { at: now, node, row, branch });
            left.push((node, row));
            false
        });
        for (node, row) in left {
            let latency = network.latency(&machines[node].name, CLIENTS);
            let arrives =
                network.passes(&machines[node].name, CLIENTS).then(|| now + self.chance.millis(1..millis(latency)));
            for writer in &mut self.writers {
                writer.told(row, arrives);
            }
        }
        acknowledged
    }
}

fn millis(latency: Duration) -> u64 {
    u64::try_from(latency.as_millis()).unwrap_or(u64::MAX).max(2)
}

// === impl Writer ===

impl Writer {
    fn step(
        &mut self,
        now: Duration,
        engines: &FakeWorld,
        network: &Network,
        machines: &[Arc<Machine>],
        chance: &mut Chance,
    ) -> Option<Leaving> {
        let machine = &machines[self.node];
        let Some(attempt) = &mut self.attempt else {
            if now >= self.next_at {
                let latency = network.latency(CLIENTS, &machine.name);
                let arrives = now + chance.millis(1..millis(latency));
                self.attempt = Some(Attempt { deadline: now + PATIENCE, stage: Stage::Asked(arrives) });
            }
            return None;
        };
        match attempt.stage {
            Stage::Told(arrives) if now >= arrives => {
                self.attempt = None;
                self.next_at = now + if self.fixed.is_some() { PERIODS.1 } else { PERIODS.0 };
                None
            }
            _ if now >= attempt.deadline => {
                self.fail(now, machines.len());
                None
            }
            Stage::Asked(arrives) if now >= arrives => {
                let passes = network.connected(CLIENTS, &machine.name) && machine.passage.lets_in();
                if !passes || !machine.stalls.runs() {
                    attempt.stage = Stage::Asked(now + AGAIN);
                    return None;
                }
                let branch = engines.branch(&machine.endpoint()).unwrap_or_default();
                match engines.write(&machine.endpoint()) {
                    Ok(row) => {
                        attempt.stage = Stage::Answered(row);
                        let (at, until) = (now + chance.millis(1..6), now + LINGER);
                        Some(Leaving { node: self.node, row, branch, at, until, sockets: machine.passage.sockets() })
                    }
                    Err(problem) if problem == "no answer" || problem == "the write does not end" => {
                        attempt.stage = Stage::Silent;
                        None
                    }
                    Err(_) => {
                        self.fail(now, machines.len());
                        None
                    }
                }
            }
            Stage::Asked(_) | Stage::Answered(_) | Stage::Told(_) | Stage::Silent => None,
        }
    }

    /// The acknowledgement of a row has left; it arrives then, or never.
    fn told(&mut self, row: u64, arrives: Option<Duration>) {
        if let Some(attempt) = &mut self.attempt
            && matches!(attempt.stage, Stage::Answered(own) if own == row)
        {
            attempt.stage = arrives.map_or(Stage::Silent, Stage::Told);
        }
    }

    fn fail(&mut self, now: Duration, nodes: usize) {
        self.attempt = None;
        self.next_at = now + if self.fixed.is_some() { PERIODS.1 } else { PERIODS.0 };
        if self.fixed.is_none() {
            self.node = (self.node + 1) % nodes;
        }
    }
}
