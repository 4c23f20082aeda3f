//! The PostgreSQL driver over real engines, on loopback: the conformance suite, and what only this engine has.
//!
//! Needs the programs of PostgreSQL (`apt-get install postgresql`), and root for the tests that change the user or mount.
//! `REGENT_POSTGRES_BIN` names another folder with the programs; `REGENT_TEST_CASE` runs only the conformance cases with
//! this text in their name; `REGENT_LOG` shows the driver's log.

#![allow(clippy::unwrap_used, reason = "a test that cannot set itself up fails")]

mod faults;
// The same file as of the tests over the daemons, so that no two tests of one run find the same port.
#[allow(unreachable_pub, reason = "it is public where the other tests have it")]
#[path = "../../../tests/src/ports.rs"]
mod ports;
mod recovery;
mod unmanaged;
mod world;

use regent_agent::engine::conformance;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_conforms() {
    if std::env::var_os("REGENT_LOG").is_some() {
        tracing_subscriber::fmt().with_test_writer().init();
    }
    let case = std::env::var("REGENT_TEST_CASE").unwrap_or_default();
    conformance::run_all(&world::Real, &case).await;
}
