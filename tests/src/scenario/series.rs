//! Scenarios one after the other on the same machines, each once; what is wrong is said of all of them at the end, by name.

use anyhow::Result;

use super::{Bed, Engine, Measured, Rig, SCENARIOS, Scenario, Settings, run};

/// Variable that names the scenarios to run, parted by commas; with `_` and an engine behind it only those of that engine.
const CHOSEN: &str = "REGENT_TEST_SCENARIOS";

/// Scenarios to run with an engine: all, or those that `REGENT_TEST_SCENARIOS` names, or else `REGENT_TEST_SCENARIOS_REDIS` for Redis.
pub fn wanted(engine: Engine) -> Vec<&'static Scenario> {
    let of_engine = format!("{CHOSEN}_{}", engine.name().to_uppercase());
    let chosen = [CHOSEN, &of_engine].iter().find_map(|variable| std::env::var(variable).ok());
    let Some(names) = chosen else { return SCENARIOS.iter().collect() };
    names.split(',').map(|name| Scenario::named(name).unwrap_or_else(|| panic!("no scenario {name}"))).collect()
}

/// A line for who reads the test's output.
fn line(measured: &Measured, is_wrong: bool) -> String {
    format!(
        "{:<30} outage {:>6.0} ms from {:>6.0} ms, elsewhere after {:>6.0?} ms, {} -> {}, {} lost, overlap {:.1} ms{}",
        measured.scenario,
        measured.write_outage_ms,
        measured.outage_from_ms,
        measured.elsewhere_ms,
        measured.old_primary,
        measured.new_primary,
        measured.lost.len(),
        measured.overlap_ms,
        if is_wrong { "  WRONG" } else { "" },
    )
}

/// Runs scenarios on a bed that `start` makes, and on another one after a scenario from which the bed did not get well. What is
/// wrong, of all; an error means that there is no bed at all.
#[expect(clippy::print_stdout, reason = "what each run came to is for who reads the test's output")]
pub async fn run_all<R: Rig>(
    scenarios: Vec<&'static Scenario>,
    start: impl AsyncFn() -> Result<Bed<R>>,
    settings: &Settings,
    slack: f64,
) -> Result<Vec<String>> {
    let mut bed: Option<Bed<R>> = None;
    let mut complaints = Vec::new();
    for scenario in scenarios {
        let mut used = match bed.take() {
            Some(bed) => bed,
            None => start().await?,
        };
        match run(&mut used, scenario, 1, settings).await {
            Ok(measured) => {
                let wrong = measured.complaints(scenario, slack);
                println!("{}", line(&measured, !wrong.is_empty()));
                if !wrong.is_empty() {
                    used.folder.keep();
                }
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
    Ok(complaints)
}
