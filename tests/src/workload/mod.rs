//! Numbered rows, written without pause by processes of their own, and an account of every one of them.
//!
//! The writers know only the members' host:port: no coordinator, no agent, no name service. What they were told, and
//! when, stands in their logs ([`history`]); what is in the engine afterwards is compared with it ([`checker`]).

pub mod checker;
pub mod client;
pub mod history;
pub mod pgbench;
pub mod postgres;
pub mod readers;
pub mod redis;
pub mod writer;
pub mod writers;

pub use client::{Client, Dialect};

/// How to reach an engine, apart from host and port.
#[derive(Debug, Clone)]
pub struct Login {
    /// User name.
    pub user: String,
    /// Password.
    pub password: String,
    /// Database.
    pub database: String,
}

/// Now, by the clock that all processes of the machine share (CLOCK_MONOTONIC), in nanoseconds.
pub fn now_nanos() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("Linux has this clock");
    u64::try_from(std::time::Duration::from(now).as_nanos()).expect("500 years of uptime fit")
}
