//! Reads certificate requests (CSR). Only the public key is taken; names, usages and lifetimes in them are ignored.

use rcgen::{
    CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PublicKeyData,
};
use regent_common::tls::fingerprint;

/// A public key whose holder has proven to have the private one.
#[derive(Debug)]
pub struct PublicKey(rcgen::PublicKey);

/// Why a certificate request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not one, or signed with another key than the one in it.
    #[error("not a certificate request in PEM that is signed with its own key")]
    Content,
    /// A key that is too weak or not known.
    #[error("the key must be ECDSA P-256, ECDSA P-384 or Ed25519")]
    Algorithm,
    /// An extension that the library cannot read; whatever it wishes would not be granted anyway.
    #[error("the certificate request has an extension that is not known: make one without extensions")]
    Extension,
}

// === impl PublicKey ===

impl PublicKey {
    /// Reads a certificate request in PEM and verifies its signature.
    pub fn of_request(pem: &str) -> Result<Self, RequestError> {
        let key = CertificateSigningRequestParams::from_pem(pem)
            .map_err(|error| match error {
                rcgen::Error::UnsupportedSignatureAlgorithm => RequestError::Algorithm,
                rcgen::Error::UnsupportedExtension => RequestError::Extension,
                _ => RequestError::Content,
            })?
            .public_key;
        // The library tells the kind of key by the signature's algorithm; the length says whether they agree.
        let fits = [(&PKCS_ECDSA_P256_SHA256, 65), (&PKCS_ECDSA_P384_SHA384, 97), (&PKCS_ED25519, 32)]
            .iter()
            .any(|(algorithm, length)| key.algorithm() == *algorithm && key.der_bytes().len() == *length);
        if fits { Ok(Self(key)) } else { Err(RequestError::Algorithm) }
    }

    /// SHA-256 of the key, in lower-case hexadecimal: the same key asks again.
    pub fn digest(&self) -> String {
        fingerprint(self.0.der_bytes())
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        PublicKeyData::algorithm(&self.0)
    }
}
