//! Where ids come from: the wall clock and chance, or, in a simulation, a source that gives the same ids again.
//!
//! Nothing secret is made here. The other source exists with the feature `simulation` alone, which no program has.

use ulid::Ulid;

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

    use super::Ulid;

    /// Makes the next id.
    pub type Source = Box<dyn FnMut() -> Ulid>;

    thread_local! {
        static SOURCE: RefCell<Option<Source>> = const { RefCell::new(None) };
    }

    /// Takes all ids of this thread from `source`, or again from clock and chance.
    pub fn use_on_this_thread(source: Option<Source>) {
        SOURCE.with_borrow_mut(|present| *present = source);
    }

    pub(super) fn next() -> Option<Ulid> {
        SOURCE.with_borrow_mut(|source| source.as_mut().map(|source| source()))
    }
}
