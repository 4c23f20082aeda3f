//! The agent: owns the database engine of its node and obeys the coordinator. One module per concern.

pub mod access;
pub mod answers;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod enroll;
pub mod force;
pub mod gate;
pub mod hand_over;
pub mod helper;
pub mod host;
pub mod http;
pub mod lease;
pub mod ledger;
pub mod local;
pub mod member;
pub mod node;
pub mod observe;
pub mod peer;
pub mod server;
pub mod services;
pub mod session;
pub mod status;
pub mod steps;
pub mod supervisor;
