//! No firewall: for a host whose kernel has none for us, or where it was switched off. An empty list needs none; any other is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use async_trait::async_trait;

use super::{Firewall, FirewallError, Passage};

/// A firewall that is not there.
#[derive(Debug, Clone)]
pub struct NoFirewall {
    why: String,
}

// === impl NoFirewall ===

impl NoFirewall {
    /// `why` there is none and what to do, in a sentence.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into() }
    }
}

#[async_trait]
impl Firewall for NoFirewall {
    fn problem(&self) -> Option<String> {
        Some(self.why.clone())
    }

    async fn keep(&self, passage: Option<Arc<Passage>>) -> Result<u32, FirewallError> {
        match passage {
            None => Ok(0),
            Some(_) => Err(FirewallError::Impossible { why: self.why.clone() }),
        }
    }

    async fn verify(&self) -> Result<Vec<String>, FirewallError> {
        Ok(Vec::new())
    }

    async fn clients(&self, _: &BTreeSet<u16>) -> Result<BTreeMap<IpAddr, u32>, FirewallError> {
        Err(FirewallError::Impossible { why: self.why.clone() })
    }
}
