//! Join tokens: made here, used in [`super::nodes`].

use std::time::Duration;

use jiff::Timestamp;
use regent_common::{
    error::Reason,
    ids::{ClusterName, NodeName},
    token::JoinToken,
};

use super::{Identities, IdentityError};
use crate::{
    model::{cluster::ClusterRecord, token::TokenRecord},
    pki::PkiError,
    planner::pair::{Foreign, foreign},
    store::{Transaction, get_json, keys},
};

/// What a token is to be good for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenWish {
    /// The one node that it admits; any when absent.
    pub node: Option<NodeName>,
    /// Cluster that the node becomes a replica of.
    pub cluster: Option<ClusterName>,
    /// How long it is good; zero for one hour.
    pub life: Duration,
}

/// A new token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// The token; `None` when the wish was only checked.
    pub token: Option<JoinToken>,
    /// When it ends.
    pub expires_at: Timestamp,
}

const DEFAULT_LIFE: Duration = Duration::from_secs(3600);
const LONGEST_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

// === impl Identities ===

impl Identities {
    /// Makes a token. With `validate_only` it is checked and nothing is made.
    pub async fn create_token(
        &self,
        wish: TokenWish,
        actor: &str,
        validate_only: bool,
    ) -> Result<NewToken, IdentityError> {
        let life = if wish.life.is_zero() { DEFAULT_LIFE } else { wish.life };
        if life > LONGEST_LIFE {
            return Err(IdentityError::field("ttl_seconds", "a join token lives at most 7 days (604800 seconds)"));
        }
        if let Some(cluster) = &wish.cluster {
            self.require_cluster(cluster).await?;
        }
        let now = self.now();
        let expires_at = now + life;
        if validate_only {
            return Ok(NewToken { token: None, expires_at });
        }
        let token = JoinToken::generate(self.settings.authority.fingerprint()).map_err(|_| PkiError::Randomness)?;
        let record = TokenRecord {
            node: wish.node,
            cluster: wish.cluster,
            created_at: now,
            created_by: actor.to_owned(),
            expires_at,
            used: None,
        };
        let key = keys::token(&token.digest());
        self.store().commit(Transaction::default().require_absent(key.clone()).put_json(key, &record)).await?;
        Ok(NewToken { token: Some(token), expires_at })
    }

    pub(super) async fn require_cluster(&self, cluster: &ClusterName) -> Result<(), IdentityError> {
        let Some(stored) = get_json::<ClusterRecord>(self.store(), &keys::cluster(cluster)).await? else {
            let message = format!("there is no cluster {cluster}: see `regentctl cluster list`; nothing was changed");
            return Err(IdentityError::refused(Reason::ClusterNotFound, message));
        };
        match foreign(&stored.value, Foreign::Add) {
            None => Ok(()),
            Some((reason, why)) => {
                let message = format!("no node can join cluster {cluster}: {why}; nothing was changed");
                Err(IdentityError::refused(reason, message))
            }
        }
    }
}
