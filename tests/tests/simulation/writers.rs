//! The clients of the engines: one writer follows the primary, one for each node never stops trying there, and one more does from
//! the machine of another member.
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
/// In how many of a hundred cases an engine's process takes its time until it answers.
const SLOW: u64 = 2;
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
    /// The member's machine that it is on; `None` for the clients' own.
    on: Option<usize>,
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
    /// The member's machine that its client is on.
    on: Option<usize>,
    row: u64,
    branch: u64,
    at: Duration,
    until: Duration,
    /// Whether the engine's process takes its time until it sends it.
    slow: bool,
    /// The socket that it is in.
    sockets: u64,
}

// === impl Writers ===

impl Writers {
    /// The writers of a cluster of so many nodes.
    pub(crate) fn new(nodes: usize, seed: u64) -> Self {
        let writer = |(fixed, on): (Option<usize>, Option<usize>)| Writer {
            fixed,
            on,
            node: fixed.unwrap_or(0),
            next_at: Duration::ZERO,
            attempt: None,
        };
        let beside = (0..nodes).filter(|_| nodes > 1).map(|node| (Some(node), Some((node + 1) % nodes)));
        let writers = std::iter::once((None, None)).chain((0..nodes).map(|node| (Some(node), None))).chain(beside);
        let writers = writers.map(writer).collect();
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
        self.let_out(now, engines, network, machines)
    }

    fn let_out(
        &mut self,
        now: Duration,
        engines: &FakeWorld,
        network: &Network,
        machines: &[Arc<Machine>],
    ) -> Vec<Acknowledged> {
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
            if std::mem::take(&mut leaving.slow) {
                // Until now it was the process's to send, and that is gone or is no primary of then any more.
                let endpoint = machine.endpoint();
                if !engines.accepts_writes(&endpoint) || engines.branch(&endpoint) != Some(leaving.branch) {
                    return false;
                }
            }
            // The kernel sends it, whether its process still lives or not.
            if !machine.stalls.runs() || !machine.passage.lets_out(leaving.on.is_some()) {
                leaving.at = now + AGAIN;
                return true;
            }
            let Leaving { node, row, branch, on, .. } = *leaving;
            acknowledged.push(Acknowledged { at: now, node, row, branch });
            left.push((node, row, on));
            false
        });
        for (node, row, on) in left {
            let (from, to) = (machines[node].name.as_str(), on.map_or(CLIENTS, |on| machines[on].name.as_str()));
            let latency = network.latency(from, to);
            let arrives = network.passes(from, to).then(|| now + self.chance.millis(1..millis(latency)));
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
        let client = self.on.map_or(CLIENTS, |on| machines[on].name.as_str());
        let Some(attempt) = &mut self.attempt else {
            if now >= self.next_at {
                let latency = network.latency(client, &machine.name);
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
                let passes = network.connected(client, &machine.name) && machine.passage.lets_in(self.on.is_some());
                if !passes || !machine.stalls.runs() {
                    attempt.stage = Stage::Asked(now + AGAIN);
                    return None;
                }
                let branch = engines.branch(&machine.endpoint()).unwrap_or_default();
                match engines.write(&machine.endpoint()) {
                    Ok(row) => {
                        attempt.stage = Stage::Answered(row);
                        let slow = chance.percent(SLOW);
                        let takes = if slow { chance.millis(100..8000) } else { chance.millis(1..6) };
                        let (at, until) = (now + takes, now + takes + LINGER);
                        let sockets = machine.passage.sockets();
                        Some(Leaving { node: self.node, on: self.on, row, branch, at, until, slow, sockets })
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
