//! The scenarios of the list on whole machines: daemons in their units, engines in theirs, the firewall each machine's own.

use regent_tests::{
    scenario::{Engine, Settings, run_all, wanted},
    vm::Installation,
};

use crate::support::{PROFILE, SLACK, inside};

/// How long the coordinator is away: many leases, and few seconds of everybody's time.
const SETTINGS: Settings = Settings { coordinator_away: std::time::Duration::from_secs(8) };

fn every_fault(engine: Engine) {
    inside(|| async {
        let start = async || Installation::bed(engine, PROFILE).await;
        let complaints = run_all(wanted(engine), start, &SETTINGS, SLACK).await.unwrap();
        assert!(complaints.is_empty(), "\n  {}", complaints.join("\n  "));
    });
}

#[test]
fn every_fault_ends_on_machines_as_it_does_anywhere() {
    every_fault(Engine::Postgresql);
}

#[test]
fn every_fault_of_redis_ends_on_machines_as_it_does_anywhere() {
    every_fault(Engine::Redis);
}

#[test]
fn every_fault_of_valkey_ends_on_machines_as_it_does_anywhere() {
    every_fault(Engine::Valkey);
}
