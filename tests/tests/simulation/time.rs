//! The time of the simulation, and what a machine's clocks make of it.
//!
//! Virtual time is the same everywhere; a machine's clocks count it from its boot, at a rate of their own, and without the
//! time for which the machine was stopped together with its clocks.

use std::{
    cell::Cell,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use regent_common::clock::Clock;

thread_local! {
    /// Virtual time between two steps of the simulation, when no host runs.
    static BETWEEN: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Virtual time since the beginning of the simulation that runs on this thread.
pub(crate) fn now() -> Duration {
    if turmoil::in_simulation() { turmoil::sim_elapsed().unwrap_or_else(|| BETWEEN.get()) } else { BETWEEN.get() }
}

/// Sets the time that holds between two steps.
pub(crate) fn set_between(now: Duration) {
    BETWEEN.set(now);
}

/// The wall time at a virtual time.
pub(crate) fn wall(now: Duration) -> Timestamp {
    // Within the validity of the certificates, which are made by the machine's own wall clock, nothing compares the two.
    let begin = Timestamp::from_second(1_800_000_000).expect("a year of this century");
    begin.checked_add(now).expect("a simulation does not last for centuries")
}

/// The clocks of one machine.
#[derive(Debug, Clone)]
pub(crate) struct MachineClock(Arc<Mutex<Hands>>);

#[derive(Debug)]
struct Hands {
    /// How much faster than virtual time, in millionths; may be negative.
    drift: i64,
    booted_at: Duration,
    /// Time since the boot that no clock of the machine has counted.
    uncounted: Duration,
    /// Time since the boot that CLOCK_BOOTTIME alone has counted.
    slept: Duration,
    /// Since when the clocks stand still.
    stopped_at: Option<Duration>,
    wall_offset: Duration,
}

// === impl MachineClock ===

impl MachineClock {
    /// Clocks with a drift in millionths and a wall clock that is ahead.
    pub(crate) fn new(drift: i64, wall_offset: Duration) -> Self {
        let (booted_at, uncounted, slept) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        Self(Arc::new(Mutex::new(Hands { drift, booted_at, uncounted, slept, stopped_at: None, wall_offset })))
    }

    /// The machine boots now.
    pub(crate) fn boot(&self) {
        let mut hands = self.lock();
        (hands.booted_at, hands.uncounted, hands.slept, hands.stopped_at) =
            (now(), Duration::ZERO, Duration::ZERO, None);
    }

    /// The clocks stand still from now on.
    pub(crate) fn stop(&self) {
        self.lock().stopped_at.get_or_insert_with(now);
    }

    /// The clocks go on; CLOCK_BOOTTIME has counted meanwhile if `counted`, as after a suspend.
    pub(crate) fn go_on(&self, counted: bool) {
        let mut hands = self.lock();
        if let Some(since) = hands.stopped_at.take() {
            let passed = now().saturating_sub(since);
            if counted { hands.slept += passed } else { hands.uncounted += passed }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Hands> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Hands ===

impl Hands {
    fn raw(&self, now: Duration) -> Duration {
        self.counted(self.stopped_at.unwrap_or(now), self.slept)
    }

    fn boottime(&self, now: Duration) -> Duration {
        self.counted(self.stopped_at.unwrap_or(now), Duration::ZERO)
    }

    fn counted(&self, now: Duration, without: Duration) -> Duration {
        let passed = now.saturating_sub(self.booted_at).saturating_sub(self.uncounted).saturating_sub(without);
        let nanos = i128::try_from(passed.as_nanos()).expect("a simulation does not last for centuries");
        let drifted = nanos + nanos * i128::from(self.drift) / 1_000_000;
        Duration::from_nanos(u64::try_from(drifted).expect("the drift is below one"))
    }
}

impl Clock for MachineClock {
    fn boottime(&self) -> Duration {
        self.lock().boottime(now())
    }

    fn monotonic_raw(&self) -> Duration {
        self.lock().raw(now())
    }

    fn wall(&self) -> Timestamp {
        wall(now() + self.lock().wall_offset)
    }
}
