//! What only one of two sides has: which of its keys the other one does not know.
//!
//! Both may be written to meanwhile. A key that is missing there is asked for again after the stream between the two has brought
//! everything that was under way; what a side was loaded with from its disk follows nobody, and is compared as it is.
//!
//! **Invariant:** a key counts only if it was here after it had been missing there, with nothing on the way in between.

use std::{collections::BTreeSet, time::Duration};

use redis::Cmd;
use regent_common::topology::{Difference, Peer};
use tokio::time;

use super::{
    Redis,
    info::Info,
    replication::{POLL, STREAM},
    session::{BRIEF, Session, SessionError},
};
use crate::engine::{DriverError, Work};

/// About how many keys are asked for at once.
const BATCH: &str = "1000";
/// Names that are told.
const EXAMPLES: usize = 5;
/// Longest name that is told whole.
const LONGEST_NAME: usize = 200;
/// The engine may name a key twice while its table grows: that many names are remembered.
const REMEMBERED: usize = 100_000;

/// Both sides, at one database.
struct Sides<'a> {
    driver: &'a Redis,
    other: &'a Peer,
    ours: Session,
    theirs: Session,
}

// === impl Redis ===

impl Redis {
    /// Counts the keys that the other side does not have.
    pub(super) async fn difference_from(&self, other: &Peer, work: &Work) -> Result<Difference, DriverError> {
        self.refuse_unless_side("compare")?;
        let failed = |error: SessionError| error.refused(format!("be compared with {}", other.member));
        let sides = Sides {
            driver: self,
            other,
            // Connections of their own: a database is chosen for the whole of one.
            ours: self.connect(BRIEF).await.map_err(failed)?,
            theirs: self.session_with(&other.engine.host, other.engine.port).await.map_err(failed)?,
        };
        let databases = sides.ours.info("keyspace", BRIEF).await.map_err(failed)?.keys_by_database();
        let all: u64 = databases.values().sum();
        let delivered = self.was_delivered(&sides.ours, &sides.theirs).await.map_err(failed)?;
        let mut difference = Difference { delivered, ..Difference::default() };
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
                for key in sides.only_here(keys).await? {
                    if known.contains(&key) {
                        continue;
                    }
                    difference.only_here += 1;
                    if difference.examples.len() < EXAMPLES {
                        difference.examples.push(name(&key, database));
                    }
                    if known.len() < REMEMBERED {
                        known.insert(key);
                    }
                }
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

    /// Waits until each side that follows the other has everything that it had when this was called.
    async fn catch_up(&self) -> Result<(), DriverError> {
        let (begin_here, begin_there) = self.look().await?;
        let host = &self.driver.endpoint.host;
        let follows_here = self.driver.following().as_ref() == Some(&self.other.member) && begin_here.has_upstream();
        let follows_there = begin_there.follows(host, self.driver.endpoint.port) && begin_there.streams();
        let (wanted_here, wanted_there) = (written(&begin_there), written(&begin_here));
        let started = time::Instant::now();
        let (mut here, mut there) = (begin_here, begin_there);
        loop {
            if follows_here && !here.streams() {
                let detail = format!("it does not stream from {}", self.other.member);
                return Err(self.failed(SessionError::Refused(detail)));
            }
            let has_all = |follows: bool, info: &Info, wanted| !follows || executed(info) >= wanted;
            if has_all(follows_here, &here, wanted_here)
                && has_all(follows_there && there.streams(), &there, wanted_there)
            {
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
            (here, there) = self.look().await?;
        }
    }

    async fn look(&self) -> Result<(Info, Info), DriverError> {
        let looked =
            async { Ok((self.ours.info("replication", BRIEF).await?, self.theirs.info("replication", BRIEF).await?)) };
        looked.await.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: SessionError) -> DriverError {
        error.refused(format!("be compared with {}", self.other.member))
    }
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
    fn a_key_is_named_for_people() {
        assert_eq!(name(b"cart:17", 0), "cart:17");
        assert_eq!(name(b"\xff", 3), "\u{fffd} (database 3)");
        assert_eq!(name(&[b'k'; 1000], 0).len(), LONGEST_NAME);
    }
}
