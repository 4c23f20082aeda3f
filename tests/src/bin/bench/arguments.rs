//! What is typed, and what exists of it so far: one list of benches, one of engines; faults are the scenarios' names.

use std::{future::Future, io::Write, process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use regent_tests::{
    network,
    profile::Profile,
    scenario::{Engine, Fault, SCENARIOS, Scenario, Settings},
};

use crate::{failover, idle, rejoin, resync, scenarios};

/// Benches that exist.
const BENCHES: [&str; 6] = ["failover", "switchover", "resync", "rejoin", "scenarios", "idle"];
/// Load that exists.
const LOADS: [&str; 2] = ["none", "pgbench"];

/// Measures what users feel.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub(crate) struct Arguments {
    /// What to measure: failover (one fault, many times), switchover (a planned promotion, many times), resync (against the
    /// engine's own tools), rejoin (of a primary whose engine was killed), scenarios (a table of all), idle.
    pub(crate) bench: String,
    /// Engine. The environment may name its programs, as for tests/run.
    #[arg(long, value_enum, default_value_t = Engine::Postgresql)]
    pub(crate) engine: Engine,
    /// Fault, for failover; several with commas, for scenarios (default all).
    #[arg(long, value_delimiter = ',')]
    pub(crate) fault: Vec<String>,
    /// Profile: fast, standard or relaxed; several with commas, for scenarios.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Profile::Standard])]
    pub(crate) profile: Vec<Profile>,
    /// Load beside the writers: none, or pgbench with eight clients.
    #[arg(long, default_value = "none")]
    pub(crate) load: String,
    /// How often, in one cluster.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) repetitions: u32,
    /// For resync: how much data there is, such as 2GiB.
    #[arg(long = "size", default_value = "2GiB", value_parser = mebibytes)]
    pub(crate) size_mib: u32,
    /// For faults of the coordinator: over how many seconds it is away.
    #[arg(long, default_value_t = 60)]
    pub(crate) coordinator_away: u64,
    /// Everything on this machine's loopback instead of machines of a network: needs no root, and faults of processes only.
    #[arg(long)]
    pub(crate) loopback: bool,
    /// For idle: over how many seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,
    /// Print JSON, and nothing else, on stdout.
    #[arg(long)]
    pub(crate) json: bool,
}

fn mebibytes(text: &str) -> Result<u32, String> {
    let (number, unit) = match (text.strip_suffix("GiB"), text.strip_suffix("MiB")) {
        (Some(number), _) => (number, 1024),
        (None, Some(number)) => (number, 1),
        (None, None) => return Err("use a number of MiB or GiB, such as 512MiB".to_owned()),
    };
    number.parse::<u32>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(|| "not a number".to_owned())
}

fn check(what: &str, given: &str, known: &[&str]) -> Result<()> {
    ensure!(known.contains(&given), "there is no {what} {given:?} in this version; there is: {}", known.join(", "));
    Ok(())
}

fn known_faults() -> String {
    SCENARIOS.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ")
}

/// The scenario that a fault names, if it can be had.
fn scenario(fault: &str, loopback: bool) -> Result<&'static Scenario> {
    let found =
        Scenario::named(fault).with_context(|| format!("there is no fault {fault}; there is: {}", known_faults()))?;
    let possible = !loopback || !found.faults.iter().copied().any(Fault::needs_a_network);
    ensure!(possible, "{fault} needs machines of a network: leave out --loopback");
    Ok(found)
}

/// Runs on loopback with an ordinary runtime.
fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Runtime::new()?.block_on(work)
}

fn dispatch(arguments: &Arguments) -> Result<()> {
    check("bench", &arguments.bench, &BENCHES)?;
    check("load", &arguments.load, &LOADS)?;
    let possible = arguments.load == "none" || arguments.engine == Engine::Postgresql;
    ensure!(possible, "{} is no load for {}", arguments.load, arguments.engine.name());
    arguments.engine.server()?;
    let mut wanted = Vec::new();
    for fault in &arguments.fault {
        wanted.push(scenario(fault, arguments.loopback)?);
    }
    match arguments.bench.as_str() {
        "switchover" => {
            let [profile] = &arguments.profile[..] else { bail!("switchover wants one --profile") };
            ensure!(wanted.is_empty(), "--fault has no meaning for switchover");
            let run = || failover::run(arguments, Scenario::named("promote").expect("it is in the list"), *profile);
            if arguments.loopback { block_on(run()) } else { network::inside(run)? }
        }
        "failover" => {
            let ([fault], [profile]) = (&wanted[..], &arguments.profile[..]) else {
                bail!("failover wants one --fault and one --profile; faults are: {}", known_faults());
            };
            let run = || failover::run(arguments, fault, *profile);
            if arguments.loopback { block_on(run()) } else { network::inside(run)? }
        }
        "resync" => {
            ensure!(wanted.is_empty(), "--fault has no meaning for resync");
            block_on(resync::run(arguments))
        }
        "rejoin" => {
            ensure!(wanted.is_empty(), "--fault has no meaning for rejoin");
            block_on(rejoin::run(arguments))
        }
        "scenarios" => {
            ensure!(!arguments.loopback, "scenarios need machines of a network: leave out --loopback");
            let wanted = if wanted.is_empty() { SCENARIOS.iter().collect() } else { wanted };
            network::inside(|| scenarios::run(arguments, &wanted))?
        }
        _ => {
            ensure!(wanted.is_empty(), "--fault has no meaning for {}", arguments.bench);
            block_on(idle::run(arguments))
        }
    }
}

/// Runs a bench.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    match dispatch(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            drop(writeln!(std::io::stderr(), "bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

// === impl Arguments ===

impl Arguments {
    /// How scenarios are run.
    pub(crate) fn settings(&self) -> Settings {
        Settings { coordinator_away: Duration::from_secs(self.coordinator_away) }
    }
}
