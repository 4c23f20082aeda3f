//! Verbs on operations, registered in `crate::verbs`.

pub(super) mod cancel;
pub(super) mod list;
pub(super) mod show;
pub(super) mod watch;
