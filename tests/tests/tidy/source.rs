//! The shape of source files: sizes, the doc comment at the head, nothing unfinished.

use super::{File, files, no_complaints};

const LONGEST_FILE: usize = 800;
const LONGEST_95TH_PERCENTILE: usize = 600;
const LONGEST_MAIN: usize = 60;

fn rust_files() -> Vec<File> {
    files().into_iter().filter(|file| file.path.ends_with(".rs")).collect()
}

/// `path:line` of every line for which `is_bad` holds.
fn lines_where(is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for file in rust_files() {
        for (index, line) in file.text.lines().enumerate() {
            if is_bad(line) {
                found.push(format!("{}:{}: {}", file.path, index + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<_> = rust_files()
        .into_iter()
        .filter(|f| f.text.lines().next().is_none_or(|l| l.trim().len() < 12 || !l.starts_with("//! ")))
        .map(|f| f.path)
        .collect();
    no_complaints("every .rs starts with `//!`: what it is, what it is not, its invariants", &silent);
}

#[test]
fn no_file_is_long() {
    let mut sizes: Vec<_> = rust_files().into_iter().map(|f| (f.text.lines().count(), f.path)).collect();
    sizes.sort();
    let long: Vec<_> = sizes
        .iter()
        .filter(|(lines, _)| *lines > LONGEST_FILE)
        .map(|(lines, path)| format!("{path}: {lines} lines"))
        .collect();
    no_complaints(&format!("no .rs has more than {LONGEST_FILE} lines"), &long);
    let (lines, path) = &sizes[sizes.len() * 95 / 100];
    assert!(*lines <= LONGEST_95TH_PERCENTILE, "the 95th percentile of file sizes is {lines} lines ({path})");
}

#[test]
fn main_only_parses_and_runs() {
    let long: Vec<_> = rust_files()
        .into_iter()
        .filter(|f| f.path.ends_with("src/main.rs") && f.text.lines().count() > LONGEST_MAIN)
        .map(|f| f.path)
        .collect();
    no_complaints(
        &format!("main.rs has at most {LONGEST_MAIN} lines over a lib.rs that reads as a table of contents"),
        &long,
    );
}

#[test]
fn nothing_is_unfinished() {
    // Put together here, so that this file does not accuse itself.
    let marks = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!("), concat!("unimple", "mented!(")];
    no_complaints("nothing unfinished lands", &lines_where(|line| marks.iter().any(|mark| line.contains(mark))));
}

#[test]
fn no_test_is_left_out() {
    let mark = concat!("#[ign", "ore");
    no_complaints("a test that does not run proves nothing", &lines_where(|line| line.trim_start().starts_with(mark)));
}

#[test]
fn clocks_are_read_in_one_place() {
    let allowed = lines_where(|line| line.contains("disallowed_methods"));
    let elsewhere: Vec<_> = allowed
        .into_iter()
        .filter(|at| !at.starts_with("common/src/clock") && !at.starts_with("tests/tests/tidy/"))
        .collect();
    no_complaints("only common/src/clock.rs may read a clock", &elsewhere);
}
