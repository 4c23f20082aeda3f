//! The one place of this program that prints: results to stdout, everything else to stderr.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is the output module")]

/// A result.
pub(super) fn result(text: impl std::fmt::Display) {
    println!("{text}");
}

/// Something worth knowing beside the result.
pub(super) fn note(text: impl std::fmt::Display) {
    eprintln!("{text}");
}

/// Why it did not work.
pub(super) fn error(text: impl std::fmt::Display) {
    eprintln!("regent-agent: {text}");
}
