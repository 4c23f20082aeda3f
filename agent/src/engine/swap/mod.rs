//! Putting the clone in the data directory's place, by rename, so that a power cut at any point can be repaired.
//!
//! ```text
//!  step                                  files after it                          a power cut here is repaired by
//!  1 write the journal (forward)         data=old  incoming=new                  doing 2.. again
//!  2 stop the engine                     data=old  incoming=new                  doing 2.. again
//!  3 rename data -> kept/NAME            kept=old  incoming=new                  settle: 4
//!  4 rename incoming -> data             kept=old  data=new                      doing 5.. again
//!  5 clear "dirty", "incoming-complete"  kept=old  data=new                      doing 5.. again
//!  6 start, wait until it streams        kept=old  data=new                      doing 6.. again
//!  7 remove the journal                  kept=old  data=new                      nothing to repair
//! ```
//! When 6 fails the journal turns to "undo", the new copy goes, and `kept/NAME` becomes `data` again, dirty if it was;
//! settle carries an undo to its end. [`settle`] runs before every start: at worst it leaves the old copy or the whole new
//! one in `data`, never none and never a half one. The journal and each rename are flushed before the next step.

use std::fs;

use serde::{Deserialize, Serialize};

use super::{
    DriverError,
    layout::{Layout, io_error},
};

/// What a swap is doing, in `ROOT/swap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::engine) struct Journal {
    pub(in crate::engine) undo: bool,
    /// Name in `kept` of the old data.
    pub(in crate::engine) kept: String,
    /// Whether there was old data.
    pub(in crate::engine) had_data: bool,
    /// Whether the old data must not be started.
    pub(in crate::engine) was_dirty: bool,
}

// === impl Journal ===

impl Journal {
    /// The swap that is under way.
    pub(in crate::engine) fn load(layout: &Layout) -> Result<Option<Self>, DriverError> {
        let path = layout.swap_journal();
        match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error)),
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| DriverError::Io {
                doing: "read",
                path,
                source: error.into(),
            }),
        }
    }

    /// Begins a swap of what is in the side directory; `None` when there is no whole copy.
    pub(in crate::engine) fn begin(layout: &Layout) -> Result<Option<Self>, DriverError> {
        if !layout.incoming_complete().exists() {
            return Ok(None);
        }
        let journal = Self {
            undo: false,
            kept: layout.free_kept_name(),
            had_data: layout.holds_data(),
            was_dirty: layout.is_dirty(),
        };
        journal.store(layout)?;
        Ok(Some(journal))
    }

    /// The swap goes back from here on: the old copy is put in place again.
    pub(in crate::engine) fn turn_back(self, layout: &Layout) -> Result<(), DriverError> {
        let journal = Self { undo: true, ..self };
        journal.store(layout)?;
        undo(layout, &journal)
    }

    pub(in crate::engine) fn store(&self, layout: &Layout) -> Result<(), DriverError> {
        layout.write_ours(&layout.swap_journal(), &serde_json::to_vec(self).expect("a name and flags are JSON"))
    }
}

/// Brings the files to a state in which `data` is whole: see the table above.
pub(in crate::engine) fn settle(layout: &Layout) -> Result<(), DriverError> {
    let Some(journal) = Journal::load(layout)? else { return Ok(()) };
    if journal.undo {
        return undo(layout, &journal);
    }
    if !layout.data().exists() && layout.incoming().exists() && layout.incoming_complete().exists() {
        layout.rename(&layout.incoming(), &layout.data())?;
    }
    Ok(())
}

/// Steps 3 to 5, from wherever they are.
pub(in crate::engine) fn put_in_place(layout: &Layout, journal: &Journal) -> Result<(), DriverError> {
    if layout.incoming().exists() && layout.incoming_complete().exists() {
        if layout.data().exists() {
            layout.rename(&layout.data(), &layout.kept().join(&journal.kept))?;
        }
        layout.rename(&layout.incoming(), &layout.data())?;
    }
    layout.unmark(&layout.dirty())?;
    layout.unmark(&layout.initializing())?;
    layout.unmark(&layout.incoming_complete())
}

/// Ends a swap that nobody came back to, before a new clone begins: what is in `data` stays, what is in `kept` too.
pub(in crate::engine) fn conclude(layout: &Layout) -> Result<(), DriverError> {
    settle(layout)?;
    layout.unmark(&layout.swap_journal())
}

fn undo(layout: &Layout, journal: &Journal) -> Result<(), DriverError> {
    let kept = layout.kept().join(&journal.kept);
    if journal.had_data && kept.exists() {
        if journal.was_dirty {
            layout.mark_dirty("it was so before the swap that was undone")?;
        }
        if layout.data().exists() {
            layout.remove_tree(&layout.incoming())?;
            layout.rename(&layout.data(), &layout.incoming())?;
        }
        layout.rename(&kept, &layout.data())?;
    }
    layout.unmark(&layout.incoming_complete())?;
    layout.remove_tree(&layout.incoming())?;
    layout.unmark(&layout.swap_journal())
}

/// Removes what swaps kept.
pub(in crate::engine) fn discard_kept(layout: &Layout) -> Result<(), DriverError> {
    let Ok(entries) = fs::read_dir(layout.kept()) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        layout.remove_tree(&entry.path())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
