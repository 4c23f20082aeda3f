//! The chain of the audit's records: each carries a digest of itself and of the one before, so that a record that is changed or
//! taken out later is noticed by whoever goes through them, and knows the last digest.
//!
//! It proves nothing against one who can rewrite the whole chain; who keeps a digest elsewhere can tell that as well.

use jiff::Timestamp;
use ring::digest::{Context, SHA256};

use crate::hex::hex;

/// What the digest of a record covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link<'a> {
    /// Digest of the record before; empty for the first.
    pub previous: &'a str,
    /// Its id.
    pub id: &'a str,
    /// When.
    pub time: Timestamp,
    /// Everything else that it says, in the order of its fields.
    pub said: [&'a str; 6],
}

// === impl Link ===

impl Link<'_> {
    /// SHA-256 over all parts, each with its length before it, in lower-case hexadecimal.
    pub fn digest(&self) -> String {
        let time = self.time.as_nanosecond().to_string();
        let mut context = Context::new(&SHA256);
        for part in [self.previous, self.id, &time].into_iter().chain(self.said) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        hex(context.finish())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts_and_so_does_where_it_ends() {
        let link = Link { previous: "p", id: "i", time: Timestamp::UNIX_EPOCH, said: ["a", "b", "c", "d", "e", "f"] };
        let others = [
            Link { previous: "", ..link },
            Link { id: "j", ..link },
            Link { time: Timestamp::new(0, 1).unwrap(), ..link },
            Link { said: ["ab", "", "c", "d", "e", "f"], ..link },
            Link { said: ["a", "b", "c", "d", "e", "g"], ..link },
        ];
        for other in others {
            assert_ne!(other.digest(), link.digest(), "{other:?}");
        }
        assert_eq!(link.digest(), link.digest());
        assert_eq!(link.digest().len(), 64);
    }
}
