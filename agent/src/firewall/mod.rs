//! The allow-list on this machine: which addresses reach the engine's ports, in the kernel, for as long as it stands.
//!
//! A list that is empty lets everybody in, and then there is nothing in the kernel. Otherwise what comes to one of the ports from
//! elsewhere is dropped, unless its address is in the list, or one of those that always pass: the members' and the coordinators'.
//! What the machine says to itself over loopback passes in any case. Only what *comes in* is judged: whoever is let in is answered.
//!
//! **Invariants:** a change is one step, so that at no moment a list stands in part, nor none; connections of whoever is not let in
//! any more are destroyed after that, not before; nothing but the ports that are named is touched. This has a table, a socket and a
//! lock of its own: the gate comes before it, and never waits for it but in the kernel.
//!
//! [`nftables`] is the real one, [`fake`] a simulated one; [`conformance`] holds for both. [`keeper`] keeps the list over restarts
//! and puts it in force; [`names`] finds the addresses of who always passes.

pub mod conformance;
pub mod fake;
pub mod keeper;
pub mod names;
pub mod nftables;
pub mod none;
mod stored;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use async_trait::async_trait;
use regent_common::allow_list::{self, AllowList, Family, Range};

pub use self::keeper::Keeper;
use self::names::Names;

/// Who is let in, and to what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passage {
    /// Ports that are meant.
    pub ports: BTreeSet<u16>,
    /// Who is let in; not empty.
    pub allowed: AllowList,
    /// Addresses that pass without being in the list.
    pub always: BTreeSet<IpAddr>,
}

/// A [`Passage`] that many addresses are held against.
#[derive(Debug, Clone)]
pub struct Judge {
    ranges: [Vec<Range>; 2],
    always: BTreeSet<IpAddr>,
    open: bool,
}

/// Why a list could not be put in force. What was in force is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FirewallError {
    /// None can be in force here.
    #[error("no allow-list can be in force on this node: {why}")]
    Impossible {
        /// Why, and what to do.
        why: String,
    },
    /// The kernel refused.
    #[error("the kernel refused to {doing}: {detail}")]
    Kernel {
        /// What was wanted.
        doing: &'static str,
        /// The kernel's own words.
        detail: String,
    },
}

/// The allow-list of one machine.
#[async_trait]
pub trait Firewall: Send + Sync + 'static {
    /// Why no list can be in force here, and what to do; `None` when one can.
    fn problem(&self) -> Option<String>;

    /// Lets only these in from now on, or everybody for `None`, and then destroys the connections of whoever is not let in any more;
    /// returns how many. Takes the place of what an earlier process left.
    async fn keep(&self, passage: Option<Arc<Passage>>) -> Result<u32, FirewallError>;

    /// Makes sure that what was asked for last is in force, and puts it back where it is not; says what was amiss, empty for nothing.
    async fn verify(&self) -> Result<Vec<String>, FirewallError>;

    /// Clients from elsewhere that have a connection to one of these ports, with how many.
    async fn clients(&self, ports: &BTreeSet<u16>) -> Result<BTreeMap<IpAddr, u32>, FirewallError>;
}

/// What a node needs for its allow-list.
#[derive(Clone)]
pub struct Means {
    /// Where it is in force.
    pub firewall: Arc<dyn Firewall>,
    /// How the addresses of those are found who always pass.
    pub names: Arc<dyn Names>,
    /// Ports beside the engine's that it holds for.
    pub extra_ports: BTreeSet<u16>,
}

// === impl Judge ===

impl Judge {
    /// Who is let in by a list, and by an address of one's own.
    pub fn new(allowed: &AllowList, always: BTreeSet<IpAddr>) -> Self {
        Self { ranges: Family::ALL.map(|family| allowed.ranges(family)), always, open: allowed.is_empty() }
    }

    /// Whether this address is let in.
    pub fn lets_in(&self, address: IpAddr) -> bool {
        let address = allow_list::canonical(address);
        self.open
            || self.always.contains(&address)
            || self.ranges.iter().any(|ranges| allow_list::hold(ranges, address))
    }
}
