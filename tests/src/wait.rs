//! Waiting for something to become so, with a deadline and the last thing that was seen.

use std::{future::Future, time::Duration};

use anyhow::{Result, bail};

use crate::workload::now_nanos;

/// How often to look.
const PERIOD: Duration = Duration::from_millis(20);

/// Looks until `look` gives a value; `Err` is what is still missing, shown when the deadline passes.
pub async fn until<T, F: Future<Output = Result<T>>>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> Result<T> {
    let begin = now_nanos();
    loop {
        let missing = match look().await {
            Ok(value) => return Ok(value),
            Err(missing) => missing,
        };
        if Duration::from_nanos(now_nanos() - begin) > deadline {
            bail!("{what}: not within {deadline:?}: {missing:#}");
        }
        tokio::time::sleep(PERIOD).await;
    }
}
