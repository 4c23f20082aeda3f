//! The vocabulary of both sides, without I/O policy: names, positions, errors, identities, the secured connection.
//!
//! **Invariant:** nothing here names an engine, and nothing here decides anything about a cluster.

pub mod allow_list;
pub mod chain;
pub mod chance;
pub mod clock;
pub mod config;
pub mod convert;
#[cfg(feature = "documents")]
pub mod documents;
pub mod error;
pub mod hex;
pub mod identity;
pub mod ids;
pub mod lease;
pub mod mutation;
pub mod position;
pub mod service_manager;
pub mod telemetry;
pub mod tls;
pub mod token;
pub mod topology;
pub mod transport;
