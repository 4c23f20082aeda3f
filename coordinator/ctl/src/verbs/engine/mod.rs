//! Verbs on engines, registered in `crate::verbs`.

pub(super) mod list;
