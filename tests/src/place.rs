//! Where daemons run: all on loopback, or each on a machine of its own in a [`Network`].

use std::{path::Path, process::Command, sync::Arc};

use anyhow::{Context, Result};
use nix::unistd::User;

use crate::{
    network::{Machine, Network},
    ports,
    process::as_user,
};

/// Where one daemon runs.
#[derive(Debug, Clone)]
pub enum Place {
    /// On the host's loopback, on ports that are free.
    Loopback,
    /// On a machine of its own, on the ports that are the product's defaults.
    Machine(Arc<Machine>),
}

/// Where a fleet is.
#[derive(Debug, Clone)]
pub enum Site {
    /// On the host's loopback.
    Loopback,
    /// One machine for each node and one for the coordinator.
    Network(Arc<Network>),
}

// === impl Place ===

impl Place {
    /// Address at which it is reached.
    pub fn address(&self) -> String {
        match self {
            Self::Loopback => "127.0.0.1".to_owned(),
            Self::Machine(machine) => machine.address(),
        }
    }

    /// Addresses on which its engine listens, for the engine's configuration.
    pub fn engine_addresses(&self) -> String {
        match self {
            Self::Loopback => "127.0.0.1".to_owned(),
            // Clients on the machine itself use its loopback.
            Self::Machine(machine) => format!("{},{},127.0.0.1", machine.address(), machine.address_v6()),
        }
    }

    /// As many ports as there are defaults.
    pub fn ports<const N: usize>(&self, defaults: [u16; N]) -> Result<[u16; N]> {
        match self {
            Self::Loopback => Ok(ports::free(N)?.try_into().expect("as many as were asked for")),
            Self::Machine(_) => Ok(defaults),
        }
    }

    /// A program to be run there; the process that starts becomes the program.
    pub fn command(&self, program: &Path) -> Result<Command> {
        match self {
            Self::Loopback => Ok(Command::new(program)),
            Self::Machine(machine) => machine.command(program),
        }
    }

    /// The same as another user of the system, when the caller is root and may become another.
    pub fn command_as(&self, user: &str, program: &Path) -> Result<Command> {
        match self {
            Self::Loopback => {
                let mut command = Command::new(program);
                as_user(&mut command, user)?;
                Ok(command)
            }
            Self::Machine(machine) => {
                let user = User::from_name(user)?.with_context(|| format!("there is no user {user}"))?;
                machine.command_as(&user, program)
            }
        }
    }
}

// === impl Site ===

impl Site {
    /// The place of a daemon, by its node's name or `coordinator`. On a machine of the network `home` is on a disk of its own.
    pub fn place(&self, name: &str, home: &Path) -> Result<Place> {
        match self {
            Self::Loopback => Ok(Place::Loopback),
            Self::Network(network) => {
                let machine = network.machine(name)?;
                network.give_disk(name, home)?;
                Ok(Place::Machine(machine))
            }
        }
    }

    /// The network, where there is one.
    pub fn network(&self) -> Option<&Arc<Network>> {
        match self {
            Self::Loopback => None,
            Self::Network(network) => Some(network),
        }
    }
}
