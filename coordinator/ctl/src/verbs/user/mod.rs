//! Verbs on users, registered in `crate::verbs`.

pub(super) mod create;
pub(super) mod list;
pub(super) mod revoke;
