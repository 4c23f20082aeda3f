//! `bench`: measures what users feel. Real daemons and engines on loopback; writers that know only host:port.
//!
//! `cargo run --release -p regent-tests --bin bench -- failover --engine postgresql --fault engine-kill`

mod arguments;
mod failover;
mod idle;
mod report;

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    arguments::run(arguments::Arguments::parse()).await
}
