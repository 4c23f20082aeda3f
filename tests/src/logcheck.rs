//! No warning goes unseen: a log of a daemon may have only those WARN and ERROR lines that the test names.

use std::{fs, path::Path};

use anyhow::{Result, ensure};

/// The level of a log line, in the text form (`TIME LEVEL ...`) and in the JSON form.
fn level(line: &str) -> Option<&'static str> {
    let known = |text: &str| ["ERROR", "WARN"].into_iter().find(|level| *level == text);
    if line.starts_with('{') {
        let parsed: serde_json::Value = serde_json::from_str(line).ok()?;
        return known(parsed.get("level")?.as_str()?);
    }
    if line.starts_with("thread '") && line.contains("panicked at") {
        return Some("PANIC");
    }
    known(line.split_whitespace().nth(1)?)
}

/// Lines of a log that stand out and contain none of `expected`.
pub fn unexpected(text: &str, expected: &[&str]) -> Vec<String> {
    text.lines()
        .map(without_colours)
        .filter(|line| level(line).is_some_and(|l| l == "PANIC" || !expected.iter().any(|known| line.contains(known))))
        .collect()
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut parts = line.split('\u{1b}');
    plain.push_str(parts.next().unwrap_or_default());
    for part in parts {
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

/// Fails with every line of the logs that stands out and was not expected.
pub fn check<'a>(logs: impl IntoIterator<Item = &'a Path>, expected: &[&str]) -> Result<()> {
    let mut found = Vec::new();
    for log in logs {
        let lines = unexpected(&fs::read_to_string(log)?, expected);
        found.extend(lines.into_iter().map(|line| format!("{}: {line}", log.display())));
    }
    ensure!(found.is_empty(), "the daemons say what this test did not expect:\n  {}", found.join("\n  "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "--- agent starts\n\
        2026-11-21T10:00:00.1Z  INFO regent_agent: the ERROR word in a message\n\
        2026-11-21T10:00:00.2Z  WARN regent_agent::session: session ended\n\
        \u{1b}[2m2026-11-21T10:00:00.3Z\u{1b}[0m \u{1b}[31mERROR\u{1b}[0m regent_agent: disk full\n\
        {\"timestamp\":\"t\",\"level\":\"WARN\",\"message\":\"as json\"}\n\
        thread 'main' panicked at src/main.rs:1:1:\n";

    #[test]
    fn what_stands_out_is_found() {
        let found = unexpected(LOG, &[]);
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found[1].ends_with("ERROR regent_agent: disk full"), "{found:#?}");
    }

    #[test]
    fn what_was_expected_is_left_out_and_a_panic_never_is() {
        let found = unexpected(LOG, &["session ended", "disk full", "as json", "panicked"]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0].contains("panicked at"));
    }
}
