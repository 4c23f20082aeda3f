//! What `regent-coordinator` does, by verb.

pub mod init;
