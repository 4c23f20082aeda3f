//! Every scenario of the list, each once, one after the other on the same machines: partitions, deaths, hangs. What is wrong
//! is said of all of them at the end, by name.

use regent_tests::scenario::{Bed, Engine, Settings, run_all, wanted};

use crate::support::{PROFILE, SLACK, inside};

/// How long the coordinator is away: many leases, and few seconds of everybody's time. The bench takes a minute.
const SETTINGS: Settings = Settings { coordinator_away: std::time::Duration::from_secs(8) };

/// Runs the scenarios that are wanted of an engine.
fn every_fault(engine: Engine) {
    inside(|| async {
        let start = async || Bed::start(engine, PROFILE).await;
        let complaints = run_all(wanted(engine), start, &SETTINGS, SLACK).await.unwrap();
        assert!(complaints.is_empty(), "\n  {}", complaints.join("\n  "));
    });
}

#[test]
fn every_fault_ends_as_it_should_and_never_with_two_primaries() {
    every_fault(Engine::Postgresql);
}

#[test]
fn every_fault_ends_with_redis_as_it_should_and_never_with_two_primaries() {
    every_fault(Engine::Redis);
}

/// No package registry of the machine may have it.
#[expect(clippy::print_stdout, reason = "what a test does not run is said")]
fn every_fault_where_it_is(engine: Engine) {
    match engine.server() {
        Ok(_) => every_fault(engine),
        Err(missing) => println!("not run: {missing:#}"),
    }
}

#[test]
fn every_fault_ends_with_valkey_as_it_should_and_never_with_two_primaries() {
    every_fault_where_it_is(Engine::Valkey);
}

#[test]
fn every_fault_ends_with_keydb_as_it_should_and_never_with_two_primaries() {
    every_fault_where_it_is(Engine::Keydb);
}
