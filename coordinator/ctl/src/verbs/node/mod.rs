//! Verbs on nodes, registered in `crate::verbs`.

pub(super) mod list;
pub(super) mod revoke;
pub(super) mod show;
