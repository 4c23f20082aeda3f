//! Who is granted a lease, and what the latest end counts.

use regent_common::{
    clock::ManualClock,
    lease::{Electorate, LeaseReport, Profile},
};

use super::*;
use crate::{
    planner::fixtures::{cluster, name, observation},
    store::memory::MemoryStore,
};

struct Bench {
    clock: Arc<ManualClock>,
    authorities: Authorities,
    authority: Arc<Authority>,
}

const TTL: Duration = Duration::from_secs(5);

fn bench(found: bool, change: impl FnOnce(&mut ClusterRecord)) -> Bench {
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(100));
    let mut record = cluster();
    change(&mut record);
    let handle = Arc::new(ClusterHandle::new(Arc::new(MemoryStore::default()), record, 1));
    let authorities = Authorities::new(clock.clone());
    let authority = authorities.register(&handle, found);
    Bench { clock, authorities, authority }
}

impl Bench {
    fn beat(&self, node: &str, change: impl FnOnce(&mut Observation)) -> HeartbeatAnswer {
        let member = if node == "n1" { name(1) } else { name(2) };
        let mut seen = observation(member);
        change(&mut seen);
        self.authorities.answer(&node.parse().unwrap(), 7, Some(&seen))
    }
}

#[test]
fn only_the_stored_primary_of_the_present_epoch_is_granted_a_lease() {
    let bench = bench(false, |_| ());
    let answer = bench.beat("n1", |_| ());
    let grant = answer.grant.expect("the primary gets one");
    assert_eq!((answer.nonce, grant.epoch, grant.ttl_millis, grant.established), (7, 1, 5000, true));
    assert_eq!(bench.authority.lease_left(), TTL + margin(TTL));
    assert!(bench.beat("n2", |_| ()).grant.is_none(), "a replica");
    assert!(bench.beat("n2", |seen| seen.member = name(1)).grant.is_none(), "a node that says it is another");
    assert!(bench.beat("n1", |seen| seen.cluster_id = ClusterId::from_parts(3, 3)).grant.is_none());
    assert!(bench.authorities.answer(&"n9".parse().unwrap(), 1, None).grant.is_none(), "a spare");
}

#[test]
fn an_epoch_that_is_not_established_or_has_another_reign_grants_nothing() {
    assert!(bench(false, |record| record.established = false).beat("n1", |_| ()).grant.is_none());
    assert!(bench(false, |record| record.epoch = Epoch(2)).beat("n1", |_| ()).grant.is_none());
    let candidate = bench(false, |record| (record.candidate, record.primary) = (record.primary.clone(), None));
    assert!(candidate.beat("n1", |_| ()).grant.is_some(), "the stored candidate");
}

#[test]
fn who_stops_granting_learns_the_latest_end_afterwards() {
    let bench = bench(false, |_| ());
    bench.beat("n1", |_| ());
    bench.clock.advance(Duration::from_secs(2));
    assert_eq!(bench.authority.suspend(Epoch(1)), TTL + margin(TTL) - Duration::from_secs(2));
    assert!(bench.beat("n1", |_| ()).grant.is_none());
    assert_eq!(bench.authority.lease_left(), TTL + margin(TTL) - Duration::from_secs(2), "nothing was granted");
    bench.authority.resume();
    assert!(bench.beat("n1", |_| ()).grant.is_some());
}

#[test]
fn an_acknowledgement_counts_like_a_grant() {
    let bench = bench(false, |_| ());
    bench.authority.suspend(Epoch(1));
    let acknowledged = Electorate { version: 1, ..Electorate::default() };
    let answer = bench.beat("n1", |seen| seen.authority.electorate = Some(acknowledged));
    assert!(answer.grant.is_none());
    assert_eq!(bench.authority.lease_left(), TTL + margin(TTL));
}

#[test]
fn after_a_start_no_lease_counts_as_over_before_the_longest_is() {
    let bench = bench(true, |record| record.longest_ttl_millis = 30_000);
    let longest = Duration::from_secs(30);
    assert_eq!(bench.authority.lease_left(), longest + margin(longest));
    let profile = self::bench(true, |record| record.policy.profile = Profile::Relaxed);
    assert_eq!(profile.authority.lease_left(), Duration::from_millis(15_300));
}

#[test]
fn a_frozen_cluster_is_granted_nothing() {
    let bench = bench(false, |_| ());
    bench.authority.freeze(true);
    assert!(bench.beat("n1", |_| ()).grant.is_none());
}

#[test]
fn after_a_start_a_standing_lease_is_renewed_at_once_and_a_lapsed_one_when_all_were_heard_or_time_has_passed() {
    let lease = |stands, epoch| {
        move |seen: &mut Observation| {
            let remaining = Duration::ZERO;
            seen.authority.lease = Some(LeaseReport { epoch: Epoch(epoch), stands, source: None, remaining });
        }
    };
    let bench = bench(true, |_| ());
    assert!(bench.beat("n1", lease(false, 1)).grant.is_none(), "another may reign since");
    assert!(bench.beat("n1", lease(true, 2)).grant.is_none(), "of another epoch");
    assert!(bench.beat("n1", |_| ()).grant.is_none(), "nothing is said of it");
    assert!(bench.beat("n1", lease(true, 1)).grant.is_some());
    bench.authority.heard_all();
    assert!(bench.beat("n1", lease(false, 1)).grant.is_some());
    let later = self::bench(true, |_| ());
    later.clock.advance(TTL + margin(TTL));
    assert!(later.beat("n1", lease(false, 1)).grant.is_some());
}
