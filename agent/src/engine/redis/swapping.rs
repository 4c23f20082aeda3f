//! Putting a clone in the data directory's place (see [`crate::engine::swap`]) and starting it.

use regent_common::topology::Peer;

use super::{Redis, lifecycle::Force};
use crate::engine::{
    DriverError, StartAs,
    swap::{Journal, discard_kept, put_in_place, settle},
};

// === impl Redis ===

impl Redis {
    pub(super) async fn swap_in(&self, upstream: &Peer, keep_old: bool) -> Result<(), DriverError> {
        self.adopt_process()?;
        self.on_disk(settle).await?;
        let journal = match self.on_disk(Journal::load).await? {
            Some(journal) => journal,
            None => match self.on_disk(Journal::begin).await? {
                Some(journal) => journal,
                None => return self.is_swapped(upstream).await,
            },
        };
        // What is kept is to be whole; what is thrown away needs no snapshot.
        let stopped = if keep_old { self.stop_fast().await } else { self.kill().await };
        if let Err(error) = stopped {
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
        if self.is_alive() && self.following().as_ref() == Some(&upstream.member) {
            return self.wait_streaming(upstream).await;
        }
        Err(DriverError::NoData { path: self.layout.incoming() })
    }

    async fn start_new_copy(&self, upstream: &Peer) -> Result<(), DriverError> {
        self.write_upstream(None).await?;
        self.launch(Force::Dirty).await?;
        self.stream_from(upstream).await
    }

    /// Puts the old copy back and starts it as it was. What fails here is reported by the next observation.
    async fn put_back(&self, journal: Journal, upstream: &Peer) {
        let restore = async {
            self.kill().await?;
            let was_dirty = journal.was_dirty;
            self.on_disk(move |layout| journal.turn_back(layout)).await?;
            if was_dirty { Ok(()) } else { self.start_as(&StartAs::Replica(upstream.clone())).await }
        };
        if let Err(error) = Box::pin(restore).await {
            tracing::error!(%error, "the old copy is put back, but does not follow");
        }
    }
}
