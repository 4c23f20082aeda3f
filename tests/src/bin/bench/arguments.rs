//! What is typed, and what exists of it so far: one list of benches, one of faults, one of engines.

use std::{io::Write, process::ExitCode};

use anyhow::{Result, bail, ensure};
use clap::Parser;

use crate::{failover, idle};

/// Benches that exist.
const BENCHES: [&str; 2] = ["failover", "idle"];
/// Faults that exist.
const FAULTS: [&str; 1] = ["engine-kill"];
/// Engines that exist.
const ENGINES: [&str; 1] = ["postgresql"];
/// Load that exists.
const LOADS: [&str; 1] = ["none"];
/// Profiles that exist; the others come with the lease, whose times they set.
const PROFILES: [&str; 1] = ["standard"];

/// Measures what users feel.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub(crate) struct Arguments {
    /// What to measure: failover, idle.
    pub(crate) bench: String,
    /// Engine.
    #[arg(long, default_value = "postgresql")]
    pub(crate) engine: String,
    /// Fault, for a failover: engine-kill (SIGKILL of the primary's first process).
    #[arg(long)]
    pub(crate) fault: Option<String>,
    /// Profile: standard.
    #[arg(long, default_value = "standard")]
    pub(crate) profile: String,
    /// Load beside the writers: none.
    #[arg(long, default_value = "none")]
    pub(crate) load: String,
    /// How often, in one cluster.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repetitions: u32,
    /// For idle: over how many seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// Print JSON, and nothing else, on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

fn check(what: &str, given: &str, known: &[&str]) -> Result<()> {
    ensure!(known.contains(&given), "there is no {what} {given:?} in this version; there is: {}", known.join(", "));
    Ok(())
}

async fn dispatch(arguments: &Arguments) -> Result<()> {
    check("bench", &arguments.bench, &BENCHES)?;
    check("engine", &arguments.engine, &ENGINES)?;
    check("profile", &arguments.profile, &PROFILES)?;
    check("load", &arguments.load, &LOADS)?;
    match (arguments.bench.as_str(), arguments.fault.as_deref()) {
        ("failover", None) => bail!("failover wants --fault; there is: {}", FAULTS.join(", ")),
        ("failover", Some(fault)) => {
            check("fault", fault, &FAULTS)?;
            failover::run(arguments, fault).await
        }
        (_, Some(fault)) => bail!("--fault {fault} has no meaning for {}", arguments.bench),
        (_, None) => idle::run(arguments).await,
    }
}

/// Runs a bench.
pub(crate) async fn run(arguments: Arguments) -> ExitCode {
    match dispatch(&arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            drop(writeln!(std::io::stderr(), "bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
