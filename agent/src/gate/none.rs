//! No gate: for a host whose kernel has none for us, or where it was switched off.
//!
//! Everything else of the fence still holds, a frozen agent is not covered: abilities say so, and a member that cannot be
//! reached is then not failed over by itself (rule G6).

use std::collections::BTreeSet;

use async_trait::async_trait;
use regent_common::clock::Moment;

use super::{Abilities, Gate, GateError, GateState};

/// A gate that is not there.
#[derive(Debug, Clone)]
pub struct NoGate {
    why: String,
}

// === impl NoGate ===

impl NoGate {
    /// `why` there is none and what to do, in a sentence.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

#[async_trait]
impl Gate for NoGate {
    fn abilities(&self) -> Abilities {
        Abilities { problems: vec![self.why.clone()], ..Abilities::default() }
    }

    async fn state(&self) -> Result<GateState, GateError> {
        Ok(GateState::default())
    }

    async fn arm(&self, _: &BTreeSet<u16>) -> Result<(), GateError> {
        Ok(())
    }

    async fn open(&self, _: Option<Moment>) -> Result<(), GateError> {
        Ok(())
    }

    async fn arm_open(&self, _: &BTreeSet<u16>, _: Option<Moment>) -> Result<(), GateError> {
        Ok(())
    }

    async fn close(&self) -> Result<(), GateError> {
        Ok(())
    }

    async fn destroy_sockets(&self) -> Result<u32, GateError> {
        Ok(0)
    }

    async fn disarm(&self) -> Result<(), GateError> {
        Ok(())
    }

    async fn verify(&self) -> Result<Vec<String>, GateError> {
        Ok(Vec::new())
    }
}
