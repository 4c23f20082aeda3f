//! The only place that reads clocks.
//!
//! Decisions take a [`Clock`] or a time as an argument, so that tests and simulations own time. Wall time is for display,
//! certificates and audit; nothing that keeps data safe is decided by it.
//!
//! **Invariant:** `boottime` and `monotonic_raw` of one clock never go back.

use std::{sync::Mutex, time::Duration};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Where time comes from.
pub trait Clock: Send + Sync + 'static {
    /// Time since the boot, sleep of the machine included.
    fn boottime(&self) -> Duration;
    /// Time since the boot at the rate of the hardware, never adjusted by NTP.
    fn monotonic_raw(&self) -> Duration;
    /// The time of day; it can jump.
    fn wall(&self) -> Timestamp;
    /// This moment by the two clocks that decide.
    fn now(&self) -> Moment {
        Moment { boottime: self.boottime(), raw: self.monotonic_raw() }
    }
}

/// A moment by the two clocks that decide (rule L4), of one machine and one boot.
///
/// The two may disagree: a suspended machine's CLOCK_MONOTONIC_RAW stands still. Who *holds* something believes the clock
/// that says it is over; who *waits* for something believes the one that says it is not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// By CLOCK_BOOTTIME.
    pub boottime: Duration,
    /// By CLOCK_MONOTONIC_RAW.
    pub raw: Duration,
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

// === impl Moment ===

impl Moment {
    /// The moment so much later.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self { boottime: self.boottime.saturating_add(duration), raw: self.raw.saturating_add(duration) }
    }

    /// The later of two, clock by clock: what ends at this is over for who waits for both.
    #[must_use]
    pub fn later(self, other: Self) -> Self {
        Self { boottime: self.boottime.max(other.boottime), raw: self.raw.max(other.raw) }
    }

    /// The earlier of two, clock by clock: what ends at this is over for its holder as soon as one of the two is.
    #[must_use]
    pub fn earlier(self, other: Self) -> Self {
        Self { boottime: self.boottime.min(other.boottime), raw: self.raw.min(other.raw) }
    }

    /// Time that is left at `now` of what ends here, for its holder: until *either* clock says that it is over.
    #[must_use]
    pub fn held_for(self, now: Self) -> Duration {
        self.boottime.saturating_sub(now.boottime).min(self.raw.saturating_sub(now.raw))
    }

    /// Time that is left at `now` of what ends here, for who waits for its end: until *both* clocks say that it is over.
    #[must_use]
    pub fn awaited_for(self, now: Self) -> Duration {
        self.boottime.saturating_sub(now.boottime).max(self.raw.saturating_sub(now.raw))
    }

    /// Time since this at `now`, by the clock that says more.
    #[must_use]
    pub fn age(self, now: Self) -> Duration {
        now.boottime.saturating_sub(self.boottime).max(now.raw.saturating_sub(self.raw))
    }
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
    fn a_holder_believes_the_clock_that_says_over_and_a_waiter_the_other() {
        let at = |boottime, raw| Moment { boottime: Duration::from_secs(boottime), raw: Duration::from_secs(raw) };
        let end = at(100, 50).plus(Duration::from_secs(5));
        // The machine slept: CLOCK_BOOTTIME went on.
        let now = at(106, 51);
        assert_eq!(end.held_for(now), Duration::ZERO);
        assert_eq!(end.awaited_for(now), Duration::from_secs(4));
        assert_eq!(at(100, 50).age(now), Duration::from_secs(6));
        assert_eq!(at(1, 9).later(at(2, 8)), at(2, 9));
        assert_eq!(at(1, 9).earlier(at(2, 8)), at(1, 8));
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
