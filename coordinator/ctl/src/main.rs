//! The command line for people: asks the coordinator, shows what it says. See the library for what is where.

use std::process::ExitCode;

fn main() -> ExitCode {
    regentctl::run(std::env::args_os())
}
