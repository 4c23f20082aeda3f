//! Positions of PostgreSQL: timelines and log offsets as origins and intervals.
//!
//! The origin of a change is `SYSTEM/TIMELINE`; its offset is its place in the log. A copy on timeline 3 that left timeline
//! 1 at A and timeline 2 at B, and has come to C, has `1: [0,A)`, `2: [A,B)`, `3: [B,C)`. Two copies that were both promoted
//! from the same point have different timelines after it, so that neither includes the other: numbers of timelines are never
//! compared, only what they contain.

use std::fmt;

use regent_common::position::{IntervalSet, Position};

/// A place in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Lsn(pub(super) u64);

/// The timelines that a timeline descends from, oldest first, each with the place where it was left.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct History(Vec<(u32, Lsn)>);

/// How far one copy has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) system_id: u64,
    pub(super) timeline: u32,
    pub(super) lsn: Lsn,
    pub(super) history: History,
}

/// Reads `16/B374D848`.
pub(super) fn parse_lsn(text: &str) -> Option<Lsn> {
    let (high, low) = text.trim().split_once('/')?;
    Some(Lsn(u64::from_str_radix(high, 16).ok()? << 32 | u64::from(u32::from_str_radix(low, 16).ok()?)))
}

// === impl Lsn ===

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

// === impl History ===

impl History {
    /// Reads a history file: lines of `timeline<tab>place<tab>reason`; empty lines and comments are skipped.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let entries: Option<Vec<_>> = lines
            .map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?.parse().ok()?, parse_lsn(words.next()?)?))
            })
            .collect();
        entries.map(Self)
    }

    /// Where `timeline` was left; `None` when it is no ancestor.
    pub(super) fn left_at(&self, timeline: u32) -> Option<Lsn> {
        self.0.iter().find(|(ancestor, _)| *ancestor == timeline).map(|(_, at)| *at)
    }
}

// === impl Place ===

impl Place {
    /// The position in the terms that all engines share.
    pub(super) fn position(&self) -> Position {
        let origin = |timeline| format!("{}/{timeline}", self.system_id);
        let mut start = 0;
        let mut origins = Vec::with_capacity(self.history.0.len() + 1);
        for (timeline, left) in &self.history.0 {
            // A copy may stand before the place where its timeline begins, while it still replays the ancestor.
            let end = left.0.min(self.lsn.0);
            origins.push((origin(*timeline), IntervalSet::from(vec![(start, end)])));
            start = left.0;
        }
        origins.push((origin(self.timeline), IntervalSet::from(vec![(start, self.lsn.0)])));
        Position::new(origins, format!("timeline {} at {}", self.timeline, self.lsn))
    }

    /// Whether a copy at this place can follow `upstream`; else where their ways part.
    pub(super) fn can_follow(&self, upstream: &Self) -> Result<(), String> {
        if self.system_id != upstream.system_id {
            return Err(format!(
                "it has system identifier {}, the upstream {}: they never were copies of each other",
                self.system_id, upstream.system_id
            ));
        }
        if upstream.position().includes(&self.position()) {
            return Ok(());
        }
        let own = format!("this copy is on timeline {} at {}", self.timeline, self.lsn);
        Err(match upstream.history.left_at(self.timeline) {
            Some(left) => format!(
                "{own}, the upstream left timeline {} for timeline {} at {left}",
                self.timeline, upstream.timeline
            ),
            None if self.timeline == upstream.timeline => format!("{own}, the upstream only at {}", upstream.lsn),
            None => format!("{own}, which the upstream's timeline {} does not descend from", upstream.timeline),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(timeline: u32, lsn: u64, history: &[(u32, u64)]) -> Place {
        let history = History(history.iter().map(|(timeline, at)| (*timeline, Lsn(*at))).collect());
        Place { system_id: 7, timeline, lsn: Lsn(lsn), history }
    }

    #[test]
    fn a_history_file_is_read() {
        let text = "1\t0/3000148\tno recovery target specified\n\n2\t16/B374D848\tbefore 2000-01-01 00:00:00+00\n";
        let history = History::parse(text).unwrap();
        assert_eq!(history, History(vec![(1, Lsn(0x300_0148)), (2, Lsn(0x16_B374_D848))]));
        assert_eq!(history.left_at(2).unwrap().to_string(), "16/B374D848");
        assert_eq!(History::parse("1\tnonsense\n"), None);
    }

    #[test]
    fn a_replica_follows_a_promoted_one_only_from_before_the_fork() {
        let promoted = place(2, 200, &[(1, 100)]);
        assert_eq!(place(1, 100, &[]).can_follow(&promoted), Ok(()));
        assert_eq!(place(2, 150, &[(1, 100)]).can_follow(&promoted), Ok(()));
        let ahead = place(1, 120, &[]).can_follow(&promoted).unwrap_err();
        assert_eq!(ahead, "this copy is on timeline 1 at 0/78, the upstream left timeline 1 for timeline 2 at 0/64");
        let other_fork = place(2, 160, &[(1, 90)]).can_follow(&promoted).unwrap_err();
        assert!(other_fork.starts_with("this copy is on timeline 2"), "{other_fork}");
        assert!(place(3, 160, &[(1, 90)]).can_follow(&promoted).unwrap_err().contains("does not descend"));
        assert!(place(2, 250, &[(1, 100)]).can_follow(&promoted).unwrap_err().contains("only at"));
        let other_system = Place { system_id: 8, ..place(1, 10, &[]) };
        assert!(other_system.can_follow(&promoted).unwrap_err().contains("never were copies"));
    }

    proptest! {
        #[test]
        fn going_on_only_adds(forks in prop::collection::vec(1u64..1000, 0..4), more in 0u64..500) {
            let mut at = 0;
            let mut history = Vec::new();
            for (index, step) in forks.iter().enumerate() {
                at += step;
                history.push((u32::try_from(index).unwrap() + 1, at));
            }
            let timeline = u32::try_from(history.len()).unwrap() + 1;
            let before = place(timeline, at, &history);
            let after = place(timeline, at + more, &history);
            prop_assert!(after.position().includes(&before.position()));
            prop_assert_eq!(after.position().amount(), at + more);
        }

        #[test]
        fn places_are_spelled_as_the_engine_spells_them(raw in any::<u64>()) {
            prop_assert_eq!(parse_lsn(&Lsn(raw).to_string()), Some(Lsn(raw)));
        }
    }
}
