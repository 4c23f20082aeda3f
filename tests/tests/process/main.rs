//! Real daemons and real engines on loopback (and the network in which the group `network` has them). One file for each thing that has to hold.
//!
//! Each test has a folder of its own with all logs; when it fails the folder is kept and its path printed. Needs an
//! installed PostgreSQL (`apt-get install postgresql`, or `REGENT_POSTGRES_BIN`) and Redis (`apt-get install redis-server`, or
//! `REGENT_REDIS_SERVER`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod adopt;
mod adopt_redis;
mod adoption;
mod bad_input;
mod blackout;
mod crash;
mod divergence;
mod emptied;
mod failover;
mod forced;
mod full_disk;
mod identity;
mod joining;
mod late_answers;
mod members;
mod network;
mod pair;
mod planned_restart;
mod policy;
mod promote;
mod redis;
mod security;
mod skew;
mod stock_clients;
mod support;
mod tls;
mod told;
mod unreachable;
mod workload;
