//! What putting a clone in the data directory's place (see [`crate::engine::swap`]) asks of the engine: the new copy begins where
//! only the clone's slot holds the log back.

use async_trait::async_trait;
use regent_common::topology::Peer;

use super::{
    Postgres, config,
    layout::Layout,
    lifecycle::Force,
    replication::{drop_slot, make_slot},
    session::literal,
};
use crate::engine::{DriverError, StartAs, swap::Swapped};

// === impl Swapped for Postgres ===

#[async_trait]
impl Swapped for Postgres {
    fn adopt_process(&self) -> Result<(), DriverError> {
        Postgres::adopt_process(self)
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl for<'a> FnOnce(&'a Layout) -> Result<T, DriverError> + Send + 'static,
    ) -> Result<T, DriverError> {
        Postgres::on_disk(self, work).await
    }

    async fn streams_from(&self, upstream: &Peer) -> bool {
        self.is_alive() && self.wait_streaming(upstream).await.is_ok()
    }

    async fn end_old_copy(&self, _: bool) -> Result<(), DriverError> {
        self.stop_fast().await
    }

    async fn kill(&self) -> Result<(), DriverError> {
        Postgres::kill(self).await
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

    async fn start_old_copy(&self, upstream: &Peer) -> Result<(), DriverError> {
        Box::pin(self.start_as(&StartAs::Replica(upstream.clone()))).await
    }
}
