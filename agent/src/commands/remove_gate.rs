//! `remove-gate`: takes the gate's table out of the kernel, for who removes the agent from this machine. Refused while the
//! agent runs: it would only put it back.

use super::{Common, Failure, output};
use crate::{gate::nftables, status::Status};

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
    if config.gate_table.is_empty() {
        output::result("gate_table is empty: there is no gate to remove".to_owned());
        return Ok(());
    }
    nftables::remove(&config.gate_table).map_err(|error| Failure::of(&error))?;
    output::result(format!("the table {} is not in the kernel any more", config.gate_table));
    Ok(())
}
