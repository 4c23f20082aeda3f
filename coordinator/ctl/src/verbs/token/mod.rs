//! Verbs on join tokens, registered in `crate::verbs`.

pub(super) mod create;
