//! The harness: what the process tests, the workload and the bench share. Not shipped.
//!
//! A process test starts real daemons and real engines, on loopback or on machines of a network of its own, in a folder of
//! its own, does something to them, and looks at what clients saw. The workload's writers are processes of their own that know only the members' host:port.

pub mod api;
pub mod cluster;
pub mod engines;
pub mod folder;
pub mod foreign;
pub mod logcheck;
pub mod network;
pub mod place;
pub mod ports;
pub mod process;
pub mod profile;
pub mod scenario;
pub mod users;
pub mod vm;
pub mod wait;
pub mod workload;
