//! Users with identities of their own, and what stands in an identity directory.

use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{CertificateParams, KeyPair};
use regent_common::{identity::IdentityDirectory, tls};
use regent_proto::coordinator::v1 as wire;
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::api::{Api, request_id};

/// Makes a user and stores its identity in a directory, as `regentctl user create` does.
pub async fn create(api: &Api, name: &str, role: wire::UserRole, directory: &Path) -> Result<()> {
    let (request, key) = certificate_request()?;
    let request = wire::CreateUserRequest {
        user: name.to_owned(),
        role: role.into(),
        certificate_request_pem: request,
        request_id: request_id(),
        validate_only: false,
    };
    let answer = api.identities().create_user(request).await?.into_inner();
    let identity = IdentityDirectory::new(directory);
    Ok(identity.store(&answer.certificate_pem, &key.into(), &answer.ca_pem)?)
}

/// A certificate request and the key that belongs to it, both PEM. What it asks for is decided by who signs it.
pub fn certificate_request() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok((request.pem()?, key.serialize_pem()))
}

/// Fingerprint of the authority in an identity directory.
pub fn authority_fingerprint(directory: &Path) -> Result<String> {
    let certificate = CertificateDer::from_pem_file(directory.join("ca.pem")).context("cannot read ca.pem")?;
    Ok(tls::fingerprint(&certificate))
}
