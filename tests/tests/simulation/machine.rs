//! A machine with an agent and an engine: its power, its clocks, its disk, its gate, and what keeps its agent from going on.
//!
//! The engine and the gate are beside the agent's process: an agent that dies or stands still leaves them as they are.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use regent_common::{lease::Profile, topology::Endpoint};

use super::{chance::Chance, disk::SimulatedDisk, passage::Passage, time::MachineClock};

/// Port of every engine.
pub(crate) const ENGINE_PORT: u16 = 5432;
/// How often one that stands still looks whether it may go on.
const LOOK: Duration = Duration::from_millis(10);

/// One machine.
pub(crate) struct Machine {
    pub(crate) name: String,
    /// Of the cluster that this simulation has.
    pub(crate) profile: Profile,
    pub(crate) clock: MachineClock,
    pub(crate) disk: SimulatedDisk,
    pub(crate) stalls: Stalls,
    pub(crate) passage: Passage,
    boots: AtomicU32,
}

/// What keeps the agent of a machine from acting; clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stalls(Arc<Flags>);

#[derive(Debug, Default)]
struct Flags {
    off: AtomicBool,
    agent: AtomicBool,
    machine: AtomicBool,
    disk: AtomicBool,
}

// === impl Machine ===

impl Machine {
    /// A machine that has just booted, with a drift and a disk of its own.
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        let mut chance = Chance::of(seed, &format!("machine {name}"));
        let drift = i64::try_from(chance.within(0..9801)).expect("a small number") - 4900;
        let stalls = Stalls::default();
        let clock = MachineClock::new(drift, chance.millis(0..5000));
        Self {
            name: name.to_owned(),
            profile: if seed % 3 == 0 { Profile::Standard } else { Profile::Fast },
            disk: SimulatedDisk::new(Chance::of(seed, &format!("disk {name}")), stalls.clone()),
            stalls,
            passage: Passage::new(clock.clone()),
            clock,
            boots: AtomicU32::new(1),
        }
    }

    /// Where its engine is reached.
    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint { host: self.name.clone(), port: ENGINE_PORT }
    }

    /// Where its agent is reached.
    pub(crate) fn agent_address(&self) -> String {
        format!("{}:7421", self.name)
    }

    /// The boot id of its kernel.
    pub(crate) fn boot_id(&self) -> String {
        format!("{}-boot-{}", self.name, self.boots.load(Ordering::Relaxed))
    }

    /// Stops the agent as SIGSTOP does, or lets it go on: what it had decided then reaches the kernel late.
    pub(crate) fn stop_agent(&self, stopped: bool) {
        self.stalls.0.agent.store(stopped, Ordering::Relaxed);
        self.stall_kernel();
    }

    /// Stops the whole machine as a hypervisor does, or lets it go on.
    pub(crate) fn stop_machine(&self, stopped: bool) {
        self.stalls.0.machine.store(stopped, Ordering::Relaxed);
        self.stall_kernel();
    }

    fn stall_kernel(&self) {
        let flags = &self.stalls.0;
        if flags.agent.load(Ordering::Relaxed) || flags.machine.load(Ordering::Relaxed) {
            self.passage.kernel().stall();
        } else {
            self.passage.kernel().resume();
        }
    }

    /// The power goes: memory is lost, and what the disk had not flushed.
    pub(crate) fn power_off(&self) {
        self.stalls.0.off.store(true, Ordering::Relaxed);
        self.disk.cut_power();
        self.passage.cut_power();
    }

    /// The power is back, and the kernel boots.
    pub(crate) fn power_on(&self) {
        self.boots.fetch_add(1, Ordering::Relaxed);
        self.clock.boot();
        self.stalls.0.off.store(false, Ordering::Relaxed);
    }
}

// === impl Stalls ===

impl Stalls {
    /// Whether the machine is on and its kernel runs.
    pub(crate) fn runs(&self) -> bool {
        !self.0.off.load(Ordering::Relaxed) && !self.0.machine.load(Ordering::Relaxed)
    }

    /// Lets the disk answer nothing, or answer again.
    pub(crate) fn stop_disk(&self, stopped: bool) {
        self.0.disk.store(stopped, Ordering::Relaxed);
    }

    /// Returns when the agent may go on.
    pub(crate) async fn agent(&self) {
        while self.0.agent.load(Ordering::Relaxed) || self.0.machine.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns when the agent may go on and the disk answers.
    pub(crate) async fn disk(&self) {
        self.agent().await;
        while self.0.disk.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
            self.agent().await;
        }
    }
}
