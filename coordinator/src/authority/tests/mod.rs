//! Who is granted a lease, and what the latest end counts.

use regent_common::{
    clock::ManualClock,
    lease::{Electorate, LeaseReport, Profile},
};

use super::*;
use crate::{
    cluster::ChangeError,
    planner::fixtures::{cluster, name, observation},
    store::{Store, Transaction, get_json, keys, memory::MemoryStore},
};

mod hand_over;

struct Bench {
    clock: Arc<ManualClock>,
    authorities: Authorities,
    authority: Arc<Authority>,
    handle: Arc<ClusterHandle>,
    store: Arc<MemoryStore>,
}

const TTL: Duration = Duration::from_secs(5);

fn bench(found: bool, change: impl FnOnce(&mut ClusterRecord)) -> Bench {
    let mut record = cluster();
    change(&mut record);
    on(Arc::new(MemoryStore::default()), record, 1, found)
}

fn on(store: Arc<MemoryStore>, record: ClusterRecord, version: u64, found: bool) -> Bench {
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(100));
    let handle = Arc::new(ClusterHandle::new(store.clone(), record, version));
    let authorities = Authorities::new(clock.clone());
    let authority = authorities.register(&handle, found);
    Bench { clock, authorities, authority, handle, store }
}

/// A cluster with this profile that is stored, so that its profile can be changed.
async fn stored(profile: Profile) -> Bench {
    let (store, mut record) = (Arc::new(MemoryStore::default()), cluster());
    record.policy.profile = profile;
    let transaction = Transaction::default().put_json(keys::cluster(&record.name), &record);
    let version = store.commit(transaction).await.unwrap();
    on(store, record, version.0, false)
}

impl Bench {
    async fn change_profile(&self, profile: Profile) -> Result<(), ChangeError> {
        let change = self.handle.change(|record| {
            record.set_profile(profile);
            Ok(Transaction::default())
        });
        change.await.map(drop)
    }

    /// How long the primary is granted a lease at this heartbeat; `None` when it is granted none.
    fn granted(&self) -> Option<Duration> {
        self.beat("n1", |_| ()).grant.map(|grant| Duration::from_millis(grant.ttl_millis.into()))
    }

    fn beat_of(&self, boot: &str, node: &str, seen: &Observation) -> HeartbeatAnswer {
        self.authorities.answer(&node.parse().unwrap(), Some(boot), 7, Some(seen))
    }

    fn beat(&self, node: &str, change: impl FnOnce(&mut Observation)) -> HeartbeatAnswer {
        let member = if node == "n1" { name(1) } else { name(2) };
        let mut seen = observation(member);
        change(&mut seen);
        self.beat_of("boot", node, &seen)
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
    assert!(bench.authorities.answer(&"n9".parse().unwrap(), Some("boot"), 1, None).grant.is_none(), "a spare");
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
fn an_acknowledgement_counts_like_a_grant_when_it_is_news() {
    let bench = bench(false, |record| record.reign.as_mut().unwrap().set_electorate([name(2), name(3)].into()));
    bench.authority.suspend(Epoch(1));
    let acknowledge = |version| {
        let electorate = Some(Electorate { version, ..Electorate::default() });
        assert!(bench.beat("n1", |seen| seen.authority.electorate = electorate).grant.is_none());
        bench.authority.lease_left()
    };
    // A candidate that did not become the primary, and is heard, says this with every heartbeat.
    assert_eq!(acknowledge(1), Duration::ZERO, "it was known");
    assert_eq!(acknowledge(2), TTL + margin(TTL));
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

fn ttl(profile: Profile) -> Duration {
    profile.timing().ttl
}

fn waited_for(ttl: Duration) -> Duration {
    ttl + margin(ttl)
}

/// Rule L2: a failover that begins after the change waits for what was granted before it.
#[tokio::test]
async fn a_shorter_profile_does_not_shorten_the_wait_for_leases_of_the_longer_one() {
    let bench = stored(Profile::Relaxed).await;
    assert_eq!(bench.granted(), Some(ttl(Profile::Relaxed)));
    let second = Duration::from_secs(1);
    bench.clock.advance(second);
    bench.change_profile(Profile::Fast).await.unwrap();
    let left = waited_for(ttl(Profile::Relaxed)) - second;
    assert_eq!(bench.authority.lease_left(), left);
    assert_eq!(bench.granted(), Some(ttl(Profile::Fast)), "from now on leases are short");
    assert_eq!(bench.authority.suspend(Epoch(1)), left, "and the longest of all is waited for");
    bench.clock.advance(left - Duration::from_millis(1));
    assert_eq!(bench.authority.lease_left(), Duration::from_millis(1));
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.authority.lease_left(), Duration::ZERO);
    // A coordinator that starts now knows of the longer ones from its store alone.
    let restarted = Authorities::new(bench.clock.clone()).register(&bench.handle, true);
    assert_eq!(restarted.lease_left(), waited_for(ttl(Profile::Relaxed)));
}

/// Rule L2: what is granted is stored before; a change that was not stored changes nothing.
#[tokio::test]
async fn a_longer_profile_is_stored_before_a_lease_of_its_length_is_granted() {
    let bench = stored(Profile::Fast).await;
    bench.store.fail_commits(true);
    bench.change_profile(Profile::Relaxed).await.unwrap_err();
    assert_eq!(bench.granted(), Some(ttl(Profile::Fast)));
    assert_eq!(bench.authority.lease_left(), waited_for(ttl(Profile::Fast)));
    bench.store.fail_commits(false);
    bench.change_profile(Profile::Relaxed).await.unwrap();
    let key = keys::cluster(bench.handle.name());
    let found = get_json::<ClusterRecord>(bench.store.as_ref(), &key).await.unwrap().unwrap().value;
    assert_eq!(found.longest_ttl_millis, 15_000, "it is in the store");
    assert_eq!(bench.granted(), Some(ttl(Profile::Relaxed)), "and only then in a grant");
    assert_eq!(bench.authority.lease_left(), waited_for(ttl(Profile::Relaxed)));
}

/// A failover that waits for the end of the lease: no profile gives the old primary another one, or shortens the wait.
#[tokio::test]
async fn a_change_of_profile_grants_nothing_to_who_is_being_replaced() {
    for (before, after) in [(Profile::Standard, Profile::Fast), (Profile::Standard, Profile::Relaxed)] {
        let bench = stored(before).await;
        bench.granted().unwrap();
        let left = bench.authority.suspend(Epoch(1));
        bench.change_profile(after).await.unwrap();
        assert_eq!(bench.granted(), None, "{after}");
        assert_eq!(bench.authority.lease_left(), left, "{after}");
    }
}

#[test]
fn a_node_in_quarantine_is_granted_nothing_and_keeps_no_end_away() {
    let bench = bench(false, |_| ());
    let seen = observation(name(1));
    let answer = bench.authorities.answer(&"n1".parse().unwrap(), None, 7, Some(&seen));
    assert_eq!((answer.nonce, answer.grant, answer.stored_epoch), (7, None, 1));
    assert_eq!(bench.authority.lease_left(), Duration::ZERO);
}

#[test]
fn of_two_boots_the_one_that_holds_the_lease_keeps_it() {
    let bench = bench(false, |_| ());
    let seen = observation(name(1));
    let granted = |boot: &str| bench.beat_of(boot, "n1", &seen).grant.is_some();
    assert!(granted("first") && !bench.authority.is_held_elsewhere(&name(1), "first"));
    bench.clock.advance(Duration::from_secs(2));
    let left = bench.authority.lease_left();
    assert!(!granted("second") && bench.authority.is_held_elsewhere(&name(1), "second"));
    assert_eq!(bench.authority.lease_left(), left, "who is granted nothing pushes no end away");
    assert!(granted("first"), "its holder renews it");
    bench.clock.advance(TTL + margin(TTL) + Duration::from_millis(1));
    assert!(granted("second"), "a machine that was booted is granted one when the last is over");
    assert!(bench.authority.is_held_elsewhere(&name(1), "first") && !granted("first"));
}

#[test]
fn a_lease_that_is_longer_than_any_that_is_granted_counts_as_its_holder_says() {
    let bench = bench(false, |record| record.policy.profile = Profile::Fast);
    let standing = |remaining: Duration| {
        move |seen: &mut Observation| {
            let (epoch, stands, source) = (Epoch(1), true, None);
            seen.authority.lease = Some(LeaseReport { epoch, stands, source, remaining });
        }
    };
    let fast = Profile::Fast.timing().ttl;
    bench.beat("n1", standing(fast));
    bench.beat("n2", standing(Profile::Standard.timing().ttl));
    assert!(bench.authority.lease_left() < fast * 2);
    bench.authority.suspend(Epoch(1));
    let long = Profile::Standard.timing().ttl;
    assert!(bench.beat("n1", standing(long)).grant.is_none());
    assert!(bench.authority.lease_left() >= long, "a newer store than this one granted it");
}
