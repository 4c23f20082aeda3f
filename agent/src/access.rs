//! Who may call what: coordinators everything that changes something, peers what one agent asks of another.
//!
//! The transport has verified the chain; here it is decided whether that identity is meant. **Invariant:** a caller of
//! another coordinator is refused everywhere but by the health service.

use regent_common::{
    error::{Reason, refuse},
    identity::{Identity, Principal},
    ids::NodeName,
    transport::Caller,
};
use tonic::{Request, Status};

use crate::ledger::Ledger;

/// The identity of a call's peer, when it belongs to our coordinator.
fn identity<T>(request: &Request<T>, coordinator_id: &str) -> Result<Identity, Status> {
    let caller = Caller::of(request).map_err(|status| *status)?;
    let identity = caller.authenticated().map_err(|status| *status)?.clone();
    if identity.coordinator_id == coordinator_id {
        Ok(identity)
    } else {
        Err(refuse(Reason::ForeignCoordinator, format!("this node belongs to coordinator {coordinator_id}")))
    }
}

/// Lets anybody in whom our coordinator has given an identity.
pub fn certified<T>(request: &Request<T>, coordinator_id: &str) -> Result<(), Status> {
    identity(request, coordinator_id).map(|_| ())
}

/// Lets our coordinator in.
pub fn coordinator<T>(request: &Request<T>, coordinator_id: &str) -> Result<(), Status> {
    match identity(request, coordinator_id)?.principal {
        Principal::Coordinator(_) => Ok(()),
        Principal::Node(name) => Err(wrong(&format!("node {name}"), "the coordinator")),
        Principal::User(name) => Err(wrong(&format!("user {name}"), "the coordinator")),
    }
}

/// Lets the nodes of our cluster in.
pub fn peer<T>(request: &Request<T>, coordinator_id: &str, ledger: &Ledger) -> Result<NodeName, Status> {
    let ours = "a node of this member's cluster";
    match identity(request, coordinator_id)?.principal {
        Principal::Node(name) if ledger.membership.as_ref().is_some_and(|m| m.names_node(&name)) => Ok(name),
        Principal::Node(name) => Err(wrong(&format!("node {name}"), ours)),
        Principal::User(name) => Err(wrong(&format!("user {name}"), ours)),
        Principal::Coordinator(name) => Err(wrong(&format!("coordinator {name}"), ours)),
    }
}

fn wrong(caller: &str, meant: &str) -> Status {
    refuse(Reason::WrongCaller, format!("this call is for {meant}, not for {caller}"))
}
