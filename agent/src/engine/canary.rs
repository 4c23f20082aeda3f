//! A write that reaches the disk, or does not: whether a data volume takes writes. For every engine.
//!
//! **Invariant:** at most one is under way, and a look never waits longer for it than [`LIMIT`].

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use regent_common::topology::Ternary;
use tokio::{task::JoinHandle, time};

/// How long one may take. A look waits for it so long: it has nothing more urgent to tell, and the end of the engine's process
/// breaks it off.
const LIMIT: Duration = Duration::from_secs(2);

/// The one that is under way.
#[derive(Debug, Default)]
pub(super) struct Canary(Option<(time::Instant, JoinHandle<io::Result<()>>)>);

// === impl Canary ===

impl Canary {
    /// Whether one has not come back yet.
    pub(super) fn is_out(&self) -> bool {
        self.0.is_some()
    }

    /// Sends one, or waits for the one that is out; `write` runs on a thread that may wait for the disk.
    pub(super) async fn send(&mut self, write: impl FnOnce() -> io::Result<()> + Send + 'static) -> (Ternary, String) {
        let (started, canary) =
            self.0.take().unwrap_or_else(|| (time::Instant::now(), tokio::task::spawn_blocking(write)));
        // Kept where a look that is broken off leaves it: there is at most one.
        let (started, canary) = self.0.insert((started, canary));
        let ended = time::timeout_at(*started + LIMIT, canary).await;
        let since = started.elapsed();
        if ended.is_ok() {
            self.0 = None;
        }
        match ended {
            Ok(Ok(Ok(()))) => (Ternary::Yes, String::new()),
            Ok(Ok(Err(error))) => (Ternary::No, format!("the data volume cannot be written: {error}")),
            Ok(Err(error)) => (Ternary::Unknown, format!("the write canary broke: {error}")),
            Err(_) => (Ternary::No, format!("a write to the data volume has not ended for {} s", since.as_secs())),
        }
    }
}

/// Writes a few bytes and flushes them.
pub(super) fn write(path: &Path) -> io::Result<()> {
    // In place, so that a full disk, which is another matter, does not look like a broken one.
    let mut file = fs::File::options().create(true).write(true).truncate(false).mode(0o600).open(path)?;
    file.write_all(b"regent\n")?;
    file.sync_data()
}
