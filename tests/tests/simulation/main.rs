//! The simulation: the real coordinator and real agents with the fake engine over a simulated network, clock and disk, with faults
//! at random moments, judged by what clients could see. Each seed is one run, and repeats itself exactly.
//!
//! `REGENT_TEST_SEED=n` runs one seed and prints its trace; `REGENT_TEST_SEEDS=count` runs that many (500 by default);
//! `REGENT_TEST_SOAK=minutes` goes on with new seeds for so long; `REGENT_TEST_RULES=names` breaks these rules alone, and in
//! one seed the one that is named; `REGENT_TEST_STRIKE=KIND/STEP/FAULT` lets one fault strike one step; `REGENT_TEST_THEME=name` plays one theme in every seed, for who writes a script.
//!
//! The order in which tokio polls is part of a run: it follows the seed only where tokio is built with `--cfg tokio_unstable`,
//! as `tests/run simulation` does.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod acts;
mod certificates;
mod chance;
mod deliveries;
mod disk;
mod engine;
mod faults;
mod histories;
mod hosts;
mod limits;
mod machine;
mod mutations;
mod network;
mod operations;
mod oracle;
mod passage;
mod plays;
mod report;
mod script;
mod seeds;
mod shown;
mod store;
mod strikes;
mod themes;
mod time;
mod trace;
mod world;
mod writers;

use regent_common::mutation::Rule;
use regent_coordinator::operation::KINDS;

/// Seeds of a normal run.
const SEEDS: u64 = 500;
/// Seeds that are run twice.
const REPEATED: u64 = 20;

#[test]
fn many_seeds_without_a_violation() {
    seeds::need_repeatable_runs();
    if let Some(seed) = seeds::number("REGENT_TEST_SEED") {
        // What the daemons say, as RUST_LOG chooses; the times beside it are those of the wall.
        if std::env::var_os("RUST_LOG").is_some() {
            regent_common::telemetry::init(regent_common::telemetry::LogFormat::Text).unwrap();
        }
        let named = |name: &str| *Rule::ALL.iter().find(|rule| rule.as_str() == name).expect("a rule's name");
        let names = seeds::text("REGENT_TEST_RULES").unwrap_or_default();
        let broken: Vec<_> = names.split(['+', ',']).filter(|name| !name.is_empty()).map(named).collect();
        let outcome = world::run(seed, &broken);
        seeds::print(&outcome.trace.join("\n"));
        seeds::print(&report::summary(std::slice::from_ref(&outcome)));
        assert!(outcome.violations.is_empty(), "seed {seed} violates what must hold");
        return;
    }
    let outcomes = seeds::run_all(seeds::wanted(SEEDS));
    seeds::print(&report::summary(&outcomes));
    let failed = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).count();
    assert_eq!(failed, 0, "of {} seeds so many violate what must hold", outcomes.len());
}

#[test]
fn a_seed_repeats_itself_exactly() {
    seeds::need_repeatable_runs();
    let seeds = seeds::number("REGENT_TEST_SEEDS").unwrap_or(REPEATED);
    let mut lines = 0;
    for seed in 1..=seeds {
        let (first, second) = (world::run(seed, &[]), world::run(seed, &[]));
        let differs = first.trace.iter().zip(&second.trace).position(|(one, other)| one != other);
        if let Some(line) = differs {
            panic!("seed {seed} differs at line {line}:\n{}\n{}", first.trace[line], second.trace[line]);
        }
        assert_eq!(first.trace.len(), second.trace.len(), "seed {seed} ends elsewhere");
        lines += first.trace.len() as u64;
    }
    assert!(lines > 100 * seeds, "{lines} lines of {seeds} traces: hardly anything is compared");
}

#[test]
fn every_step_of_every_operation_withstands_every_fault() {
    seeds::need_repeatable_runs();
    // There are no pairs here.
    let kinds: Vec<_> = KINDS.iter().filter(|kind| !kind.is_of_pairs_only()).map(|kind| kind.name()).collect();
    let first = seeds::number("REGENT_TEST_SEED").unwrap_or(1);
    if let Some(name) = seeds::text("REGENT_TEST_STRIKE") {
        let outcome = strikes::run(first, &strikes::Strike::named(&name, &kinds));
        seeds::print(&outcome.trace.join("\n"));
        assert!(outcome.violations.is_empty(), "{name} violates what must hold: {:?}", outcome.violations);
        return;
    }
    let steps = strikes::steps(&kinds);
    let missing: Vec<_> = steps.iter().filter(|(_, steps)| steps.is_empty()).map(|(kind, _)| kind).collect();
    assert!(missing.is_empty(), "nothing was seen of {missing:?}");
    let outcomes = strikes::run_all(&strikes::all(&steps), first);
    seeds::print(&strikes::table(&outcomes));
    let failed = outcomes.iter().filter(|(_, outcome)| !outcome.violations.is_empty()).count();
    assert_eq!(failed, 0, "of {} runs so many violate what must hold", outcomes.len());
    let missed = outcomes.iter().filter(|(_, outcome)| !outcome.marked).count();
    assert!(missed * 100 <= outcomes.len(), "{missed} of {} faults did not come to their step", outcomes.len());
}

#[test]
fn every_broken_rule_is_seen() {
    seeds::need_repeatable_runs();
    let asked = seeds::text("REGENT_TEST_RULES");
    let wanted = |rule: Rule| match &asked {
        Some(names) => names.split(',').any(|name| name == rule.as_str()),
        None => !mutations::NOT_YET.iter().any(|(later, _)| *later == rule),
    };
    let there = Rule::ALL.iter().copied().filter(|rule| wanted(*rule));
    let seen: Vec<_> =
        there.map(|rule| mutations::search(rule, seeds::number("REGENT_TEST_SEEDS").unwrap_or(SEEDS))).collect();
    seeds::print(&mutations::table(&seen));
    let missed: Vec<_> = seen.iter().filter(|seen| seen.found.is_none()).map(|seen| seen.rule.as_str()).collect();
    assert!(missed.is_empty(), "broken and not seen: {missed:?}");
}
