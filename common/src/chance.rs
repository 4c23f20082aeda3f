//! Where ids come from: the wall clock and chance, or, in a simulation, a source that gives the same ids again; and what a
//! simulation does to messages that no simulated network does to a byte stream.
//!
//! Nothing secret is made here. The other sources exist with the feature `simulation` alone, which no program has.

use std::time::Duration;

use ulid::Ulid;

/// When a message is delivered: usually once and at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Whether it is delivered now.
    pub now: bool,
    /// After how long it is delivered (again), if it is.
    pub again: Option<Duration>,
}

impl Delivery {
    /// Now and never again.
    pub const ONCE: Self = Self { now: true, again: None };
}

/// A message of the coordinator's that has arrived at an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// The answer to a heartbeat.
    Answer,
    /// A step of an operation.
    Step {
        /// The member that it is for.
        member: &'a str,
        /// What it does.
        action: &'a str,
    },
}

/// When a message that has just arrived is delivered.
#[inline]
pub fn delivery(message: Message<'_>) -> Delivery {
    #[cfg(feature = "simulation")]
    if let Some(delivery) = repeatable::delivery(message) {
        return delivery;
    }
    let _ = message;
    Delivery::ONCE
}

/// A new id.
pub fn ulid() -> Ulid {
    #[cfg(feature = "simulation")]
    if let Some(id) = repeatable::next() {
        return id;
    }
    Ulid::generate()
}

/// Ids that are the same in every run.
#[cfg(feature = "simulation")]
pub mod repeatable {
    use std::cell::RefCell;

    use super::{Delivery, Message, Ulid};

    /// Makes the next id.
    pub type Source = Box<dyn FnMut() -> Ulid>;
    /// Decides when the next message is delivered.
    pub type Deliveries = Box<dyn FnMut(Message<'_>) -> Delivery>;

    thread_local! {
        static SOURCE: RefCell<Option<Source>> = const { RefCell::new(None) };
        static DELIVERIES: RefCell<Option<Deliveries>> = const { RefCell::new(None) };
    }

    /// Lets `deliveries` decide when messages of this thread are delivered, or lets each be delivered once and at once.
    pub fn deliver_on_this_thread(deliveries: Option<Deliveries>) {
        DELIVERIES.with_borrow_mut(|present| *present = deliveries);
    }

    pub(super) fn delivery(message: Message<'_>) -> Option<Delivery> {
        DELIVERIES.with_borrow_mut(|deliveries| deliveries.as_mut().map(|deliveries| deliveries(message)))
    }

    /// Takes all ids of this thread from `source`, or again from clock and chance.
    pub fn use_on_this_thread(source: Option<Source>) {
        SOURCE.with_borrow_mut(|present| *present = source);
    }

    pub(super) fn next() -> Option<Ulid> {
        SOURCE.with_borrow_mut(|source| source.as_mut().map(|source| source()))
    }
}
