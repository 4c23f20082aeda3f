//! What this member has promised to a primary that asked for its endorsement: a pure state machine, without a disk.
//!
//! A promise says: until then I am not prepared, promoted or pointed elsewhere at a higher epoch (rule E2). It is not
//! stored: after any start of the process a member waits as long as the longest promise could last. Once a higher epoch
//! was seen nothing lower is endorsed any more, even while a promise still stands (rule E3).

use std::time::Duration;

use regent_common::{
    clock::Moment,
    ids::{Epoch, MemberName},
    lease::{HeardLease, LeaseReport, margin},
    mutation::{self, Rule},
    position::Position,
    topology::HeardPosition,
};

use crate::ledger::Membership;

/// Who asks, for how long, and what he says of himself.
#[derive(Debug, Clone, PartialEq)]
pub struct Asker {
    /// The member.
    pub member: MemberName,
    /// Boot of its machine: another boot is another asker.
    pub boot_id: String,
    /// Epoch of which it says that it is the primary.
    pub epoch: Epoch,
    /// How long the promise is wanted.
    pub ttl: Duration,
    /// What it says of its lease.
    pub lease: LeaseReport,
    /// How far it has come.
    pub position: Option<Position>,
}

/// Why nothing was promised.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPromise {
    /// A higher epoch is known.
    #[error("epoch {asked} is over: this member knows epoch {known}")]
    HigherEpoch {
        /// Of the asker.
        asked: Epoch,
        /// Known here.
        known: Epoch,
    },
    /// Somebody else has the promise of this epoch.
    #[error("{holder} was endorsed as the primary of epoch {epoch} on another word")]
    OtherAsker {
        /// Who has it.
        holder: MemberName,
        /// Of which epoch.
        epoch: Epoch,
    },
    /// The same member from another boot, while what it did before may go on.
    #[error("{member} was endorsed before its machine was booted: that promise, or a stream from it, still stands")]
    OtherBoot {
        /// The member.
        member: MemberName,
    },
}

#[derive(Debug, Clone, PartialEq)]
struct Promise {
    member: MemberName,
    boot_id: String,
    epoch: Epoch,
    end: Moment,
}

/// The promises of this process.
#[derive(Debug, Clone)]
pub struct Promises {
    started: Moment,
    /// Nothing below this is endorsed any more.
    barred_below: Epoch,
    promise: Option<Promise>,
    heard: Option<(Asker, Moment)>,
}

// === impl Promises ===

impl Promises {
    /// The promises of a process that has just started.
    pub fn new(now: Moment) -> Self {
        Self { started: now, barred_below: Epoch(0), promise: None, heard: None }
    }

    /// Answers an asker, whose cluster and membership were checked before. `known` is the highest epoch of the ledger,
    /// `stream_lives` whether a stream from the asker still comes in.
    pub fn endorse(&mut self, now: Moment, asker: Asker, known: Epoch, stream_lives: bool) -> Result<(), NoPromise> {
        let known = known.max(self.barred_below);
        if known > asker.epoch && !mutation::broken(Rule::E3Prepared) {
            return Err(NoPromise::HigherEpoch { asked: asker.epoch, known });
        }
        // What it says of its lease is passed on whether or not it is endorsed (rule E4).
        self.heard = Some((asker.clone(), now));
        if let Some(promise) = self.promise.as_ref().filter(|promise| promise.epoch == asker.epoch) {
            if promise.member != asker.member {
                return Err(NoPromise::OtherAsker { holder: promise.member.clone(), epoch: promise.epoch });
            }
            let over = promise.end.awaited_for(now).is_zero();
            if promise.boot_id != asker.boot_id && (!over || stream_lives) {
                return Err(NoPromise::OtherBoot { member: asker.member });
            }
        }
        let mut end = now.plus(asker.ttl + margin(asker.ttl));
        if let Some(promise) = &self.promise {
            end = end.later(promise.end);
        }
        self.promise = Some(Promise { member: asker.member, boot_id: asker.boot_id, epoch: asker.epoch, end });
        Ok(())
    }

    /// Forgets what was promised in another cluster. When this process started is not forgotten.
    pub fn change_cluster(&mut self) {
        *self = Self::new(self.started);
    }

    /// Endorses nothing below this epoch any more (rule E3). What was promised stands.
    pub fn bar(&mut self, below: Epoch) {
        self.barred_below = self.barred_below.max(below);
    }

    /// Releases every promise below this epoch: the old primary's fence answer is at hand (rule E3).
    pub fn release(&mut self, below: Epoch) {
        if self.promise.as_ref().is_some_and(|promise| promise.epoch < below) {
            self.promise = None;
        }
    }

    /// How long a promise stands that keeps this member from being used at `epoch`.
    pub fn promised_for(&self, now: Moment, epoch: Epoch) -> Duration {
        if mutation::broken(Rule::E2Promise) {
            return Duration::ZERO;
        }
        let promise = self.promise.as_ref().filter(|promise| promise.epoch < epoch);
        promise.map_or(Duration::ZERO, |promise| promise.end.awaited_for(now))
    }

    /// How long a preparation at `epoch` has to wait: for a promise, and after a start for those that an earlier process may
    /// have given. `longest_ttl` is the longest lease that this member ever heard of; `None` when it has heard of none.
    pub fn prepare_in(&self, now: Moment, epoch: Epoch, longest_ttl: Option<Duration>) -> Duration {
        let longest_ttl = longest_ttl.filter(|_| !mutation::broken(Rule::E2Start));
        let forgotten = longest_ttl.map_or(Duration::ZERO, |ttl| self.started.plus(ttl + margin(ttl)).awaited_for(now));
        self.promised_for(now, epoch).max(forgotten)
    }

    /// How long a person who makes this member the primary has to wait (rule P9): for every promise of whichever epoch, and after
    /// a start for those of an earlier process. Not for the latter where a person's word is in the ledger: none was given since.
    pub fn force_in(&self, now: Moment, membership: Option<&Membership>) -> Duration {
        let every = Epoch(u64::MAX);
        match membership {
            Some(membership) if membership.forced.is_some() => self.promised_for(now, every),
            Some(membership) => self.prepare_in(now, every, membership.longest_ttl()),
            None => self.promised_for(now, every),
        }
    }

    /// Nothing below this epoch is endorsed by this process.
    pub fn barred_below(&self) -> Epoch {
        self.barred_below
    }

    /// How far the primary that last asked had come, if it said so.
    pub fn heard_position(&self) -> Option<HeardPosition> {
        let (asker, _) = self.heard.as_ref()?;
        Some(HeardPosition { member: asker.member.clone(), position: asker.position.clone()? })
    }

    /// Forgets what primaries of lower epochs said: this member follows the one of `epoch`.
    pub fn forget_heard_below(&mut self, epoch: Epoch) {
        self.heard = self.heard.take().filter(|(asker, _)| asker.epoch >= epoch);
    }

    /// What a primary said of its lease when it last asked (rule E4).
    pub fn heard(&self, now: Moment) -> Option<HeardLease> {
        self.heard.as_ref().map(|(asker, at)| HeardLease {
            member: asker.member.clone(),
            lease: asker.lease.clone(),
            position: asker.position.clone(),
            age: at.age(now),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_millis(1000);

    fn at(millis: u64) -> Moment {
        Moment::default().plus(Duration::from_millis(millis))
    }

    fn asker(member: &str, epoch: u64, boot_id: &str) -> Asker {
        Asker {
            member: member.parse().unwrap(),
            boot_id: boot_id.to_owned(),
            epoch: Epoch(epoch),
            ttl: TTL,
            lease: LeaseReport { epoch: Epoch(epoch), stands: true, source: None, remaining: TTL },
            position: None,
        }
    }

    #[test]
    fn a_promise_keeps_it_from_being_prepared_until_it_is_over_by_both_clocks() {
        let mut promises = Promises::new(at(0));
        promises.endorse(at(100), asker("db1", 1, "a"), Epoch(1), true).unwrap();
        assert_eq!(promises.prepare_in(at(100), Epoch(2), None), Duration::from_millis(1020));
        let slept = Moment { boottime: Duration::from_secs(60), raw: Duration::from_millis(600) };
        assert_eq!(promises.prepare_in(slept, Epoch(2), None), Duration::from_millis(520));
        assert_eq!(promises.prepare_in(at(1120), Epoch(2), None), Duration::ZERO);
        assert_eq!(promises.prepare_in(at(100), Epoch(1), None), Duration::ZERO, "its own epoch is not promised away");
    }

    #[test]
    fn a_higher_epoch_ends_endorsement_while_the_promise_stands() {
        let mut promises = Promises::new(at(0));
        promises.endorse(at(0), asker("db1", 1, "a"), Epoch(1), true).unwrap();
        promises.bar(Epoch(2));
        let refused = promises.endorse(at(10), asker("db1", 1, "a"), Epoch(1), true);
        assert_eq!(refused, Err(NoPromise::HigherEpoch { asked: Epoch(1), known: Epoch(2) }));
        assert!(promises.prepare_in(at(10), Epoch(2), None) > Duration::ZERO);
        promises.release(Epoch(2));
        assert_eq!(promises.prepare_in(at(10), Epoch(2), None), Duration::ZERO);
    }

    #[test]
    fn one_asker_of_an_epoch_is_endorsed_and_one_boot_of_it() {
        let mut promises = Promises::new(at(0));
        promises.endorse(at(0), asker("db1", 1, "a"), Epoch(1), true).unwrap();
        assert!(matches!(
            promises.endorse(at(5000), asker("db2", 1, "a"), Epoch(1), false),
            Err(NoPromise::OtherAsker { .. })
        ));
        for (time, stream) in [(500, false), (5000, true)] {
            assert!(matches!(
                promises.endorse(at(time), asker("db1", 1, "b"), Epoch(1), stream),
                Err(NoPromise::OtherBoot { .. })
            ));
        }
        promises.endorse(at(5000), asker("db1", 1, "b"), Epoch(1), false).unwrap();
    }

    #[test]
    fn after_a_start_it_waits_for_what_an_earlier_process_may_have_promised() {
        let promises = Promises::new(at(1000));
        assert_eq!(promises.prepare_in(at(1000), Epoch(2), None), Duration::ZERO);
        assert_eq!(promises.prepare_in(at(1020), Epoch(2), Some(TTL)), TTL);
        assert_eq!(promises.promised_for(at(1020), Epoch(2)), Duration::ZERO);
    }

    #[test]
    fn what_the_asker_says_of_its_lease_is_passed_on() {
        let mut promises = Promises::new(at(0));
        assert_eq!(promises.heard(at(0)), None);
        promises.endorse(at(10), asker("db1", 1, "a"), Epoch(1), true).unwrap();
        let heard = promises.heard(at(110)).unwrap();
        assert!(heard.lease.stands);
        assert_eq!((heard.member.as_str(), heard.age), ("db1", Duration::from_millis(100)));
    }

    #[test]
    fn how_far_an_asker_had_come_is_known_until_another_reign_is_followed() {
        let mut promises = Promises::new(at(0));
        let position = Position::new([("x".to_owned(), vec![(0, 7)].into())], "");
        promises
            .endorse(at(10), Asker { position: Some(position.clone()), ..asker("db1", 2, "a") }, Epoch(2), true)
            .unwrap();
        promises.bar(Epoch(3));
        promises.forget_heard_below(Epoch(2));
        let heard = HeardPosition { member: "db1".parse().unwrap(), position };
        assert_eq!(promises.heard_position(), Some(heard));
        promises.forget_heard_below(Epoch(3));
        assert_eq!(promises.heard_position(), None);
    }
}
