//! How far a copy of the data has come, in one type for every engine.
//!
//! A position is a set of changes: for each **origin** (whoever wrote the changes) a set of half-open intervals of
//! offsets. Positions are ordered by inclusion, which is a partial order: two copies that each have something the other
//! lacks have *diverged*, and neither may follow the other. Drivers make positions; everything else only compares them.
//!
//! **Invariant:** intervals of an origin are sorted, disjoint, not adjacent and not empty, and an origin without
//! intervals is absent; equal sets are therefore equal values.

use std::{cmp::Ordering, collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// A set of `u64` offsets as sorted half-open intervals.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct IntervalSet(Vec<(u64, u64)>);

/// A set of changes by origin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    origins: BTreeMap<String, IntervalSet>,
    /// The engine's own spelling, for people; not part of the comparison.
    #[serde(default)]
    display: Display,
}

/// Text that compares equal to every other, so that a label never makes two positions different.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
struct Display(String);

// === impl Display ===

impl PartialEq for Display {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Display {}
impl std::hash::Hash for Display {
    fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
}

// === impl IntervalSet ===

impl IntervalSet {
    /// The intervals, sorted and disjoint.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Number of offsets contained.
    pub fn len(&self) -> u64 {
        self.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether no offset is contained.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every offset of `other` is contained.
    pub fn includes(&self, other: &Self) -> bool {
        other.iter().all(|(start, end)| self.iter().any(|(s, e)| s <= start && end <= e))
    }

    /// What is here and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        for (mut start, end) in self.iter() {
            for (s, e) in other.iter() {
                if e <= start || end <= s {
                    continue;
                }
                if start < s {
                    left.push((start, s));
                }
                start = e.max(start);
                if start >= end {
                    break;
                }
            }
            if start < end {
                left.push((start, end));
            }
        }
        Self::from(left)
    }
}

impl From<Vec<(u64, u64)>> for IntervalSet {
    /// Takes intervals in any order; empty ones are dropped, touching and overlapping ones joined.
    fn from(mut intervals: Vec<(u64, u64)>) -> Self {
        intervals.retain(|(start, end)| start < end);
        intervals.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::with_capacity(intervals.len());
        for (start, end) in intervals {
            match joined.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                Some(_) | None => joined.push((start, end)),
            }
        }
        Self(joined)
    }
}

impl From<IntervalSet> for Vec<(u64, u64)> {
    fn from(set: IntervalSet) -> Self {
        set.0
    }
}

// === impl Position ===

impl Position {
    /// The empty position: a copy without any change.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Makes a position of its origins; origins without intervals are dropped.
    pub fn new(origins: impl IntoIterator<Item = (String, IntervalSet)>, display: impl Into<String>) -> Self {
        Self {
            origins: origins.into_iter().filter(|(_, set)| !set.is_empty()).collect(),
            display: Display(display.into()),
        }
    }

    /// The origins with their intervals, sorted.
    pub fn origins(&self) -> impl Iterator<Item = (&str, &IntervalSet)> {
        self.origins.iter().map(|(origin, set)| (origin.as_str(), set))
    }

    /// The engine's own spelling, for people.
    pub fn display(&self) -> &str {
        &self.display.0
    }

    /// Whether no change is contained.
    pub fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// Whether everything in `other` is here: `other` can follow this copy.
    pub fn includes(&self, other: &Self) -> bool {
        other.origins.iter().all(|(origin, set)| self.origins.get(origin).is_some_and(|own| own.includes(set)))
    }

    /// What is here and not in `other`: what would be lost if this copy had to follow `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let none = IntervalSet::default();
        Self::new(
            self.origins
                .iter()
                .map(|(origin, set)| (origin.clone(), set.minus(other.origins.get(origin).unwrap_or(&none)))),
            "",
        )
    }

    /// Number of offsets contained, over all origins; the unit is the engine's (bytes of log, transactions).
    pub fn amount(&self) -> u64 {
        self.origins.values().map(IntervalSet::len).sum()
    }
}

impl PartialOrd for Position {
    /// Order by inclusion; `None` when the two have diverged.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self.includes(other), other.includes(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.display.0.is_empty() {
            return f.write_str(&self.display.0);
        }
        for (index, (origin, set)) in self.origins().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{origin}:")?;
            for (start, end) in set.iter() {
                write!(f, "[{start},{end})")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sets() -> impl Strategy<Value = IntervalSet> {
        prop::collection::vec((0u64..40, 0u64..12), 0..5)
            .prop_map(|pairs| IntervalSet::from(pairs.into_iter().map(|(s, l)| (s, s + l)).collect::<Vec<_>>()))
    }

    fn positions() -> impl Strategy<Value = Position> {
        prop::collection::btree_map("[ab]", sets(), 0..3).prop_map(|origins| Position::new(origins, ""))
    }

    fn offsets(position: &Position) -> std::collections::BTreeSet<(String, u64)> {
        position
            .origins()
            .flat_map(|(origin, set)| set.iter().flat_map(move |(s, e)| (s..e).map(move |o| (origin.to_owned(), o))))
            .collect()
    }

    proptest! {
        #[test]
        fn inclusion_and_difference_are_those_of_sets(a in positions(), b in positions()) {
            let (sa, sb) = (offsets(&a), offsets(&b));
            prop_assert_eq!(a.includes(&b), sa.is_superset(&sb));
            prop_assert_eq!(offsets(&a.minus(&b)), sa.difference(&sb).cloned().collect());
            prop_assert_eq!(a == b, sa == sb);
            prop_assert_eq!(a.amount(), sa.len() as u64);
        }

        #[test]
        fn the_order_is_partial(a in positions(), b in positions(), c in positions()) {
            prop_assert_eq!(a.partial_cmp(&a), Some(Ordering::Equal));
            if a >= b && b >= a { prop_assert_eq!(&a, &b); }
            if a >= b && b >= c { prop_assert!(a >= c); }
            prop_assert_eq!(a.minus(&b).is_empty(), b >= a);
        }
    }

    #[test]
    fn a_fork_is_neither_ahead_nor_behind() {
        let history = |own: (u64, u64), name: &str| {
            Position::new(
                [
                    ("s/1".to_owned(), IntervalSet::from(vec![(0, 100)])),
                    (name.to_owned(), IntervalSet::from(vec![own])),
                ],
                "",
            )
        };
        let (left, right) = (history((100, 120), "s/2"), history((100, 150), "s/3"));
        assert_eq!(left.partial_cmp(&right), None);
        assert_eq!(left.minus(&right).amount(), 20);
    }
}
