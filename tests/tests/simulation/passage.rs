//! What a packet meets on its way to and from a machine's engine. There is no gate yet, so that everything passes; the fake
//! kernel's gate takes its place here.

use std::sync::atomic::{AtomicU64, Ordering};

/// The way through a machine's kernel.
#[derive(Debug, Default)]
pub(crate) struct Passage {
    /// Raised whenever all sockets are destroyed.
    sockets: AtomicU64,
}

// === impl Passage ===

impl Passage {
    /// Whether a packet from a client reaches the engine now.
    pub(crate) fn lets_in(&self) -> bool {
        true
    }

    /// Whether a packet of the engine leaves the machine now.
    pub(crate) fn lets_out(&self) -> bool {
        true
    }

    /// A number that changes when the sockets of before are gone.
    pub(crate) fn sockets(&self) -> u64 {
        self.sockets.load(Ordering::Relaxed)
    }

    /// The kernel forgets everything.
    pub(crate) fn cut_power(&self) {
        self.sockets.fetch_add(1, Ordering::Relaxed);
    }
}
