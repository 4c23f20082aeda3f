//! Breaks one rule of the protocol at a time and looks how many seeds it takes until the oracle sees it.
//!
//! A rule that is broken and not seen says that the simulation is too kind, or that the rule is not needed. [`NOT_YET`] names the
//! rules that the code does not have; it is to become empty.

use std::{
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use regent_common::mutation::Rule;

use super::{oracle::Kind, seeds, world};

/// Rules that are not in the code yet, so that breaking them breaks nothing.
pub(crate) const NOT_YET: &[(Rule, &str)] = &[];

/// How a broken rule was seen.
pub(crate) struct Seen {
    /// Which.
    pub(crate) rule: Rule,
    /// Seeds that were run until then, and what the oracle said; `None` when none of them showed it.
    pub(crate) found: Option<(u64, Kind)>,
}

// === impl Seen ===

impl Seen {
    /// A line of the table.
    fn line(&self) -> String {
        let name = self.rule.as_str();
        match &self.found {
            Some((seeds, kind)) => format!("{name:<16} {seeds:>6}  {kind:?}"),
            None => format!("{name:<16} {:>6}  not seen", "-"),
        }
    }
}

/// Runs seeds from 1 on, at most so many, until one of them shows the broken rule.
pub(crate) fn search(rule: Rule, count: u64) -> Seen {
    let next = AtomicU64::new(1);
    let first: Mutex<Option<(u64, Kind)>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let needless = first.lock().unwrap().is_some_and(|(found, _)| found < seed);
                    if seed > count || needless {
                        return;
                    }
                    // What a seed shows with no rule broken says nothing of the rule.
                    if let Some(violation) = world::run(seed, Some(rule)).violations.first()
                        && world::run(seed, None).violations.is_empty()
                    {
                        let mut first = first.lock().unwrap();
                        if first.is_none_or(|(found, _)| seed < found) {
                            *first = Some((seed, violation.kind));
                        }
                    }
                }
            });
        }
    });
    let seen = Seen { rule, found: first.into_inner().unwrap() };
    // At once, for who waits.
    seeds::print(&seen.line());
    seen
}

/// The table for people.
pub(crate) fn table(seen: &[Seen]) -> String {
    let mut text = format!("{:<16} {:>6}  {}\n", "broken rule", "seeds", "seen as");
    for seen in seen {
        let _ = writeln!(text, "{}", seen.line());
    }
    for (rule, why) in NOT_YET {
        let _ = writeln!(text, "{:<16} {:>6}  left out: {why}", rule.as_str(), "-");
    }
    text
}
