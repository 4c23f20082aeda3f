//! The services of the agent on the wire: each a thin translation to what the rest of the crate does.

pub mod job;
pub mod step;
