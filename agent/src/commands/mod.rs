//! The command line: one file per verb, registered in `Command` and `run`.
//!
//! Results go to stdout, everything else to stderr. Exit codes: 0 ok, 1 failed, 2 usage, 3 refused, 4 not found,
//! 5 denied, 6 unreachable.

mod check;
mod force_primary;
mod join;
mod output;
mod remove_gate;
mod run;
mod status;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand, ValueEnum};
use regent_common::error::{ErrorChain, reason_of};
use tonic::Code;

use crate::{
    config::Config,
    helper::{self, Helper},
};

/// Owns the database engine of its node and obeys the coordinator.
#[derive(Debug, Parser)]
#[command(name = "regent-agent", version, about)]
pub struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// The verbs.
#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the agent until it is told to stop; the engine goes on
    Run(run::Arguments),
    /// Makes this machine a node of a coordinator
    Join(join::Arguments),
    /// Looks whether this machine has what the agent needs
    Check(check::Arguments),
    /// Shows the state of this node, without the coordinator
    Status(status::Arguments),
    /// Makes this member the primary while no coordinator can be brought back: the last resort
    #[command(long_about = force_primary::LONG_ABOUT)]
    ForcePrimary(force_primary::Arguments),
    /// Takes the gate and the allow-list out of the kernel, when the agent is removed from this machine
    RemoveGate(remove_gate::Arguments),
    /// Starts programs for the agent; not for people
    #[command(hide = true, subcommand)]
    Helper(Helper),
}

/// What every verb takes.
#[derive(Debug, Args)]
struct Common {
    /// Configuration file [default: /etc/regent/agent.toml, if there is one]
    #[arg(long)]
    config: Option<PathBuf>,
    /// Folder of identity, ledger and secrets, instead of the configuration's
    #[arg(long)]
    state_dir: Option<PathBuf>,
}

/// Form of what is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

/// How a verb failed.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

// === impl Failure ===

impl Failure {
    const FAILED: u8 = 1;
    const USAGE: u8 = 2;
    const REFUSED: u8 = 3;
    const NOT_FOUND: u8 = 4;
    const DENIED: u8 = 5;
    const UNREACHABLE: u8 = 6;

    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// An error of no more particular kind.
    fn of(error: &dyn std::error::Error) -> Self {
        Self::new(Self::FAILED, ErrorChain(error).to_string())
    }

    /// What the coordinator answered.
    fn of_status(status: &tonic::Status) -> Self {
        let code = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Self::USAGE,
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted | Code::ResourceExhausted => Self::REFUSED,
            Code::NotFound => Self::NOT_FOUND,
            Code::PermissionDenied | Code::Unauthenticated => Self::DENIED,
            Code::Unavailable | Code::DeadlineExceeded => Self::UNREACHABLE,
            Code::Ok | Code::Cancelled | Code::Unknown | Code::Unimplemented | Code::Internal | Code::DataLoss => {
                Self::FAILED
            }
        };
        let advice = reason_of(status).map(|reason| format!(" ({reason}: {})", reason.what_to_do()));
        Self::new(code, format!("{}{}", status.message(), advice.unwrap_or_default()))
    }
}

// === impl Common ===

impl Common {
    fn load(&self) -> Result<Config, Failure> {
        let mut config = Config::load(self.config.as_deref())
            .map_err(|error| Failure::new(Failure::USAGE, ErrorChain(&error).to_string()))?;
        if let Some(state_dir) = &self.state_dir {
            config.state_dir.clone_from(state_dir);
        }
        Ok(config)
    }
}

/// Carries out a command line.
pub fn run(line: CommandLine) -> ExitCode {
    let done = match line.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Join(arguments) => join::run(arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::ForcePrimary(arguments) => force_primary::run(&arguments),
        Command::RemoveGate(arguments) => remove_gate::run(&arguments),
        Command::Helper(wanted) => match helper::run(wanted) {
            Err(error) => Err(Failure::of(&error)),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::error(&failure.message);
            ExitCode::from(failure.code)
        }
    }
}
