//! What is printed: the head that all benches share, for programs (JSON) or for people.

use std::io::Write;

use anyhow::Result;
use regent_tests::scenario::Engine;
use serde::Serialize;

use crate::arguments::Arguments;

/// What a report of repeated runs begins with.
#[derive(Debug, Serialize)]
pub(crate) struct Head {
    bench: &'static str,
    engine: Engine,
    build: &'static str,
    load: String,
    repetitions: u32,
}

/// Percentiles of a sample, by the nearest rank.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p95: f64,
    pub(crate) max: f64,
}

// === impl Head ===

impl Head {
    pub(crate) fn of(bench: &'static str, arguments: &Arguments) -> Self {
        Self {
            bench,
            engine: arguments.engine,
            build: if cfg!(debug_assertions) { "debug" } else { "release" },
            load: arguments.load.clone(),
            repetitions: arguments.repetitions,
        }
    }
}

// === impl Percentiles ===

impl Percentiles {
    pub(crate) fn of(sample: &[f64]) -> Option<Self> {
        let mut sorted = sample.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).max(1) - 1).copied();
        Some(Self { p50: rank(50)?, p95: rank(95)?, max: *sorted.last()? })
    }
}

/// Progress for people; never on stdout, so that JSON stays alone there.
pub(crate) fn say(text: &str) {
    // Nobody is left to tell when stderr is gone.
    drop(writeln!(std::io::stderr(), "{text}"));
}

/// The result.
pub(crate) fn print<R: Serialize>(report: &R, json: bool) -> Result<()> {
    let value = serde_json::to_value(report)?;
    let mut out = std::io::stdout();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
    } else if let Some(fields) = value.as_object() {
        for (name, field) in fields.iter().filter(|(name, _)| *name != "runs") {
            writeln!(out, "{name:<24} {field}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        let sample: Vec<f64> = (1..=20).map(f64::from).collect();
        let of = Percentiles::of(&sample).unwrap();
        assert_eq!((of.p50, of.p95, of.max), (10.0, 19.0, 20.0));
        let one = Percentiles::of(&[7.0]).unwrap();
        assert_eq!((one.p50, one.p95, one.max), (7.0, 7.0, 7.0));
        assert!(Percentiles::of(&[]).is_none());
    }
}
