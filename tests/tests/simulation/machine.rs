//! A machine with an agent and an engine: its power, its clocks, its disk, its gate, and what keeps its agent from going on.
//!
//! The engine and the gate are beside the agent's process: an agent that dies or stands still leaves them as they are.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use regent_agent::force::Words;
use regent_common::{lease::Profile, topology::Endpoint};

use super::{
    chance::Chance,
    disk::SimulatedDisk,
    passage::Passage,
    themes::Theme,
    time::{MachineClock, now},
};

/// Port of every engine.
pub(crate) const ENGINE_PORT: u16 = 5432;
/// Length of a lease that an agent hands over.
const HANDED_OVER: Duration = Duration::from_secs(30);
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
    /// Whether the agent was told to end, and has handed its lease over and is about to (rule L7).
    pub(crate) leave: Leave,
    boots: AtomicU32,
    /// When the machine was let go on last, by virtual time.
    went_on_at: Mutex<Option<Duration>>,
    /// What root of the machine tells the agent: to be the primary, whom it names as off (rule P9).
    force: Mutex<Option<Words>>,
}

/// What keeps the agent of a machine from acting; clones are the same. Each is counted: faults overlap, and what several of them
/// stop goes on when the last of them is over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stalls(Arc<Flags>);

/// A planned end of an agent's process, as SIGTERM asks for it.
#[derive(Debug, Default)]
pub(crate) struct Leave {
    told: AtomicBool,
    ready: AtomicBool,
    /// When it was told last.
    at: Mutex<Option<Duration>>,
    /// Whether its lease was handed over when it last ended.
    handed_over: AtomicBool,
}

#[derive(Debug, Default)]
struct Flags {
    off: AtomicU32,
    agent: AtomicU32,
    machine: AtomicU32,
    disk: AtomicU32,
}

fn change(count: &AtomicU32, more: bool) -> u32 {
    if more { count.fetch_add(1, Ordering::Relaxed) + 1 } else { count.fetch_sub(1, Ordering::Relaxed) - 1 }
}

fn any(count: &AtomicU32) -> bool {
    count.load(Ordering::Relaxed) > 0
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
            profile: Theme::of(seed).profile(seed),
            disk: SimulatedDisk::new(Chance::of(seed, &format!("disk {name}")), stalls.clone()),
            stalls,
            passage: Passage::new(clock.clone()),
            clock,
            leave: Leave::default(),
            boots: AtomicU32::new(1),
            went_on_at: Mutex::new(None),
            force: Mutex::new(None),
        }
    }

    /// Where its engine is reached.
    /// Folder of its members' data, which tells it from the other machines' for the fake engines.
    pub(crate) fn data_root(&self) -> PathBuf {
        PathBuf::from(format!("/simulated/{}/engines", self.name))
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint { host: self.name.clone(), port: ENGINE_PORT }
    }

    /// Root of the machine has its agent make its member the primary.
    pub(crate) fn order_force(&self, words: Words) {
        *self.force.lock().unwrap() = Some(words);
    }

    /// What root has said, once.
    pub(crate) fn take_force(&self) -> Option<Words> {
        self.force.lock().unwrap().take()
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
        change(&self.stalls.0.agent, stopped);
        self.stall_kernel();
    }

    fn stall_kernel(&self) {
        let flags = &self.stalls.0;
        if any(&flags.agent) || any(&flags.machine) {
            self.passage.kernel().stall();
        } else {
            self.passage.kernel().resume();
        }
    }

    /// Stops the whole machine, its clocks too, or lets it go on; `slept` when CLOCK_BOOTTIME has counted meanwhile.
    pub(crate) fn stop(&self, stopped: bool, slept: bool) {
        match (stopped, change(&self.stalls.0.machine, stopped)) {
            (true, 1) => self.clock.stop(),
            (false, 0) => {
                self.clock.go_on(slept);
                *self.went_on_at.lock().unwrap() = Some(now());
            }
            (_, _) => {}
        }
        self.stall_kernel();
    }

    /// Whether it was stopped together with its clocks so short ago that it cannot know what has become of its lease: the rest
    /// of one lease, and what the clocks differ.
    pub(crate) fn may_not_know(&self) -> bool {
        let ttl = if self.leave.may_have_handed_over() { HANDED_OVER } else { self.profile.timing().ttl };
        self.went_on_at.lock().unwrap().is_some_and(|at| now() < at + ttl + ttl / 50)
    }

    /// The power goes: memory is lost, and what the disk had not flushed.
    pub(crate) fn power_off(&self) {
        change(&self.stalls.0.off, true);
        self.disk.cut_power();
        self.passage.cut_power();
    }

    /// The power is back, and the kernel boots.
    pub(crate) fn power_on(&self) {
        self.boots.fetch_add(1, Ordering::Relaxed);
        self.clock.boot();
        change(&self.stalls.0.off, false);
    }
}

// === impl Leave ===

impl Leave {
    /// Tells the agent to end, or takes that back because it has ended.
    pub(crate) fn tell(&self, told: bool) {
        self.told.store(told, Ordering::Relaxed);
        self.ready.store(false, Ordering::Relaxed);
        if told {
            *self.at.lock().unwrap() = Some(now());
        }
    }

    /// Whether a lease may stand that was handed over.
    fn may_have_handed_over(&self) -> bool {
        self.at.lock().unwrap().is_some_and(|at| now() < at + HANDED_OVER * 2)
    }

    /// Returns when the agent is told to end.
    pub(crate) async fn told(&self) {
        while !self.told.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The agent has done what it does before it ends, and has handed its lease over or not.
    pub(crate) fn set_ready(&self, handed_over: bool) {
        self.handed_over.store(handed_over, Ordering::Relaxed);
        self.ready.store(true, Ordering::Relaxed);
    }

    /// Whether its lease was handed over when it last ended: the coordinator has to be in touch for that.
    pub(crate) fn has_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// Whether its process ends now.
    pub(crate) fn is_ready(&self) -> bool {
        self.told.load(Ordering::Relaxed) && self.ready.load(Ordering::Relaxed)
    }
}

// === impl Stalls ===

impl Stalls {
    /// Whether the machine is on and its kernel runs.
    pub(crate) fn runs(&self) -> bool {
        !any(&self.0.off) && !any(&self.0.machine)
    }

    /// Whether an agent that is up would answer.
    pub(crate) fn answers(&self) -> bool {
        self.runs() && !any(&self.0.agent) && !any(&self.0.disk)
    }

    /// Lets the disk answer nothing, or answer again.
    pub(crate) fn stop_disk(&self, stopped: bool) {
        change(&self.0.disk, stopped);
    }

    /// Returns when the agent may go on.
    pub(crate) async fn agent(&self) {
        while any(&self.0.agent) || any(&self.0.machine) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Returns when the agent may go on and the disk answers.
    pub(crate) async fn disk(&self) {
        self.agent().await;
        while any(&self.0.disk) {
            tokio::time::sleep(LOOK).await;
            self.agent().await;
        }
    }
}
