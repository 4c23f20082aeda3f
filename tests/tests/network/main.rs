//! Real daemons and real engines on machines of a network that is cut, and on power that fails: what the protocol promises,
//! shown with nothing in between. One file for each promise.
//!
//! Needs root: each test leaves the host's network and mounts for its own (`regent_tests::network`). What stands here is
//! what has to hold, also where it does not yet; `tests/run` has a list of such groups and says when it leaves one out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod allow_list;
mod gate;
mod operations;
mod partitions;
mod power;
mod rollback;
mod support;
