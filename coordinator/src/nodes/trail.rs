//! How far a member had come at times of late (rule M3): a replica is compared with what its primary had when the replica was looked
//! at, not with what it has by now.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use regent_common::position::Position;

/// Positions are remembered for so long, and so many of them: more than any heartbeat takes.
const KEPT_FOR: Duration = Duration::from_secs(10);
const MOST: usize = 64;

/// Positions that a member reported, each with when that was, oldest first. Whoever looks at a node gets a copy of all that is
/// known of it, many times for each heartbeat: copies share their positions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trail(Arc<VecDeque<(Duration, Position)>>);

// === impl Trail ===

impl Trail {
    /// Adds where a member stood at a time, `now` at the latest, by the coordinator's CLOCK_BOOTTIME.
    pub fn add(&mut self, at: Duration, position: Position, now: Duration) {
        let trail = Arc::make_mut(&mut self.0);
        trail.push_back((at, position));
        let is_old = |then: &Duration| now.saturating_sub(*then) > KEPT_FOR;
        // One older than that stays, as that from which it went on.
        while trail.len() > MOST || trail.get(1).is_some_and(|(then, _)| is_old(then)) {
            trail.pop_front();
        }
    }

    /// Forgets all: what follows is of another history.
    pub fn clear(&mut self) {
        self.0 = Arc::default();
    }

    /// Where it stood at a time, as far as is known: the last position that is not newer, else the oldest one.
    pub fn at(&self, time: Duration) -> Option<&Position> {
        let known = self.0.iter().rev().find(|(at, _)| *at <= time).or_else(|| self.0.front());
        known.map(|(_, position)| position)
    }
}

#[cfg(test)]
mod tests {
    use regent_common::position::IntervalSet;

    use super::*;

    fn at(end: u64) -> Position {
        Position::new([("origin".to_owned(), IntervalSet::from(vec![(0, end)]))], end.to_string())
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_time_between_two_reports_has_the_earlier_ones_position() {
        let mut trail = Trail::default();
        assert_eq!(trail.at(seconds(9)), None);
        for second in [1, 2, 4] {
            trail.add(seconds(second), at(second), seconds(second));
        }
        assert_eq!(trail.at(seconds(3)), Some(&at(2)));
        assert_eq!(trail.at(seconds(4)), Some(&at(4)));
        assert_eq!(trail.at(Duration::ZERO), Some(&at(1)), "nothing older is known");
        trail.clear();
        assert_eq!(trail.at(seconds(9)), None);
    }

    #[test]
    fn it_has_an_end_in_number_and_in_time() {
        let mut trail = Trail::default();
        for millis in 0..200 {
            let now = Duration::from_millis(millis);
            trail.add(now, at(millis), now);
        }
        assert_eq!(trail.0.len(), MOST);
        assert_eq!(trail.at(Duration::ZERO), Some(&at(200 - MOST as u64)));
        let now = seconds(60);
        trail.add(now, at(500), now);
        assert_eq!(trail.0.len(), 2, "the one that it went on from, and the new one");
        assert_eq!(trail.at(seconds(59)), Some(&at(199)));
    }

    #[test]
    fn a_copy_shares_its_positions_and_keeps_them() {
        let mut trail = Trail::default();
        trail.add(seconds(1), at(1), seconds(1));
        let copy = trail.clone();
        assert!(Arc::ptr_eq(&trail.0, &copy.0));
        trail.add(seconds(2), at(2), seconds(2));
        assert_eq!((copy.at(seconds(2)), trail.at(seconds(2))), (Some(&at(1)), Some(&at(2))));
    }
}
