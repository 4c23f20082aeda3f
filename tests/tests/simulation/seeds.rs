//! Which seeds are run, and how: side by side on all processors, each on one thread.

use std::{
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use regent_common::clock::{Clock as _, SystemClock};

use super::world::{self, Outcome};

/// After so many seeds a long run says how far it is: one that is stopped before its end has still shown something.
const TOLD_EVERY: usize = 500;

/// Which seeds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    /// Those from 1 to this.
    Count(u64),
    /// As many as there is time for.
    For(Duration),
}

/// Fails where two runs of a seed could differ.
pub(crate) fn need_repeatable_runs() {
    if !cfg!(tokio_unstable) {
        panic!("a seed does not repeat itself in a build without --cfg tokio_unstable: run `tests/run simulation`");
    }
}

/// A text in the environment.
pub(crate) fn text(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|text| !text.is_empty())
}

/// A number in the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    let text = text(name)?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")))
}

/// What the environment wants; `usual` seeds when it says nothing.
pub(crate) fn wanted(usual: u64) -> Wanted {
    match number("REGENT_TEST_SOAK") {
        Some(minutes) => Wanted::For(Duration::from_secs(60 * minutes)),
        None => Wanted::Count(number("REGENT_TEST_SEEDS").unwrap_or(usual)),
    }
}

/// Runs them all, in order of their numbers.
pub(crate) fn run_all(wanted: Wanted) -> Vec<Outcome> {
    let begin = SystemClock.boottime();
    let next = AtomicU64::new(1);
    let outcomes = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let goes_on = match wanted {
                        Wanted::Count(count) => seed <= count,
                        Wanted::For(time) => SystemClock.boottime() < begin + time,
                    };
                    if !goes_on {
                        return;
                    }
                    let mut outcome = world::run(seed, &[]);
                    // The trace of a seed can be had again.
                    outcome.trace = Vec::new();
                    let mut outcomes = outcomes.lock().unwrap();
                    outcomes.push(outcome);
                    if outcomes.len().is_multiple_of(TOLD_EVERY) {
                        let failed = outcomes.iter().filter(|outcome| !outcome.violations.is_empty()).count();
                        let taken = SystemClock.boottime().saturating_sub(begin).as_secs();
                        print(&format!(
                            "{} seeds after {taken} s, {failed} of them violate what must hold",
                            outcomes.len()
                        ));
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap();
    outcomes.sort_by_key(|outcome: &Outcome| outcome.seed);
    outcomes
}

/// Prints, past the test's own capture of what passes.
pub(crate) fn print(text: &str) {
    // Nobody reading is no reason to fail.
    let _ = writeln!(std::io::stderr(), "{text}");
}
