//! What putting a clone in the data directory's place (see [`crate::engine::swap`]) asks of the engine.

use async_trait::async_trait;
use regent_common::topology::Peer;

use super::{Redis, lifecycle::Force};
use crate::engine::{DriverError, StartAs, layout::Layout, swap::Swapped};

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
        if keep || self.is_side() { self.stop_fast().await } else { Redis::kill(self).await }
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
        self.stream_from(upstream).await
    }

    async fn start_old_copy(&self, upstream: &Peer) -> Result<(), DriverError> {
        if self.is_side() {
            return self.launch(Force::No).await;
        }
        Box::pin(self.start_as(&StartAs::Replica(upstream.clone()))).await
    }
}
