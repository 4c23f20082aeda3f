//! Breaks one rule of the protocol at a time and looks how many seeds it takes until the oracle sees it.
//!
//! A rule that is broken and not seen says that the simulation is too kind, or that the rule is not needed. [`NOT_YET`] names
//! those; it is to stay empty.

use std::{
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use regent_common::mutation::Rule;

use super::{oracle::Kind, seeds, themes::Theme, world};

/// Rules that the seeds of a normal run do not show when they are broken, and why each of them.
pub(crate) const NOT_YET: &[(Rule, &str)] = &[];

/// How a broken rule was seen.
pub(crate) struct Seen {
    /// Which.
    pub(crate) rule: Rule,
    /// Seeds that were run until then, the seed, and what the oracle said; `None` when none of them showed it.
    pub(crate) found: Option<(usize, u64, Kind)>,
}

// === impl Seen ===

impl Seen {
    /// A line of the table.
    fn line(&self) -> String {
        let name = self.rule.as_str();
        match &self.found {
            Some((seeds, seed, kind)) => format!("{name:<16} {seeds:>6} {seed:>6}  {kind:?}"),
            None => format!("{name:<16} {:>6} {:>6}  not seen", "-", "-"),
        }
    }
}

/// Runs the seeds from 1 to `count`, those of the rule's theme before the others, until one of them shows the broken rule.
pub(crate) fn search(rule: Rule, count: u64) -> Seen {
    let theme = Theme::for_rule(rule);
    let (own, others): (Vec<u64>, Vec<u64>) = (1..=count).partition(|seed| Theme::of(*seed) == theme);
    let order = [own, others].concat();
    let next = AtomicUsize::new(0);
    let first: Mutex<Option<(usize, u64, Kind)>> = Mutex::new(None);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let place = next.fetch_add(1, Ordering::Relaxed);
                    let needless = first.lock().unwrap().is_some_and(|(found, ..)| found < place + 1);
                    let Some(seed) = order.get(place).copied().filter(|_| !needless) else { return };
                    // What a seed shows with no rule broken says nothing of the rule.
                    if let Some(violation) = world::run(seed, &[rule]).violations.first()
                        && world::run(seed, &[]).violations.is_empty()
                    {
                        let mut first = first.lock().unwrap();
                        if first.is_none_or(|(found, ..)| place + 1 < found) {
                            *first = Some((place + 1, seed, violation.kind));
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
    let mut text = format!("{:<16} {:>6} {:>6}  {}\n", "broken rule", "seeds", "seed", "seen as");
    for seen in seen {
        let _ = writeln!(text, "{}", seen.line());
    }
    for (rule, why) in NOT_YET {
        let _ = writeln!(text, "{:<16} {:>6} {:>6}  left out: {why}", rule.as_str(), "-", "-");
    }
    text
}
