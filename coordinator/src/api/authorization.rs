//! x
/// x
#[derive(Clone)]
pub struct Authorized {
    /// x
    pub actor: String,
}
