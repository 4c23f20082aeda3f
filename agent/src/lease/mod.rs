//! The lease of a primary, the gate that ends with it, and the promises that members give each other.
//!
//! - [`holder`]: what a primary may do now (pure); [`promises`]: what a member has promised to another (pure);
//! - [`keeper`]: the one future that does lease work: it drives the gate and asks for endorsement;
//! - [`handle`]: what the rest of the agent sees of it; [`recorder`]: what answers bring into the ledger.
//!
//! **Invariants:** the keeper never waits for a disk, for SQL, for a name or for a lock shared with code that does; it runs on
//! a thread of its own. Nothing but the answer to a question that this process asked, and stamped, confers a lease (rule L1).

pub mod handle;
pub mod holder;
pub mod keeper;
pub mod promises;
pub mod recorder;

pub use handle::{Answer, LeaseError, LeaseHandle};
pub use holder::{Holder, Reign, Standing};
pub use keeper::{Endorsers, Keeper, KeeperTask, Question, Word};
pub use promises::Promises;
