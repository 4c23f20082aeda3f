//! The coordinator's own certificate: made by `init`, renewed in the background when a third of its life is left, or when
//! other hosts are advertised than it carries. Agents renew theirs by asking (IdentityService).
//!
//! **Invariant:** a certificate stands in the store before it lies in the identity directory.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use jiff::Timestamp;
use rcgen::KeyPair;
use regent_common::{
    clock::Clock,
    error::ErrorChain,
    identity::{DirectoryError, IdentityDirectory},
    tls::{ReloadingIdentity, TlsError},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::{Authority, Host, Issued, PkiError, Subject};
use crate::{
    identity::record_issued,
    store::{Store, StoreError, Transaction},
};

/// Keeps the coordinator's own certificate fresh.
pub struct OwnCertificate {
    /// Where certificates are recorded.
    pub store: Arc<dyn Store>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Signs.
    pub authority: Arc<Authority>,
    /// The coordinator's identity directory.
    pub directory: IdentityDirectory,
    /// What the process uses of it; reloaded after each renewal.
    pub identity: ReloadingIdentity,
    /// Hosts that the certificate has to carry: see [`server_hosts`].
    pub hosts: BTreeSet<Host>,
    /// How long a certificate is valid.
    pub life: Duration,
}

/// Why the own certificate cannot be made or renewed; the old one stays in use.
#[derive(Debug, thiserror::Error)]
pub enum OwnCertificateError {
    /// The authority.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The identity directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// What was written cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The hosts of the coordinator's certificate: those advertised, and the loopback names always.
pub fn server_hosts(advertised: impl IntoIterator<Item = Host>) -> BTreeSet<Host> {
    let loopback = [
        Host::Name("localhost".to_owned()),
        Host::Address(IpAddr::from(std::net::Ipv4Addr::LOCALHOST)),
        Host::Address(IpAddr::from(std::net::Ipv6Addr::LOCALHOST)),
    ];
    advertised.into_iter().chain(loopback).collect()
}

/// Makes a new key with a certificate, records it together with `transaction`, and puts both into the directory.
pub(crate) async fn issue_with_new_key(
    store: &dyn Store,
    transaction: impl FnOnce(Transaction, &Issued) -> Transaction,
    authority: &Authority,
    directory: &IdentityDirectory,
    subject: &Subject,
    terms: (Duration, Timestamp, &str),
) -> Result<Issued, OwnCertificateError> {
    let (life, now, issued_by) = terms;
    let key = KeyPair::generate().map_err(PkiError::Sign)?;
    let issued = authority.issue(subject, &key, life, now)?;
    let (issued, recording) = record_issued(Transaction::default(), &subject.identity, issued, issued_by, now);
    store.commit(transaction(recording, &issued)).await?;
    directory.store(&issued.chain_pem, &key.serialize_pem().into(), authority.pem())?;
    Ok(issued)
}

// === impl OwnCertificate ===

impl OwnCertificate {
    /// Looks until `stop` whether the certificate has to be renewed.
    pub async fn keep(self, stop: CancellationToken) {
        let period = (self.life / 60).clamp(Duration::from_secs(1), Duration::from_secs(3600));
        loop {
            if let Err(error) = self.renew_if_due().await {
                // A third of its life is left to repair what is wrong.
                let ends = self.identity.not_after();
                tracing::warn!(error = %ErrorChain(&error), %ends, "cannot renew the coordinator's certificate");
            }
            if stop.run_until_cancelled(tokio::time::sleep(period)).await.is_none() {
                return;
            }
        }
    }

    /// Renews the certificate when it is due; true when it did.
    pub async fn renew_if_due(&self) -> Result<bool, OwnCertificateError> {
        let now = self.clock.wall();
        let left = self.identity.not_after().duration_since(now);
        let due = left <= jiff::SignedDuration::try_from(self.life / 3).unwrap_or(jiff::SignedDuration::MAX);
        let carried = hosts_of(&self.directory.load()?.certificate);
        if !due && carried == self.hosts {
            return Ok(false);
        }
        let subject = Subject { identity: self.identity.identity(), hosts: self.hosts.clone() };
        let store = self.store.as_ref();
        let terms = (self.life, now, "renewal");
        let issued = issue_with_new_key(store, |all, _| all, &self.authority, &self.directory, &subject, terms).await?;
        self.identity.reload()?;
        tracing::info!(serial = issued.serial, ends = %issued.not_after, "renewed the coordinator's certificate");
        Ok(true)
    }
}

/// The DNS names and IP addresses that the first certificate of a PEM text carries; none when it cannot be read.
fn hosts_of(pem: &str) -> BTreeSet<Host> {
    let Ok(der) = CertificateDer::from_pem_slice(pem.as_bytes()) else { return BTreeSet::new() };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return BTreeSet::new() };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return BTreeSet::new() };
    names.value.general_names.iter().filter_map(host_of).collect()
}

fn host_of(name: &GeneralName<'_>) -> Option<Host> {
    match name {
        GeneralName::DNSName(name) => Some(Host::Name((*name).to_owned())),
        GeneralName::IPAddress(bytes) => {
            let four = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = four.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(Host::Address)
        }
        _ => None,
    }
}
