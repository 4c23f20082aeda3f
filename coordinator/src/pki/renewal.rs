//! Keeps the coordinator's own certificate fresh.
