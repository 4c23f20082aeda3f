//! What is typed: the global options and, below them, the tree of verbs from `crate::verbs`.

use std::path::PathBuf;

use clap::Parser;

use crate::output::Format;
pub use crate::verbs::Noun;

const EXIT_CODES: &str = "\
Exit codes:
  0  ok
  1  the operation failed, or something went wrong here
  2  usage: the command line is wrong
  3  refused: a precondition does not hold, the request is not valid, or it exists already
  4  not found
  5  denied: no identity, or one that may not do this
  6  unreachable: the coordinator, or a node that it needs
  130  interrupted while waiting; the operation goes on";

/// Keeps replicated databases alive on plain machines: asks the coordinator and shows what it says.
#[derive(Debug, Parser)]
#[command(name = "regentctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    /// Global options.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub noun: Noun,
}

/// Options of every verb.
#[derive(Debug, Clone, clap::Args)]
pub struct Globals {
    /// Where the coordinator listens
    #[arg(
        long,
        global = true,
        env = "REGENT_COORDINATOR",
        hide_env_values = true,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:7420",
        help_heading = "Global options"
    )]
    pub coordinator: String,
    /// Directory with cert.pem, key.pem and ca.pem [default: ~/.config/regent, else the coordinator's own admin]
    #[arg(
        long,
        global = true,
        env = "REGENT_IDENTITY",
        hide_env_values = true,
        value_name = "DIR",
        help_heading = "Global options"
    )]
    pub identity: Option<PathBuf>,
    /// Form of the data on stdout
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORM",
        default_value = "table",
        hide_possible_values = true,
        help_heading = "Global options",
        help = "Form of the data on stdout: table for people, json for programs"
    )]
    pub output: Format,
    /// Id of a change, so that repeating it is safe [default: a new one]
    #[arg(long, global = true, value_name = "ID", help_heading = "Global options")]
    pub request_id: Option<String>,
}
