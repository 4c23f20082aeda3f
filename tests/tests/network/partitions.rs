//! Every scenario of the list, each once, one after the other on the same machines: partitions, deaths, hangs. What is wrong
//! is said of all of them at the end, by name.

use regent_tests::scenario::{Bed, Settings, run_all, wanted};

use crate::support::{PROFILE, SLACK, inside};

/// How long the coordinator is away: many leases, and few seconds of everybody's time. The bench takes a minute.
const SETTINGS: Settings = Settings { coordinator_away: std::time::Duration::from_secs(8) };

#[test]
fn every_fault_ends_as_it_should_and_never_with_two_primaries() {
    inside(|| async {
        let complaints = run_all(wanted(), async || Bed::start(PROFILE).await, &SETTINGS, SLACK).await.unwrap();
        assert!(complaints.is_empty(), "\n  {}", complaints.join("\n  "));
    });
}
