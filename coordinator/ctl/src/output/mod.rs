//! What people and programs get to see: pure functions from messages and `now` to text, and the one place that writes to
//! the two streams.
//!
//! **Invariant:** data goes to stdout and nothing else does; notes, progress and errors go to stderr.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

pub mod json;
pub mod lease;
pub mod operation;
pub mod page;
pub mod progress;
pub mod table;
pub mod units;
pub mod words;

/// Form of the data on stdout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Tables and pages for people.
    Table,
    /// JSON for programs: the field names of the wire, see the README.
    Json,
}

/// The two streams. A reader that has gone away (`| head`) is no error: what is left is dropped.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    /// Form of the data.
    pub format: Format,
}

// === impl Output ===

impl Output {
    /// Data for people, or for programs.
    pub fn data(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        match self.format {
            Format::Table => self.text(&text()),
            Format::Json => self.text(&format!("{:#}", json())),
        }
    }

    /// One item of a stream: a line for people, an object on one line for programs.
    pub fn item(&self, text: impl FnOnce() -> String, json: impl FnOnce() -> Value) {
        match self.format {
            Format::Table => self.text(&text()),
            Format::Json => self.text(&json().to_string()),
        }
    }

    /// Text to stdout as it is, with one newline at its end.
    pub fn text(&self, text: &str) {
        let mut stdout = io::stdout().lock();
        let _gone = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
    }

    /// A line for people on stderr.
    pub fn note(&self, text: impl AsRef<str>) {
        let mut stderr = io::stderr().lock();
        let _gone = writeln!(stderr, "{}", text.as_ref().trim_end_matches('\n'));
    }

    /// Whether somebody looks at stderr, so that lines may be redrawn.
    pub fn live(&self) -> bool {
        io::stderr().is_terminal()
    }
}
