//! `regent-agent`: parses the command line and runs it; everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use regent_agent::commands::{self, CommandLine};

fn main() -> ExitCode {
    commands::run(CommandLine::parse())
}
