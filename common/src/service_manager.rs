//! What systemd is told by a daemon that it started: ready, still alive, ending. Where there is no systemd nobody is told, and
//! nothing fails.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

/// Tells that the daemon serves from now on, and in a sentence what it is.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// Tells that the daemon is ending, and why that may take a moment.
pub fn stopping(status: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells regularly that the daemon is alive, until `stop`, where the unit has a watchdog. A runtime that does not get to run
/// this does not get to run anything else: systemd then starts the daemon anew.
pub async fn keep_watchdog(stop: CancellationToken) {
    let Some(period) = watchdog_period() else { return };
    while stop.run_until_cancelled(tokio::time::sleep(period)).await.is_some() {
        tell(&[NotifyState::Watchdog]);
    }
}

/// A third of what the unit allows between two signs of life, so that one may be late.
fn watchdog_period() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 3)
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd was not told");
    }
}
