//! What was revoked: kept in the certificates' records, told to the transport and to the agents.

use std::collections::BTreeSet;

use jiff::Timestamp;
use regent_common::transport::Revocations;
use tokio::sync::watch;

use super::Identities;
use crate::{
    model::{certificate::CertificateRecord, token::TokenRecord},
    store::{StoreError, Transaction, get_json, keys, list_json},
};

// === impl Identities ===

impl Identities {
    /// Serial numbers of revoked certificates that have not ended yet, sorted; for the agents.
    pub fn revoked(&self) -> watch::Receiver<Vec<String>> {
        self.revoked.subscribe()
    }

    /// The same set, for the coordinator's own transport.
    pub fn revocations(&self) -> Revocations {
        self.revocations.clone()
    }

    /// Reads the set from the store.
    pub(super) async fn load_revoked(&self) -> Result<(), StoreError> {
        let now = self.now();
        let records = list_json::<CertificateRecord>(self.store(), keys::CERTIFICATES).await?;
        let revoked: BTreeSet<String> = records
            .iter()
            .filter(|(_, stored)| stored.value.revoked_at.is_some() && stored.value.not_after > now)
            .map(|(key, _)| key.last_part().to_owned())
            .collect();
        self.publish(revoked);
        Ok(())
    }

    /// Adds to a transaction the end of these certificates.
    pub(super) async fn end_certificates(
        &self,
        mut transaction: Transaction,
        serials: &[String],
        now: Timestamp,
    ) -> Result<Transaction, StoreError> {
        for serial in serials {
            let key = keys::certificate(serial);
            let Some(stored) = get_json::<CertificateRecord>(self.store(), &key).await? else { continue };
            let revoked_at = stored.value.revoked_at.or(Some(now));
            transaction = transaction
                .require_version(key.clone(), stored.version)
                .put_json(key, &CertificateRecord { revoked_at, ..stored.value });
        }
        Ok(transaction)
    }

    /// Of these serial numbers, those whose certificates have not ended.
    pub(super) async fn unended(&self, serials: &[String], now: Timestamp) -> Result<Vec<String>, StoreError> {
        let mut kept = Vec::new();
        for serial in serials {
            let stored = get_json::<CertificateRecord>(self.store(), &keys::certificate(serial)).await?;
            if stored.is_some_and(|stored| stored.value.not_after > now) {
                kept.push(serial.clone());
            }
        }
        Ok(kept)
    }

    /// Tells everybody that these are revoked as well.
    pub(super) fn publish(&self, serials: impl IntoIterator<Item = String>) {
        let fresh: Vec<String> = serials.into_iter().collect();
        for serial in &fresh {
            self.revocations.revoke(serial.clone());
        }
        self.revoked.send_if_modified(|all| {
            let before = all.len();
            let merged: BTreeSet<String> = all.drain(..).chain(fresh).collect();
            all.extend(merged);
            all.len() != before
        });
    }

    /// Forgets certificates and tokens that ended more than a day ago; answers how many records went.
    pub async fn sweep(&self) -> Result<usize, StoreError> {
        let kept_until = self.now() - std::time::Duration::from_secs(24 * 3600);
        let certificates = list_json::<CertificateRecord>(self.store(), keys::CERTIFICATES).await?;
        let tokens = list_json::<TokenRecord>(self.store(), keys::TOKENS).await?;
        let ended = certificates
            .into_iter()
            .map(|(key, stored)| (key, stored.value.not_after, stored.version))
            .chain(tokens.into_iter().map(|(key, stored)| (key, stored.value.expires_at, stored.version)))
            .filter(|(_, end, _)| *end < kept_until);
        let mut count = 0;
        for (key, _, version) in ended {
            let removal = Transaction::default().require_version(key.clone(), version).delete(key);
            match self.store().commit(removal).await {
                Ok(_) => count += 1,
                // Changed just now: the next sweep looks again.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(count)
    }
}
