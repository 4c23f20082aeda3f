//! The driver of Redis, Valkey and KeyDB over real engines, on loopback: the conformance suite and what goes wrong, once for each flavor.
//!
//! Needs the server of Redis (`apt-get install redis-server`), and root where the engine is to run as a user of its own. The
//! other flavors run where their server is found, and their tests say so where it is not. `REGENT_REDIS_SERVER`,
//! `REGENT_VALKEY_SERVER` and `REGENT_KEYDB_SERVER` name another server's program; `REGENT_TEST_CASE` runs only the conformance
//! cases with this text in their name; `REGENT_LOG` shows the driver's log.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]
#![allow(clippy::print_stdout, reason = "what a test does not run is said")]

mod adoption;
#[macro_use]
mod faults;
mod backlog;
mod copies;
mod difference;
mod fencing;
mod holding;
mod pair;
// The same file as of the tests over the daemons, so that no two tests of one run find the same port.
#[allow(unreachable_pub, reason = "it is public where the other tests have it")]
#[path = "../../../tests/src/ports.rs"]
mod ports;
mod tls;
mod unmanaged;
mod world;

use regent_agent::engine::{
    conformance,
    redis::{KEYDB, REDIS, RedisFactory, VALKEY},
};

use crate::world::{Real, is_there};

async fn conforms(factory: &'static RedisFactory, tls: bool) {
    if !is_there(factory) || (tls && !tls::is_known_to(factory)) {
        return;
    }
    if std::env::var_os("REGENT_LOG").is_some() {
        // Another flavor's test of the same process may have done so already.
        drop(tracing_subscriber::fmt().with_test_writer().try_init());
    }
    let case = std::env::var("REGENT_TEST_CASE").unwrap_or_default();
    conformance::run_all(&Real { factory, tls }, &case).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_conforms() {
    conforms(&REDIS, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_conforms_with_tls() {
    conforms(&REDIS, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_conforms() {
    conforms(&VALKEY, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn valkey_conforms_with_tls() {
    conforms(&VALKEY, true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keydb_conforms() {
    conforms(&KEYDB, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keydb_conforms_with_tls() {
    conforms(&KEYDB, true).await;
}
