//! Every scenario of the list, each once, one after the other on the same machines: partitions, deaths, hangs. What is wrong
//! is said of all of them at the end, by name.

use regent_tests::scenario::{Bed, SCENARIOS, Scenario, Settings, run};

use crate::support::{PROFILE, SLACK, inside};

/// How long the coordinator is away: many leases, and few seconds of everybody's time. The bench takes a minute.
const SETTINGS: Settings = Settings { coordinator_away: std::time::Duration::from_secs(8) };

/// Scenarios to run: all, or those whose names `REGENT_TEST_SCENARIOS` lists.
fn wanted() -> Vec<&'static Scenario> {
    let Ok(names) = std::env::var("REGENT_TEST_SCENARIOS") else { return SCENARIOS.iter().collect() };
    names.split(',').map(|name| Scenario::named(name).unwrap_or_else(|| panic!("no scenario {name}"))).collect()
}

#[test]
fn every_fault_ends_as_it_should_and_never_with_two_primaries() {
    inside(|| async {
        let mut bed: Option<Bed> = None;
        let mut complaints = Vec::new();
        for scenario in wanted() {
            let mut used = match bed.take() {
                Some(bed) => bed,
                None => Bed::start(PROFILE).await.unwrap(),
            };
            match run(&mut used, scenario, 1, &SETTINGS).await {
                Ok(measured) => {
                    let wrong = measured.complaints(scenario, SLACK);
                    println!(
                        "{:<30} outage {:>6.0} ms from {:>6.0} ms, elsewhere after {:>6.0?} ms, {} -> {}, {} lost, overlap {:.1} ms{}",
                        scenario.name,
                        measured.write_outage_ms,
                        measured.outage_from_ms,
                        measured.elsewhere_ms,
                        measured.old_primary,
                        measured.new_primary,
                        measured.lost.len(),
                        measured.overlap_ms,
                        if wrong.is_empty() { "" } else { "  WRONG" },
                    );
                    complaints.extend(wrong.into_iter().map(|wrong| format!("{}: {wrong}", scenario.name)));
                    bed = Some(used);
                }
                Err(error) => {
                    println!("{:<30} did not get well again  WRONG", scenario.name);
                    complaints.push(format!("{}: {error:#} (logs: {})", scenario.name, used.folder.path().display()));
                    // The next one needs another bed; the logs of this one are worth keeping.
                    used.folder.keep();
                }
            }
        }
        assert!(complaints.is_empty(), "\n  {}", complaints.join("\n  "));
    });
}
