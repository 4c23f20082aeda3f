//! The store in a SQLite file: the default, for one coordinator.
//!
//! One thread owns the connection; callers send it requests. Transactions that wait while one is being written share the
//! next fsync (each still has its own preconditions, by a savepoint). `synchronous=FULL` with a write-ahead log makes a
//! commit durable before it is answered (rule T3). A file lock keeps a second coordinator out, and every opening raises
//! the term, so that a forgotten handle can write nothing.

use std::{
    fs::File,
    io::{Read, Seek, Write as _},
    path::Path,
    sync::{Arc, Mutex, mpsc as std_mpsc},
};

use async_trait::async_trait;
use regent_common::ids::{Revision, Term};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use rustix::fs::{FlockOperation, flock};
use tokio::sync::{mpsc, oneshot};

use super::{Change, Key, Precondition, Store, StoreError, Transaction, Versioned, Watchers, Write};

#[cfg(test)]
mod tests;

/// The schema's steps; the file's `user_version` counts how many are done.
const MIGRATIONS: &[&str] = &[include_str!("migrations/0001_initial.sql")];
/// Most transactions that share one fsync.
const BATCH: usize = 64;

/// A store in a file.
#[derive(Debug)]
pub struct SqliteStore {
    requests: std_mpsc::Sender<Request>,
    watchers: Arc<Mutex<Watchers>>,
    term: Term,
    /// Held as long as the store is open.
    _lock: File,
}

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// What the thread is asked.
#[derive(Debug)]
enum Request {
    Get(Key, Reply<Option<Versioned>>),
    List { prefix: String, after: Option<Key>, limit: usize, reply: Reply<Vec<(Key, Versioned)>> },
    Commit(Transaction, Reply<Revision>),
    Revision(Reply<Revision>),
    RaiseRevision(Revision, Reply<()>),
}

fn failed(doing: &'static str) -> impl FnOnce(rusqlite::Error) -> StoreError {
    move |source| StoreError::Failed { doing, source: Box::new(source) }
}

// === impl SqliteStore ===

impl SqliteStore {
    /// Opens the file, which must be there: an empty store in place of a lost one would know nothing of epochs that its
    /// agents have accepted. Refused while another process has it open. Raises the term.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(StoreError::Missing { path: path.display().to_string() });
        }
        Self::create(path)
    }

    /// Like [`Self::open`], for an installation that is being made: a missing file is made.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let lock = lock(&path.with_extension("lock"))?;
        let mut connection = connect(path)?;
        migrate(&mut connection, path)?;
        connection.execute("UPDATE counters SET term = term + 1", []).map_err(failed("raise the term"))?;
        let term: u64 =
            connection.query_row("SELECT term FROM counters", [], |row| row.get(0)).map_err(failed("read the term"))?;
        let (requests, inbox) = std_mpsc::channel();
        let watchers = Arc::new(Mutex::new(Watchers::default()));
        let worker = Worker { connection, term: Term(term), watchers: Arc::clone(&watchers) };
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.run(&inbox))
            .map_err(|source| StoreError::Failed { doing: "start its thread", source: Box::new(source) })?;
        Ok(Self { requests, watchers, term: Term(term), _lock: lock })
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, StoreError> {
        let gone = || StoreError::Failed { doing: "answer", source: "its thread has ended".into() };
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        self.ask(|reply| Request::Get(key.clone(), reply)).await
    }

    async fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Versioned)>, StoreError> {
        let (prefix, after) = (prefix.to_owned(), after.cloned());
        self.ask(|reply| Request::List { prefix, after, limit, reply }).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Revision, StoreError> {
        self.ask(|reply| Request::Commit(transaction, reply)).await
    }

    fn watch(&self, prefix: &str) -> mpsc::Receiver<Change> {
        self.watchers.lock().expect("no holder panics").add(prefix)
    }

    fn term(&self) -> Term {
        self.term
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.ask(Request::Revision).await
    }

    async fn raise_revision(&self, at_least: Revision) -> Result<(), StoreError> {
        self.ask(|reply| Request::RaiseRevision(at_least, reply)).await
    }
}

/// Takes the lock file, and writes our process id into it for whoever finds it taken.
fn lock(path: &Path) -> Result<File, StoreError> {
    let io = |source: std::io::Error| StoreError::Failed { doing: "take its lock file", source: Box::new(source) };
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path).map_err(io)?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut holder = String::new();
        file.read_to_string(&mut holder).map_err(io)?;
        return Err(StoreError::Locked { path: path.display().to_string(), holder: holder.trim().to_owned() });
    }
    file.set_len(0).map_err(io)?;
    file.rewind().map_err(io)?;
    writeln!(file, "{}", std::process::id()).map_err(io)?;
    Ok(file)
}

/// Writes a consistent copy of a store, which another process may have open, to a new file.
pub fn back_up(path: &Path, to: &Path) -> Result<(), StoreError> {
    if !path.exists() {
        return Err(StoreError::Missing { path: path.display().to_string() });
    }
    let store =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed("open its file"))?;
    store.execute_batch("PRAGMA busy_timeout = 5000;").map_err(failed("be opened for a copy"))?;
    store.backup("main", to, None::<fn(rusqlite::backup::Progress)>).map_err(failed("be backed up"))
}

/// Opens the file and makes sure that it can be trusted.
fn connect(path: &Path) -> Result<Connection, StoreError> {
    let corrupt = |detail: String| StoreError::Corrupt { path: path.display().to_string(), detail };
    let connection = Connection::open(path).map_err(failed("open its file"))?;
    let check: Result<String, _> = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0));
    match check {
        Ok(answer) if answer == "ok" => {}
        Ok(answer) => return Err(corrupt(answer)),
        Err(error) => return Err(corrupt(error.to_string())),
    }
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA busy_timeout = 5000;")
        .map_err(failed("set its journal"))?;
    Ok(connection)
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), StoreError> {
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(failed("read its schema version"))?;
    let known = i64::try_from(MIGRATIONS.len()).expect("a handful of migrations");
    if found > known {
        return Err(StoreError::Newer { path: path.display().to_string(), found, known });
    }
    for (index, migration) in (0_i64..).zip(MIGRATIONS).skip(usize::try_from(found).unwrap_or_default()) {
        let transaction = connection.transaction().map_err(failed("begin a migration"))?;
        transaction.execute_batch(migration).map_err(failed("migrate its schema"))?;
        transaction.pragma_update(None, "user_version", index + 1).map_err(failed("migrate its schema"))?;
        transaction.commit().map_err(failed("migrate its schema"))?;
    }
    Ok(())
}

/// The thread's side.
struct Worker {
    connection: Connection,
    term: Term,
    watchers: Arc<Mutex<Watchers>>,
}

// === impl Worker ===

impl Worker {
    /// Serves until every handle is gone. A caller that has gone needs no answer.
    fn run(mut self, inbox: &std_mpsc::Receiver<Request>) {
        let mut held: Option<Request> = None;
        while let Some(request) = held.take().or_else(|| inbox.recv().ok()) {
            match request {
                Request::Get(key, reply) => drop(reply.send(self.get(&key))),
                Request::List { prefix, after, limit, reply } => {
                    drop(reply.send(self.list(&prefix, after.as_ref(), limit)));
                }
                Request::Revision(reply) => drop(reply.send(self.revision())),
                Request::RaiseRevision(at_least, reply) => drop(reply.send(self.raise_revision(at_least))),
                Request::Commit(transaction, reply) => {
                    let mut batch = vec![(transaction, reply)];
                    while batch.len() < BATCH {
                        match inbox.try_recv() {
                            Ok(Request::Commit(transaction, reply)) => batch.push((transaction, reply)),
                            Ok(other) => {
                                held = Some(other);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit(batch);
                }
            }
        }
    }

    fn get(&self, key: &Key) -> Result<Option<Versioned>, StoreError> {
        let sql = "SELECT value, version FROM entries WHERE key = ?1";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed("read"))?;
        statement
            .query_row([key.as_str()], |row| Ok(Versioned { value: row.get(0)?, version: row.get(1)? }))
            .optional()
            .map_err(failed("read"))
    }

    fn list(&self, prefix: &str, after: Option<&Key>, limit: usize) -> Result<Vec<(Key, Versioned)>, StoreError> {
        let sql = "SELECT key, value, version FROM entries
                   WHERE key >= ?1 AND key < ?4 AND key > ?2 ORDER BY key LIMIT ?3";
        let mut statement = self.connection.prepare_cached(sql).map_err(failed("list"))?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // Keys are never empty, so that "" is before all of them. The upper end keeps the scan inside the prefix.
        let sql_after = after.map_or("", Key::as_str);
        let end = format!("{prefix}\u{10ffff}");
        let rows = statement.query_map(params![prefix, sql_after, limit, end], |row| {
            let key: String = row.get(0)?;
            Ok((Key::new(key), Versioned { value: row.get(1)?, version: row.get(2)? }))
        });
        rows.and_then(Iterator::collect).map_err(failed("list"))
    }

    fn revision(&self) -> Result<Revision, StoreError> {
        let row = self.connection.query_row("SELECT revision FROM counters", [], |row| row.get(0));
        row.map(Revision).map_err(failed("read its revision"))
    }

    fn raise_revision(&self, at_least: Revision) -> Result<(), StoreError> {
        let sql = "UPDATE counters SET revision = max(revision, ?1) WHERE term = ?2";
        self.connection.execute(sql, [at_least.0, self.term.0]).map(drop).map_err(failed("raise its revision"))
    }

    /// Carries out several transactions under one fsync.
    fn commit(&mut self, batch: Vec<(Transaction, Reply<Revision>)>) {
        let mut outcomes = Vec::with_capacity(batch.len());
        let durable = self.connection.transaction().map_err(failed("begin a commit")).and_then(|mut outer| {
            for (transaction, _) in &batch {
                let savepoint = outer.savepoint().map_err(failed("begin a commit"))?;
                let outcome = apply(&savepoint, self.term, transaction);
                if outcome.is_ok() {
                    savepoint.commit().map_err(failed("commit"))?;
                }
                outcomes.push(outcome);
            }
            outer.commit().map_err(failed("commit"))
        });
        match durable {
            Ok(()) => {
                let mut watchers = self.watchers.lock().expect("no holder panics");
                for ((transaction, reply), outcome) in batch.into_iter().zip(outcomes) {
                    if let Ok(revision) = &outcome {
                        watchers.tell(&transaction.writes, *revision);
                    }
                    drop(reply.send(outcome));
                }
            }
            Err(error) => {
                let detail = regent_common::error::ErrorChain(&error).to_string();
                for (_, reply) in batch {
                    let source = detail.clone().into();
                    drop(reply.send(Err(StoreError::Failed { doing: "commit", source })));
                }
            }
        }
    }
}

/// Checks the preconditions and writes, inside a savepoint that is dropped on an error.
fn apply(connection: &Connection, term: Term, transaction: &Transaction) -> Result<Revision, StoreError> {
    let (revision, newest): (u64, u64) = connection
        .query_row("SELECT revision, term FROM counters", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(failed("read its counters"))?;
    if newest != term.0 {
        return Err(StoreError::Deposed { own: term, newest: Term(newest) });
    }
    let version = |key: &Key| -> Result<Option<u64>, StoreError> {
        let sql = "SELECT version FROM entries WHERE key = ?1";
        let mut statement = connection.prepare_cached(sql).map_err(failed("read"))?;
        statement.query_row([key.as_str()], |row| row.get(0)).optional().map_err(failed("read"))
    };
    for precondition in &transaction.preconditions {
        let (key, holds) = match precondition {
            Precondition::Absent(key) => (key, version(key)?.is_none()),
            Precondition::Version(key, wanted) => (key, version(key)? == Some(*wanted)),
        };
        if !holds {
            return Err(StoreError::Conflict { key: key.clone() });
        }
    }
    let revision = revision + 1;
    for write in &transaction.writes {
        let outcome = match write {
            Write::Put(key, value) => connection.execute(
                "INSERT INTO entries (key, value, version) VALUES (?1, ?2, ?3)
                 ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version",
                params![key.as_str(), value, revision],
            ),
            Write::Delete(key) => connection.execute("DELETE FROM entries WHERE key = ?1", [key.as_str()]),
        };
        outcome.map_err(failed("write"))?;
    }
    connection.execute("UPDATE counters SET revision = ?1", [revision]).map_err(failed("count the revision"))?;
    Ok(Revision(revision))
}
