//! What one of two sides has, and the other one has not: which of its keys the other one does not know, and, if that is asked, which of
//! those that both know have another value there.
//!
//! Both may be written to meanwhile. A key that is missing there is asked for again after the streams between the two have brought
//! everything that was under way; what a side was loaded with from its disk follows nobody, and is compared as it is.
//!
//! Values are compared by a digest that the engine makes of them. It carries out nothing else meanwhile, so that few are asked for at
//! once, and none of a key that is large. Whether a key expires is a part of its digest, when it does is not, nor are the groups of
//! consumers of a stream.
//!
//! **Invariants:** a key counts only if it was here after it had been missing there, with nothing on the way in between. A value counts only
//! if both sides had the same two values whenever they were looked at, and each time the streams had brought everything since: what one of
//! them is told in between comes to the other one, and changes what that has. Only a key that goes back and forth between the same
//! values all the while may be taken for one that differs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redis::Cmd;
use regent_common::topology::{Difference, Peer};
use tokio::time;

use super::{
    Redis,
    info::Info,
    replication::{POLL, STREAM},
    session::{BRIEF, Session, SessionError},
};
use crate::engine::{Comparison, DriverError, Work};

/// About how many keys are asked for at once.
const BATCH: &str = "1000";
/// Names that are told.
const EXAMPLES: usize = 5;
/// Longest name that is told whole.
const LONGEST_NAME: usize = 200;
/// The engine may name a key twice while its table grows: that many names are remembered.
const REMEMBERED: usize = 100_000;
/// Most bytes of strings of which a digest is asked for at once, and of a key of which one is asked for at all. With what [`weight`] says
/// of other kinds it takes a KeyDB 6.3 up to about ten milliseconds.
const AT_ONCE: u64 = 1024 * 1024;
/// How often values that differ are looked at again.
const ROUNDS: usize = 3;
/// Pause before each of these looks, for a value that is written all the while to change.
const PAUSE: Duration = Duration::from_millis(10);

/// Keys that both sides have, with other values on each.
#[derive(Debug, Default)]
struct Unlike {
    differing: Vec<Vec<u8>>,
    /// Those of which that could not be told.
    undecided: Vec<Vec<u8>>,
}

/// Both sides, at one database.
struct Sides<'a> {
    driver: &'a Redis,
    other: &'a Peer,
    ours: Session,
    theirs: Session,
    /// Whether this side streamed from the other one when the comparison began, and that one from this.
    streamed: [bool; 2],
}

// === impl Redis ===

impl Redis {
    /// Counts the keys that the other side does not have, or has otherwise.
    pub(super) async fn difference_from(
        &self,
        other: &Peer,
        what: Comparison,
        work: &Work,
    ) -> Result<Difference, DriverError> {
        self.refuse_unless_side("compare")?;
        let failed = |error: SessionError| error.refused(format!("be compared with {}", other.member));
        // Connections of their own: a database is chosen for the whole of one.
        let ours = self.connect(BRIEF).await.map_err(failed)?;
        let theirs = self.session_with(&other.engine.host, other.engine.port).await.map_err(failed)?;
        let mut sides = Sides { driver: self, other, ours, theirs, streamed: [false; 2] };
        sides.streamed = sides.streaming(&sides.look().await?);
        let databases = sides.ours.info("keyspace", BRIEF).await.map_err(failed)?.keys_by_database();
        let all: u64 = databases.values().sum();
        let delivered = self.was_delivered(&sides.ours, &sides.theirs).await.map_err(failed)?;
        let values = what == Comparison::Values;
        let mut difference = Difference { delivered, values, ..Difference::default() };
        for database in databases.into_keys() {
            let mut known = BTreeSet::new();
            let number = database.to_string();
            for session in [&sides.ours, &sides.theirs] {
                session.tell(&["SELECT", &number]).await.map_err(failed)?;
            }
            let mut cursor = "0".to_owned();
            loop {
                if work.cancel.is_cancelled() {
                    return Err(DriverError::Cancelled { doing: "comparing" });
                }
                let mut scan = Cmd::new();
                scan.arg("SCAN").arg(&cursor).arg("COUNT").arg(BATCH);
                let (next, keys): (String, Vec<Vec<u8>>) = sides.ours.ask(&scan, BRIEF).await.map_err(failed)?;
                difference.compared += keys.len() as u64;
                let only_here = sides.only_here(keys.clone()).await?;
                let unlike = match what {
                    Comparison::Presence => Unlike::default(),
                    // What only this side has is nothing to compare, and found out as such.
                    Comparison::Values => sides.unlike(keys).await?,
                };
                let mut count = |keys: Vec<Vec<u8>>, number: &mut u64, examples: &mut Vec<String>| {
                    for key in keys {
                        if known.contains(&key) {
                            continue;
                        }
                        *number += 1;
                        if examples.len() < EXAMPLES {
                            examples.push(name(&key, database));
                        }
                        if known.len() < REMEMBERED {
                            known.insert(key);
                        }
                    }
                };
                count(only_here, &mut difference.only_here, &mut difference.examples);
                count(unlike.differing, &mut difference.differing, &mut difference.differing_examples);
                count(unlike.undecided, &mut difference.undecided, &mut Vec::new());
                work.progress.send_modify(|progress| {
                    progress.phase = format!("comparing, {} of {all} keys", difference.compared);
                });
                if next == "0" {
                    break;
                }
                cursor = next;
            }
        }
        Ok(difference)
    }
}

// === impl Sides ===

impl Sides<'_> {
    /// Those of these keys that only this side has.
    async fn only_here(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, DriverError> {
        let mut suspects = self.those(&self.theirs, keys, false).await?;
        // Twice: what was missing there may have been written there, or here, since.
        for _ in 0..2 {
            if suspects.is_empty() {
                break;
            }
            self.catch_up().await?;
            suspects = self.those(&self.ours, suspects, true).await?;
            suspects = self.those(&self.theirs, suspects, false).await?;
        }
        if suspects.is_empty() { Ok(suspects) } else { self.those(&self.ours, suspects, true).await }
    }

    /// Those of these keys that a side has, or has not.
    async fn those(&self, side: &Session, keys: Vec<Vec<u8>>, has: bool) -> Result<Vec<Vec<u8>>, DriverError> {
        let exist = side.exist(&keys).await.map_err(|error| self.failed(error))?;
        Ok(keys.into_iter().zip(exist).filter(|(_, exists)| *exists == has).map(|(key, _)| key).collect())
    }

    /// Compares the values of these keys.
    async fn unlike(&self, keys: Vec<Vec<u8>>) -> Result<Unlike, DriverError> {
        let mut undecided = Vec::new();
        let mut suspects = self.unlike_digests(keys, &mut undecided).await?;
        for _ in 0..ROUNDS {
            if suspects.is_empty() {
                break;
            }
            time::sleep(PAUSE).await;
            self.catch_up().await?;
            let mut again = self.unlike_digests(suspects.keys().cloned().collect(), &mut undecided).await?;
            // Of one that is the same by now, or gone, nothing is left to tell.
            suspects.retain(|key, digests| match again.remove(key) {
                Some(found) if found == *digests => true,
                Some(_) => {
                    undecided.push(key.clone());
                    false
                }
                None => false,
            });
        }
        Ok(Unlike { differing: suspects.into_keys().collect(), undecided })
    }

    /// The digests of those of these keys that both sides have, with different values. Those that are not asked for one are added to
    /// `undecided`.
    async fn unlike_digests(
        &self,
        keys: Vec<Vec<u8>>,
        undecided: &mut Vec<Vec<u8>>,
    ) -> Result<BTreeMap<Vec<u8>, [String; 2]>, DriverError> {
        let mut unlike = BTreeMap::new();
        for keys in batches(self.weighed(keys, undecided).await?) {
            let here = self.ours.digests(&keys).await.map_err(|error| self.failed(error))?;
            let there = self.theirs.digests(&keys).await.map_err(|error| self.failed(error))?;
            for (key, digests) in keys.into_iter().zip(here.into_iter().zip(there)) {
                if let (Some(here), Some(there)) = digests
                    && here != there
                {
                    unlike.insert(key, [here, there]);
                }
            }
        }
        Ok(unlike)
    }

    /// Those of these keys that both sides have, each with the bytes of a string of which a digest takes as long. Those that would take
    /// too long, and those of other kinds, are added to `undecided`.
    async fn weighed(
        &self,
        keys: Vec<Vec<u8>>,
        undecided: &mut Vec<Vec<u8>>,
    ) -> Result<Vec<(Vec<u8>, u64)>, DriverError> {
        let here = self.ours.kinds(&keys).await.map_err(|error| self.failed(error))?;
        let there = self.theirs.kinds(&keys).await.map_err(|error| self.failed(error))?;
        let (mut known, mut weights) = (Vec::new(), Vec::new());
        for (key, kinds) in keys.into_iter().zip(here.into_iter().zip(there)) {
            match (weight(&kinds.0), weight(&kinds.1)) {
                (Some(here), Some(there)) => {
                    known.push(key);
                    weights.push(here.max(there));
                }
                // One that a side has not has no two values.
                (None, _) | (_, None) if [&*kinds.0, &*kinds.1].contains(&"none") => {}
                (None, _) | (_, None) => undecided.push(key),
            }
        }
        let here = self.ours.sizes(&known).await.map_err(|error| self.failed(error))?;
        let there = self.theirs.sizes(&known).await.map_err(|error| self.failed(error))?;
        let bytes = here.into_iter().zip(there).zip(weights).map(|((here, there), weight)| here.max(there) * weight);
        let (small, large): (Vec<_>, Vec<_>) = known.into_iter().zip(bytes).partition(|(_, bytes)| *bytes <= AT_ONCE);
        undecided.extend(large.into_iter().map(|(key, _)| key));
        Ok(small)
    }

    /// Waits until each side that streams from the other has everything that it had when this was called.
    async fn catch_up(&self) -> Result<(), DriverError> {
        let begin = self.look().await?;
        let wanted = [written(&begin[1]), written(&begin[0])];
        let begun = self.streaming(&begin);
        let started = time::Instant::now();
        let mut seen = begin;
        loop {
            let streams = self.streaming(&seen);
            if (0..2).any(|side| self.streamed[side] && !streams[side]) {
                let detail = format!("it and {} do not hear each other any more", self.other.member);
                return Err(self.failed(SessionError::Refused(detail)));
            }
            if (0..2).all(|side| !begun[side] || (streams[side] && executed(&seen[side]) >= wanted[side])) {
                return Ok(());
            }
            if started.elapsed() > STREAM {
                return Err(DriverError::Deadline {
                    doing: format!("waiting until it has what {} has written", self.other.member),
                    seconds: Duration::as_secs(&STREAM),
                    last: "the stream between the two sides lags".to_owned(),
                });
            }
            time::sleep(POLL).await;
            seen = self.look().await?;
        }
    }

    /// Whether this side streams from the other one, and that one from this, by what they say of themselves.
    fn streaming(&self, [here, there]: &[Info; 2]) -> [bool; 2] {
        let (own, other) = (&self.driver.endpoint, &self.other.engine);
        [here.follows(&other.host, other.port) && here.streams(), there.follows(&own.host, own.port) && there.streams()]
    }

    async fn look(&self) -> Result<[Info; 2], DriverError> {
        let looked =
            async { Ok([self.ours.info("replication", BRIEF).await?, self.theirs.info("replication", BRIEF).await?]) };
        looked.await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: SessionError) -> DriverError {
        error.refused(format!("be compared with {}", self.other.member))
    }
}

/// How much longer a digest of a key of this kind takes than one of a string of its size; `None` for what the engine has no digest of that
/// tells two values apart, or none at all. Small elements take longest: 60,000 of two bytes, a quarter of a megabyte, took 49 ms in a list,
/// and as many 61 to 235 ms in the megabytes that they are elsewhere; a megabyte of a string took 1.7 ms (KeyDB 6.3.4).
fn weight(kind: &str) -> Option<u64> {
    match kind {
        "string" => Some(1),
        "set" | "hash" | "zset" => Some(4),
        "list" | "stream" => Some(16),
        _ => None,
    }
}

/// Keys with their sizes, parted so that what is asked for at once is small.
fn batches(sized: Vec<(Vec<u8>, u64)>) -> Vec<Vec<Vec<u8>>> {
    let mut batches = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for (key, size) in sized {
        if bytes + size > AT_ONCE && !batch.is_empty() {
            batches.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        batch.push(key);
        bytes += size;
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// How far a side has written.
fn written(info: &Info) -> u64 {
    info.number("master_repl_offset").unwrap_or(0)
}

/// How much of the other side's words a side has carried out.
fn executed(info: &Info) -> u64 {
    info.number("slave_repl_offset").unwrap_or(0)
}

/// A key as a person is told of it.
fn name(key: &[u8], database: u32) -> String {
    let mut name: String = String::from_utf8_lossy(key).chars().take(LONGEST_NAME).collect();
    if database != 0 {
        name.push_str(&format!(" (database {database})"));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_without_a_digest_is_not_weighed() {
        for kind in ["none", "unknown", "ReJSON-RL", ""] {
            assert_eq!(weight(kind), None, "{kind}");
        }
        assert!(weight("string") < weight("hash") && weight("hash") < weight("list"));
    }

    #[test]
    fn what_is_asked_for_at_once_is_small() {
        let sized = [(1, AT_ONCE / 2), (2, AT_ONCE / 2), (3, 1), (4, AT_ONCE * 2), (5, 0), (6, 1)];
        let keys: Vec<Vec<u8>> = batches(sized.map(|(key, size)| (vec![key], size)).into())
            .into_iter()
            .map(|batch| batch.concat())
            .collect();
        assert_eq!(keys, [vec![1, 2], vec![3], vec![4], vec![5, 6]]);
        assert_eq!(batches(Vec::new()), Vec::<Vec<Vec<u8>>>::new());
    }

    #[test]
    fn a_key_is_named_for_people() {
        assert_eq!(name(b"cart:17", 0), "cart:17");
        assert_eq!(name(b"\xff", 3), "\u{fffd} (database 3)");
        assert_eq!(name(&[b'k'; 1000], 0).len(), LONGEST_NAME);
    }
}
