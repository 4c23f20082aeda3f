//! What putting a clone in the data directory's place (see [`crate::engine::swap`]) asks of the engine.
//!
//! **What is kept of the old copy** is its snapshot. One that is written when the old copy ends is waited for by everybody who reads
//! it, so it is written while the clone comes in, and the old copy is killed if everything that it has is there. What it has
//! streamed since from a primary does not count: that is in the primary, too, and the clone's own snapshot is no newer. Anything
//! else, as of a former primary that nobody follows, is written before the end.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use regent_common::topology::Peer;

use super::{
    Redis,
    lifecycle::Force,
    session::{BRIEF, SessionError},
};
use crate::engine::{DriverError, StartAs, layout::Layout, swap::Swapped};

// === impl Redis ===

impl Redis {
    /// Writes a snapshot of the old copy while a clone comes in. One that fails is made up for when the old copy ends.
    pub(super) async fn write_old_copy(&self) {
        self.old_copy_written.store(false, Ordering::Release);
        if !self.is_alive() {
            return;
        }
        let written = if self.is_written(false).await.unwrap_or(false) { Ok(()) } else { self.save().await };
        match written {
            Ok(()) => self.old_copy_written.store(true, Ordering::Release),
            Err(error) => tracing::warn!(%error, "the old copy is not written yet; that is done when it ends"),
        }
    }

    /// Whether the snapshot on the disk has what is worth keeping of the copy in place.
    async fn old_copy_is_written(&self) -> bool {
        let since_clone = self.old_copy_written.swap(false, Ordering::AcqRel);
        self.is_alive() && self.is_written(since_clone).await.unwrap_or(false)
    }

    /// Whether the snapshot on the disk has all of this copy, or all but what it has streamed since.
    async fn is_written(&self, but_for_stream: bool) -> Result<bool, SessionError> {
        let session = self.session().await?;
        let persistence = session.info("persistence", BRIEF).await?;
        if persistence.is("rdb_changes_since_last_save", "0") {
            return Ok(self.layout.holds_data());
        }
        Ok(but_for_stream && session.info("replication", BRIEF).await?.streams())
    }
}

// === impl Swapped for Redis ===

#[async_trait]
impl Swapped for Redis {
    fn adopt_process(&self) -> Result<(), DriverError> {
        Redis::adopt_process(self)
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl for<'a> FnOnce(&'a Layout) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        Redis::on_disk(self, work).await
    }

    async fn streams_from(&self, upstream: &Peer) -> bool {
        self.is_alive()
            && self.following().as_ref() == Some(&upstream.member)
            && self.wait_streaming(upstream).await.is_ok()
    }

    async fn end_old_copy(&self, keep: bool) -> Result<(), DriverError> {
        // What is thrown away needs no snapshot. What a side had is put back when it is not filled.
        let needs_snapshot = (keep || self.is_side()) && !self.old_copy_is_written().await;
        if needs_snapshot { self.stop_fast().await } else { Redis::kill(self).await }
    }

    async fn kill(&self) -> Result<(), DriverError> {
        Redis::kill(self).await
    }

    async fn start_new_copy(&self, upstream: &Peer) -> Result<(), DriverError> {
        if self.is_side() {
            return Box::pin(self.fill_from(upstream)).await;
        }
        self.write_upstream(None).await?;
        self.launch(Force::Dirty).await?;
        self.stream_from(upstream).await.map(drop)
    }

    async fn start_old_copy(&self, upstream: &Peer) -> Result<(), DriverError> {
        if self.is_side() {
            return self.launch(Force::No).await;
        }
        Box::pin(self.start_as(&StartAs::Replica(upstream.clone()))).await
    }
}
