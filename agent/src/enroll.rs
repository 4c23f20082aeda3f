//! The agent as a caller of the coordinator: joining, announcing itself, renewing its certificate.
//!
//! **Invariant:** a private key is made here and never leaves this machine; only certificate requests do.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use regent_common::{
    clock::Clock,
    convert::to_wire_time,
    error::ErrorChain,
    ids::NodeName,
    tls::{ExpectedServer, ReloadingIdentity},
    transport::{self, Dialer, TcpDialer, TransportError},
};
use regent_proto::coordinator::v1::{
    AnnounceNodeRequest, JoinNodeRequest, JoinNodeResponse, RenewCertificateRequest, RenewCertificateResponse,
    enrollment_service_client::EnrollmentServiceClient, identity_service_client::IdentityServiceClient,
};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use tonic::{Status, transport::Channel};

use crate::config::Config;

/// How long a coordinator may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// Name of the file that remembers where this node joined.
const FILE: &str = "enrollment.json";

/// Where this node is reached and what it tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// Its agent, as host:port.
    pub agent: String,
    /// Public address; empty when it has none.
    pub public: String,
    /// Private address; empty when it has none.
    pub private: String,
}

/// What a join left behind, beside the identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrollment {
    /// The coordinator's address, as host:port.
    pub coordinator: String,
}

/// What a machine says when it joins.
pub struct Joining {
    /// Fingerprint of the coordinator's CA.
    pub fingerprint: String,
    /// The join token; a secret.
    pub token: String,
    /// Name of the node.
    pub node: NodeName,
    /// Certificate request in PEM.
    pub request: String,
    /// Where it is reached.
    pub addresses: Addresses,
    /// For the platform.
    pub labels: BTreeMap<String, String>,
    /// Whether it remembers nothing: it is new, or its disk was lost.
    pub ledger_empty: bool,
}

/// A new key and the request to certify it.
#[derive(Debug)]
pub struct NewKey {
    /// The key in PEM.
    pub key: SecretString,
    /// The request in PEM.
    pub request: String,
}

/// Why the coordinator was of no help.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// No coordinator is known.
    #[error("no coordinator is known: set \"coordinator\" in agent.toml")]
    NoCoordinator,
    /// It cannot be reached, or is another one.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It took too long.
    #[error("{address} did not answer within {} s", ANSWER_WITHIN.as_secs())]
    Deadline {
        /// Its address.
        address: String,
    },
    /// It said no.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// No key could be made.
    #[error("cannot make a key and a certificate request for {host:?}")]
    Key {
        /// Host that the certificate was to be for.
        host: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
}

/// Makes a key and the request to certify it for a node reached under `host`.
pub fn new_key(host: &str) -> Result<NewKey, EnrollError> {
    let failed = |source| EnrollError::Key { host: host.to_owned(), source };
    let key = KeyPair::generate().map_err(failed)?;
    let params = CertificateParams::new(vec![host.to_owned()]).map_err(failed)?;
    let request = params.serialize_request(&key).and_then(|request| request.pem()).map_err(failed)?;
    Ok(NewKey { key: key.serialize_pem().into(), request })
}

/// The fingerprint of the coordinator's CA in a join token: its part of 64 hexadecimal digits, the last when there are
/// several.
pub fn fingerprint_in(token: &str) -> Option<String> {
    token
        .split(|c: char| !c.is_ascii_alphanumeric())
        .rfind(|part| part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_ascii_lowercase)
}

/// Asks a coordinator, known by the fingerprint of its CA, to make this machine a node.
pub async fn join(coordinator: &str, joining: Joining, clock: &dyn Clock) -> Result<JoinNodeResponse, EnrollError> {
    let channel = transport::connect(coordinator, None, ExpectedServer::CaFingerprint(joining.fingerprint)).await?;
    let message = JoinNodeRequest {
        token: joining.token,
        node: joining.node.to_string(),
        certificate_request_pem: joining.request,
        agent_address: joining.addresses.agent,
        public_address: joining.addresses.public,
        private_address: joining.addresses.private,
        clock: Some(to_wire_time(clock.wall())),
        labels: joining.labels,
        ledger_empty: joining.ledger_empty,
    };
    let call = async { EnrollmentServiceClient::new(channel).join_node(message).await };
    answered(coordinator, call).await
}

async fn answered<T>(
    address: &str,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, EnrollError> {
    match tokio::time::timeout(ANSWER_WITHIN, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(EnrollError::Refused(Box::new(status))),
        Err(_) => Err(EnrollError::Deadline { address: address.to_owned() }),
    }
}

/// Calls the first coordinator that can be reached.
async fn reach(
    dialer: &Arc<dyn Dialer>,
    coordinators: &[String],
    identity: &ReloadingIdentity,
) -> Result<(String, Channel), EnrollError> {
    let expected = || ExpectedServer::AnyCoordinatorOf(identity.identity().coordinator_id);
    let mut last = EnrollError::NoCoordinator;
    for address in coordinators {
        match transport::connect_through(Arc::clone(dialer), address, Some(identity.clone()), expected()).await {
            Ok(channel) => return Ok((address.clone(), channel)),
            Err(error) => last = error.into(),
        }
    }
    Err(last)
}

/// Tells the coordinator that this agent has started, so that it calls at once.
pub async fn announce(
    dialer: &Arc<dyn Dialer>,
    coordinators: &[String],
    identity: &ReloadingIdentity,
    addresses: &Addresses,
    incarnation: &str,
) -> Result<(), EnrollError> {
    let (address, channel) = reach(dialer, coordinators, identity).await?;
    let message = AnnounceNodeRequest {
        incarnation: incarnation.to_owned(),
        agent_address: addresses.agent.clone(),
        public_address: addresses.public.clone(),
        private_address: addresses.private.clone(),
    };
    let call = async { EnrollmentServiceClient::new(channel).announce_node(message).await };
    answered(&address, call).await.map(|_| ())
}

/// The first coordinator that can be reached, by an address of these: it has shown that it is one of ours.
pub async fn answering(
    dialer: &Arc<dyn Dialer>,
    coordinators: &[String],
    identity: &ReloadingIdentity,
) -> Option<String> {
    reach(dialer, coordinators, identity).await.ok().map(|(address, _)| address)
}

/// Has a new key certified for this node's own identity.
pub async fn renew(
    coordinators: &[String],
    identity: &ReloadingIdentity,
    request: String,
) -> Result<RenewCertificateResponse, EnrollError> {
    let dialer: Arc<dyn Dialer> = Arc::new(TcpDialer);
    let (address, channel) = reach(&dialer, coordinators, identity).await?;
    let message = RenewCertificateRequest { certificate_request_pem: request };
    let call = async { IdentityServiceClient::new(channel).renew_certificate(message).await };
    answered(&address, call).await
}

// === impl Addresses ===

impl Addresses {
    /// What the configuration says.
    pub fn of(config: &Config) -> Self {
        Self {
            agent: config.agent_address(),
            public: config.public_address.clone(),
            private: config.private_address.clone(),
        }
    }
}

// === impl Enrollment ===

impl Enrollment {
    fn path(state_dir: &Path) -> PathBuf {
        state_dir.join(FILE)
    }

    /// What was remembered; nothing when this node has not joined, or the file was lost.
    pub fn load(state_dir: &Path) -> Option<Self> {
        let content = std::fs::read(Self::path(state_dir)).ok()?;
        match serde_json::from_slice(&content) {
            Ok(enrollment) => Some(enrollment),
            Err(error) => {
                tracing::warn!(error = %ErrorChain(&error), "{} cannot be read", Self::path(state_dir).display());
                None
            }
        }
    }

    /// Remembers it.
    pub fn store(&self, disk: &dyn crate::ledger::Disk, state_dir: &Path) -> std::io::Result<()> {
        let content = serde_json::to_vec_pretty(self).expect("a text has no keys that are no texts");
        disk.write_durably(&Self::path(state_dir), &content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_is_the_part_of_64_hexadecimal_digits() {
        let fingerprint = "0123456789abcdef".repeat(4);
        for token in [
            format!("regent.{fingerprint}"),
            format!("SECRETsecret.{fingerprint}"),
            format!("{}-{}", "F".repeat(64), fingerprint.to_uppercase()),
            format!("{fingerprint}.c2VjcmV0"),
        ] {
            assert_eq!(fingerprint_in(&token), Some(fingerprint.clone()), "{token}");
        }
        for bad in ["", "secret", &"g".repeat(64), &"a".repeat(63), &"a".repeat(65)] {
            assert_eq!(fingerprint_in(bad), None);
        }
    }

    #[test]
    fn a_key_and_its_request_are_made_for_names_and_addresses() {
        for host in ["127.0.0.1", "node.example", "::1"] {
            let made = new_key(host).unwrap();
            assert!(made.request.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        }
        assert!(new_key("näme").is_err());
    }

    #[test]
    fn an_enrollment_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Enrollment::load(folder.path()), None);
        let enrollment = Enrollment { coordinator: "127.0.0.1:7420".to_owned() };
        enrollment.store(&crate::ledger::RealDisk, folder.path()).unwrap();
        assert_eq!(Enrollment::load(folder.path()), Some(enrollment));
    }
}
