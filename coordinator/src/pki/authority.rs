//! The certificate authority: its key, its certificate, and signing.

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    time::Duration,
};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber,
};
use regent_common::{
    identity::{Identity, Principal},
    tls::{fingerprint, serial_of},
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Host, PkiError};

/// The authority, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    fingerprint: String,
    not_after: Timestamp,
}

/// Who gets a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// Who it is.
    pub identity: Identity,
    /// Names and addresses of its server; none for users.
    pub hosts: BTreeSet<Host>,
}

/// A certificate that was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// The certificate followed by the authority's, in PEM.
    pub chain_pem: String,
    /// Its serial number, in the form of `regent_common::tls::serial_of`.
    pub serial: String,
    /// When its validity ends.
    pub not_after: Timestamp,
}

/// How long the authority lives: ten years.
const LIFE: Duration = Duration::from_secs(3653 * 24 * 3600);
/// How long ago validity begins, for clocks that are a little behind.
const BACKDATED: Duration = Duration::from_secs(300);
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";

// === impl Authority ===

impl Authority {
    /// Makes a new authority in `folder`, all at once; nothing may be there yet.
    pub fn create(folder: &Path, coordinator_id: &str, now: Timestamp) -> Result<Self, PkiError> {
        let key = KeyPair::generate().map_err(PkiError::Sign)?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Regent {coordinator_id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(random_serial()?);
        set_validity(&mut params, now, now + LIFE);
        let certificate = params.self_signed(&key).map_err(PkiError::Sign)?;
        let aside = folder.with_extension("new");
        let failed = |source| PkiError::File { action: "make", path: folder.to_owned(), source };
        place(&aside, folder, &certificate.pem(), &key.serialize_pem()).map_err(failed)?;
        Self::open(folder)
    }

    /// Reads the authority from its folder.
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).map_err(|source| PkiError::File { action: "read", path, source })
        };
        let wrong = |name: &str| {
            let path = folder.join(name);
            move |problem: String| PkiError::Content { path, problem }
        };
        let pem = read(CERTIFICATE)?;
        let key = KeyPair::from_pem(&read(KEY)?).map_err(|_| wrong(KEY)("it holds no private key".to_owned()))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| wrong(CERTIFICATE)(e.to_string()))?;
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|e| wrong(CERTIFICATE)(e.to_string()))?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(wrong(CERTIFICATE)(format!("it does not fit the key in {KEY}")));
        }
        let not_after = Timestamp::from_second(parsed.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX);
        let fingerprint = fingerprint(&der);
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| wrong(CERTIFICATE)(e.to_string()))?;
        Ok(Self { issuer, pem, fingerprint, not_after })
    }

    /// Its certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of its certificate (DER) in lower-case hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Certifies a key. The certificate ends after `life`, or with the authority if that is earlier.
    pub fn issue(
        &self,
        subject: &Subject,
        key: &impl PublicKeyData,
        life: Duration,
        now: Timestamp,
    ) -> Result<Issued, PkiError> {
        let not_after = now.checked_add(life).unwrap_or(Timestamp::MAX).min(self.not_after);
        if not_after <= now {
            return Err(PkiError::Ended { end: self.not_after });
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let (name, serves) = match &subject.identity.principal {
            Principal::Node(name) => (name.as_str(), true),
            Principal::User(name) => (name.as_str(), false),
            Principal::Coordinator(name) => (name.as_str(), true),
        };
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names = alternative_names(subject)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if serves {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        set_validity(&mut params, now, not_after);
        let certificate = params.signed_by(key, &self.issuer).map_err(PkiError::Sign)?;
        let serial = serial_of(certificate.der()).expect("a certificate that was just made can be read");
        // A certificate has whole seconds.
        let not_after = Timestamp::from_second(not_after.as_second()).unwrap_or(not_after);
        Ok(Issued { chain_pem: format!("{}{}", certificate.pem(), self.pem), serial, not_after })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

fn alternative_names(subject: &Subject) -> Result<Vec<SanType>, PkiError> {
    let text = |text: String| text.try_into().map_err(PkiError::Sign);
    let mut names = vec![SanType::URI(text(subject.identity.to_string())?)];
    for host in &subject.hosts {
        names.push(match host {
            Host::Name(name) => SanType::DnsName(text(name.clone())?),
            Host::Address(address) => SanType::IpAddress(*address),
        });
    }
    Ok(names)
}

/// 127 random bits, positive, without leading zero bytes.
fn random_serial() -> Result<SerialNumber, PkiError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| PkiError::Randomness)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn set_validity(params: &mut CertificateParams, now: Timestamp, not_after: Timestamp) {
    let seconds = |time: Timestamp| Duration::from_secs(time.as_second().try_into().unwrap_or(0));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + seconds(now).saturating_sub(BACKDATED);
    params.not_after = epoch + seconds(not_after);
}

/// Writes both files into a folder aside and renames it: after a crash there is a whole authority or none.
fn place(aside: &Path, folder: &Path, certificate: &str, key: &str) -> io::Result<()> {
    match fs::remove_dir_all(aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    DirBuilder::new().mode(0o700).create(aside)?;
    for (name, text, mode) in [(CERTIFICATE, certificate, 0o644), (KEY, key, 0o600)] {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(aside.join(name))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
    }
    File::open(aside)?.sync_all()?;
    // Refused by the kernel when a folder with files is there already.
    fs::rename(aside, folder)?;
    super::files::sync_folder_of(folder)
}
