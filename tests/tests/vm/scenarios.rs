//! The scenarios of the list on whole machines: daemons in their units, engines in theirs, the firewall each machine's own.

use regent_tests::{
    scenario::{Settings, run_all, wanted},
    vm::{ENGINE, Installation},
};

use crate::support::{PROFILE, SLACK, inside};

/// How long the coordinator is away: many leases, and few seconds of everybody's time.
const SETTINGS: Settings = Settings { coordinator_away: std::time::Duration::from_secs(8) };

#[test]
fn every_fault_ends_on_machines_as_it_does_anywhere() {
    inside(|| async {
        let complaints =
            run_all(wanted(ENGINE), async || Installation::bed(PROFILE).await, &SETTINGS, SLACK).await.unwrap();
        assert!(complaints.is_empty(), "\n  {}", complaints.join("\n  "));
    });
}
