//! Leases for restarts: when they are granted, and what takes their end back (rules L2, L7).

use regent_common::lease::LeaseSource;

use super::*;

const LONG: Duration = Timing::HAND_OVER_TTL;

fn long() -> Duration {
    LONG + margin(LONG)
}

fn short() -> Duration {
    TTL + margin(TTL)
}

impl Bench {
    /// The primary asks; how long a lease it is granted.
    fn ask(&self) -> Option<Duration> {
        let answer = self.beat("n1", |seen| seen.authority.hand_over = true);
        let grant = answer.grant?;
        assert_eq!(grant.handed_over, None, "who asks is told no mark");
        Some(Duration::from_millis(grant.ttl_millis.into()))
    }

    /// The mark that a process is told which does not ask.
    fn mark(&self) -> Option<u64> {
        self.beat("n1", |_| ()).grant.and_then(|grant| grant.handed_over)
    }

    fn says(&self, replaced: u64) {
        self.beat("n1", |seen| seen.authority.replaced = Some(replaced));
    }
}

/// One whose store has the length, so that such a lease is granted.
fn open() -> Bench {
    let bench = bench(false, |_| ());
    bench.authority.open_hand_over();
    bench
}

#[test]
fn a_longer_lease_is_granted_to_who_asks_and_not_before_the_store_has_its_length() {
    let bench = bench(false, |_| ());
    assert_eq!(bench.ask(), Some(TTL), "the store does not have it");
    assert_eq!(bench.authority.lease_left(), short());
    bench.authority.open_hand_over();
    assert_eq!(bench.granted(), Some(TTL), "nobody asks");
    assert_eq!(bench.authority.handed_over_left(), Duration::ZERO);
    assert_eq!(bench.ask(), Some(LONG));
    assert_eq!((bench.authority.lease_left(), bench.authority.handed_over_left()), (long(), long()));
    assert_eq!(bench.granted(), Some(TTL), "the next process gets the usual one");
    assert_eq!(bench.authority.lease_left(), long(), "which shortens nothing");
}

#[test]
fn a_replica_that_asks_or_a_cluster_that_is_frozen_or_suspended_gets_none() {
    let bench = open();
    assert!(bench.beat("n2", |seen| seen.authority.hand_over = true).grant.is_none());
    bench.authority.freeze(true);
    assert_eq!(bench.ask(), None);
    bench.authority.freeze(false);
    bench.authority.suspend(Epoch(1));
    assert_eq!(bench.ask(), None);
    assert_eq!(bench.authority.lease_left(), Duration::ZERO);
    bench.authority.resume();
    // A heartbeat of an earlier epoch, from before the promotion.
    let late = bench.beat("n1", |seen| (seen.authority.hand_over, seen.epoch) = (true, Epoch(0)));
    assert_eq!(late.grant.map(|grant| grant.ttl_millis), Some(5000));
}

#[test]
fn the_word_of_the_process_that_came_since_takes_the_longer_end_back() {
    let bench = open();
    bench.ask().unwrap();
    let mark = bench.mark().expect("the new process is told");
    bench.says(mark);
    assert_eq!(bench.authority.handed_over_left(), Duration::ZERO);
    assert_eq!(bench.authority.lease_left(), short(), "only the short ones count");
    assert_eq!(bench.mark(), None, "there is nothing to say any more");
}

#[test]
fn no_late_word_of_an_earlier_process_takes_the_longer_end_back() {
    let bench = open();
    bench.ask().unwrap();
    let second = Duration::from_secs(1);
    bench.clock.advance(second);
    // What the process that asks said before it was told to end, and what any process says that was told nothing.
    bench.granted().unwrap();
    bench.says(0);
    assert_eq!(bench.authority.handed_over_left(), long() - second);
    // The one that came since is told to end itself, and asks; what it said of the first lease arrives after that.
    let first = bench.mark().unwrap();
    bench.ask().unwrap();
    bench.says(first);
    assert_eq!(bench.authority.handed_over_left(), long());
    // A question that arrives after the new process has said its word only makes who waits wait longer.
    let second = bench.mark().unwrap();
    assert_ne!(first, second);
    bench.says(second);
    bench.ask().unwrap();
    bench.says(second);
    assert_eq!(bench.authority.handed_over_left(), long());
}

#[test]
fn only_the_member_that_was_granted_it_takes_it_back_and_only_of_its_epoch() {
    let bench = open();
    bench.ask().unwrap();
    let mark = bench.mark().unwrap();
    bench.beat("n2", |seen| seen.authority.replaced = Some(mark));
    bench.beat("n1", |seen| (seen.authority.replaced, seen.epoch) = (Some(mark), Epoch(9)));
    assert_eq!(bench.authority.handed_over_left(), long());
}

#[test]
fn who_waits_for_the_end_of_all_leases_waits_for_the_longer_one() {
    let bench = open();
    bench.ask().unwrap();
    assert_eq!(bench.authority.suspend(Epoch(1)), long());
    assert_eq!(bench.ask(), None);
    bench.clock.advance(long() - Duration::from_millis(1));
    assert!(!bench.authority.close_hand_over(), "it may stand");
    assert_eq!(bench.authority.lease_left(), Duration::from_millis(1));
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.authority.lease_left(), Duration::ZERO);
    assert!(bench.authority.close_hand_over(), "the store may forget its length");
    bench.authority.resume();
    assert_eq!(bench.ask(), Some(TTL), "until it has it again");
}

#[test]
fn the_answer_to_a_fence_ends_it() {
    let bench = open();
    bench.ask().unwrap();
    bench.authority.fenced(&name(1), Epoch(1));
    bench.authority.fenced(&name(2), Epoch(2));
    assert_eq!(bench.authority.handed_over_left(), long(), "of its own epoch, and of another member");
    bench.authority.fenced(&name(1), Epoch(2));
    assert_eq!(bench.authority.handed_over_left(), Duration::ZERO);
}

#[test]
fn a_coordinator_that_starts_waits_for_it_and_takes_the_word_of_the_new_agent_all_the_same() {
    let found = bench(true, |record| record.hand_over_millis = 30_000);
    assert_eq!(found.authority.lease_left(), long());
    let standing = |seen: &mut Observation| {
        let lease = LeaseReport { epoch: Epoch(1), stands: true, source: None, remaining: Duration::ZERO };
        seen.authority.lease = Some(lease);
    };
    // The gate that the new process found open is a lease that stands.
    let grant = found.beat("n1", standing).grant.expect("a standing lease is renewed at once");
    found.says(grant.handed_over.expect("a mark of this coordinator's own"));
    assert_eq!(found.authority.lease_left(), short());
    // Nobody asks here: the source of a lease makes no difference.
    let alone = bench(true, |_| ());
    let alone = alone.beat("n1", |seen| {
        standing(seen);
        seen.authority.lease.as_mut().unwrap().source = Some(LeaseSource::Endorsement);
    });
    assert_eq!(alone.grant.and_then(|grant| grant.handed_over), None);
}
