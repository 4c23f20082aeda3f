//! `regent-agent`: parses the command line and runs it; everything else is in the library.

use clap::{Parser, Subcommand};
use regent_agent::helper::{self, Helper};

#[derive(Debug, Parser)]
#[command(name = "regent-agent", version, about = "Owns the database engine of its node")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Starts programs for the agent; not for people.
    #[command(hide = true, subcommand)]
    Helper(Helper),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Helper(wanted) => match helper::run(wanted)? {},
    }
}
