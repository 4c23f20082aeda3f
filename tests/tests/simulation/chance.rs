//! Chance that a seed repeats (splitmix64). Every part of a simulation draws from a stream of its own, so that one more draw in
//! one part leaves the others as they were.

use std::{ops::Range, time::Duration};

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

// === impl Chance ===

impl Chance {
    /// The stream of a part of a seed's simulation.
    pub(crate) fn of(seed: u64, part: &str) -> Self {
        let mixed = part.bytes().fold(seed ^ 0x9e37_79b9_7f4a_7c15, |mixed, byte| {
            (mixed ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
        });
        let mut chance = Self(mixed);
        chance.next();
        chance
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of a range that is not empty.
    pub(crate) fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// A time of so many milliseconds.
    pub(crate) fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// True in so many of a hundred cases.
    pub(crate) fn percent(&mut self, percent: u64) -> bool {
        self.within(0..100) < percent
    }

    /// One of several.
    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        let index = self.within(0..of.len() as u64);
        &of[usize::try_from(index).expect("it is an index of a slice")]
    }
}
