//! A simulated kernel with a gate in it, for simulations and tests.
//!
//! [`FakeKernel`] is what stays when an agent dies: it answers for packets, keeps the engine's sockets, and can be slow.
//! [`FakeGate`] is one process's handle on it. There are no tasks and no timers: what stands is worked out from the clock
//! when somebody asks.
//!
//! **Invariants:** the openings have the real gate's form: their time is counted from the guard's latest end, and one that
//! takes effect after the guard's life is refused. The kernel's own timers go by `monotonic_raw`, as the real ones stand
//! still while a machine is suspended.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use regent_common::{
    clock::{Clock, Moment},
    mutation::{self, Rule},
};
use tokio::sync::watch;

use super::{Abilities, GUARD_END, GUARD_LIFE, Gate, GateError, GateState, Open, timeout};

/// The gate's side of one machine's kernel.
pub struct FakeKernel {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    stalled: watch::Sender<bool>,
}

/// A process's handle on the gate.
#[derive(Clone)]
pub struct FakeGate {
    kernel: Arc<FakeKernel>,
    /// Ports that this process has armed.
    armed: Arc<Mutex<Option<BTreeSet<u16>>>>,
}

struct State {
    abilities: Abilities,
    /// `None` after somebody has removed the table.
    table: Option<Table>,
    /// Connections of each port.
    sockets: BTreeMap<u16, u32>,
    destroyed: u32,
    destructions: u32,
    /// How much later than asked for a change takes effect.
    delay: Duration,
    /// How long an opening that was decided waits for its turn.
    pace: Duration,
    /// Openings that were refused as late.
    late: u32,
}

/// How long a process that was stopped takes until it does the next thing.
const WAKING: Duration = Duration::from_millis(40);

#[derive(Debug, Default)]
struct Table {
    gated: BTreeSet<u16>,
    /// When the port was opened until, by the kernel's timers; `None` for ever.
    open: BTreeMap<u16, Option<Moment>>,
}

// === impl FakeKernel ===

impl FakeKernel {
    /// A kernel that can do everything, on which nothing is gated.
    pub fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let abilities =
            Abilities { timed_gate: true, destroys_sockets: true, survives_flush: true, problems: Vec::new() };
        let state = State {
            abilities,
            table: None,
            sockets: BTreeMap::new(),
            destroyed: 0,
            destructions: 0,
            delay: Duration::ZERO,
            pace: Duration::ZERO,
            late: 0,
        };
        Arc::new(Self { clock, state: Mutex::new(state), stalled: watch::Sender::new(false) })
    }

    /// Makes it a kernel that can do less. Without a timed gate every call is refused.
    pub fn set_abilities(&self, abilities: Abilities) {
        self.lock().abilities = abilities;
    }

    /// Whether a packet to or from this port passes now.
    pub fn passes(&self, port: u16) -> bool {
        let now = self.clock.now();
        self.lock().table.as_ref().is_none_or(|table| table.passes(port, now))
    }

    /// Adds established connections of a port.
    pub fn connect(&self, port: u16, count: u32) {
        *self.lock().sockets.entry(port).or_default() += count;
    }

    /// Established connections of a port.
    pub fn sockets(&self, port: u16) -> u32 {
        self.lock().sockets.get(&port).copied().unwrap_or_default()
    }

    /// Connections that have been destroyed so far.
    pub fn destroyed(&self) -> u32 {
        self.lock().destroyed
    }

    /// How often all connections of the gated ports were destroyed so far.
    pub fn destructions(&self) -> u32 {
        self.lock().destructions
    }

    /// Openings that were refused so far because they came late.
    pub fn late(&self) -> u32 {
        self.lock().late
    }

    /// Makes every change from now on reach the kernel so much after it was decided. The clock does not move by it.
    pub fn set_delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// Makes every opening from now on wait for its turn after it was decided, as on a busy machine.
    pub fn set_pace(&self, pace: Duration) {
        self.lock().pace = pace;
    }

    /// From now on every call waits, with what it has already decided; as if its process were frozen.
    pub fn stall(&self) {
        self.stalled.send_replace(true);
    }

    /// Lets the calls that wait take effect now, however late.
    pub fn resume(&self) {
        self.stalled.send_replace(false);
    }

    /// Removes the table as a foreign flush does where the kernel cannot prevent it.
    pub fn flush(&self) {
        self.lock().table = None;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Table ===

impl Table {
    fn passes(&self, port: u16, now: Moment) -> bool {
        !self.gated.contains(&port) || self.open.get(&port).is_some_and(|end| stands(*end, now))
    }
}

fn stands(end: Option<Moment>, now: Moment) -> bool {
    end.is_none_or(|end| now.raw < end.raw)
}

// === impl FakeGate ===

impl FakeGate {
    /// The handle of a process that has just started.
    pub fn new(kernel: Arc<FakeKernel>) -> Self {
        let left = kernel.lock().table.as_ref().map(|table| table.gated.clone());
        Self { kernel, armed: Arc::new(Mutex::new(left.filter(|ports| !ports.is_empty()))) }
    }

    /// What it is a handle on.
    pub fn kernel(&self) -> &Arc<FakeKernel> {
        &self.kernel
    }

    /// Waits while the kernel is stalled, then acts on it.
    async fn act<T>(
        &self,
        doing: &'static str,
        act: impl FnOnce(&mut State) -> Result<T, GateError> + Send,
    ) -> Result<T, GateError> {
        let waited = *self.kernel.stalled.borrow();
        // The kernel is borrowed for as long as this waits, so that the channel is not closed.
        let _ = self.kernel.stalled.subscribe().wait_for(|stalled| !stalled).await;
        let done = {
            let mut state = self.kernel.lock();
            if !state.abilities.timed_gate {
                let none = || "there is no nftables".to_owned();
                let detail = state.abilities.problems.first().cloned().unwrap_or_else(none);
                return Err(GateError::Kernel { doing, detail });
            }
            act(&mut state)
        };
        if waited {
            // A process that goes on does not do the next thing at once.
            tokio::time::sleep(WAKING).await;
        }
        done
    }

    /// Waits for a busy kernel's turn.
    async fn turn(&self) {
        let pace = self.kernel.lock().pace;
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
    }

    /// Opens what is gated once the table was changed, if that is in time; else nothing is.
    async fn replace_opening(
        &self,
        end: Option<Moment>,
        change: impl FnOnce(&mut Table) + Send,
    ) -> Result<(), GateError> {
        let decided = self.kernel.clock.now();
        let timeout = end.map(|end| timeout(end, decided.plus(GUARD_END))).transpose()?;
        self.turn().await;
        self.act("open the gate", |state| {
            let now = self.kernel.clock.now().plus(state.delay);
            let Some(table) = &mut state.table else {
                return Err(GateError::Kernel { doing: "open the gate", detail: "the table is missing".to_owned() });
            };
            if decided.age(now) >= GUARD_LIFE && !mutation::broken(Rule::G2Late) {
                state.late += 1;
                return Err(GateError::Late);
            }
            change(table);
            let until = timeout.map(|timeout| now.plus(timeout));
            table.open = table.gated.iter().map(|port| (*port, until)).collect();
            Ok(())
        })
        .await
    }

    fn armed(&self) -> MutexGuard<'_, Option<BTreeSet<u16>>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the table back, closed, where this process knows that there has to be one.
    fn put_back(&self, state: &mut State) -> Vec<String> {
        let Some(armed) = self.armed().clone() else { return Vec::new() };
        match &mut state.table {
            None => {
                state.table = Some(Table { gated: armed, open: BTreeMap::new() });
                vec!["the table was missing".to_owned()]
            }
            Some(table) if table.gated != armed => {
                table.gated = armed;
                vec!["other ports were gated".to_owned()]
            }
            Some(_) => Vec::new(),
        }
    }
}

#[async_trait]
impl Gate for FakeGate {
    fn abilities(&self) -> Abilities {
        self.kernel.lock().abilities.clone()
    }

    async fn state(&self) -> Result<GateState, GateError> {
        self.act("read the gate", |state| {
            let now = self.kernel.clock.now();
            let Some(table) = &state.table else { return Ok(GateState::default()) };
            let mut open = Open::Closed;
            for (_, end) in table.open.iter().filter(|(port, end)| table.gated.contains(port) && stands(**end, now)) {
                open = match (open, end) {
                    (Open::Untimed, _) | (_, None) => Open::Untimed,
                    (Open::Closed, Some(end)) => Open::Until(*end),
                    (Open::Until(until), Some(end)) => Open::Until(until.later(*end)),
                };
            }
            Ok(GateState { gated: table.gated.clone(), open })
        })
        .await
    }

    async fn arm(&self, ports: &BTreeSet<u16>) -> Result<(), GateError> {
        self.act("arm the gate", |state| {
            let table = state.table.get_or_insert_default();
            table.gated = ports.clone();
            table.open.retain(|port, _| ports.contains(port));
            *self.armed() = (!ports.is_empty()).then(|| ports.clone());
            Ok(())
        })
        .await
    }

    async fn open(&self, end: Option<Moment>) -> Result<(), GateError> {
        self.replace_opening(end, |_| ()).await
    }

    async fn arm_open(&self, ports: &BTreeSet<u16>, end: Option<Moment>) -> Result<(), GateError> {
        self.arm(&BTreeSet::new()).await?;
        self.replace_opening(end, |table| {
            table.gated.clone_from(ports);
            *self.armed() = Some(ports.clone());
        })
        .await
    }

    async fn close(&self) -> Result<(), GateError> {
        self.act("close the gate", |state| {
            if let Some(table) = &mut state.table {
                table.open.clear();
            }
            self.put_back(state);
            Ok(())
        })
        .await
    }

    async fn destroy_sockets(&self) -> Result<u32, GateError> {
        const DOING: &str = "destroy the engine's sockets";
        self.act(DOING, |state| {
            if !state.abilities.destroys_sockets {
                return Err(GateError::Kernel {
                    doing: DOING,
                    detail: "this kernel cannot destroy sockets".to_owned(),
                });
            }
            let gated = state.table.as_ref().map(|table| table.gated.clone()).unwrap_or_default();
            let destroyed = gated.iter().filter_map(|port| state.sockets.remove(port)).sum();
            state.destroyed += destroyed;
            state.destructions += 1;
            Ok(destroyed)
        })
        .await
    }

    async fn disarm(&self) -> Result<(), GateError> {
        self.act("disarm the gate", |state| {
            if let Some(table) = &mut state.table {
                *table = Table::default();
            }
            *self.armed() = None;
            Ok(())
        })
        .await
    }

    async fn verify(&self) -> Result<Vec<String>, GateError> {
        self.act("verify the gate", |state| Ok(self.put_back(state))).await
    }
}

#[cfg(test)]
mod tests {
    use regent_common::clock::ManualClock;

    use super::*;
    use crate::gate::conformance::{CASES, World, run};

    struct Simulated {
        clock: Arc<ManualClock>,
        kernel: Arc<FakeKernel>,
        gate: Mutex<Option<FakeGate>>,
    }

    #[async_trait]
    impl World for Simulated {
        fn ports(&self) -> [u16; 2] {
            [5432, 6432]
        }

        fn clock(&self) -> Arc<dyn Clock> {
            self.clock.clone()
        }

        fn gate(&self) -> Arc<dyn Gate> {
            let gate = FakeGate::new(self.kernel.clone());
            *self.gate.lock().unwrap() = Some(gate.clone());
            Arc::new(gate)
        }

        async fn passes(&self, port: u16) -> bool {
            self.kernel.passes(port)
        }

        async fn wait(&self, time: Duration) {
            self.clock.advance(time);
        }

        async fn open_late(&self, end: Option<Moment>, frozen: Duration) -> Result<(), GateError> {
            let gate = self.gate.lock().unwrap().clone().unwrap();
            self.kernel.stall();
            let opening = gate.open(end);
            let thaw = async {
                self.clock.advance(frozen);
                self.kernel.resume();
            };
            // The opening is polled first, and decides before it waits.
            let (answer, ()) = tokio::join!(biased; opening, thaw);
            answer
        }

        async fn remove(&self, gate: Arc<dyn Gate>) -> Arc<dyn Gate> {
            self.kernel.flush();
            gate
        }
    }

    fn simulated() -> Simulated {
        let clock = Arc::new(ManualClock::default());
        clock.advance(Duration::from_secs(1000));
        Simulated { kernel: FakeKernel::new(clock.clone()), clock, gate: Mutex::default() }
    }

    #[tokio::test]
    async fn conformance() {
        for (name, case) in CASES {
            if let Err(failure) = run(&simulated(), name, *case).await {
                panic!("{failure}");
            }
        }
    }

    #[tokio::test]
    async fn sockets_of_gated_ports_are_destroyed_and_counted() {
        let world = simulated();
        let gate = world.gate();
        world.kernel.connect(5432, 3);
        world.kernel.connect(80, 2);
        gate.arm(&BTreeSet::from([5432])).await.unwrap();
        assert_eq!(gate.destroy_sockets().await, Ok(3));
        assert_eq!((world.kernel.sockets(5432), world.kernel.sockets(80), world.kernel.destroyed()), (0, 2, 3));
    }

    #[tokio::test]
    async fn a_slow_kernel_refuses_and_counts() {
        let world = simulated();
        let gate = world.gate();
        gate.arm(&BTreeSet::from([5432])).await.unwrap();
        world.kernel.set_delay(Duration::from_millis(200));
        assert_eq!(gate.open(None).await, Err(GateError::Late));
        world.kernel.set_delay(Duration::from_millis(199));
        gate.open(None).await.unwrap();
        assert_eq!(world.kernel.late(), 1);
    }

    #[tokio::test]
    async fn a_kernel_without_a_timed_gate_refuses_everything() {
        let world = simulated();
        world.kernel.set_abilities(Abilities { problems: vec!["no nftables".to_owned()], ..Abilities::default() });
        let gate = world.gate();
        let Err(GateError::Kernel { detail, .. }) = gate.arm(&BTreeSet::from([5432])).await else { panic!() };
        assert_eq!(detail, "no nftables");
        assert!(world.kernel.passes(5432));
    }
}
