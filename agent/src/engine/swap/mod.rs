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

use async_trait::async_trait;
use regent_common::topology::Peer;
use serde::{Deserialize, Serialize};

use super::{
    DriverError,
    layout::{Layout, io_error},
};

/// What a swap is doing, in `ROOT/swap`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    undo: bool,
    /// Name in `kept` of the old data.
    kept: String,
    /// Whether there was old data.
    had_data: bool,
    /// Whether the old data must not be started.
    was_dirty: bool,
}

// === impl Journal ===

impl Journal {
    /// The swap that is under way.
    fn load(layout: &Layout) -> Result<Option<Self>, DriverError> {
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
    fn begin(layout: &Layout) -> Result<Option<Self>, DriverError> {
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
    fn turn_back(self, layout: &Layout) -> Result<(), DriverError> {
        let journal = Self { undo: true, ..self };
        journal.store(layout)?;
        undo(layout, &journal)
    }

    fn store(&self, layout: &Layout) -> Result<(), DriverError> {
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
fn put_in_place(layout: &Layout, journal: &Journal) -> Result<(), DriverError> {
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

/// Makes a swap that puts nothing in the data's place, or goes on with the one that is under way.
pub(in crate::engine) fn begin_empty(layout: &Layout) -> Result<(), DriverError> {
    settle(layout)?;
    if layout.swap_journal().exists() {
        return Ok(());
    }
    layout.unmark(&layout.incoming_complete())?;
    layout.remove_tree(&layout.incoming())?;
    layout.make_folder(&layout.incoming(), 0o700, true)?;
    layout.write_ours(&layout.incoming_complete(), b"")
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

/// What a driver does in a swap, each when [`carry_out`] says so.
#[async_trait]
pub(in crate::engine) trait Swapped: Sync {
    /// Takes over an engine that runs already.
    fn adopt_process(&self) -> Result<(), DriverError>;

    /// Runs file operations where they may wait for the disk.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl for<'a> FnOnce(&'a Layout) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError>;

    /// Whether this copy streams from the upstream: then there is nothing to swap in.
    async fn streams_from(&self, upstream: &Peer) -> bool;

    /// Ends the engine on the old copy cleanly; what is kept is to be whole.
    async fn end_old_copy(&self, keep: bool) -> Result<(), DriverError>;

    /// Kills the engine.
    async fn kill(&self) -> Result<(), DriverError>;

    /// Starts the copy that is in place now; returns when it streams.
    async fn start_new_copy(&self, upstream: &Peer) -> Result<(), DriverError>;

    /// Starts the old copy, which is in place again.
    async fn start_old_copy(&self, upstream: &Peer) -> Result<(), DriverError>;
}

/// Puts the clone in place and starts it; when it does not stream, the old copy is put back.
pub(in crate::engine) async fn carry_out(
    driver: &impl Swapped,
    upstream: &Peer,
    keep_old: bool,
) -> Result<(), DriverError> {
    driver.adopt_process()?;
    driver.on_disk(settle).await?;
    let journal = match driver.on_disk(Journal::load).await? {
        Some(journal) => journal,
        None => match driver.on_disk(Journal::begin).await? {
            Some(journal) => journal,
            None if driver.streams_from(upstream).await => return Ok(()),
            None => return driver.on_disk(|layout| Err(DriverError::NoData { path: layout.incoming() })).await,
        },
    };
    if let Err(error) = driver.end_old_copy(keep_old).await {
        tracing::warn!(%error, "the old copy does not stop cleanly and is killed");
        driver.kill().await?;
    }
    let steps = journal.clone();
    driver.on_disk(move |layout| put_in_place(layout, &steps)).await?;
    match driver.start_new_copy(upstream).await {
        Ok(()) => {
            let end = move |layout: &Layout| {
                layout.unmark(&layout.swap_journal())?;
                if keep_old { Ok(()) } else { discard_kept(layout) }
            };
            driver.on_disk(end).await
        }
        Err(error) if journal.had_data => {
            tracing::warn!(%error, "the new copy does not stream; the old one is put back");
            // What fails of that is reported by the next observation.
            if let Err(error) = put_back(driver, journal, upstream).await {
                tracing::error!(%error, "the old copy is put back, but does not follow");
            }
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// Puts the old copy back and starts it as it was.
async fn put_back(driver: &impl Swapped, journal: Journal, upstream: &Peer) -> Result<(), DriverError> {
    driver.kill().await?;
    let was_dirty = journal.was_dirty;
    driver.on_disk(move |layout| journal.turn_back(layout)).await?;
    if was_dirty { Ok(()) } else { driver.start_old_copy(upstream).await }
}

#[cfg(test)]
mod tests;
