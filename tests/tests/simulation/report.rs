//! What the seeds came to, for people: a table of the faults by the states that they struck, and each failure with the command that
//! repeats it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{faults, world::Outcome};

/// The text for many seeds.
pub(crate) fn summary(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let mut reached: BTreeMap<(faults::Kind, &str), usize> = BTreeMap::new();
    for outcome in outcomes {
        for (key, count) in &outcome.reached {
            *reached.entry(*key).or_default() += count;
        }
    }
    let states: BTreeSet<&str> = reached.keys().map(|(_, state)| *state).collect();
    let _ = write!(text, "{:<18}", "fault by state");
    for state in &states {
        let _ = write!(text, " {state:>15}");
    }
    text.push('\n');
    for kind in faults::Kind::all() {
        let _ = write!(text, "{:<18}", format!("{kind:?}"));
        for state in &states {
            let _ = write!(text, " {:>15}", reached.get(&(kind, *state)).copied().unwrap_or(0));
        }
        text.push('\n');
    }
    for (kind, missing) in faults::NOT_YET {
        let _ = writeln!(text, "left out: {kind:?}: {missing}");
    }
    let sum = |of: fn(&Outcome) -> usize| outcomes.iter().map(of).sum::<usize>();
    let seconds: u64 = outcomes.iter().map(|outcome| outcome.virtual_time.as_secs()).sum();
    let _ = writeln!(
        text,
        "{} seeds, {seconds} virtual seconds, {} rows acknowledged, {} lost by changes of primary; {} seeds with a failover, {} \
         failovers; {} seeds ended with a step for a person",
        outcomes.len(),
        sum(|outcome| outcome.acknowledged),
        sum(|outcome| outcome.lost),
        outcomes.iter().filter(|outcome| outcome.failovers > 0).count(),
        sum(|outcome| outcome.failovers),
        outcomes.iter().filter(|outcome| outcome.person.is_some()).count(),
    );
    for outcome in outcomes.iter().filter(|outcome| !outcome.violations.is_empty()) {
        for violation in &outcome.violations {
            let _ = writeln!(text, "seed {}: {violation}", outcome.seed);
        }
        let _ = writeln!(text, "    REGENT_TEST_SEED={} tests/run simulation", outcome.seed);
    }
    text
}
