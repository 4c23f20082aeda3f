//! Everything goes down at once and comes back: one primary, nothing lost that every copy had, nobody needed.

use anyhow::{Context, Result, ensure};

use super::{Bed, Cast, Rig};
use crate::{
    cluster::CREATE,
    workload::{
        checker::{self, Stored},
        history::History,
        now_nanos,
        writers::Writers,
    },
};

/// Rows to see before, and after.
const ROWS: usize = 50;

/// Writes for a while, and sees to it that every copy has it all.
pub async fn write_and_settle(bed: &Bed<impl Rig>, name: &str) -> Result<(Vec<History>, Stored)> {
    let folder = bed.folder.join("writers").join(name);
    let writers = Writers::start_called("settled-", &folder, &bed.client, &bed.members, true)?;
    writers.acknowledged(now_nanos(), 2 * ROWS, CREATE).await?;
    let histories = writers.stop().await?;
    let stored = bed.same_on_all().await?;
    ensure!(checker::account(&histories, &stored).lost.is_empty(), "rows are lost with nothing gone wrong");
    Ok((histories, stored))
}

/// Takes everything down and up again by `happens`, with writers there throughout, and waits until all is well by itself. `name`
/// is this run's own; `happens` says when everything was down, by the writers' clock. The error is what is not as it has to be.
pub async fn blackout<R: Rig>(
    bed: &mut Bed<R>,
    name: &str,
    happens: impl AsyncFnOnce(&mut R, &Cast) -> Result<u64>,
) -> Result<()> {
    let cast = bed.cast().await.context("before it")?;
    bed.client.make_room(&cast.primary.endpoint).await?;
    let (histories, stored) = write_and_settle(bed, &format!("before-{name}")).await?;
    // Who takes their rows while machines come back is seen.
    let folder = bed.folder.join("writers").join(name);
    let mut writers = Writers::start(&folder, &bed.client, &bed.members, true)?;
    for actor in cast.members() {
        writers.add_patient(&format!("patient-{}", actor.node), &actor.endpoint)?;
    }
    writers.acknowledged(0, ROWS, CREATE).await.context("before it")?;
    let down = happens(&mut bed.fleet, &cast).await?;
    bed.fleet.reconnect().await?;
    bed.fleet.all_connected().await?;
    let after = bed.healthy().await?;
    ensure!(after.epoch >= cast.epoch, "the epoch went back from {} to {}", cast.epoch, after.epoch);
    writers.acknowledged(down, ROWS, CREATE).await?;
    let during = writers.stop().await?;
    let overlaps = checker::overlaps(&during, 0, u64::MAX);
    ensure!(overlaps.is_empty(), "two members took writes at once: {overlaps:?}");

    let now = bed.same_on_all().await?;
    let missing = stored.keys().filter(|row| !now.contains_key(*row)).count();
    ensure!(missing == 0, "{missing} rows that every copy had are gone");
    // What was written in the last moment may be lost with the old primary, and nothing after that.
    let all = [histories, during].concat();
    let account = checker::account(&all, &now);
    ensure!(account.is_consistent(), "{account:?}");
    for (row, at, member) in checker::acknowledged(&all, &account.lost) {
        let lost_with_it = after.primary != cast.primary.member && member == cast.primary.endpoint;
        ensure!(lost_with_it && at < down, "{row:?} of {member} is lost");
    }
    Ok(())
}
