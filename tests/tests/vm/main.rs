//! Regent as a user has it: its Debian packages on whole machines that boot, lose power, are cut off and upgraded, and what
//! clients on another machine see of that. One file for each promise.
//!
//! Needs root and an image of a machine (`tests/vm/image`). One test at a time: limits of time are part of what is tested.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adopt;
mod adopt_redis;
mod install;
mod machines;
mod reboot;
mod runbooks;
mod scenarios;
mod support;
mod typed;
mod upgrade;
