//! Positions of PostgreSQL: timelines and log offsets as origins and intervals.
//!
//! The origin of a change is `SYSTEM/TIMELINE`; its offset is its place in the log. A copy on timeline 3 that left timeline
//! 1 at A and timeline 2 at B, and has come to C, has `1: [0,A)`, `2: [A,B)`, `3: [B,C)`. Two copies that were both promoted
//! from the same point must not include each other, but the engine may give both branches the same number: it takes the
//! lowest that it has not heard of. So every promotion also gives its timeline a random name, in a table that travels with the
//! data, and the origin is `SYSTEM/TIMELINE-NAME`. A copy that has just entered a timeline and has not yet replayed its
//! name looks diverged from it for that moment, which is the safe side.

use std::{collections::BTreeMap, fmt};

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
    pub(super) names: Names,
}

/// Names of timelines, by number.
pub(super) type Names = BTreeMap<u32, String>;

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
        let origin = |timeline| match self.names.get(&timeline) {
            Some(name) => format!("{}/{timeline}-{name}", self.system_id),
            None => format!("{}/{timeline}", self.system_id),
        };
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

    /// Where this copy and another parted: the end of what both have of the newest timeline that both know. `None` when they
    /// have none in common. Asked of copies without a [`namesake`](Self::namesake).
    pub(super) fn parted_from(&self, other: &Self) -> Option<Lsn> {
        let end = |place: &Self, timeline| {
            if place.timeline == timeline { Some(place.lsn) } else { place.history.left_at(timeline) }
        };
        let newest_first =
            std::iter::once(self.timeline).chain(self.history.0.iter().rev().map(|(timeline, _)| *timeline));
        newest_first.into_iter().find_map(|timeline| Some(end(self, timeline)?.min(end(other, timeline)?)))
    }

    /// The timeline on which this copy wrote the last of its log before `end`.
    pub(super) fn timeline_before(&self, end: Lsn) -> u32 {
        self.history.0.iter().find(|(_, left)| *left >= end).map_or(self.timeline, |(timeline, _)| *timeline)
    }

    /// A timeline that both have under one number, and that is not the same.
    pub(super) fn namesake(&self, other: &Self) -> Option<u32> {
        let has = |place: &Self, timeline| place.timeline == timeline || place.history.left_at(timeline).is_some();
        let timelines: std::collections::BTreeSet<u32> = self.names.keys().chain(other.names.keys()).copied().collect();
        timelines.into_iter().find(|timeline| {
            let both = has(self, *timeline) && has(other, *timeline);
            both && self.names.get(timeline) != other.names.get(timeline)
        })
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
        if let Some(timeline) = self.namesake(upstream) {
            return Err(format!("both have a timeline {timeline}, but not the same one: each was promoted on its own"));
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

/// A place without names, for tests.
#[cfg(test)]
pub(super) fn fixture(timeline: u32, lsn: u64, history: &[(u32, u64)]) -> Place {
    let history = History(history.iter().map(|(timeline, at)| (*timeline, Lsn(*at))).collect());
    Place { system_id: 7, timeline, lsn: Lsn(lsn), history, names: Names::new() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{fixture as place, *};

    #[test]
    fn a_history_file_is_read() {
        let text = "1\t0/3000148\tno recovery target specified\n\n2\t16/B374D848\tbefore 2000-01-01 00:00:00+00\n";
        let history = History::parse(text).unwrap();
        assert_eq!(history, History(vec![(1, Lsn(0x300_0148)), (2, Lsn(0x16_B374_D848))]));
        assert_eq!(history.left_at(2).unwrap().to_string(), "16/B374D848");
        assert_eq!(History::parse("1\tnonsense\n"), None);
    }

    #[test]
    fn where_two_copies_parted() {
        // Both were once replicas on timeline 2, which one went on with and the other left for timeline 3.
        let (left, stayed) = (place(3, 400, &[(1, 100), (2, 200)]), place(2, 250, &[(1, 100)]));
        assert_eq!(stayed.parted_from(&left), Some(Lsn(200)));
        assert_eq!(left.parted_from(&stayed), Some(Lsn(200)));
        assert_eq!(place(2, 150, &[(1, 100)]).parted_from(&left), Some(Lsn(150)));
        assert_eq!(place(4, 150, &[(1, 80)]).parted_from(&left), Some(Lsn(80)));
        assert_eq!(place(7, 10, &[]).parted_from(&left), None);
        let on = |end| left.timeline_before(Lsn(end));
        assert_eq!([on(50), on(100), on(101), on(200), on(201), on(900)], [1, 1, 2, 2, 3, 3]);
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

    #[test]
    fn two_promotions_with_the_same_number_are_told_apart() {
        let named = |lsn, name: &str| {
            let names = Names::from([(2, name.to_owned())]);
            Place { names, ..place(2, lsn, &[(1, 100)]) }
        };
        let (short, long) = (named(150, "a"), named(200, "b"));
        assert_eq!(short.position().partial_cmp(&long.position()), None);
        assert!(short.can_follow(&long).unwrap_err().contains("both have a timeline 2"));
        assert_eq!(short.can_follow(&named(200, "a")), Ok(()));
        assert_eq!(place(1, 100, &[]).can_follow(&long), Ok(()));
        assert_eq!(place(1, 100, &[]).namesake(&long), None);
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
