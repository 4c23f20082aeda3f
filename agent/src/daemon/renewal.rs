//! Renews the node's certificate when a third of its life is left, with a new key.
//!
//! A certificate's life is counted in wall time, because that is how others judge it. **Invariant:** the old key stays in
//! use until the new certificate and its key are stored together.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use regent_common::{
    clock::Clock,
    error::ErrorChain,
    identity::{DirectoryError, IdentityDirectory},
    tls::{ReloadingIdentity, TlsError},
};
use tokio_util::sync::CancellationToken;

use crate::enroll::{self, EnrollError};

/// Longest time between two looks at the calendar: the clock may be set meanwhile.
const LOOK_PERIOD: Duration = Duration::from_secs(60);
/// Time between two attempts.
const RETRY_PERIOD: Duration = Duration::from_secs(300);

/// The task that renews.
pub(super) struct Renewal {
    pub(super) identity: ReloadingIdentity,
    pub(super) directory: IdentityDirectory,
    pub(super) coordinators: Vec<String>,
    pub(super) host: String,
    pub(super) clock: Arc<dyn Clock>,
}

/// Why a certificate was not renewed; the old one stays in use.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    /// The coordinator was of no help.
    #[error(transparent)]
    Enroll(#[from] EnrollError),
    /// It could not be stored.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// When a certificate is to be renewed: a third of its life before its end.
fn due(not_before: Timestamp, not_after: Timestamp) -> Timestamp {
    let life = not_after.duration_since(not_before).max(SignedDuration::ZERO);
    not_after.checked_sub(life / 3).unwrap_or(not_after)
}

/// When a certificate's life began; unknown where it cannot be read.
fn not_before(directory: &IdentityDirectory) -> Option<Timestamp> {
    let certificate = directory.load().ok()?.certificate;
    let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).ok()?;
    let seconds = pem.parse_x509().ok()?.validity().not_before.timestamp();
    Timestamp::from_second(seconds).ok()
}

// === impl Renewal ===

impl Renewal {
    pub(super) async fn run(self, stop: CancellationToken) {
        let mut warned = false;
        let mut pause = LOOK_PERIOD;
        loop {
            if self.is_due() {
                match self.renew().await {
                    Ok(()) => {
                        tracing::info!(until = %self.identity.not_after(), "the certificate was renewed");
                        (warned, pause) = (false, LOOK_PERIOD);
                    }
                    Err(error) => {
                        if !warned {
                            let until = self.identity.not_after();
                            tracing::warn!(%until, error = %ErrorChain(&error), "the certificate was not renewed; trying on");
                        }
                        (warned, pause) = (true, RETRY_PERIOD);
                    }
                }
            }
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
        }
    }

    fn is_due(&self) -> bool {
        let now = self.clock.wall();
        not_before(&self.directory).is_some_and(|start| due(start, self.identity.not_after()) <= now)
    }

    async fn renew(&self) -> Result<(), RenewalError> {
        let made = enroll::new_key(&self.host)?;
        let renewed = enroll::renew(&self.coordinators, &self.identity, made.request).await?;
        self.directory.store(&renewed.certificate_pem, &made.key, &renewed.ca_pem)?;
        self.identity.reload()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_third_of_the_life_before_the_end() {
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(due(at(0), at(300)), at(200));
        assert_eq!(due(at(300), at(0)), at(0), "a certificate that was never valid is renewed at its end");
    }
}
