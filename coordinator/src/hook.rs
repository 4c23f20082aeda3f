//! Runs a program of the operator's for each event, so that mail, tickets and chats can hang on it without a client of the API.
//!
//! The event is written to its standard input as JSON, one line. Events come in order, one program at a time; the id of the last
//! one that was handed over is kept, so that a restart of the coordinator leaves none out (the one that was under way may come
//! twice). **Invariant:** whatever the program does, nothing waits for it but the next event's program.

use std::{path::PathBuf, process::Stdio, time::Duration};

use futures::StreamExt as _;
use regent_common::error::ErrorChain;
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt as _, process::Command, time};
use tokio_util::sync::CancellationToken;

use crate::{
    events::{EventLog, EventRecord},
    store::{Store, StoreError, Transaction, get_json, keys},
};

/// Pause after trouble with the store.
const PAUSE: Duration = Duration::from_secs(5);
/// Most bytes of what a program printed that go to the log.
const MOST: usize = 500;

/// What is run, and for how long at most.
#[derive(Debug, Clone)]
pub struct Hook {
    /// The program, with its full path. It gets no arguments.
    pub program: PathBuf,
    /// After this time it is killed.
    pub timeout: Duration,
}

/// The last event that was handed over.
#[derive(Debug, Serialize, Deserialize)]
struct Cursor {
    id: String,
}

// === impl Hook ===

impl Hook {
    /// Hands events over until `stop`.
    pub async fn run(self, store: std::sync::Arc<dyn Store>, events: EventLog, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.follow(store.as_ref(), &events) => {}
        }
    }

    async fn follow(&self, store: &dyn Store, events: &EventLog) {
        let mut resume_after = None;
        loop {
            let after = match resume_after.take() {
                Some(after) => Ok(after),
                None => cursor(store).await,
            };
            let outcome = match after {
                Ok(after) => self.hand_over(store, events, &after).await,
                Err(error) => Err(ErrorChain(&error).to_string()),
            };
            let Err(error) = outcome else { return };
            tracing::warn!(hook = %self.program.display(), error, "events may have been missed by the hook; it goes on with new ones");
            time::sleep(PAUSE).await;
            resume_after = Some(String::new());
        }
    }

    async fn hand_over(&self, store: &dyn Store, events: &EventLog, after: &str) -> Result<(), String> {
        let watched = events.watch(after, None).await.map_err(|error| ErrorChain(&error).to_string())?;
        let mut watched = std::pin::pin!(watched);
        while let Some(event) = watched.next().await {
            let event = event.map_err(|error| ErrorChain(&error).to_string())?;
            if let Err(why) = self.execute(&event).await {
                tracing::warn!(hook = %self.program.display(), event = event.kind, id = %event.id, why, "the hook failed");
            }
            let cursor = Cursor { id: event.id.to_string() };
            let transaction = Transaction::default().put_json(keys::hook_cursor(), &cursor);
            if let Err(error) = store.commit(transaction).await {
                tracing::warn!(error = %ErrorChain(&error), "the last event of the hook is not kept; it may come twice");
            }
        }
        Err("the stream of events has ended".to_owned())
    }

    /// Runs the program once.
    async fn execute(&self, event: &EventRecord) -> Result<(), String> {
        let mut line = serde_json::to_vec(event).map_err(|error| error.to_string())?;
        line.push(b'\n');
        let mut command = Command::new(&self.program);
        command.env("REGENT_EVENT", &event.kind).kill_on_drop(true);
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("it cannot be started: {error}"))?;
        let mut input = child.stdin.take().ok_or("it has no input")?;
        let run = async {
            // A program that does not read its input is no failure.
            drop(input.write_all(&line).await);
            drop(input);
            child.wait_with_output().await
        };
        let ended = time::timeout(self.timeout, run).await;
        let output = ended.map_err(|_| format!("it was killed after {} s", self.timeout.as_secs()))?;
        let output = output.map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said[..said.len().min(MOST)]).trim().to_owned();
        Err(format!("{}: {said}", output.status))
    }
}

/// Where to go on: after the last event that was handed over, or with new ones.
async fn cursor(store: &dyn Store) -> Result<String, StoreError> {
    let found = get_json::<Cursor>(store, &keys::hook_cursor()).await?;
    Ok(found.map(|stored| stored.value.id).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _, path::Path, sync::Arc};

    use regent_common::clock::ManualClock;

    use super::*;
    use crate::store::memory::MemoryStore;

    /// A program that appends what it reads to a file beside it, after what `before` does.
    fn program(folder: &Path, before: &str) -> Hook {
        let program = folder.join("hook");
        std::fs::write(&program, format!("#!/bin/sh\n{before}\ncat >> {}\n", folder.join("seen").display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        Hook { program, timeout: Duration::from_secs(20) }
    }

    fn log(store: &Arc<MemoryStore>) -> EventLog {
        EventLog::new(store.clone(), Arc::new(ManualClock::default()))
    }

    async fn publish(events: &EventLog, kind: &str) {
        events.publish(kind, None, "operations/x", "it ended", BTreeMap::new()).await;
    }

    /// Waits until these kinds were seen, in this order.
    async fn seen(folder: &Path, wanted: &[&str]) {
        let kinds = || {
            let text = std::fs::read_to_string(folder.join("seen")).unwrap_or_default();
            let kind = |line: &str| serde_json::from_str::<EventRecord>(line).map(|event| event.kind).ok();
            text.lines().filter_map(kind).collect::<Vec<_>>()
        };
        let all = async {
            while kinds().len() < wanted.len() {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(Duration::from_secs(20), all).await.unwrap_or_else(|_| panic!("{:?} of {wanted:?}", kinds()));
        assert_eq!(kinds(), wanted);
    }

    /// Id of the second event.
    async fn second_event(events: &EventLog) -> String {
        let mut all = std::pin::pin!(events.watch("0", None).await.unwrap().skip(1));
        all.next().await.unwrap().unwrap().id.to_string()
    }

    /// Keeps the first event as the last one that was handed over.
    async fn handed_over(store: &Arc<MemoryStore>, events: &EventLog) {
        let mut all = std::pin::pin!(events.watch("0", None).await.unwrap());
        let first = all.next().await.unwrap().unwrap();
        let cursor = Cursor { id: first.id.to_string() };
        store.commit(Transaction::default().put_json(keys::hook_cursor(), &cursor)).await.unwrap();
    }

    #[tokio::test]
    async fn each_event_is_handed_over_in_order_and_none_is_left_out_by_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (store, hook) = (Arc::new(MemoryStore::default()), program(folder.path(), ""));
        let events = log(&store);
        publish(&events, "BEFORE").await;
        handed_over(&store, &events).await;
        publish(&events, "FIRST").await;
        let stop = CancellationToken::new();
        let running = tokio::spawn(hook.clone().run(store.clone(), events.clone(), stop.clone()));
        seen(folder.path(), &["FIRST"]).await;
        let kept = async {
            while cursor(store.as_ref()).await.unwrap() < second_event(&events).await {
                time::sleep(Duration::from_millis(10)).await;
            }
        };
        time::timeout(Duration::from_secs(20), kept).await.unwrap();
        stop.cancel();
        running.await.unwrap();
        for kind in ["SECOND", "THIRD"] {
            publish(&events, kind).await;
        }
        let stop = CancellationToken::new();
        tokio::spawn(hook.run(store.clone(), log(&store), stop.clone()));
        seen(folder.path(), &["FIRST", "SECOND", "THIRD"]).await;
        stop.cancel();
    }

    #[tokio::test]
    async fn a_program_that_fails_or_hangs_keeps_no_other_event_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(MemoryStore::default());
        let before = "case $REGENT_EVENT in FAILS) exit 3;; HANGS) sleep 60;; esac";
        let hook = Hook { timeout: Duration::from_secs(1), ..program(folder.path(), before) };
        let events = log(&store);
        let first = EventRecord {
            id: ulid::Ulid::nil(),
            time: jiff::Timestamp::UNIX_EPOCH,
            kind: "FAILS".to_owned(),
            cluster: None,
            resource: String::new(),
            message: String::new(),
            facts: BTreeMap::new(),
        };
        assert!(hook.execute(&first).await.unwrap_err().contains("3"));
        let hangs = EventRecord { kind: "HANGS".to_owned(), ..first.clone() };
        assert!(hook.execute(&hangs).await.unwrap_err().contains("killed"));
        let missing = Hook { program: folder.path().join("nothing"), ..hook.clone() };
        assert!(missing.execute(&first).await.unwrap_err().contains("cannot be started"));
        publish(&events, "BEFORE").await;
        handed_over(&store, &events).await;
        for kind in ["FAILS", "HANGS", "WORKS"] {
            publish(&events, kind).await;
        }
        let stop = CancellationToken::new();
        tokio::spawn(hook.run(store, events, stop.clone()));
        seen(folder.path(), &["WORKS"]).await;
        stop.cancel();
    }
}
