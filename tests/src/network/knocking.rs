//! A client that never stops trying to be let in: what is open for a moment is seen.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use super::Machine;

/// How long one try may take.
const IMPATIENT: Duration = Duration::from_millis(200);

/// A client that tries for as long as this lives, and how often it was let in.
#[derive(Debug)]
pub struct Knocking {
    stop: Arc<AtomicBool>,
    let_in: Arc<AtomicU32>,
    tried: Arc<AtomicU32>,
    thread: Option<thread::JoinHandle<()>>,
}

// === impl Knocking ===

impl Knocking {
    /// Begins to try from a machine.
    pub fn start(client: Arc<Machine>, to: SocketAddr) -> Self {
        let (stop, let_in, tried) = <(Arc<AtomicBool>, Arc<AtomicU32>, Arc<AtomicU32>)>::default();
        let (stopped, counted, tries) = (stop.clone(), let_in.clone(), tried.clone());
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                tries.fetch_add(1, Ordering::Relaxed);
                if client.connect(to, IMPATIENT).is_ok() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, let_in, tried, thread: Some(thread) }
    }

    /// Ends it: how often it was let in, of how many tries.
    pub fn end(mut self) -> (u32, u32) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it is ended once").join().expect("it does not panic");
        (self.let_in.load(Ordering::Relaxed), self.tried.load(Ordering::Relaxed))
    }
}
