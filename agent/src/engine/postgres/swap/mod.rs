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

use regent_common::topology::Peer;
use serde::{Deserialize, Serialize};

use super::{
    Postgres, config,
    layout::{Layout, io_error},
    lifecycle::Force,
    replication::{drop_slot, make_slot},
    session::literal,
};
use crate::engine::{DriverError, StartAs};

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

    fn store(&self, layout: &Layout) -> Result<(), DriverError> {
        layout.write_ours(&layout.swap_journal(), &serde_json::to_vec(self).expect("a name and flags are JSON"))
    }
}

/// Brings the files to a state in which `data` is whole: see the table above.
pub(super) fn settle(layout: &Layout) -> Result<(), DriverError> {
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

/// Ends a swap that nobody came back to, before a new clone begins: what is in `data` stays, what is in `kept` too.
pub(super) fn conclude(layout: &Layout) -> Result<(), DriverError> {
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
pub(super) fn discard_kept(layout: &Layout) -> Result<(), DriverError> {
    let Ok(entries) = fs::read_dir(layout.kept()) else { return Ok(()) };
    for entry in entries.filter_map(Result::ok) {
        layout.remove_tree(&entry.path())?;
    }
    Ok(())
}

// === impl Postgres ===

impl Postgres {
    pub(super) async fn swap_in(&self, upstream: &Peer, keep_old: bool) -> Result<(), DriverError> {
        self.adopt_process()?;
        self.on_disk(settle).await?;
        let journal = match self.on_disk(Journal::load).await? {
            Some(journal) => journal,
            None => {
                if !self.on_disk(|layout| Ok(layout.incoming_complete().exists())).await? {
                    return self.is_swapped(upstream).await;
                }
                let begin = |layout: &Layout| {
                    let journal = Journal {
                        undo: false,
                        kept: layout.free_kept_name(),
                        had_data: layout.data().join("PG_VERSION").exists(),
                        was_dirty: layout.is_dirty(),
                    };
                    journal.store(layout)?;
                    Ok(journal)
                };
                self.on_disk(begin).await?
            }
        };
        if let Err(error) = self.stop_fast().await {
            tracing::warn!(%error, "the old copy does not stop cleanly and is killed");
            self.kill().await?;
        }
        let steps = journal.clone();
        self.on_disk(move |layout| put_in_place(layout, &steps)).await?;
        match self.start_new_copy(upstream).await {
            Ok(()) => {
                self.on_disk(move |layout| {
                    layout.unmark(&layout.swap_journal())?;
                    if keep_old { Ok(()) } else { discard_kept(layout) }
                })
                .await
            }
            Err(error) if journal.had_data => {
                tracing::warn!(%error, "the new copy does not stream; the old one is put back");
                self.put_back(journal, upstream).await;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// With nothing to swap in: done already when this copy streams from the upstream.
    async fn is_swapped(&self, upstream: &Peer) -> Result<(), DriverError> {
        if self.is_alive() && self.wait_streaming(upstream).await.is_ok() {
            return Ok(());
        }
        Err(DriverError::NoData { path: self.layout.incoming() })
    }

    async fn start_new_copy(&self, upstream: &Peer) -> Result<(), DriverError> {
        let failed = |error: super::session::SqlError| error.refused(format!("move the slot on {}", upstream.member));
        let session = self.session_with(upstream).await?;
        let (own, clone) = (config::slot_name(&self.member), config::clone_slot_name(&self.member));
        // The copy needs the log from its own beginning, which only the clone's slot holds back.
        let sql = format!(
            "SELECT 1 FROM pg_replication_slots WHERE slot_name = {} AND restart_lsn IS NOT NULL",
            literal(&clone)
        );
        if session.value(&sql, std::time::Duration::from_secs(5)).await.map_err(failed)?.is_some() {
            drop_slot(&session, &own).await.map_err(failed)?;
            let copy = format!("SELECT pg_copy_physical_replication_slot({}, {})", literal(&clone), literal(&own));
            session.execute(&copy).await.map_err(failed)?;
        } else {
            make_slot(&session, &own).await.map_err(failed)?;
        }
        self.write_upstream(Some(upstream)).await?;
        self.on_disk(Layout::make_standby).await?;
        self.launch(Force::Dirty).await?;
        self.wait_streaming(upstream).await?;
        drop_slot(&session, &clone).await.map_err(failed)
    }

    /// Puts the old copy back and starts it as it was. What fails here is reported by the next observation.
    async fn put_back(&self, journal: Journal, upstream: &Peer) {
        let restore = async {
            self.kill().await?;
            let was_dirty = journal.was_dirty;
            self.on_disk(move |layout| {
                let journal = Journal { undo: true, ..journal };
                journal.store(layout)?;
                undo(layout, &journal)
            })
            .await?;
            if was_dirty { Ok(()) } else { self.start_as(&StartAs::Replica(upstream.clone())).await }
        };
        if let Err(error) = Box::pin(restore).await {
            tracing::error!(%error, "the old copy is put back, but does not follow");
        }
    }
}

#[cfg(test)]
mod tests;
