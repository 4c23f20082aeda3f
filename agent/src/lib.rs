//! The agent: owns the database engine of its node and obeys the coordinator. One module per concern.

pub mod engine;
pub mod helper;
pub mod supervisor;
