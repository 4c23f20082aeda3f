//! Whether what a side was loaded with had reached the other side before it ended.
//!
//! While a side serves the other one acknowledges how far it has come in what this one writes, and a snapshot says in its first fields
//! where in that it was made. One that is not behind an acknowledgement, of the same history, has nothing that the other side has
//! not had: what is missing there was deleted there. That holds as long as the process there is the one that acknowledged: another has
//! forgotten what it had after its own snapshot.
//!
//! **Invariant:** what is not known for sure counts as not delivered. The acknowledgement is in the agent's memory alone.

use std::{fs::File, io::Read, path::Path, sync::PoisonError, time::Duration};

use tokio::time;

use super::{
    Redis,
    info::Info,
    session::{BRIEF, Session, SessionError},
};
use crate::engine::DriverError;

/// Begins a file of the engine's, before its version of four digits.
const MAGIC: &[u8] = b"REDIS";
/// Comes before a name and its value.
const FIELD: u8 = 0xfa;
/// The fields are at the beginning, and short.
const HEAD: u64 = 4096;
/// The engine tells its age in whole seconds.
const ROUNDED: Duration = Duration::from_secs(2);

/// How far the other side has come in what this one has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Acknowledged {
    /// Id of this side's history.
    id: String,
    offset: u64,
    at: time::Instant,
}

/// Where in a history a snapshot was made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Made {
    id: String,
    offset: u64,
}

// === impl Redis ===

impl Redis {
    /// Notes what the other side acknowledges.
    pub(super) fn note_acknowledgement(&self, info: &Info) {
        let Some(wanted) = self.known_wanted() else { return };
        let others = wanted.members.iter().filter(|peer| peer.member != self.member);
        let addresses: Vec<String> = others.map(|peer| format!("{}:{}", peer.engine.host, peer.engine.port)).collect();
        let replica = info.downstreams().into_iter().find(|seen| seen.online && addresses.contains(&seen.address));
        if let (Some(replica), Some(id)) = (replica, info.id()) {
            let noted = Acknowledged { id: id.to_owned(), offset: replica.offset, at: time::Instant::now() };
            *self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner) = Some(noted);
        }
    }

    /// Whether everything that this side was loaded with had reached the other one. It has followed nobody since.
    pub(super) async fn was_delivered(&self, ours: &Session, theirs: &Session) -> Result<bool, SessionError> {
        let acknowledged = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(acknowledged) = acknowledged else { return Ok(false) };
        if ours.info("replication", BRIEF).await?.has_upstream() {
            return Ok(false);
        }
        let snapshot = self.on_disk(|layout| Ok::<_, DriverError>(made(&layout.snapshot()))).await;
        let Ok(Some(made)) = snapshot else { return Ok(false) };
        let age = theirs.info("server", BRIEF).await?.number("uptime_in_seconds").map(Duration::from_secs);
        let is_the_same = age.is_some_and(|age| age > acknowledged.at.elapsed() + ROUNDED);
        Ok(is_the_same && made.id == acknowledged.id && made.offset <= acknowledged.offset)
    }
}

/// Where a snapshot was made, if it says so.
fn made(snapshot: &Path) -> Option<Made> {
    let mut head = Vec::new();
    File::open(snapshot).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    made_by(&head)
}

fn made_by(head: &[u8]) -> Option<Made> {
    let mut rest = head.strip_prefix(MAGIC)?.get(4..)?;
    let (mut id, mut offset) = (None, None);
    while let Some(fields) = rest.strip_prefix(&[FIELD]) {
        let (name, fields) = text(fields)?;
        let (value, fields) = text(fields)?;
        match name.as_str() {
            "repl-id" => id = Some(value),
            "repl-offset" => offset = value.parse().ok(),
            _ => {}
        }
        rest = fields;
    }
    Some(Made { id: id?, offset: offset? })
}

/// A text at the beginning of some bytes, and what comes after it. The engine writes short numbers as such.
fn text(bytes: &[u8]) -> Option<(String, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let (length, rest) = match (first >> 6, first) {
        (0, _) => (usize::from(first), rest),
        (1, _) => {
            let (&second, rest) = rest.split_first()?;
            (usize::from(first & 0x3f) << 8 | usize::from(second), rest)
        }
        (_, 0xc0) => {
            let (bytes, rest) = rest.split_first_chunk()?;
            return Some((i8::from_le_bytes(*bytes).to_string(), rest));
        }
        (_, 0xc1) => {
            let (bytes, rest) = rest.split_first_chunk()?;
            return Some((i16::from_le_bytes(*bytes).to_string(), rest));
        }
        (_, 0xc2) => {
            let (bytes, rest) = rest.split_first_chunk()?;
            return Some((i32::from_le_bytes(*bytes).to_string(), rest));
        }
        _ => return None,
    };
    let (text, rest) = rest.split_at_checked(length)?;
    Some((String::from_utf8_lossy(text).into_owned(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, value: &[u8]) -> Vec<u8> {
        let mut bytes = vec![FIELD, u8::try_from(name.len()).unwrap()];
        bytes.extend_from_slice(name.as_bytes());
        bytes.extend_from_slice(value);
        bytes
    }

    #[test]
    fn a_snapshot_says_where_it_was_made() {
        let id = "0123456789012345678901234567890123456789";
        let head = |offset: &[u8]| {
            let mut bytes = b"REDIS0009".to_vec();
            bytes.extend(field("redis-ver", b"\x056.3.4"));
            bytes.extend(field("redis-bits", b"\xc0\x40"));
            bytes.extend(field("repl-id", format!("\x28{id}").as_bytes()));
            bytes.extend(field("repl-offset", offset));
            bytes.extend(field("repl-masters", &[&[0x40, 100][..], &[b'x'; 100]].concat()));
            bytes.extend([0xfe, 0x00]);
            bytes
        };
        let of = |offset: &[u8]| made_by(&head(offset)).map(|made| (made.id, made.offset));
        assert_eq!(of(b"\xc0\x07"), Some((id.to_owned(), 7)));
        assert_eq!(of(b"\xc1\x10\x27"), Some((id.to_owned(), 10_000)));
        assert_eq!(of(b"\xc2\x00\xca\x9a\x3b"), Some((id.to_owned(), 1_000_000_000)));
        assert_eq!(of(b"\x0b12345678901"), Some((id.to_owned(), 12_345_678_901)));
        assert_eq!(of(b"\xc3\x00"), None);
        assert_eq!(made_by(b"REDIS0009\xfe\x00"), None);
        assert_eq!(made_by(b"RED"), None);
    }
}
