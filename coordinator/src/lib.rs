//! The coordinator: holds what is wanted of every cluster, decides, and carries out changes as durable operations.

pub mod store;
