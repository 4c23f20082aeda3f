//! `regentctl`: every verb is one call to the coordinator and one rendering of its answer.
//!
//! - [`cli`]: what is typed: global options and the tree of verbs.
//! - `verbs`: one file per verb, and the one list that registers them.
//! - `connection`: the secured connection and the choice of the identity.
//! - `watch`: waiting for an operation, across broken connections.
//! - [`failure`]: what went wrong, in words and as an exit code.
//! - [`output`]: pure rendering of messages, and the only place that writes to stdout and stderr.
//!
//! **Invariant:** nothing is decided here. What is allowed, what is valid and what happens is the coordinator's word.

use std::{ffi::OsString, process::ExitCode};

use clap::Parser;

use crate::{cli::Cli, connection::Context, failure::Failure, output::Output};

pub mod cli;
mod connection;
pub mod failure;
pub mod output;
mod verbs;
mod watch;

/// Parses, runs, reports; the exit code says what came of it.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with 0, mistakes to stderr with 2; a reader that is gone is no error.
            let _gone = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    let output = Output { format: cli.globals.output };
    let context = Context::new(&cli.globals);
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::local("start the runtime", &error))
        .and_then(|runtime| runtime.block_on(cli.noun.run(&context)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output.note(failure.render(output.format));
            ExitCode::from(failure.exit_code())
        }
    }
}
