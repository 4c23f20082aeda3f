//! What only the file has to do: last, be locked, be trusted or refused.

use std::path::PathBuf;

use super::*;

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("regent.sqlite");
    (folder, path)
}

fn put(value: &str) -> Transaction {
    Transaction::default().put(Key::new("a"), value.as_bytes().to_vec())
}

#[tokio::test]
async fn what_was_committed_is_there_after_opening_again_under_a_higher_term() {
    let (_folder, path) = folder();
    let store = SqliteStore::create(&path).unwrap();
    let (revision, term) = (store.commit(put("x")).await.unwrap(), store.term());
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!(store.get(&Key::new("a")).await.unwrap().unwrap().version, revision.0);
    assert!(store.term() > term);
}

#[tokio::test]
async fn a_second_coordinator_is_kept_out_and_told_by_whom() {
    let (_folder, path) = folder();
    let _store = SqliteStore::create(&path).unwrap();
    match SqliteStore::open(&path) {
        Err(StoreError::Locked { holder, .. }) => assert_eq!(holder, std::process::id().to_string()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_deposed_handle_writes_nothing() {
    let (_folder, path) = folder();
    let store = SqliteStore::create(&path).unwrap();
    Connection::open(&path).unwrap().execute("UPDATE counters SET term = term + 1", []).unwrap();
    assert!(matches!(store.commit(put("x")).await, Err(StoreError::Deposed { .. })));
    assert_eq!(store.get(&Key::new("a")).await.unwrap(), None);
}

#[tokio::test]
async fn a_damaged_file_is_refused_and_left_as_it_is() {
    let (_folder, path) = folder();
    let store = SqliteStore::create(&path).unwrap();
    for n in 0..200 {
        store.commit(Transaction::default().put(Key::new(format!("k{n}")), vec![7; 500])).await.unwrap();
    }
    drop(store);
    Connection::open(&path).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[4096..middle].fill(0xAA);
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Corrupt { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    std::fs::write(&path, b"this is no database, but long enough to look like one").unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Corrupt { .. })));
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let (_folder, path) = folder();
    drop(SqliteStore::create(&path).unwrap());
    Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Newer { found: 99, .. })));
}

#[tokio::test]
async fn commits_are_written_through_to_the_disk() {
    let (_folder, path) = folder();
    drop(SqliteStore::create(&path).unwrap());
    let connection = connect(&path).unwrap();
    let read =
        |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, rusqlite::types::Value>(0));
    assert_eq!(read("synchronous").unwrap(), rusqlite::types::Value::Integer(2));
    assert_eq!(read("journal_mode").unwrap(), rusqlite::types::Value::Text("wal".to_owned()));
}

#[tokio::test]
async fn a_backup_can_be_opened() {
    let (folder, path) = folder();
    let store = SqliteStore::create(&path).unwrap();
    store.commit(put("x")).await.unwrap();
    let copy = folder.path().join("copy.sqlite");
    back_up(&path, &copy).unwrap();
    assert!(SqliteStore::open(&copy).unwrap().get(&Key::new("a")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_missing_file_is_not_replaced_by_an_empty_one() {
    let (_folder, path) = folder();
    assert!(matches!(SqliteStore::open(&path), Err(StoreError::Missing { .. })));
    assert!(!path.exists());
}
