//! What this node has to remember: one file, replaced durably before anything is answered that depends on it.
//!
//! - [`record`]: what the file holds; [`admission`]: what it permits (pure); [`store`]: how it is read and written;
//!   [`disk`]: the seam to the file system.
//!
//! **Invariant:** no record means *unknown*, never *empty* or *zero*: a node with engine data and without a ledger is in
//! quarantine. A wipe of the engine's data never touches the ledger.

pub mod admission;
pub mod disk;
pub mod record;
pub mod store;

#[cfg(test)]
mod tests;

pub use admission::{Admission, Claim, Header, Refusal};
pub use disk::{Disk, RealDisk};
pub use record::{
    Content, DRAIN, Digest, Ledger, Membership, Quarantine, StepKey, StepOutcome, StepRecord, StoredSpec,
};
pub use store::{LedgerError, LedgerStore};
