//! What a writer did and was told: one line for each event, written before the next thing is done.
//!
//! ```text
//! writer    NAME
//! attempt   NANOS  ROW  HOST:PORT
//! ack       NANOS  ROW  REIGN             the engine's word for the reign it was written in
//! refused   NANOS  ROW  REASON        it says itself that nothing was written
//! unknown   NANOS  ROW  REASON        nobody said whether it was written
//! note      NANOS  TEXT
//! ```
//! Fields are parted by tabs. **Invariant:** an attempt stands in the file before the request is sent, and an
//! acknowledgement only after it was received; a line cut off at the end of the file (the writer was killed) is ignored.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use super::now_nanos;

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Acknowledged at this time, in this reign.
    Acknowledged(u64, String),
    /// The engine said that it wrote nothing.
    Refused(String),
    /// Nobody said; it may be there.
    Unknown(String),
}

/// One attempt to write one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Number of the row; unique for the writer.
    pub row: u64,
    /// Member that was asked, as host:port.
    pub member: String,
    /// When it was sent.
    pub sent: u64,
    /// How it ended.
    pub outcome: Outcome,
}

/// All that one writer did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// Name of the writer.
    pub writer: String,
    /// In order.
    pub attempts: Vec<Attempt>,
}

/// Writes a history.
#[derive(Debug)]
pub struct Recorder {
    file: File,
}

// === impl Recorder ===

impl Recorder {
    /// Begins a file; an old one is replaced.
    pub fn create(path: &Path, writer: &str) -> io::Result<Self> {
        let mut file = File::create(path)?;
        file.write_all(format!("writer\t{writer}\n").as_bytes())?;
        Ok(Self { file })
    }

    fn line(&mut self, kind: &str, rest: &str) -> io::Result<u64> {
        let now = now_nanos();
        let rest = rest.replace('\n', " ");
        // One write for one line: a killed writer leaves whole lines.
        self.file.write_all(format!("{kind}\t{now}\t{rest}\n").as_bytes())?;
        Ok(now)
    }

    /// Says that a row is about to be sent.
    pub fn attempt(&mut self, row: u64, member: &str) -> io::Result<u64> {
        self.line("attempt", &format!("{row}\t{member}"))
    }

    /// Says that the row was acknowledged, and in which reign the engine says that it wrote it.
    pub fn acknowledged(&mut self, row: u64, reign: &str) -> io::Result<u64> {
        self.line("ack", &format!("{row}\t{reign}"))
    }

    /// Says that the row was refused.
    pub fn refused(&mut self, row: u64, reason: &str) -> io::Result<u64> {
        self.line("refused", &format!("{row}\t{reason}"))
    }

    /// Says that nobody knows.
    pub fn unknown(&mut self, row: u64, reason: &str) -> io::Result<u64> {
        self.line("unknown", &format!("{row}\t{reason}"))
    }

    /// Says something for people.
    pub fn note(&mut self, text: &str) -> io::Result<u64> {
        self.line("note", text)
    }
}

// === impl History ===

impl History {
    /// Reads a history; also one that is still being written.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Self::parse(&text).map_err(|error| error.context(format!("{} is no history", path.display())))
    }

    /// Reads the text of a history.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        // What follows the last newline was cut off.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let mut lines = whole.lines();
        let writer = lines.next().and_then(|line| line.strip_prefix("writer\t"));
        let writer = writer.ok_or_else(|| anyhow::anyhow!("it does not begin with the writer's name"))?.to_owned();
        let mut history = Self { writer, attempts: Vec::new() };
        for line in lines {
            history.take(line)?;
        }
        Ok(history)
    }

    fn take(&mut self, line: &str) -> anyhow::Result<()> {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        let bad = || anyhow::anyhow!("cannot read the line {line:?}");
        let [kind, nanos, rest @ ..] = fields.as_slice() else { return Err(bad()) };
        if *kind == "note" {
            return Ok(());
        }
        let (nanos, row) = (nanos.parse()?, rest.first().ok_or_else(bad)?.parse()?);
        let detail = rest.get(1).copied().unwrap_or_default().to_owned();
        if *kind == "attempt" {
            let outcome = Outcome::Unknown("the writer ended first".to_owned());
            self.attempts.push(Attempt { row, member: detail, sent: nanos, outcome });
            return Ok(());
        }
        let last = self.attempts.last_mut().filter(|attempt| attempt.row == row).ok_or_else(bad)?;
        last.outcome = match *kind {
            "ack" => Outcome::Acknowledged(nanos, detail),
            "refused" => Outcome::Refused(detail),
            "unknown" => Outcome::Unknown(detail),
            _ => return Err(bad()),
        };
        Ok(())
    }

    /// Times and members of all acknowledgements, in order.
    pub fn acknowledgements(&self) -> impl Iterator<Item = (u64, &str)> {
        self.attempts.iter().filter_map(|attempt| match &attempt.outcome {
            Outcome::Acknowledged(at, _) => Some((*at, attempt.member.as_str())),
            Outcome::Refused(_) | Outcome::Unknown(_) => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let mut recorder = Recorder::create(&path, "w").unwrap();
        let sent = recorder.attempt(1, "h:1").unwrap();
        let at = recorder.acknowledged(1, "00000002").unwrap();
        recorder.note("a note\twith a tab").unwrap();
        recorder.attempt(2, "h:2").unwrap();
        recorder.refused(2, "read-only\nindeed").unwrap();
        recorder.attempt(3, "h:2").unwrap();
        recorder.unknown(3, "closed").unwrap();
        recorder.attempt(4, "h:2").unwrap();
        let history = History::read(&path).unwrap();
        assert_eq!(history.writer, "w");
        assert_eq!(
            history.attempts[0],
            Attempt { row: 1, member: "h:1".into(), sent, outcome: Outcome::Acknowledged(at, "00000002".into()) }
        );
        assert_eq!(history.attempts[1].outcome, Outcome::Refused("read-only indeed".into()));
        assert_eq!(history.attempts[2].outcome, Outcome::Unknown("closed".into()));
        assert_eq!(history.attempts[3].outcome, Outcome::Unknown("the writer ended first".into()));
        assert_eq!(history.acknowledgements().collect::<Vec<_>>(), [(at, "h:1")]);
    }

    #[test]
    fn a_line_that_was_cut_off_is_ignored_and_a_wrong_one_is_not() {
        let cut = History::parse("writer\tw\nattempt\t1\t1\th:1\nack\t2").unwrap();
        assert!(matches!(cut.attempts[0].outcome, Outcome::Unknown(_)));
        assert!(History::parse("writer\tw\nack\t2\t1\n").is_err(), "an acknowledgement without an attempt");
        assert!(History::parse("attempt\t1\t1\th:1\n").is_err(), "no writer");
    }
}
