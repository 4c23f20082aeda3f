//! A machine's disk, as far as the agent's ledger is concerned. It lives as long as the machine: an agent that dies leaves
//! it as it is, a power cut takes what was not flushed.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use regent_agent::ledger::Disk;
use regent_common::mutation::{self, Rule};

use super::{chance::Chance, machine::Stalls, time};

/// How long a kernel keeps to itself what nobody asked it to flush.
const WRITEBACK: Duration = Duration::from_secs(3);

/// A disk in memory; clones are the same one.
#[derive(Clone)]
pub(crate) struct SimulatedDisk {
    state: Arc<Mutex<State>>,
    stalls: Stalls,
}

struct State {
    files: BTreeMap<PathBuf, File>,
    chance: Chance,
    failing: bool,
}

#[derive(Default)]
struct File {
    /// What a reader after a power cut sees.
    flushed: Option<Vec<u8>>,
    /// What a reader sees, when that is something else, and since when.
    cached: Option<(Duration, Option<Vec<u8>>)>,
}

// === impl SimulatedDisk ===

impl SimulatedDisk {
    /// An empty disk of a machine.
    pub(crate) fn new(chance: Chance, stalls: Stalls) -> Self {
        Self { state: Arc::new(Mutex::new(State { files: BTreeMap::new(), chance, failing: false })), stalls }
    }

    /// Lets every write fail, or work again.
    pub(crate) fn fail(&self, failing: bool) {
        self.lock().failing = failing;
    }

    /// The power goes: what was not flushed is gone.
    pub(crate) fn cut_power(&self) {
        for file in self.lock().files.values_mut() {
            file.write_back();
            file.cached = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, path: &Path, content: Option<Vec<u8>>) -> io::Result<()> {
        let mut state = self.lock();
        if state.failing {
            return Err(io::Error::other("the disk was told to fail"));
        }
        let file = state.files.entry(path.to_owned()).or_default();
        if mutation::broken(Rule::LedgerFlush) {
            file.write_back();
            file.cached = Some((time::now(), content));
        } else {
            *file = File { flushed: content, cached: None };
        }
        Ok(())
    }
}

// === impl File ===

impl File {
    /// What has been cached for long is on the disk.
    fn write_back(&mut self) {
        if let Some((_, content)) = self.cached.take_if(|(since, _)| *since + WRITEBACK <= time::now()) {
            self.flushed = content;
        }
    }
}

impl Disk for SimulatedDisk {
    /// In a task of the agent's own, so that what was begun ends with the agent, and never before it was possible.
    fn offload(&self, work: Box<dyn FnOnce() + Send>) {
        let stalls = self.stalls.clone();
        let takes = self.lock().chance.millis(0..6);
        tokio::spawn(async move {
            stalls.disk().await;
            tokio::time::sleep(takes).await;
            stalls.disk().await;
            work();
        });
    }

    fn read(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        let state = self.lock();
        let Some(file) = state.files.get(path) else { return Ok(None) };
        Ok(file.cached.as_ref().map_or(&file.flushed, |(_, content)| content).clone())
    }

    fn write_durably(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.put(path, Some(content.to_vec()))
    }

    fn remove_durably(&self, path: &Path) -> io::Result<()> {
        self.put(path, None)
    }
}
