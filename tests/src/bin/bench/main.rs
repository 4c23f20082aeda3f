//! `bench`: measures what users feel. Real daemons and engines, on machines of a network of its own or on loopback; writers
//! that know only host:port.
//!
//! `cargo run --release -p regent-tests --bin bench -- failover --engine postgresql --fault engine-kill`

mod arguments;
mod failover;
mod idle;
mod rejoin;
mod report;
mod resync;
mod scenarios;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    arguments::run(&arguments::Arguments::parse())
}
