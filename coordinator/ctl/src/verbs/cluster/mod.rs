//! Verbs on clusters, registered in `crate::verbs`.

pub(super) mod add_member;
pub(super) mod adopt;
pub(super) mod allow;
pub(super) mod compare;
pub(super) mod create;
pub(super) mod credentials;
pub(super) mod delete;
pub(super) mod failover;
pub(super) mod label;
pub(super) mod list;
pub(super) mod pause;
pub(super) mod policy;
pub(super) mod profile;
pub(super) mod promote;
pub(super) mod protect;
pub(super) mod remove_member;
pub(super) mod resume;
pub(super) mod resync;
pub(super) mod show;
pub(super) mod unprotect;
mod update;
