//! Certificates at work: the identity that reloads from its directory, the verdict on a caller, the check of a server.
//!
//! It opens no connection (that is `transport`) and issues nothing. Only TLS 1.3 is spoken, and nothing is resumed, so every
//! connection proves possession of a key and is judged by the certificates of that moment.
//!
//! **Invariant:** an identity in use always has a key that fits its certificate; a reload that fails leaves the old one.

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use jiff::Timestamp;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};
use secrecy::ExposeSecret as _;
use tokio_util::sync::CancellationToken;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::{
    clock::wall_now,
    error::{ErrorChain, Reason},
    hex::hex,
    identity::{DirectoryError, Identity, IdentityDirectory, IdentityError, Principal},
};

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The directory cannot be read.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// A file is not the PEM it should be.
    #[error("{name} in {} is not usable: {problem}", path.display())]
    Content {
        /// The directory.
        path: PathBuf,
        /// The file.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The certificate carries no identity.
    #[error("cert.pem in {} names nobody", path.display())]
    Identity {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// The key and the certificate are not a pair, or rustls refuses them.
    #[error("the key and the certificate in {} cannot be used together", path.display())]
    Pair {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// A configuration of TLS cannot be made.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
    /// The authority's certificate is not known, so that the server could not be judged.
    #[error("a server can be judged only with an identity directory or a fingerprint of the authority")]
    NoAuthority,
}

/// Why a caller is nobody to us.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthenticationError {
    /// No certificate was presented.
    #[error("no certificate was presented")]
    NoCertificate,
    /// It was issued by somebody else.
    #[error("the certificate was not issued by this coordinator's authority")]
    UnknownAuthority,
    /// Past its end, or not valid yet.
    #[error("the certificate is expired or not valid yet")]
    Expired,
    /// It cannot be read or carries no identity.
    #[error("the certificate carries no usable identity: {0}")]
    Malformed(String),
    /// It was revoked.
    #[error("the certificate was revoked")]
    Revoked,
}

/// Whom a client wants to find at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExpectedServer {
    /// Exactly this one.
    Identity(Identity),
    /// Any coordinator process of this installation.
    AnyCoordinatorOf(String),
    /// A coordinator whose authority's certificate (DER) has this SHA-256, in hexadecimal; for joining.
    CaFingerprint(String),
}

/// The identity of this process; clones share it and see it reloaded.
#[derive(Debug, Clone)]
pub struct ReloadingIdentity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    directory: IdentityDirectory,
    loaded: RwLock<Arc<Loaded>>,
}

#[derive(Debug)]
struct Loaded {
    pair: Arc<CertifiedKey>,
    authority: Vec<CertificateDer<'static>>,
    identity: Identity,
    serial: String,
    not_after: Timestamp,
}

/// Makes ring the provider of this process for libraries that do not take one; more than once does no harm.
pub fn install_crypto_provider() {
    // An error means that one is installed already.
    let _ = ring::default_provider().install_default();
}

/// SHA-256 of a certificate (DER), in lower-case hexadecimal.
pub fn fingerprint(der: &[u8]) -> String {
    hex(::ring::digest::digest(&::ring::digest::SHA256, der).as_ref())
}

/// The serial number of a certificate (DER): lower-case hexadecimal without leading zero bytes. Revocations use this form.
pub fn serial_of(der: &[u8]) -> Result<String, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
    let raw = certificate.raw_serial();
    Ok(hex(&raw[raw.iter().position(|byte| *byte != 0).unwrap_or(raw.len())..]))
}

/// The end of a certificate's validity.
pub(crate) fn not_after_of(der: &[u8]) -> Result<Timestamp, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::NotACertificate)?;
    // Year 9999 ("no end") may lie past the last timestamp.
    Ok(Timestamp::from_second(certificate.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX))
}

/// Whether `chain` leads to one of `authority` now, as a client's or a server's certificate.
fn check_chain(
    authority: &[CertificateDer<'_>],
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    usage: KeyUsage,
    now: UnixTime,
) -> Result<(), webpki::Error> {
    let anchors = authority.iter().map(anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>()?;
    let algorithms = ring::default_provider().signature_verification_algorithms.all;
    EndEntityCert::try_from(leaf)?.verify_for_usage(algorithms, &anchors, others, now, usage, None, None).map(|_| ())
}

fn unix_now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(wall_now().as_second().try_into().unwrap_or(0)))
}

// === impl AuthenticationError ===

impl AuthenticationError {
    /// The reason to answer with.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCertificate => Reason::NoCertificate,
            Self::UnknownAuthority => Reason::UnknownAuthority,
            Self::Expired => Reason::CertificateExpired,
            Self::Malformed(_) => Reason::MalformedIdentity,
            Self::Revoked => Reason::CertificateRevoked,
        }
    }
}

fn verdict(error: webpki::Error) -> AuthenticationError {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => AuthenticationError::Expired,
        webpki::Error::BadDer | webpki::Error::BadDerTime => AuthenticationError::Malformed(error.to_string()),
        // All else means that no path leads to our authority.
        _ => AuthenticationError::UnknownAuthority,
    }
}

// === impl ReloadingIdentity ===

impl ReloadingIdentity {
    /// Loads the directory.
    pub fn open(directory: &IdentityDirectory) -> Result<Self, TlsError> {
        let loaded = RwLock::new(Arc::new(Loaded::read(directory)?));
        Ok(Self(Arc::new(Inner { directory: directory.clone(), loaded })))
    }

    /// Loads again; true when something changed. On an error the old identity stays in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let fresh = Loaded::read(&self.0.directory)?;
        let current = self.loaded();
        if fresh.pair.cert == current.pair.cert && fresh.authority == current.authority {
            return Ok(false);
        }
        *self.0.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
        Ok(true)
    }

    /// Looks at the files every `period` until `stop`, and loads what changed. New connections use it; old ones go on.
    pub async fn watch(&self, period: Duration, stop: CancellationToken) {
        let mut broken = None;
        while stop.run_until_cancelled(tokio::time::sleep(period)).await.is_some() {
            match self.reload() {
                Ok(true) => {
                    tracing::info!(identity = %self.identity(), serial = self.serial(), "identity reloaded");
                    broken = None;
                }
                Ok(false) => broken = None,
                Err(error) => {
                    let text = ErrorChain(&error).to_string();
                    // Once for each fault, not each period.
                    if broken.as_ref() != Some(&text) {
                        tracing::warn!(error = text, "cannot reload the identity, the old one stays in use");
                        broken = Some(text);
                    }
                }
            }
        }
    }

    /// Who this process is.
    pub fn identity(&self) -> Identity {
        self.loaded().identity.clone()
    }

    /// When its certificate ends.
    pub fn not_after(&self) -> Timestamp {
        self.loaded().not_after
    }

    /// The serial number of its certificate, in the form of [`serial_of`].
    pub fn serial(&self) -> String {
        self.loaded().serial.clone()
    }

    /// Says whom a chain presented by a client speaks for.
    pub fn judge(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, AuthenticationError> {
        let loaded = self.loaded();
        let (leaf, others) = chain.split_first().ok_or(AuthenticationError::NoCertificate)?;
        check_chain(&loaded.authority, leaf, others, KeyUsage::client_auth(), unix_now()).map_err(verdict)?;
        let identity =
            Identity::of_certificate(leaf).map_err(|error| AuthenticationError::Malformed(error.to_string()))?;
        if identity.coordinator_id != loaded.identity.coordinator_id {
            return Err(AuthenticationError::UnknownAuthority);
        }
        Ok(identity)
    }

    /// How a server with this identity speaks TLS. Reloads are followed.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(AnyClient(provider.signature_verification_algorithms));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Setup)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Resolver(self.clone())));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    fn loaded(&self) -> Arc<Loaded> {
        self.0.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// How a client speaks TLS to the server that it expects, with the certificate of this moment.
pub fn client_config(
    identity: Option<&ReloadingIdentity>,
    expected: ExpectedServer,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let loaded = identity.map(ReloadingIdentity::loaded);
    let authority = match (&loaded, &expected) {
        (Some(loaded), _) => loaded.authority.clone(),
        (None, ExpectedServer::CaFingerprint(_)) => Vec::new(),
        (None, ExpectedServer::Identity(_) | ExpectedServer::AnyCoordinatorOf(_)) => return Err(TlsError::NoAuthority),
    };
    let verifier = ServerCheck { authority, expected, algorithms: provider.signature_verification_algorithms };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match loaded {
        Some(loaded) => {
            let pair = SingleCertAndKey::from(loaded.pair.clone());
            builder.with_client_cert_resolver(Arc::new(pair))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

// === impl Loaded ===

impl Loaded {
    fn read(directory: &IdentityDirectory) -> Result<Self, TlsError> {
        let files = directory.load()?;
        let path = || directory.0.clone();
        let content = |name, problem: String| TlsError::Content { path: path(), name, problem };
        let certificates = |name, text: &str| {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
            match found {
                Ok(found) if found.is_empty() => Err(content(name, "it holds no certificate".to_owned())),
                Ok(found) => Ok(found),
                Err(error) => Err(content(name, error.to_string())),
            }
        };
        let mut chain = certificates("cert.pem", &files.certificate)?;
        let authority = certificates("ca.pem", &files.authority)?;
        let key = PrivateKeyDer::from_pem_slice(files.key.expose_secret().as_bytes())
            .map_err(|error| content("key.pem", error.to_string()))?;
        let named = |source| TlsError::Identity { path: path(), source };
        let identity = Identity::of_certificate(&chain[0]).map_err(named)?;
        let serial = serial_of(&chain[0]).map_err(named)?;
        let not_after = not_after_of(&chain[0]).map_err(named)?;
        // A node that joins knows only the fingerprint of the authority, so its certificate goes along.
        for one in &authority {
            if !chain.contains(one) {
                chain.push(one.clone());
            }
        }
        let pair = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|source| TlsError::Pair { path: path(), source })?;
        Ok(Self { pair: Arc::new(pair), authority, identity, serial, not_after })
    }
}

/// Presents the certificate of the moment.
#[derive(Debug)]
struct Resolver(ReloadingIdentity);

// === impl Resolver ===

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.loaded().pair.clone())
    }
}

/// Lets every client in that proves possession of its key, or has none: the verdict falls per request, with a reason.
#[derive(Debug)]
struct AnyClient(WebPkiSupportedAlgorithms);

/// Checks a server: the chain first, then who it is. The host name in the address does not matter.
#[derive(Debug)]
struct ServerCheck {
    authority: Vec<CertificateDer<'static>>,
    expected: ExpectedServer,
    algorithms: WebPkiSupportedAlgorithms,
}

macro_rules! check_signatures {
    ($($algorithms:tt)+) => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, certificate, signature, &self.$($algorithms)+)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, certificate, signature, &self.$($algorithms)+)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.$($algorithms)+.supported_schemes()
        }
    };
}

// === impl AnyClient ===

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    check_signatures!(0);
}

// === impl ServerCheck ===

impl ServerCheck {
    fn check(&self, leaf: &CertificateDer<'_>, others: &[CertificateDer<'_>], now: UnixTime) -> Result<(), String> {
        let pinned: Vec<CertificateDer<'_>>;
        let authority = match &self.expected {
            ExpectedServer::CaFingerprint(wanted) => {
                let fits = |one: &&CertificateDer<'_>| fingerprint(one).eq_ignore_ascii_case(wanted);
                pinned = others.iter().filter(fits).cloned().collect();
                if pinned.is_empty() {
                    return Err("the server's authority does not have the expected fingerprint".to_owned());
                }
                pinned.as_slice()
            }
            ExpectedServer::Identity(_) | ExpectedServer::AnyCoordinatorOf(_) => self.authority.as_slice(),
        };
        check_chain(authority, leaf, others, KeyUsage::server_auth(), now)
            .map_err(|error| format!("the server's certificate does not lead to the authority: {error}"))?;
        let found = Identity::of_certificate(leaf).map_err(|error| error.to_string())?;
        let coordinator = matches!(found.principal, Principal::Coordinator(_));
        let right = match &self.expected {
            ExpectedServer::Identity(wanted) => found == *wanted,
            ExpectedServer::AnyCoordinatorOf(id) => coordinator && found.coordinator_id == *id,
            ExpectedServer::CaFingerprint(_) => coordinator,
        };
        if right { Ok(()) } else { Err(format!("the server is {found}, which is not the expected one")) }
    }
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(end_entity, intermediates, now)
            .map(|()| ServerCertVerified::assertion())
            .map_err(rustls::Error::General)
    }

    check_signatures!(algorithms);
}
