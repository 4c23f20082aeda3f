//! Ids whose order as text is the order in which they were made.
//!
//! They are ULIDs: the wall time in milliseconds, then chance. When the wall clock stands still or goes back, the next id is the
//! last one plus one.
//!
//! **Invariant:** every id of one [`Sequence`] is greater than all before it.

use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use ulid::Ulid;

/// Makes ids in ascending order.
#[derive(Debug)]
pub(crate) struct Sequence(Mutex<Ulid>);

// === impl Sequence ===

impl Sequence {
    /// Starts after an id; with `Ulid::nil()` from the beginning.
    pub(crate) fn after(last: Ulid) -> Self {
        Self(Mutex::new(last))
    }

    /// The next id at this wall time.
    pub(crate) fn next(&self, wall: Timestamp) -> Ulid {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let millis = millis(wall);
        *last = if millis > last.timestamp_ms() {
            Ulid::from_parts(millis, regent_common::chance::ulid().random())
        } else {
            // At the last id of a millisecond the next millisecond is begun early.
            last.increment().unwrap_or_else(|_| Ulid::from_parts(last.timestamp_ms() + 1, 0))
        };
        *last
    }
}

/// Milliseconds since 1970, as in an id; times before count as 1970.
pub(crate) fn millis(wall: Timestamp) -> u64 {
    u64::try_from(wall.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_ascend_while_the_clock_stands_still_and_when_it_goes_back() {
        let at = |millis| Timestamp::from_millisecond(millis).unwrap();
        let sequence = Sequence::after(Ulid::nil());
        let ids: Vec<String> =
            [5, 5, 5, 9, 2, 9, 10].into_iter().map(|millis| sequence.next(at(millis)).to_string()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        assert_eq!(Ulid::from_string(&ids[6]).unwrap().timestamp_ms(), 10);
    }

    #[test]
    fn the_last_id_of_a_millisecond_is_followed_by_the_next_millisecond() {
        let sequence = Sequence::after(Ulid::from_parts(7, u128::MAX));
        let next = sequence.next(Timestamp::from_millisecond(7).unwrap());
        assert_eq!((next.timestamp_ms(), next.random()), (8, 0));
    }
}
