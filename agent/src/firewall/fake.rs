//! A simulated machine with clients from elsewhere, for simulations and tests.
//!
//! [`FakeMachine`] is what stays when an agent dies: it answers for packets and keeps connections. [`FakeFirewall`] is one process's
//! handle on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{Firewall, FirewallError, Judge, Means, Passage, names::NoNames};

/// The allow-list's side of one machine's kernel.
#[derive(Debug, Default)]
pub struct FakeMachine(Mutex<State>);

/// A process's handle on it.
#[derive(Debug, Clone)]
pub struct FakeFirewall {
    machine: Arc<FakeMachine>,
    wanted: Arc<Mutex<Option<Arc<Passage>>>>,
}

#[derive(Debug, Default)]
struct State {
    /// What stands in the kernel.
    passage: Option<Arc<Passage>>,
    connections: BTreeMap<(IpAddr, u16), u32>,
    /// Why nothing can be in force.
    problem: Option<String>,
    /// Why the next changes are refused.
    refusal: Option<String>,
    changes: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl State ===

impl State {
    fn passes(&self, client: IpAddr, port: u16) -> bool {
        match &self.passage {
            Some(passage) if passage.ports.contains(&port) && !client.is_loopback() => {
                Judge::new(&passage.allowed, passage.always.clone()).lets_in(client)
            }
            Some(_) | None => true,
        }
    }

    fn cut(&mut self) -> u32 {
        let doomed: Vec<_> =
            self.connections.keys().copied().filter(|(client, port)| !self.passes(*client, *port)).collect();
        doomed.iter().filter_map(|key| self.connections.remove(key)).sum()
    }
}

// === impl FakeMachine ===

impl FakeMachine {
    /// A machine on which everybody is let in.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes it a machine on which no list can be in force, or one on which it can.
    pub fn set_problem(&self, problem: Option<&str>) {
        lock(&self.0).problem = problem.map(ToOwned::to_owned);
    }

    /// Has its kernel refuse changes, or take them again.
    pub fn refuse(&self, why: Option<&str>) {
        lock(&self.0).refusal = why.map(ToOwned::to_owned);
    }

    /// Whether a packet from this address to this port passes now.
    pub fn passes(&self, client: IpAddr, port: u16) -> bool {
        lock(&self.0).passes(client, port)
    }

    /// Opens a connection, if its packets pass; whether they do.
    pub fn connect(&self, client: IpAddr, port: u16) -> bool {
        let mut state = lock(&self.0);
        let passes = state.passes(client, port);
        if passes {
            *state.connections.entry((client, port)).or_default() += 1;
        }
        passes
    }

    /// Connections of a client.
    pub fn connections(&self, client: IpAddr, port: u16) -> u32 {
        lock(&self.0).connections.get(&(client, port)).copied().unwrap_or_default()
    }

    /// What stands in its kernel.
    pub fn passage(&self) -> Option<Arc<Passage>> {
        lock(&self.0).passage.clone()
    }

    /// How often that was changed.
    pub fn changes(&self) -> u32 {
        lock(&self.0).changes
    }

    /// Removes it behind the back of the process, as a boot or somebody else's flush does.
    pub fn flush(&self) {
        lock(&self.0).passage = None;
    }
}

// === impl FakeFirewall ===

impl FakeFirewall {
    /// A process that has just started.
    pub fn new(machine: Arc<FakeMachine>) -> Self {
        Self { machine, wanted: Arc::default() }
    }

    fn put(&self, passage: Option<Arc<Passage>>) -> Result<u32, FirewallError> {
        let mut state = lock(&self.machine.0);
        if let Some(why) = state.problem.clone().filter(|_| passage.is_some()) {
            return Err(FirewallError::Impossible { why });
        }
        if let Some(detail) = state.refusal.clone() {
            return Err(FirewallError::Kernel { doing: "put the allow-list in force", detail });
        }
        state.passage = passage;
        state.changes += 1;
        Ok(state.cut())
    }
}

#[async_trait]
impl Firewall for FakeFirewall {
    fn problem(&self) -> Option<String> {
        lock(&self.machine.0).problem.clone()
    }

    async fn keep(&self, passage: Option<Arc<Passage>>) -> Result<u32, FirewallError> {
        let cut = self.put(passage.clone())?;
        *lock(&self.wanted) = passage;
        Ok(cut)
    }

    async fn verify(&self) -> Result<Vec<String>, FirewallError> {
        let Some(wanted) = lock(&self.wanted).clone() else { return Ok(Vec::new()) };
        if self.machine.passage().as_ref() == Some(&wanted) {
            return Ok(Vec::new());
        }
        self.put(Some(wanted))?;
        Ok(vec!["the list was missing".to_owned()])
    }

    async fn clients(&self, ports: &BTreeSet<u16>) -> Result<BTreeMap<IpAddr, u32>, FirewallError> {
        let state = lock(&self.machine.0);
        let mut clients = BTreeMap::new();
        for ((client, _), count) in
            state.connections.iter().filter(|((client, port), _)| ports.contains(port) && !client.is_loopback())
        {
            *clients.entry(*client).or_default() += count;
        }
        Ok(clients)
    }
}

// === impl Means ===

impl Means {
    /// A simulated firewall, and a network in which nobody knows a name.
    pub fn fake(machine: Arc<FakeMachine>) -> Self {
        Self { firewall: Arc::new(FakeFirewall::new(machine)), names: Arc::new(NoNames), extra_ports: BTreeSet::new() }
    }
}
