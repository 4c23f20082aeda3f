//! `regent-workload`: writes numbered rows to the members of a cluster, and gives an account of them.
//!
//! Knows only the members' host:port. The password comes in `REGENT_WORKLOAD_PASSWORD`.

mod commands;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    commands::run(commands::Arguments::parse()).await
}
