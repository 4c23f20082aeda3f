//! Putting a clone in the data directory's place (see [`crate::engine::swap`]), with what the server needs for it: the new copy
//! begins where only the clone's slot holds the log back.

use regent_common::topology::Peer;

use super::{
    Postgres, config,
    layout::Layout,
    lifecycle::Force,
    replication::{drop_slot, make_slot},
    session::literal,
};
use crate::engine::{
    DriverError, StartAs,
    swap::{Journal, discard_kept, put_in_place, settle},
};

// === impl Postgres ===

impl Postgres {
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
            self.on_disk(move |layout| journal.turn_back(layout)).await?;
            if was_dirty { Ok(()) } else { self.start_as(&StartAs::Replica(upstream.clone())).await }
        };
        if let Err(error) = Box::pin(restore).await {
            tracing::error!(%error, "the old copy is put back, but does not follow");
        }
    }
}
