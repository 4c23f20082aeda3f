//! The gate: what stands between an engine's ports and everybody else, in the kernel, and ends by itself (rules G1 to G4).
//!
//! While a member is the primary its engine's ports are *gated*: packets to and from them are dropped unless the gate
//! stands open. It is opened until the end of the lease, and the kernel closes it then: an agent that is frozen or dead
//! cannot keep it open. There is no exemption, not for peers and not for loopback.
//!
//! **Invariants:** the gate never stands open past the end that was last asked for, whichever call runs however late, in
//! whichever process (rule G2); what is not gated is never touched; no call here waits for a disk, a name, or a lock other
//! than the kernel's own around a transaction.
//!
//! [`nftables`] is the real one, [`fake`] a simulated one with a simulated kernel; [`conformance`] holds for both.

pub mod conformance;
pub mod fake;
pub mod measured;
pub mod nftables;
pub mod none;

use std::{collections::BTreeSet, time::Duration};

use async_trait::async_trait;
use regent_common::clock::Moment;

/// Life of a guard: a change that reaches the kernel later than this after its preparation is refused (rule G2).
pub const GUARD_LIFE: Duration = Duration::from_millis(200);

/// Latest end of a guard after the kernel has confirmed it, by clocks that the kernel's timers may lag behind.
pub const GUARD_END: Duration = Duration::from_millis(230);

/// Openings shorter than this are refused. The kernel counts in ticks of up to 10 ms and rounds down, and takes 0 ticks as
/// *for ever*.
pub const SHORTEST_OPENING: Duration = Duration::from_millis(25);

/// What a host's kernel can do for the fence, found out once at start by trying it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Abilities {
    /// The gate closes by itself when its time is over. Without this a frozen agent is not covered (rule G6).
    pub timed_gate: bool,
    /// Established sockets can be destroyed, so that no queued answer leaves later (rule G4).
    pub destroys_sockets: bool,
    /// The table survives a foreign `nft flush ruleset` and the end of its owner (rule G3).
    pub survives_flush: bool,
    /// Why something of this is missing and what to do, a sentence each; empty when nothing is.
    pub problems: Vec<String>,
}

/// The gate as the kernel has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GateState {
    /// Ports that are dropped unless they are open; empty when the gate is not armed.
    pub gated: BTreeSet<u16>,
    /// How long it still stands open.
    pub open: Open,
}

/// How long a gate stands open.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Open {
    /// It is closed.
    #[default]
    Closed,
    /// Until this moment, when the kernel closes it.
    Until(Moment),
    /// Until it is closed.
    Untimed,
}

/// Why the gate did not do as it was told. What is gated and what is open are as they were.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GateError {
    /// The guard of the change had run out before the kernel took it, so that the kernel took nothing (rule G2).
    #[error("the change came too late to the kernel, and was not made")]
    Late,
    /// The end that was asked for is too near, or over.
    #[error("there is no time left to open the gate for")]
    NoTimeLeft,
    /// The kernel refused.
    #[error("the kernel refused to {doing}: {detail}")]
    Kernel {
        /// What was wanted.
        doing: &'static str,
        /// The kernel's own words.
        detail: String,
    },
}

/// The gate of one engine.
#[async_trait]
pub trait Gate: Send + Sync + 'static {
    /// What this host can do.
    fn abilities(&self) -> Abilities;

    /// The gate as the kernel has it now, also what an earlier process left.
    async fn state(&self) -> Result<GateState, GateError>;

    /// Gates these ports, and no others, from now on. What is open stays open.
    async fn arm(&self, ports: &BTreeSet<u16>) -> Result<(), GateError>;

    /// Opens all gated ports until `end` at the latest, or without an end. Replaces an earlier opening, also by a shorter or
    /// longer one.
    async fn open(&self, end: Option<Moment>) -> Result<(), GateError>;

    /// Gates these ports, where none are, and opens them in the same change, so that nobody is kept out for a moment; else as
    /// [`Gate::open`].
    async fn arm_open(&self, ports: &BTreeSet<u16>, end: Option<Moment>) -> Result<(), GateError>;

    /// Closes the gate at once.
    async fn close(&self) -> Result<(), GateError>;

    /// Destroys every TCP socket of the gated ports, of whatever process and also of none; returns how many. Listening
    /// sockets stay.
    async fn destroy_sockets(&self) -> Result<u32, GateError>;

    /// Gates nothing any more. Only when the engine is verified read-only or stopped.
    async fn disarm(&self) -> Result<(), GateError>;

    /// Makes sure that tables, chains and rules are still there, and puts back what is missing; says what that was, empty
    /// for nothing. The opening is not put back: only [`Gate::open`] opens.
    async fn verify(&self) -> Result<Vec<String>, GateError>;
}

/// Time that an opening may stand whose change the kernel accepts by `accepted` at the latest, so that it is closed by
/// `end`: a tenth less, because the kernel's timers may be slewed and the clocks of a lease are not.
fn timeout(end: Moment, accepted: Moment) -> Result<Duration, GateError> {
    let timeout = end.held_for(accepted) / 10 * 9;
    if timeout < SHORTEST_OPENING { Err(GateError::NoTimeLeft) } else { Ok(timeout) }
}
