//! The coordinator: holds what is wanted of every cluster, decides, and carries out changes as durable operations.

pub mod api {
    //! What the coordinator answers: one file per service, over what they share.

    use regent_common::error::{ErrorChain, Reason, refuse};
    use tonic::Status;

    use crate::store::StoreError;

    pub mod audit;
    pub mod authorization;
    pub mod events;
    pub mod idempotency;

    /// A store that did not do as asked, for the caller.
    pub fn failed_store(error: StoreError) -> Status {
        match error {
            StoreError::Conflict { .. } => refuse(
                Reason::EtagMismatch,
                "somebody else changed this just now: look again and retry; nothing was changed",
            ),
            StoreError::Deposed { .. } => refuse(Reason::NotLeader, "another coordinator has taken over: ask that one"),
            other => refuse(Reason::Internal, ErrorChain(&other).to_string()),
        }
    }
}
pub mod audit;
pub mod events;
mod sequence;
pub mod store;
