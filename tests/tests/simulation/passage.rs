//! What a packet meets on its way to and from a machine's engine: the gate of the machine's kernel.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use regent_agent::gate::fake::FakeKernel;
use regent_common::mutation::{self, Rule};

use super::{machine::ENGINE_PORT, time::MachineClock};

/// The way through a machine's kernel.
pub(crate) struct Passage {
    clock: MachineClock,
    kernel: Mutex<Arc<FakeKernel>>,
    /// Raised with every boot, which leaves no socket of before.
    boots: AtomicU64,
}

// === impl Passage ===

impl Passage {
    /// That of a machine which has just booted.
    pub(crate) fn new(clock: MachineClock) -> Self {
        let kernel = Mutex::new(FakeKernel::new(Arc::new(clock.clone())));
        Self { clock, kernel, boots: AtomicU64::new(0) }
    }

    /// The kernel that runs now.
    pub(crate) fn kernel(&self) -> Arc<FakeKernel> {
        Arc::clone(&self.kernel.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a packet from a client, which may be on a peer's machine, reaches the engine now.
    pub(crate) fn lets_in(&self, from_peer: bool) -> bool {
        self.passes(from_peer)
    }

    /// Whether a packet of the engine leaves the machine now, for a client that may be on a peer's.
    pub(crate) fn lets_out(&self, to_peer: bool) -> bool {
        mutation::broken(Rule::G1Output) || self.passes(to_peer)
    }

    fn passes(&self, peer: bool) -> bool {
        (peer && mutation::broken(Rule::G1Peers)) || self.kernel().passes(ENGINE_PORT)
    }

    /// A number that changes when the sockets of before are gone.
    pub(crate) fn sockets(&self) -> u64 {
        self.boots.load(Ordering::Relaxed) << 32 | u64::from(self.kernel().destructions())
    }

    /// The kernel forgets everything.
    pub(crate) fn cut_power(&self) {
        let kernel = FakeKernel::new(Arc::new(self.clock.clone()));
        *self.kernel.lock().unwrap_or_else(PoisonError::into_inner) = kernel;
        self.boots.fetch_add(1, Ordering::Relaxed);
    }
}
