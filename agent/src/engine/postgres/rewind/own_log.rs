//! The log that a rewound copy needs and that the tool takes away.
//!
//! A rewound copy recovers from the last checkpoint that both had. The log from there to where the two parted is the same on
//! both, but the source may have removed it long ago, and the tool makes `pg_wal` a mirror of the source's: what is not there
//! goes here too, and the engine then asks its upstream for it for ever. Newer versions of the tool keep what they have read
//! to find that checkpoint, which is from its record on (15.18: "Not removing file because it is required for recovery"). But
//! recovery begins where the checkpoint began, and under load that is some files earlier. So the copy's own log is set aside by
//! links before the rewind, and what is missing comes back after it. From where they parted nothing of it may come back.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::Path,
};

use super::super::{
    layout::{Layout, io_error},
    position::{Lsn, Place},
};
use crate::engine::DriverError;

/// A segment of the log: a file of `pg_wal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    timeline: u32,
    number: u64,
}

/// The file names of segments of this many bytes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segments {
    bytes: u64,
}

// === impl Segments ===

impl Segments {
    /// Segments as `pg_controldata` gives their size.
    pub(super) fn of_size(field: &str) -> Option<Self> {
        field
            .parse()
            .ok()
            .filter(|bytes: &u64| bytes.is_power_of_two() && *bytes <= 1 << 30)
            .map(|bytes| Self { bytes })
    }

    fn with(self, place: Lsn) -> u64 {
        place.0 / self.bytes
    }

    fn per_word(self) -> u64 {
        (1 << 32) / self.bytes
    }

    /// Reads `000000020000000A000000FE`; `None` for anything else in the folder.
    fn parse(self, name: &str) -> Option<Segment> {
        if name.len() != 24 {
            return None;
        }
        let word = |index: usize| u32::from_str_radix(name.get(index * 8..index * 8 + 8)?, 16).ok();
        Some(Segment { timeline: word(0)?, number: u64::from(word(1)?) * self.per_word() + u64::from(word(2)?) })
    }

    fn name(self, segment: Segment) -> String {
        let Segment { timeline, number } = segment;
        format!("{timeline:08X}{:08X}{:08X}", number / self.per_word(), number % self.per_word())
    }

    /// Sets aside the log of before the place where this copy and the source parted, and nothing of after it.
    pub(super) fn set_aside(self, layout: &Layout, parted: Lsn) -> Result<(), DriverError> {
        let aside = layout.own_log();
        layout.remove_tree(&aside)?;
        layout.make_folder(&aside, 0o700, false)?;
        for name in names_in(&layout.log_segments())? {
            if self.parse(&name).is_some_and(|segment| segment.number < self.with(parted)) {
                link(&layout.log_segments().join(&name), &aside.join(&name))?;
            }
        }
        Ok(())
    }

    /// Brings back what recovery needs of what was set aside; flushed. Returns how many files that were, or the first that is
    /// neither here nor there: such a copy must not be started, as recovery would take the file of another timeline for it.
    pub(super) fn bring_back(self, layout: &Layout, source: &Place) -> Result<Result<usize, String>, DriverError> {
        let path = layout.data().join("backup_label");
        let label = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        let Some(first) = first_file(&label).and_then(|name| self.parse(name)) else {
            return Err(DriverError::CannotRewind {
                reason: "the tool left no word of where recovery begins".to_owned(),
            });
        };
        let (aside, log) = (layout.own_log(), layout.log_segments());
        // The tool writes through links, into files that the source has too, and leaves them cut short where the source removes
        // them meanwhile.
        let is_whole = |path: &Path| fs::metadata(path).is_ok_and(|facts| facts.len() == self.bytes);
        let mut brought = 0;
        for name in self.names(first.number, source) {
            if is_whole(&log.join(&name)) {
                continue;
            }
            if !is_whole(&aside.join(&name)) {
                return Ok(Err(name));
            }
            layout.unmark(&log.join(&name))?;
            link(&aside.join(&name), &log.join(&name))?;
            brought += 1;
        }
        File::open(&log).and_then(|log| log.sync_all()).map_err(io_error("flush", &log))?;
        layout.remove_tree(&aside)?;
        Ok(Ok(brought))
    }

    /// The first file from where the two parted on that the source, which has these, has no more.
    pub(super) fn gone_from_source(self, has: &BTreeSet<String>, parted: Lsn, source: &Place) -> Option<String> {
        self.names(self.with(parted), source).find(|name| !has.contains(name))
    }

    /// Files of the source's history, from a number to where the source was.
    fn names(self, first: u64, source: &Place) -> impl Iterator<Item = String> {
        let last = self.with(Lsn(source.lsn.0.saturating_sub(1)));
        (first..=last).map(move |number| {
            let end = Lsn((number + 1).saturating_mul(self.bytes));
            self.name(Segment { timeline: source.timeline_before(end), number })
        })
    }
}

/// The file with which recovery begins, as `backup_label` names it.
fn first_file(label: &str) -> Option<&str> {
    let line = label.lines().find(|line| line.starts_with("START WAL LOCATION:"))?;
    line.split_once("(file ")?.1.strip_suffix(')')
}

fn names_in(folder: &Path) -> Result<Vec<String>, DriverError> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(io_error("read", folder))?;
    Ok(entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn link(from: &Path, to: &Path) -> Result<(), DriverError> {
    fs::hard_link(from, to).map_err(io_error("link", to))
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Segments = Segments { bytes: 16 << 20 };

    #[test]
    fn names_of_segments_are_read_and_written() {
        let last_of_a_word = "000000020000000A000000FF";
        let segment = USUAL.parse(last_of_a_word).unwrap();
        assert_eq!(segment, Segment { timeline: 2, number: 0xAFF });
        assert_eq!(USUAL.name(segment), last_of_a_word);
        assert_eq!(USUAL.name(Segment { number: 0xB00, ..segment }), "000000020000000B00000000");
        let large = Segments::of_size("1073741824").unwrap();
        assert_eq!(large.parse("0000000100000002 0000003".trim()), None);
        assert_eq!(large.parse("000000010000000200000003").unwrap().number, 2 * 4 + 3);
        for other in ["00000002.history", "archive_status", "000000020000000A000000FF.partial", "xlogtemp.7"] {
            assert_eq!(USUAL.parse(other), None, "{other}");
        }
        assert_eq!(Segments::of_size("16777216"), Some(USUAL));
        assert_eq!(Segments::of_size("17"), None);
    }

    #[test]
    fn what_the_source_has_to_have_begins_where_the_two_parted() {
        let history = [(1, 0x280_0000)];
        let source = super::super::super::position::fixture(2, 0x400_0000, &history);
        let named = |first| USUAL.names(first, &source).collect::<Vec<_>>();
        let on_two = ["000000020000000000000002", "000000020000000000000003"].map(str::to_owned);
        assert_eq!(named(1)[0], "000000010000000000000001");
        assert_eq!(
            named(2),
            on_two,
            "it ends where the fourth would begin, and the switch is in the file of the newer one"
        );
        let parted = Lsn(0x280_0000);
        assert_eq!(USUAL.gone_from_source(&BTreeSet::from(on_two.clone()), parted, &source), None);
        assert_eq!(USUAL.gone_from_source(&[on_two[0].clone()].into(), parted, &source), Some(on_two[1].clone()));
    }

    #[test]
    fn the_beginning_of_recovery_is_read() {
        let label = "START WAL LOCATION: 0/D0000A0 (file 00000002000000000000000D)\nCHECKPOINT LOCATION: 0/E10D0C8\n";
        assert_eq!(first_file(label), Some("00000002000000000000000D"));
        assert_eq!(first_file("CHECKPOINT LOCATION: 0/E10D0C8\n"), None);
    }
}
