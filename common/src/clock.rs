//! The only place that reads clocks.
//!
//! Decisions take a [`Clock`] or a time as an argument, so that tests and simulations own time. Wall time is for display,
//! certificates and audit; nothing that keeps data safe is decided by it.
//!
//! **Invariant:** `boottime` and `monotonic_raw` of one clock never go back.

use std::{sync::Mutex, time::Duration};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Time since the boot, sleep of the machine included.
    fn boottime(&self) -> Duration;
    /// Time since the boot at the rate of the hardware, never adjusted by NTP.
    fn monotonic_raw(&self) -> Duration;
    /// The time of day; it can jump.
    fn wall(&self) -> Timestamp;
}

/// The clocks of the operating system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

/// A clock that moves only when told to.
#[derive(Debug)]
pub struct ManualClock(Mutex<Manual>);

#[derive(Debug)]
struct Manual {
    since_boot: Duration,
    wall: Timestamp,
}

/// The time of day, for display, certificates and audit.
pub fn wall_now() -> Timestamp {
    SystemClock.wall()
}

fn read(id: ClockId) -> Duration {
    let time = clock_gettime(id);
    // The kernel promises non-negative seconds for the clocks read here and nanoseconds below one second.
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

// === impl SystemClock ===

impl Clock for SystemClock {
    fn boottime(&self) -> Duration {
        read(ClockId::Boottime)
    }

    fn monotonic_raw(&self) -> Duration {
        read(ClockId::MonotonicRaw)
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}

// === impl ManualClock ===

impl ManualClock {
    /// Starts at boot, at the given time of day.
    pub fn new(wall: Timestamp) -> Self {
        Self(Mutex::new(Manual { since_boot: Duration::ZERO, wall }))
    }

    /// Moves all clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut manual = self.lock();
        manual.since_boot += by;
        // At the end of the calendar the wall clock stands still; the others go on.
        manual.wall = manual.wall.checked_add(by).unwrap_or(Timestamp::MAX);
    }

    /// Makes the wall clock jump; the others do not move.
    pub fn set_wall(&self, wall: Timestamp) {
        self.lock().wall = wall;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Manual> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new(Timestamp::UNIX_EPOCH)
    }
}

impl Clock for ManualClock {
    fn boottime(&self) -> Duration {
        self.lock().since_boot
    }

    fn monotonic_raw(&self) -> Duration {
        self.lock().since_boot
    }

    fn wall(&self) -> Timestamp {
        self.lock().wall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_clock_moves_forward() {
        let (boot, raw) = (SystemClock.boottime(), SystemClock.monotonic_raw());
        assert!(boot > Duration::ZERO && raw > Duration::ZERO);
        assert!(SystemClock.boottime() >= boot && SystemClock.monotonic_raw() >= raw);
        assert!(wall_now() > "2024-01-01T00:00:00Z".parse().unwrap());
    }

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::default();
        clock.advance(Duration::from_millis(1500));
        assert_eq!(clock.boottime(), Duration::from_millis(1500));
        assert_eq!(clock.wall().as_millisecond(), 1500);
        clock.set_wall(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.monotonic_raw(), Duration::from_millis(1500));
        assert_eq!(clock.wall(), Timestamp::UNIX_EPOCH);
    }
}
