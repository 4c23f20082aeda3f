//! `remove-gate`: takes the tables of the gate and of the allow-list out of the kernel, for who removes the agent from this machine.
//! Refused while the agent runs: it would only put them back.

use super::{Common, Failure, output};
use crate::{firewall, gate, status::Status};

/// Arguments of `remove-gate`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: Common,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.common.load()?;
    if Status::of_running_agent(&config.status_socket()).is_some() {
        let message = "the agent runs and keeps its gate: stop it first; nothing was changed";
        return Err(Failure::new(Failure::REFUSED, message));
    }
    let gone = |table: &str| output::result(format!("the table {table} is not in the kernel any more"));
    if config.gate_table.is_empty() {
        output::result("gate_table is empty: there is no gate to remove".to_owned());
    } else {
        gate::nftables::remove(&config.gate_table).map_err(|error| Failure::of(&error))?;
        gone(&config.gate_table);
    }
    if !config.allow_table.is_empty() {
        firewall::nftables::remove(&config.allow_table).map_err(|error| Failure::of(&error))?;
        gone(&config.allow_table);
    }
    Ok(())
}
