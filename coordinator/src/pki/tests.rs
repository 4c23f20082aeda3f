//! The authority and its certificates, read back as a stranger reads them.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc, time::Duration};

use jiff::Timestamp;
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, PublicKeyData as _, SanType};
use regent_common::{
    clock::{Clock as _, ManualClock, wall_now},
    identity::{Identity, IdentityDirectory},
    tls::{ReloadingIdentity, fingerprint},
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

use super::*;
use crate::store::{Store as _, keys, memory::MemoryStore};

/// Made once by `openssl req -new -newkey rsa:2048`; its key was thrown away.
const RSA_REQUEST: &str = "\
-----BEGIN CERTIFICATE REQUEST-----\n\
MIICUTCCATkCAQAwDDEKMAgGA1UEAwwBeDCCASIwDQYJKoZIhvcNAQEBBQADggEP\n\
ADCCAQoCggEBAMQvwoee5Gj25OlAIH4yIK5iUBgIwmNXqhQ9hLTRjgaMq6oSGhqy\n\
PHzhZGTnr2JX5AfsfTG9bch50fOCkOzd5X8MXO7s8Ln5tbVbsX8wYkGRiHYY17Vk\n\
z3sBXacstOYWj9y4/iFsyEK0rBrCoaI3Bpz51FrEkliWGjPbEFV+1kO0vPCd2Meb\n\
haIVJSo4jGhyc40MHszJuK+6Mdp9jqe0cV3sy8f+05guiMfH+FfXSpdyVXftD0ks\n\
c6+B3+F4emIu/D9icrGTWj3Fgm0BJ/u1hJsoQVxHRSYPb72mKEhnfwAnaQGXcWYk\n\
hDCg/b+qrYpSuB4putz+Lu5c5cXMbDSpmqkCAwEAAaAAMA0GCSqGSIb3DQEBCwUA\n\
A4IBAQCf6c4uyfKgAvQX5Bcj4yYkjbHkQEQuZrgW9COvyx1uO2PPLITzUgk8Cz50\n\
ITNHqCNMTbWUMDYQK+0puvaWs5ud9R2ymUh31D6bT9VI4Z7xoSFedZX23GlEYUu1\n\
2dL9rD5p2eGnPz7Df88VsIxckU7oTunYofw323q0CUqQ5N/1B7SiC2FCHeBhy5oS\n\
UaAUpH5jhkt3gpXDXJi/qEAjvqn4tJ4gN8MyVpUsgyRfSmMtZEwHAh2AiIoNI/No\n\
wDpINeiTy7HtVzLv8XusczYiDN8cU7LFQ371cmLjIIswYYKAKAQQwzUIsqAppte2\n\
mvy3S0KNRc6QQbQVaoESiJWhekzj\n\
-----END CERTIFICATE REQUEST-----\n";

const DAY: Duration = Duration::from_secs(24 * 3600);

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().unwrap()
}

fn subject(identity: &str, hosts: &[&str]) -> Subject {
    Subject { identity: identity.parse().unwrap(), hosts: hosts.iter().map(|host| host.parse().unwrap()).collect() }
}

#[test]
fn an_authority_is_made_once_and_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca");
    let made = Authority::create(&path, "01ABC", wall_now()).unwrap();
    let found = Authority::open(&path).unwrap();
    assert_eq!((made.fingerprint(), made.pem()), (found.fingerprint(), found.pem()));
    assert_eq!(found.fingerprint(), fingerprint(&certificates(found.pem())[0]));
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(&path.join("key.pem"))), (0o700, 0o600));
    assert!(matches!(Authority::create(&path, "01ABC", wall_now()), Err(PkiError::File { .. })));
    assert_eq!(Authority::open(&path).unwrap().fingerprint(), made.fingerprint());
}

#[test]
fn a_crash_while_the_authority_is_made_leaves_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca");
    std::fs::create_dir(folder.path().join("ca.new")).unwrap();
    std::fs::write(folder.path().join("ca.new/key.pem"), "half").unwrap();
    assert!(Authority::open(&path).is_err());
    Authority::create(&path, "01ABC", wall_now()).unwrap();
    assert!(Authority::open(&path).is_ok());
}

#[test]
fn a_foreign_key_beside_the_certificate_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca");
    Authority::create(&path, "01ABC", wall_now()).unwrap();
    std::fs::write(path.join("key.pem"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(Authority::open(&path), Err(PkiError::Content { .. })));
}

#[test]
fn a_certificate_carries_our_names_alone() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::create(&folder.path().join("ca"), "01ABC", wall_now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut wish = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    wish.subject_alt_names.push(SanType::URI("regent://01ABC/user/admin".try_into().unwrap()));
    let request = wish.serialize_request(&key).unwrap().pem().unwrap();
    let public = PublicKey::of_request(&request).unwrap();
    assert_eq!(public.der_bytes(), key.public_key_raw());
    let now = wall_now();
    let wanted = subject("regent://01ABC/node/n1", &["n1", "10.0.0.7"]);
    let issued = authority.issue(&wanted, &public, 90 * DAY, now).unwrap();
    let chain = certificates(&issued.chain_pem);
    assert_eq!(chain.len(), 2, "the authority goes along");
    assert_eq!(fingerprint(&chain[1]), authority.fingerprint());
    assert_eq!(Identity::of_certificate(&chain[0]).unwrap(), wanted.identity);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(names.contains(&GeneralName::DNSName("n1")) && names.contains(&GeneralName::IPAddress(&[10, 0, 0, 7])));
    assert!(!leaf.is_ca());
    let days = (leaf.validity().not_after.timestamp() - now.as_second()) / 86_400;
    assert_eq!(days, 90);
    assert_eq!(leaf.validity().not_after.timestamp(), issued.not_after.as_second());
    assert_eq!(issued.serial, regent_common::tls::serial_of(&chain[0]).unwrap());
    assert_ne!(authority.issue(&wanted, &public, DAY, now).unwrap().serial, issued.serial);
}

#[test]
fn users_cannot_serve_and_nothing_outlives_the_authority() {
    let folder = tempfile::tempdir().unwrap();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let authority = Authority::create(&folder.path().join("ca"), "01ABC", now).unwrap();
    let key = KeyPair::generate().unwrap();
    let late = now + 3600 * DAY;
    let issued = authority.issue(&subject("regent://01ABC/user/ada", &[]), &key, 90 * DAY, late).unwrap();
    assert!(issued.not_after < late + 60 * DAY, "{}", issued.not_after);
    let chain = certificates(&issued.chain_pem);
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    let ended = authority.issue(&subject("regent://01ABC/user/ada", &[]), &key, DAY, now + 4000 * DAY);
    assert!(matches!(ended, Err(PkiError::Ended { .. })));
}

#[test]
fn a_request_must_be_signed_with_its_own_strong_key() {
    let request = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap();
    let key = KeyPair::generate().unwrap();
    let pem = request(&key).pem().unwrap();
    let digest = PublicKey::of_request(&pem).unwrap().digest();
    assert_eq!(PublicKey::of_request(&request(&key).pem().unwrap()).unwrap().digest(), digest);
    assert!(PublicKey::of_request(&request(&KeyPair::generate_for(&PKCS_ED25519).unwrap()).pem().unwrap()).is_ok());
    for bad in ["", "hello", &pem[..pem.len() / 2]] {
        assert_eq!(PublicKey::of_request(bad).unwrap_err(), RequestError::Content, "{bad:?}");
    }
    // The last byte belongs to the signature.
    let mut der = request(&key).der().to_vec();
    *der.last_mut().unwrap() ^= 1;
    let text = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, &der);
    let forged = format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n");
    assert_eq!(PublicKey::of_request(&forged).unwrap_err(), RequestError::Content);
    assert_eq!(PublicKey::of_request(RSA_REQUEST).unwrap_err(), RequestError::Algorithm);
}

#[tokio::test]
async fn the_coordinators_certificate_is_renewed_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(wall_now()));
    let authority = Arc::new(Authority::create(&folder.path().join("ca"), "01ABC", clock.wall()).unwrap());
    let store = Arc::new(MemoryStore::default());
    let directory = IdentityDirectory::new(folder.path().join("identity"));
    let hosts = renewal::server_hosts(["10.0.0.1".parse().unwrap()]);
    let subject = Subject { identity: "regent://01ABC/coordinator/c1".parse().unwrap(), hosts: hosts.clone() };
    let terms = (90 * DAY, clock.wall(), "init");
    renewal::issue_with_new_key(store.as_ref(), |all, _| all, &authority, &directory, &subject, terms).await.unwrap();
    let identity = ReloadingIdentity::open(&directory).unwrap();
    let (first, life) = (identity.serial(), 90 * DAY);
    let mut own = renewal::OwnCertificate {
        store: store.clone(),
        clock: clock.clone(),
        authority,
        directory,
        identity: identity.clone(),
        hosts,
        life,
    };
    clock.advance(59 * DAY);
    assert!(!own.renew_if_due().await.unwrap());
    clock.advance(2 * DAY);
    assert!(own.renew_if_due().await.unwrap());
    assert_ne!(identity.serial(), first);
    assert!(identity.not_after() > clock.wall() + 89 * DAY);
    assert_eq!(identity.identity(), subject.identity);
    assert!(store.get(&keys::certificate(&identity.serial())).await.unwrap().is_some());
    assert!(!own.renew_if_due().await.unwrap());
    own.hosts.insert("new.example".parse().unwrap());
    assert!(own.renew_if_due().await.unwrap() && !own.renew_if_due().await.unwrap());
}
