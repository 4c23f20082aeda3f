//! The verbs of `regent-coordinator`, one file each.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

pub mod backup;
mod folder;
pub mod init;
pub mod restore;
pub mod serve;

/// Keeps replicated databases alive: holds topology and carries out every change as a durable operation.
#[derive(Debug, Parser)]
#[command(name = "regent-coordinator", version, about)]
pub struct Arguments {
    /// Configuration file.
    #[arg(long, global = true, default_value = "/etc/regent/coordinator.toml", env = "REGENT_COORDINATOR_CONFIG")]
    config: PathBuf,
    /// What to do.
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the CA, the store and the first administrator's identity.
    Init(init::Arguments),
    /// Run the coordinator.
    Serve,
    /// Copy the store, the CA and all else that makes this coordinator, also while it runs.
    Backup(backup::Arguments),
    /// Make this machine the coordinator that a backup is of.
    Restore(restore::Arguments),
}

/// Carries out what was asked on the command line.
pub async fn run(arguments: Arguments) -> anyhow::Result<()> {
    match arguments.verb {
        Verb::Init(init) => init::run(init, &arguments.config).await,
        Verb::Serve => serve::run(&arguments.config).await,
        Verb::Backup(backup) => backup::run(&backup, &arguments.config),
        Verb::Restore(restore) => restore::run(&restore, &arguments.config),
    }
}

/// Tells a person why the program ends.
#[expect(clippy::print_stderr, reason = "the program's last words belong on the terminal, not in the log")]
pub fn report(error: &anyhow::Error) -> std::process::ExitCode {
    eprintln!("regent-coordinator: {error:#}");
    std::process::ExitCode::FAILURE
}
