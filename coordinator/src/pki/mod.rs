//! The installation's own certificate authority.
//!
//! [`Authority`] lies in `STATE_DIR/ca` and signs; [`request`] reads what is to be certified; [`renewal`] keeps the
//! coordinator's own certificate fresh. Who may have a certificate is not decided here (that is [`crate::identity`]).
//!
//! **Invariants:** of a certificate request only the public key is used, after its signature was verified: every name in a
//! certificate comes from us. Every serial number is random and used once. A half-made authority is never seen.

pub mod authority;
pub(crate) mod files;
pub mod host;
pub mod renewal;
pub mod request;
pub mod state_directory;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

pub use authority::{Authority, Issued, Subject};
pub use host::{Host, HostError};
pub use request::{PublicKey, RequestError};
pub use state_directory::StateDirectory;

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file or a folder.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What lies there is no authority.
    #[error("{} is not usable: {problem}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Sign(#[source] rcgen::Error),
    /// The authority itself has ended or ends now.
    #[error("the certificate authority ends at {end}: nothing can be issued any more")]
    Ended {
        /// When.
        end: jiff::Timestamp,
    },
    /// No random bytes.
    #[error("the operating system gives no random bytes")]
    Randomness,
}
