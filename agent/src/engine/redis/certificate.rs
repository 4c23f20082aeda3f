//! This node's certificate for its engine: the files that `[engine.NAME.tls]` names, and whether a member can be known by them. Opens
//! no connection and writes nothing.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use regent_common::clock::wall_now;
use rustls::{
    CertificateError, ClientConfig, RootCertStore,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier as _},
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use secrecy::{ExposeSecret as _, SecretSlice};
use serde::Deserialize;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::flavor::Flavor;
use crate::engine::{DriverError, layout::Layout};

/// `[engine.NAME.tls]` of the agent's configuration: files in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Files {
    /// The certificate, followed by what leads from it to the authority.
    certificate: PathBuf,
    /// Its key.
    key: PathBuf,
    /// The authorities: whoever has a certificate of theirs is believed to be a member.
    ca: PathBuf,
}

/// One of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Certificate,
    Key,
    Ca,
}

/// What is wrong with which file.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    part: Part,
    problem: String,
}

/// By what a file is told from the one that was there before, in the order of [`Part::ALL`]: inode, length, and time of its change.
/// `None` for one that is not there.
pub(super) type Stamps = [Option<(u64, u64, i64, i64)>; 3];

/// The content of the files, and what is made of it.
pub(super) struct Credentials {
    /// In the order of [`Part::ALL`].
    texts: [SecretSlice<u8>; 3],
    chain: Vec<CertificateDer<'static>>,
    authorities: Arc<RootCertStore>,
    client: Arc<ClientConfig>,
    until: Timestamp,
}

// === impl Part ===

impl Part {
    pub(super) const ALL: [Self; 3] = [Self::Certificate, Self::Key, Self::Ca];

    /// Its name in the agent's configuration.
    fn name(self) -> &'static str {
        match self {
            Self::Certificate => "certificate",
            Self::Key => "key",
            Self::Ca => "ca",
        }
    }
}

// === impl Files ===

impl Files {
    fn path(&self, part: Part) -> &Path {
        match part {
            Part::Certificate => &self.certificate,
            Part::Key => &self.key,
            Part::Ca => &self.ca,
        }
    }

    /// By what they are told from those that are there later.
    pub(super) fn stamps(&self) -> Stamps {
        Part::ALL.map(|part| {
            let facts = fs::metadata(self.path(part)).ok()?;
            Some((facts.ino(), facts.len(), facts.mtime(), facts.mtime_nsec()))
        })
    }
}

// === impl Credentials ===

impl Credentials {
    /// Reads the files, and checks that the other members will know by them who has `host`.
    pub(super) fn of_files(flavor: &Flavor, files: &Files, host: &str) -> Result<Self, DriverError> {
        let read = read(|part| files.path(part).to_owned());
        let checked = read.and_then(Self::parse).and_then(|read| read.check(host).map(|()| read));
        checked.map_err(|Fault { part, problem }| DriverError::InvalidSetting {
            name: format!("engine.{}.tls.{}", flavor.name, part.name()),
            problem: format!("{}: {problem}", files.path(part).display()),
        })
    }

    /// What the engine has been given; `None` where it has been given nothing that can be used.
    pub(super) fn of_copies(layout: &Layout) -> Option<Self> {
        read(|part| layout.tls_copy(part)).and_then(Self::parse).ok()
    }

    fn parse(texts: [SecretSlice<u8>; 3]) -> Result<Self, Fault> {
        let [certificate, key, ca] = &texts;
        let fault = |part, problem: String| Fault { part, problem };
        let chain = certificates(certificate).map_err(|problem| fault(Part::Certificate, problem))?;
        let key = PrivateKeyDer::from_pem_slice(key.expose_secret()).map_err(|_| {
            fault(Part::Key, "there is no private key in PEM in it, or only an encrypted one".to_owned())
        })?;
        let mut authorities = RootCertStore::empty();
        let known = certificates(ca).map_err(|problem| fault(Part::Ca, problem))?;
        for authority in &known {
            authorities.add(authority.clone()).map_err(|error| fault(Part::Ca, error.to_string()))?;
        }
        let authorities = Arc::new(authorities);
        let (_, leaf) = X509Certificate::from_der(&chain[0])
            .map_err(|_| fault(Part::Certificate, "what is in it is no certificate".to_owned()))?;
        // The engines' library takes it for one that signed itself, and does not believe it.
        if leaf.subject().as_raw() == leaf.issuer().as_raw() && !known.contains(&chain[0]) {
            let problem = "it has the same subject as its authority: have it issued with another one".to_owned();
            return Err(fault(Part::Certificate, problem));
        }
        // Year 9999 ("no end") may lie past the last timestamp.
        let until = Timestamp::from_second(leaf.validity().not_after.timestamp()).unwrap_or(Timestamp::MAX);
        let mut client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring has ciphers of both versions")
            .with_root_certificates(Arc::clone(&authorities))
            .with_client_auth_cert(chain.clone(), key)
            .map_err(|error| {
                let problem =
                    format!("it is not the key of the certificate ({error}): put that there which it was issued for");
                fault(Part::Key, problem)
            })?;
        // Every connection is judged by the certificates of its moment.
        client.resumption = Resumption::disabled();
        Ok(Self { chain, authorities, client: Arc::new(client), until, texts })
    }

    /// Whether it is believed now, by those who know the same authorities, of whom is reached under this host.
    fn check(&self, host: &str) -> Result<(), Fault> {
        let fault = |problem| Fault { part: Part::Certificate, problem };
        let Ok(name) = ServerName::try_from(host) else {
            return Err(fault(why_not(&CertificateError::NotValidForName, host)));
        };
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::clone(&self.authorities), provider).build();
        let verifier = verifier.map_err(|error| Fault { part: Part::Ca, problem: error.to_string() })?;
        let seconds = wall_now().as_second().try_into().unwrap_or(0);
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        match verifier.verify_server_cert(&self.chain[0], &self.chain[1..], &name, &[], now) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(error)) => Err(fault(why_not(&error, host))),
            Err(error) => Err(fault(error.to_string())),
        }
    }

    /// How the agent speaks TLS to the other members.
    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.client)
    }

    /// The end of the certificate.
    pub(super) fn until(&self) -> Timestamp {
        self.until
    }

    /// What is in a file.
    pub(super) fn text(&self, part: Part) -> &[u8] {
        self.texts[part as usize].expose_secret()
    }

    /// Whether the files are the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Part::ALL.iter().all(|part| self.text(*part) == other.text(*part))
    }
}

fn read(path: impl Fn(Part) -> PathBuf) -> Result<[SecretSlice<u8>; 3], Fault> {
    let text = |part: Part| match fs::read(path(part)) {
        Ok(text) => Ok(SecretSlice::from(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Fault { part, problem: "there is no such file: put it there, or name where it is".to_owned() })
        }
        Err(error) => Err(Fault { part, problem: format!("it cannot be read: {error}") }),
    };
    Ok([text(Part::Certificate)?, text(Part::Key)?, text(Part::Ca)?])
}

/// At least one.
fn certificates(text: &SecretSlice<u8>) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.expose_secret()).collect();
    match found {
        Ok(found) if found.is_empty() => Err("there is no certificate in PEM in it".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("it is no PEM: {error}")),
    }
}

/// Why a certificate does not prove that somebody is reached under this host, and what to do.
pub(super) fn why_not(error: &CertificateError, host: &str) -> String {
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "it has expired: have it renewed".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "it is not valid yet: look at the clocks of the machines".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "it does not name {host}, as which the node is reached: have it issued with that among its alternative names \
             (DNS or IP)"
        ),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "no authority of the file ca has signed it: all members need certificates of authorities that all of them name"
                .to_owned()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::{super::flavor::REDIS, *};

    /// The authority's.
    const NAME: &str = "authority";

    struct Authority(Issuer<'static, KeyPair>, String);

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, NAME);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Self(Issuer::new(params, key), pem)
        }

        /// Certificate and key for a host, from one year to another.
        fn issue(&self, host: &str, years: [i32; 2]) -> (String, String) {
            self.issue_to("member", host, years)
        }

        fn issue_to(&self, name: &str, host: &str, years: [i32; 2]) -> (String, String) {
            let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.not_before = rcgen::date_time_ymd(years[0], 1, 1);
            params.not_after = rcgen::date_time_ymd(years[1], 1, 1);
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
        }
    }

    #[test]
    fn what_is_wrong_with_which_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let files = Files { certificate: path("c"), key: path("k"), ca: path("a") };
        let authority = Authority::new();
        let judged = |texts: [&str; 3], host: &str| {
            for (text, part) in texts.iter().zip(Part::ALL) {
                match text {
                    &"" => drop(fs::remove_file(files.path(part))),
                    text => fs::write(files.path(part), text).unwrap(),
                }
            }
            match Credentials::of_files(&REDIS, &files, host) {
                Ok(_) => String::new(),
                Err(DriverError::InvalidSetting { name, problem }) => format!("{name}: {problem}"),
                Err(error) => panic!("{error}"),
            }
        };
        let (ca, (certificate, key)) = (authority.1.as_str(), authority.issue("10.0.0.1", [2000, 4000]));
        let (certificate, key) = (certificate.as_str(), key.as_str());
        assert_eq!(judged([certificate, key, ca], "10.0.0.1"), "");
        let (other_ca, other_key) = (Authority::new().1, KeyPair::generate().unwrap().serialize_pem());
        let (old, old_key) = authority.issue("10.0.0.1", [2000, 2001]);
        let (namesake, namesake_key) = authority.issue_to(NAME, "10.0.0.1", [2000, 4000]);
        let (early, early_key) = authority.issue("10.0.0.1", [3999, 4000]);
        let cases = [
            (["", key, ca], "10.0.0.1", "tls.certificate", "no such file"),
            ([certificate, "", ca], "10.0.0.1", "tls.key", "no such file"),
            ([certificate, key, ""], "10.0.0.1", "tls.ca", "no such file"),
            ([key, key, ca], "10.0.0.1", "tls.certificate", "no certificate in PEM"),
            ([certificate, certificate, ca], "10.0.0.1", "tls.key", "no private key"),
            ([certificate, key, "nothing"], "10.0.0.1", "tls.ca", "no certificate in PEM"),
            ([certificate, &other_key, ca], "10.0.0.1", "tls.key", "not the key of the certificate"),
            ([&old, &old_key, ca], "10.0.0.1", "tls.certificate", "has expired"),
            ([&early, &early_key, ca], "10.0.0.1", "tls.certificate", "not valid yet"),
            ([&namesake, &namesake_key, ca], "10.0.0.1", "tls.certificate", "the same subject as its authority"),
            ([certificate, key, ca], "10.0.0.2", "tls.certificate", "does not name 10.0.0.2"),
            ([certificate, key, ca], "db.example", "tls.certificate", "does not name db.example"),
            ([certificate, key, ca], "no name", "tls.certificate", "does not name no name"),
            ([certificate, key, &other_ca], "10.0.0.1", "tls.certificate", "no authority of the file ca"),
        ];
        for (texts, host, part, why) in cases {
            let said = judged(texts, host);
            assert!(said.starts_with(&format!("engine.redis.{part}: ")) && said.contains(why), "{part}, {why}: {said}");
        }
    }

    #[test]
    fn other_files_have_another_stamp() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let files = Files { certificate: path("c"), key: path("k"), ca: path("a") };
        assert_eq!(files.stamps(), [None; 3]);
        fs::write(path("c"), "one").unwrap();
        let one = files.stamps();
        assert_eq!(files.stamps(), one);
        fs::write(path("new"), "two").unwrap();
        fs::rename(path("new"), path("c")).unwrap();
        assert_ne!(files.stamps(), one);
    }
}
