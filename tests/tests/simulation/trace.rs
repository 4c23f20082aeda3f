//! What happened, with virtual times: two runs of a seed have the same trace, and a failed one can be read.

use std::{
    cell::RefCell,
    fmt::{self, Write as _},
};

use super::time;

thread_local! {
    static TRACE: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Adds a line of this thread's simulation.
pub(crate) fn note(text: fmt::Arguments<'_>) {
    let now = time::now();
    let mut line = String::new();
    write!(line, "{:>8}.{:03} ", now.as_secs(), now.subsec_millis()).expect("a text takes everything");
    write!(line, "{text}").expect("a text takes everything");
    TRACE.with_borrow_mut(|trace| trace.push(line));
}

/// Takes all lines, for the end of a simulation and the beginning of the next.
pub(crate) fn take() -> Vec<String> {
    TRACE.take()
}

/// Adds a line, as `format!` takes it.
macro_rules! traced {
    ($($part:tt)*) => { $crate::trace::note(format_args!($($part)*)) };
}
pub(crate) use traced;
