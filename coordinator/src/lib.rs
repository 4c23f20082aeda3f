//! The coordinator: holds what is wanted of every cluster, decides, and carries out changes as durable operations.

/// The services of this branch alone.
pub mod api {
    pub mod enrollment;
    pub mod identity;
}
pub mod identity;
pub mod model;
pub mod pki;
pub mod secrets;
pub mod store;
