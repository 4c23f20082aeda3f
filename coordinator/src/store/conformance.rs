//! What every store must do; run over each implementation.

use std::sync::Arc;

use super::{Key, Store, StoreError, Transaction, memory::MemoryStore, sqlite::SqliteStore};

/// Opens each kind of store, empty.
fn stores() -> Vec<(Arc<dyn Store>, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = SqliteStore::create(&folder.path().join("regent.sqlite")).unwrap();
    vec![(Arc::new(MemoryStore::default()), None), (Arc::new(sqlite), Some(folder))]
}

fn key(text: &str) -> Key {
    Key::new(text)
}

fn put(name: &str, value: &str) -> Transaction {
    Transaction::default().put(key(name), value.as_bytes().to_vec())
}

#[tokio::test]
async fn a_value_that_was_put_is_read_until_it_is_deleted() {
    for (store, _folder) in stores() {
        assert_eq!(store.get(&key("a/1")).await.unwrap(), None);
        let revision = store.commit(put("a/1", "x")).await.unwrap();
        let stored = store.get(&key("a/1")).await.unwrap().unwrap();
        assert_eq!((stored.value.as_slice(), stored.version), (b"x".as_slice(), revision.0));
        store.commit(Transaction::default().delete(key("a/1"))).await.unwrap();
        assert_eq!(store.get(&key("a/1")).await.unwrap(), None);
    }
}

#[tokio::test]
async fn revisions_grow_with_every_commit() {
    for (store, _folder) in stores() {
        let mut last = store.revision().await.unwrap();
        for _ in 0..5 {
            let next = store.commit(put("a", "x")).await.unwrap();
            assert!(next > last);
            assert_eq!(store.revision().await.unwrap(), next);
            last = next;
        }
    }
}

#[tokio::test]
async fn a_raised_revision_is_passed_by_the_next_commit_and_never_lowered() {
    use regent_common::ids::Revision;
    for (store, _folder) in stores() {
        store.raise_revision(Revision(500)).await.unwrap();
        assert!(store.commit(put("a", "x")).await.unwrap() > Revision(500));
        store.raise_revision(Revision(3)).await.unwrap();
        assert!(store.revision().await.unwrap() > Revision(500));
    }
}

#[tokio::test]
async fn a_precondition_that_does_not_hold_stops_the_whole_transaction() {
    for (store, _folder) in stores() {
        let first = store.commit(put("a", "1")).await.unwrap();
        store.commit(put("a", "2")).await.unwrap();
        for refused in [
            put("b", "x").require_absent(key("a")),
            put("b", "x").require_version(key("a"), first.0),
            put("b", "x").require_version(key("missing"), 1),
        ] {
            assert!(matches!(store.commit(refused).await, Err(StoreError::Conflict { .. })));
            assert_eq!(store.get(&key("b")).await.unwrap(), None);
        }
        let now = store.get(&key("a")).await.unwrap().unwrap();
        store.commit(put("b", "x").require_version(key("a"), now.version).require_absent(key("c"))).await.unwrap();
    }
}

#[tokio::test]
async fn of_many_at_once_with_the_same_precondition_one_wins() {
    for (store, _folder) in stores() {
        let tries = (0..20).map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(put("a", &n.to_string()).require_absent(key("a"))).await.is_ok() })
        });
        let outcomes = futures::future::join_all(tries).await;
        assert_eq!(outcomes.into_iter().filter(|won| *won.as_ref().unwrap()).count(), 1);
    }
}

#[tokio::test]
async fn a_list_is_sorted_limited_and_stays_inside_its_prefix() {
    for (store, _folder) in stores() {
        for name in ["b/2", "b/1", "b/3", "a/9", "b", "c/1", "b0"] {
            store.commit(put(name, name)).await.unwrap();
        }
        let names = |rows: Vec<(Key, _)>| rows.into_iter().map(|(key, _)| key.as_str().to_owned()).collect::<Vec<_>>();
        assert_eq!(names(store.list("b/", None, usize::MAX).await.unwrap()), ["b/1", "b/2", "b/3"]);
        assert_eq!(names(store.list("b/", Some(&key("b/1")), 1).await.unwrap()), ["b/2"]);
        assert_eq!(store.list("", None, usize::MAX).await.unwrap().len(), 7);
    }
}

#[tokio::test]
async fn a_watcher_sees_the_changes_of_its_prefix_in_order() {
    for (store, _folder) in stores() {
        store.commit(put("a/1", "before")).await.unwrap();
        let mut watcher = store.watch("a/");
        store.commit(put("b/1", "other")).await.unwrap();
        store.commit(put("a/1", "x").put(key("a/2"), b"y".to_vec())).await.unwrap();
        store.commit(Transaction::default().delete(key("a/1"))).await.unwrap();
        let seen = [watcher.recv().await.unwrap(), watcher.recv().await.unwrap(), watcher.recv().await.unwrap()];
        let seen: Vec<_> = seen.iter().map(|change| (change.key.as_str(), change.value.clone())).collect();
        assert_eq!(seen, [("a/1", Some(b"x".to_vec())), ("a/2", Some(b"y".to_vec())), ("a/1", None)]);
    }
}
