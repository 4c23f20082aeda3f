//! `run`: the daemon.

use regent_common::{error::ErrorChain, telemetry, tls};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Common, Failure};
use crate::{
    daemon::{Daemon, DaemonError},
    engine::ENGINES,
    ledger::LedgerError,
};

/// Threads of the runtime: enough that one busy task does not delay heartbeats, few enough for a small agent.
const THREADS: usize = 2;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.common.load()?;
    telemetry::init(config.log_format.into()).map_err(|error| Failure::of(&error))?;
    let metrics = telemetry::metrics_recorder().map_err(|error| Failure::of(&error))?;
    tls::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::of(&error))?;
    let ended = runtime.block_on(async {
        let (leave, stop) = (CancellationToken::new(), CancellationToken::new());
        end_on_signal(&leave, &stop).map_err(|error| Failure::of(&error))?;
        // On the heap: the daemon's state would otherwise be part of the stack of `main`.
        Box::pin(Daemon { config, engines: ENGINES, metrics }.run(leave, stop)).await.map_err(|error| failure(&error))
    });
    // Threads that wait for a hung disk must not keep the process.
    runtime.shutdown_background();
    ended
}

fn failure(error: &DaemonError) -> Failure {
    let code = match error {
        // Its unit does not try these again: a person has to act first.
        DaemonError::NotJoined { .. }
        | DaemonError::NotANode { .. }
        | DaemonError::AlreadyRunning { .. }
        | DaemonError::Ledger(LedgerError::Newer { .. } | LedgerError::Damaged { .. }) => Failure::REFUSED,
        DaemonError::Folder { .. }
        | DaemonError::Listen { .. }
        | DaemonError::Ledger(_)
        | DaemonError::Transport(_)
        | DaemonError::Services(_) => Failure::FAILED,
    };
    Failure::new(code, ErrorChain(error).to_string())
}

/// SIGTERM is a planned end, after which another agent is expected: the lease is handed over first (rule L7). A second one, or
/// SIGINT, ends at once.
fn end_on_signal(leave: &CancellationToken, stop: &CancellationToken) -> std::io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (leave, stop) = (leave.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => leave.cancel(),
            _ = interrupt.recv() => return stop.cancel(),
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}
