//! The coordinator's program: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use regent_common::tls;
use regent_coordinator::commands::{self, Arguments};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tls::install_crypto_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let outcome = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(commands::run(arguments)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => commands::report(&error),
    }
}
