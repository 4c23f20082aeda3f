//! Positions of the Redis family: replication ids and offsets as origins and intervals.
//!
//! The engine gives its history an id of 40 random digits, and another with every promotion; offsets go on over it. A copy that
//! has id C, and had B up to b and A up to a before, and has come to c, has `A: [0,a)`, `B: [a,b)`, `C: [b,c)`. Two copies
//! that were both promoted have different ids, and are told apart by that.
//!
//! The engine itself remembers one id before the present one, and after a full synchronization none, so that copies which are
//! two promotions apart could not be compared. The whole line is therefore kept beside the data (see [`Line::load`]), told to
//! the other members by the engine (see `access.rs`), and taken over from whom a copy follows.
//!
//! The offsets here are one more than the engine's, so that a copy at offset 0 has something, and is no empty one.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use regent_common::position::{IntervalSet, Position};
use serde::{Deserialize, Serialize};

use crate::engine::{
    DriverError,
    layout::{Layout, io_error},
};

/// Ids that a copy had before its present one are remembered, the newest so many: more than a cluster is promoted in years. From there
/// on each promotion would leave the other members with an id that the primary has forgotten: as diverged, the safe side.
const REMEMBERED: usize = 2000;
/// Name of the file with the line, in the data directory: it goes where the data goes.
const FILE: &str = "regent-line.json";

/// An id that was left, and the end of what the copy has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Left {
    pub(super) id: String,
    pub(super) end: u64,
}

/// The ids that a copy's history has had, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    pub(super) left: Vec<Left>,
    pub(super) id: String,
}

/// How far one copy has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) line: Line,
    /// One more than the engine's offset.
    pub(super) end: u64,
}

/// The end of a copy at an offset of the engine's.
pub(super) fn end_of(offset: u64) -> u64 {
    offset.saturating_add(1)
}

/// Where the line of this data is.
pub(super) fn file_in(data: &Path) -> PathBuf {
    data.join(FILE)
}

// === impl Line ===

impl Line {
    pub(super) fn of(id: &str) -> Self {
        Self { left: Vec::new(), id: id.to_owned() }
    }

    /// The line beside this data; `None` where there is none, or it is not to be read: then nothing is known.
    pub(super) fn load(data: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(file_in(data)).ok()?).ok()
    }

    pub(super) fn store(&self, layout: &Layout, data: &Path) -> Result<(), DriverError> {
        let path = file_in(data);
        let text = serde_json::to_vec(self).expect("ids and numbers are JSON");
        match fs::read(&path) {
            Ok(known) if known == text => return Ok(()),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io_error("read", &path)(error)),
            Ok(_) | Err(_) => {}
        }
        layout.write_for_engine(&path, &text)
    }

    /// The copy has left its id at `end` for another one.
    pub(super) fn go_on_as(&mut self, id: &str, end: u64) {
        if self.id == id {
            return;
        }
        let former = std::mem::replace(&mut self.id, id.to_owned());
        // What was never written on is no part of the history.
        if !former.is_empty() && self.left.last().is_none_or(|last| last.end < end) {
            self.left.push(Left { id: former, end });
        }
        let surplus = self.left.len().saturating_sub(REMEMBERED);
        self.left.drain(..surplus);
    }

    /// Where an id was left; `None` when it is no former one.
    pub(super) fn left_at(&self, id: &str) -> Option<u64> {
        self.left.iter().find(|left| left.id == id).map(|left| left.end)
    }

    /// As words without blanks, as which the engine tells it to the other members.
    pub(super) fn words(&self) -> impl Iterator<Item = String> + '_ {
        self.left.iter().map(|left| format!("{}:{}", left.id, left.end)).chain([self.id.clone()])
    }

    /// Reads [`Self::words`].
    pub(super) fn parse<'a>(words: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut line = Self::default();
        for word in words {
            match word.split_once(':') {
                Some((id, end)) if line.id.is_empty() => {
                    line.left.push(Left { id: id.to_owned(), end: end.parse().ok()? });
                }
                None if line.id.is_empty() => word.clone_into(&mut line.id),
                Some(_) | None => return None,
            }
        }
        (!line.id.is_empty()).then_some(line)
    }
}

// === impl Place ===

impl Place {
    /// The position in the terms that all engines share.
    pub(super) fn position(&self) -> Position {
        let mut start = 0;
        let mut origins = Vec::with_capacity(self.line.left.len() + 1);
        for left in &self.line.left {
            origins.push((left.id.clone(), IntervalSet::from(vec![(start, left.end.min(self.end))])));
            start = left.end;
        }
        origins.push((self.line.id.clone(), IntervalSet::from(vec![(start, self.end)])));
        let mut display = String::new();
        let short: String = self.line.id.chars().take(8).collect();
        write!(display, "{short} at {}", self.end.saturating_sub(1)).expect("writing to a string does not fail");
        Position::new(origins, display)
    }

    /// Whether a copy at this place can follow `upstream`; else where their ways part.
    pub(super) fn can_follow(&self, upstream: &Self) -> Result<(), String> {
        if upstream.position().includes(&self.position()) {
            return Ok(());
        }
        let own = self.position();
        if upstream.line.id == self.line.id {
            return Err(format!("this copy is {own}, the upstream only {}", upstream.position()));
        }
        Err(match upstream.line.left_at(&self.line.id) {
            Some(left) => format!("this copy is {own}, the upstream went its own way from {}", left.saturating_sub(1)),
            None => format!("this copy is {own}, and the upstream's history knows nothing of that"),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(line: &[(&str, u64)], id: &str, end: u64) -> Place {
        let left = line.iter().map(|(id, end)| Left { id: (*id).to_owned(), end: *end }).collect();
        Place { line: Line { left, id: id.to_owned() }, end }
    }

    #[test]
    fn a_replica_follows_a_promoted_one_only_from_before_the_promotion() {
        let promoted = place(&[("a", 50), ("b", 100)], "c", 130);
        assert_eq!(place(&[("a", 50)], "b", 100).can_follow(&promoted), Ok(()));
        assert_eq!(place(&[], "a", 20).can_follow(&promoted), Ok(()), "two promotions behind");
        assert_eq!(place(&[("a", 50), ("b", 100)], "c", 110).can_follow(&promoted), Ok(()));
        let ahead = place(&[("a", 50)], "b", 101).can_follow(&promoted).unwrap_err();
        assert_eq!(ahead, "this copy is b at 100, the upstream went its own way from 99");
        assert!(place(&[("a", 50), ("b", 100)], "c", 131).can_follow(&promoted).unwrap_err().contains("only c at 129"));
        assert!(place(&[("a", 50)], "x", 60).can_follow(&promoted).unwrap_err().contains("knows nothing"));
    }

    #[test]
    fn two_promotions_from_one_place_are_told_apart() {
        let (one, other) = (place(&[("a", 50)], "b", 60), place(&[("a", 50)], "c", 90));
        assert_eq!(one.position().partial_cmp(&other.position()), None);
        assert_eq!(one.position().minus(&other.position()).amount(), 10);
    }

    #[test]
    fn what_was_never_written_on_is_no_part_of_the_history() {
        let mut line = Line::of("a");
        line.go_on_as("a", 10);
        assert_eq!(line, Line::of("a"));
        line.go_on_as("b", 10);
        line.go_on_as("c", 10);
        assert_eq!(line, place(&[("a", 10)], "c", 0).line);
        for number in 0..3000 {
            line.go_on_as(&format!("id{number}"), 11 + number);
        }
        assert_eq!((line.left.len(), line.id.as_str()), (REMEMBERED, "id2999"));
    }

    #[test]
    fn a_line_is_told_in_words() {
        let line = place(&[("a", 50), ("b", 100)], "c", 0).line;
        let words: Vec<String> = line.words().collect();
        assert_eq!(words, ["a:50", "b:100", "c"]);
        assert_eq!(Line::parse(words.iter().map(String::as_str)), Some(line));
        for nonsense in [&["a:50"][..], &[], &["a", "b"], &["a:x", "b"], &["a", "b:1"]] {
            assert_eq!(Line::parse(nonsense.iter().copied()), None, "{nonsense:?}");
        }
    }

    proptest! {
        #[test]
        fn going_on_only_adds(steps in prop::collection::vec(1u64..1000, 0..5), more in 0u64..500) {
            let mut end = 1;
            let mut line = Line::of("0");
            for (number, step) in steps.iter().enumerate() {
                let before = Place { line: line.clone(), end };
                end += step;
                line.go_on_as(&format!("{}", number + 1), end);
                let after = Place { line: line.clone(), end };
                prop_assert_eq!(before.can_follow(&after), Ok(()));
            }
            let before = Place { line: line.clone(), end };
            let after = Place { line, end: end + more };
            prop_assert!(after.position().includes(&before.position()));
            prop_assert_eq!(after.position().amount(), end + more);
        }
    }
}
