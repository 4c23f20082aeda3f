//! Adoption by an agent: the mark and the lease before the engine, and everything put back when it does not come about.

#![allow(clippy::unwrap_used, reason = "the helpers of these tests are outside of the test functions")]

mod support;

use regent_agent::steps::Action;
use regent_common::{error::Reason, ids::Epoch, topology::Role};
use support::{Bench, header, peer};

fn adopt(upstream: Option<u32>) -> Action {
    Action::Adopt { data_directory: "/var/lib/engine/main".into(), upstream: upstream.map(peer) }
}

fn release() -> Action {
    Action::Release { keep_data: true, give_back: true }
}

#[tokio::test]
async fn an_adopted_primary_reigns_under_a_lease() {
    let bench = Bench::assigned().await;
    bench.run(header(1, 2, "adopt", &adopt(None)), adopt(None)).await.unwrap();
    let membership = bench.membership();
    assert_eq!((membership.role, membership.writable_epoch), (Some(Role::Primary), Some(Epoch(1))));
    assert!(bench.lease.holds(Epoch(1)));
}

#[tokio::test]
async fn an_adopted_replica_follows_and_has_no_reign() {
    let bench = Bench::assigned().await;
    bench.run(header(1, 2, "adopt", &adopt(Some(2))), adopt(Some(2))).await.unwrap();
    let membership = bench.membership();
    assert_eq!((membership.role, membership.writable_epoch), (Some(Role::Replica), None));
    assert_eq!(membership.upstream, Some(peer(2).member));
}

#[tokio::test]
async fn an_adoption_that_fails_has_put_everything_back() {
    let bench = Bench::assigned().await;
    bench.machine.fail("adopt", "a test said so");
    let refused = bench.run(header(1, 2, "adopt", &adopt(None)), adopt(None)).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::EngineFailed);
    assert_eq!(bench.machine.count("give_back"), 1);
    let membership = bench.membership();
    assert_eq!((membership.role, membership.writable_epoch), (None, None));
    bench.machine.mend("adopt");
    bench.run(header(1, 3, "adopt", &adopt(None)), adopt(None)).await.unwrap();
}

#[tokio::test]
async fn an_adoption_that_was_killed_and_then_fails_leaves_no_reign() {
    let bench = Bench::assigned().await;
    bench.machine.hold("adopt");
    let _running = bench.begin(header(1, 2, "adopt", &adopt(None)), adopt(None)).await;
    support::called(&bench.machine, "adopt", 1).await;
    let bench = bench.restart();
    assert_eq!(bench.membership().role, Some(Role::Primary));
    bench.machine.release("adopt");
    bench.machine.fail("adopt", "a test said so");
    bench.run(header(1, 2, "adopt", &adopt(None)), adopt(None)).await.unwrap_err();
    assert_eq!((bench.membership().role, bench.membership().writable_epoch), (None, None));
}

#[tokio::test]
async fn a_release_that_gives_back_neither_stops_nor_removes() {
    let bench = Bench::assigned().await;
    bench.run(header(1, 2, "adopt", &adopt(None)), adopt(None)).await.unwrap();
    bench.run(header(1, 3, "release", &release()), release()).await.unwrap();
    let asked = |method| bench.machine.count(method);
    assert_eq!((asked("give_back"), asked("release"), asked("stop"), asked("kill")), (1, 0, 0, 0));
    assert_eq!(bench.executor.ledger().read().membership, None);
    assert!(bench.member.driver().is_none());
}

#[tokio::test]
async fn a_release_that_gives_back_where_nothing_was_adopted_is_one_that_keeps() {
    let bench = Bench::assigned().await;
    bench.run(header(1, 2, "release", &release()), release()).await.unwrap();
    assert_eq!((bench.machine.count("give_back"), bench.machine.count("release")), (1, 1));
    assert_eq!(bench.executor.ledger().read().membership, None);
}

#[tokio::test]
async fn an_adoption_that_was_killed_goes_on_where_it_was() {
    let bench = Bench::assigned().await;
    bench.machine.hold("adopt");
    let _running = bench.begin(header(1, 2, "adopt", &adopt(None)), adopt(None)).await;
    support::called(&bench.machine, "adopt", 1).await;
    let bench = bench.restart();
    bench.machine.release("adopt");
    bench.run(header(1, 2, "adopt", &adopt(None)), adopt(None)).await.unwrap();
    assert_eq!(bench.membership().role, Some(Role::Primary));
    assert_eq!(bench.machine.count("give_back"), 0);
}
