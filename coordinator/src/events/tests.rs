//! Tests of the stream of events.

use std::{pin::Pin, time::Duration};

use futures::{FutureExt as _, StreamExt as _};
use regent_common::clock::ManualClock;
use tokio::task::unconstrained;

use super::*;
use crate::store::memory::MemoryStore;

type Events = Pin<Box<dyn Stream<Item = Result<EventRecord, WatchError>> + Send>>;

fn over(store: &Arc<MemoryStore>, keep: usize) -> EventLog {
    EventLog::keeping(store.clone(), Arc::new(ManualClock::default()), keep)
}

async fn publish(log: &EventLog, numbers: impl IntoIterator<Item = usize>) {
    for number in numbers {
        log.publish("TESTED", None, "", &number.to_string(), BTreeMap::new()).await;
    }
}

async fn watch(log: &EventLog, resume_after: &str) -> Result<Events, WatchError> {
    Ok(Box::pin(log.watch(resume_after, None).await?.fuse()))
}

/// What the watcher can give without waiting.
fn ready(events: &mut Events) -> Vec<EventRecord> {
    std::iter::from_fn(|| unconstrained(events.next()).now_or_never().flatten()).map(Result::unwrap).collect()
}

fn numbers(events: &[EventRecord]) -> Vec<usize> {
    events.iter().map(|event| event.message.parse().unwrap()).collect()
}

fn all(range: std::ops::Range<usize>) -> Vec<usize> {
    range.collect()
}

#[tokio::test]
async fn nothing_means_new_ones_and_zero_means_all() {
    let log = over(&Arc::default(), KEPT);
    publish(&log, 0..3).await;
    let (mut new, mut kept) = (watch(&log, "").await.unwrap(), watch(&log, "0").await.unwrap());
    publish(&log, 3..5).await;
    assert_eq!(numbers(&ready(&mut new)), all(3..5));
    assert_eq!(numbers(&ready(&mut kept)), all(0..5));
}

#[tokio::test]
async fn resuming_after_each_event_gives_exactly_the_later_ones() {
    let log = over(&Arc::default(), KEPT);
    publish(&log, 0..6).await;
    let seen = ready(&mut watch(&log, "0").await.unwrap());
    for (number, event) in seen.iter().enumerate() {
        let mut resumed = watch(&log, &event.id.to_string()).await.unwrap();
        assert_eq!(numbers(&ready(&mut resumed)), all(number + 1..6));
    }
}

#[tokio::test]
async fn between_stored_and_live_nothing_is_lost_or_doubled() {
    let log = over(&Arc::default(), KEPT);
    // More than a page, so that events are published while the stored ones are being read.
    publish(&log, 0..PAGE + 10).await;
    let mut events = watch(&log, "0").await.unwrap();
    let mut seen = vec![];
    for number in PAGE + 10..2 * PAGE {
        seen.push(events.next().await.unwrap().unwrap());
        publish(&log, [number]).await;
    }
    seen.extend(ready(&mut events));
    assert_eq!(numbers(&seen), all(0..2 * PAGE));
}

#[tokio::test]
async fn a_watcher_that_was_too_slow_for_the_channel_reads_the_rest_from_the_store() {
    let log = over(&Arc::default(), KEPT);
    let mut events = watch(&log, "").await.unwrap();
    let many = 2048;
    publish(&log, 0..many).await;
    assert_eq!(numbers(&ready(&mut events)), all(0..many));
    publish(&log, [many]).await;
    assert_eq!(numbers(&ready(&mut events)), [many]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_at_once_are_seen_in_one_order() {
    let log = over(&Arc::default(), KEPT);
    let events = watch(&log, "").await.unwrap();
    let publishers = (0..8).map(|number| {
        let log = log.clone();
        tokio::spawn(async move { publish(&log, (0..50).map(|round| number * 50 + round)).await })
    });
    futures::future::join_all(publishers.collect::<Vec<_>>()).await;
    let seen = tokio::time::timeout(Duration::from_secs(20), events.take(400).collect::<Vec<_>>()).await.unwrap();
    let seen: Vec<EventRecord> = seen.into_iter().map(Result::unwrap).collect();
    assert!(seen.is_sorted_by(|a, b| a.id.to_string() < b.id.to_string()));
    let mut sorted = numbers(&seen);
    sorted.sort_unstable();
    assert_eq!(sorted, all(0..400));
}

#[tokio::test]
async fn the_order_holds_over_a_restart_with_the_clock_gone_back() {
    let store = Arc::new(MemoryStore::default());
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(3600));
    let before = EventLog::new(store.clone(), clock);
    publish(&before, 0..2).await;
    let seen = ready(&mut watch(&before, "0").await.unwrap());
    let after = over(&store, KEPT);
    let mut resumed = watch(&after, &seen[1].id.to_string()).await.unwrap();
    publish(&after, 2..4).await;
    assert_eq!(numbers(&ready(&mut resumed)), [2, 3]);
}

#[tokio::test]
async fn old_events_are_removed_and_resuming_before_them_is_refused() {
    let store = Arc::new(MemoryStore::default());
    let log = over(&store, 100);
    publish(&log, [0]).await;
    let first = ready(&mut watch(&log, "0").await.unwrap())[0].id;
    for number in 1..500 {
        publish(&log, [number]).await;
        assert!(store.list(keys::EVENTS, None, 1000).await.unwrap().len() <= 100);
    }
    let kept = ready(&mut watch(&log, "0").await.unwrap());
    assert!(kept.len() > 100 - PRUNED_AT_ONCE, "{}", kept.len());
    assert_eq!(numbers(&kept), all(500 - kept.len()..500));
    assert!(matches!(watch(&log, &first.to_string()).await.err(), Some(WatchError::TooOld(id)) if id == first));
    assert!(matches!(watch(&log, "7").await.err(), Some(WatchError::NotAnId(_))));
    let later = Ulid::max().to_string();
    assert!(matches!(watch(&log, &later).await.err(), Some(WatchError::Unknown(_))));
}

#[tokio::test]
async fn a_watcher_that_was_overtaken_by_the_removal_is_told() {
    let log = over(&Arc::default(), 300);
    publish(&log, 0..300).await;
    let mut events = watch(&log, "0").await.unwrap();
    let first = events.next().await.unwrap().unwrap();
    assert_eq!(first.message, "0");
    publish(&log, 300..900).await;
    let rest: Vec<_> = std::iter::from_fn(|| unconstrained(events.next()).now_or_never().flatten()).collect();
    // The page that it had read already, then the error, then the end.
    assert_eq!(rest.len(), PAGE);
    assert!(matches!(rest.last(), Some(Err(WatchError::TooOld(_)))));
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_watcher_of_a_cluster_sees_its_events_alone() {
    let log = over(&Arc::default(), KEPT);
    let (db, other) = (ClusterName::new("db").unwrap(), ClusterName::new("other").unwrap());
    let mut events: Events = Box::pin(log.watch("", Some(db.clone())).await.unwrap());
    let facts = BTreeMap::from([("epoch".to_owned(), "2".to_owned())]);
    log.publish("TESTED", Some(&other), "", "0", BTreeMap::new()).await;
    log.publish("TESTED", Some(&db), "clusters/db", "1", facts.clone()).await;
    log.publish("TESTED", None, "", "2", BTreeMap::new()).await;
    let seen = ready(&mut events);
    assert_eq!(numbers(&seen), [1]);
    assert_eq!((seen[0].facts.clone(), seen[0].resource.as_str()), (facts, "clusters/db"));
}

#[tokio::test]
async fn an_event_that_cannot_be_stored_does_not_fail_the_publisher() {
    let store = Arc::new(MemoryStore::default());
    let log = over(&store, KEPT);
    publish(&log, [0]).await;
    // Behind the log's back the key of its next id is taken.
    let first = ready(&mut watch(&log, "0").await.unwrap()).remove(0);
    let second = EventRecord { id: first.id.increment().unwrap(), message: "1".to_owned(), ..first };
    store.commit(Transaction::default().put_json(key(second.id), &second)).await.unwrap();
    publish(&log, [2, 3]).await;
    assert_eq!(numbers(&ready(&mut watch(&log, "0").await.unwrap())), [0, 1, 3]);
}

#[tokio::test]
async fn a_publisher_that_goes_away_leaves_no_gap() {
    let log = over(&Arc::default(), KEPT);
    publish(&log, [0]).await;
    // Polled once, then dropped.
    assert!(publish(&log, [1]).now_or_never().is_none());
    let mut events = watch(&log, "0").await.unwrap();
    publish(&log, [2]).await;
    assert_eq!(numbers(&ready(&mut events)), all(0..3));
}
