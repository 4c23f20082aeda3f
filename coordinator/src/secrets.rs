//! Seals what is secret in the store (passwords of clusters), so that a copy of the store alone betrays nothing.
//!
//! ChaCha20-Poly1305 with a random nonce under the key in `secrets.key`. Each sealed text is bound to a name: moved to
//! another record it does not open. It does not protect against somebody who has the key file as well.
//!
//! **Invariant:** no secret and no key is in `Debug`, in an error or in a log.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom as _, SystemRandom},
};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroize as _};

use crate::pki::files::write_whole;

/// The key under which secrets are sealed.
pub struct Secrets(LessSafeKey);

/// Why a secret cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The key file is missing or cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The key file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The key file does not hold a key.
    #[error("{} does not hold a key of 32 bytes in base64: restore it from a backup", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
    },
    /// Another key, another name, or damaged.
    #[error(
        "the secret {name} does not open: it was sealed with another secrets.key, for another record, or is damaged"
    )]
    Sealed {
        /// The name that it should be bound to.
        name: String,
    },
    /// No random bytes.
    #[error("the operating system gives no random bytes")]
    Randomness,
}

const KEY_LENGTH: usize = 32;
/// First byte of what is sealed, so that another way to seal can be told apart one day.
const FORMAT: u8 = 1;

/// Makes a password: 32 URL-safe characters, 192 random bits.
pub fn generate_password() -> SecretString {
    let mut bytes = random::<24>().expect("ring's source of randomness does not fail after the first use");
    let password = SecretString::from(URL_SAFE_NO_PAD.encode(bytes));
    bytes.zeroize();
    password
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH], SecretError> {
    let mut bytes = [0; LENGTH];
    SystemRandom::new().fill(&mut bytes).map_err(|_| SecretError::Randomness)?;
    Ok(bytes)
}

// === impl Secrets ===

impl Secrets {
    /// Reads the key file. A missing file is an error: a new key would leave every sealed secret closed for ever.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::File { action: "read", path: path.to_owned(), source };
        let mut text = fs::read_to_string(path).map_err(failed)?;
        let decoded = STANDARD.decode(text.trim());
        text.zeroize();
        let wrong = || SecretError::Key { path: path.to_owned() };
        let mut bytes = decoded.map_err(|_| wrong())?;
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(|_| wrong());
        bytes.zeroize();
        Ok(Self(LessSafeKey::new(key?)))
    }

    /// Makes the key file (mode 0600) when it is missing, durably, and reads it.
    pub fn create(path: &Path) -> Result<Self, SecretError> {
        if !path.exists() {
            let mut bytes = random::<KEY_LENGTH>()?;
            let mut text = STANDARD.encode(bytes);
            bytes.zeroize();
            let written = write_whole(path, &text, 0o600);
            text.zeroize();
            written.map_err(|source| SecretError::File { action: "write", path: path.to_owned(), source })?;
        }
        Self::load(path)
    }

    /// A key that is forgotten when it is dropped; for tests and the simulation.
    pub fn ephemeral() -> Self {
        let bytes = random::<KEY_LENGTH>().expect("a machine that runs tests has random bytes");
        Self(LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).expect("the key has the algorithm's length")))
    }

    /// Seals a secret for the record called `associated`; the answer is base64.
    pub fn seal(&self, associated: &str, secret: &SecretString) -> Result<String, SecretError> {
        let nonce = random::<NONCE_LEN>()?;
        let mut content = secret.expose_secret().as_bytes().to_vec();
        let tag = self
            .0
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(associated.as_bytes()),
                &mut content,
            )
            .map_err(|_| SecretError::Sealed { name: associated.to_owned() })?;
        let sealed = [&[FORMAT][..], &nonce, &content, tag.as_ref()].concat();
        Ok(STANDARD.encode(sealed))
    }

    /// Opens what was sealed for the record called `associated`.
    pub fn open(&self, associated: &str, sealed: &str) -> Result<SecretString, SecretError> {
        let closed = || SecretError::Sealed { name: associated.to_owned() };
        let sealed = STANDARD.decode(sealed).map_err(|_| closed())?;
        let [FORMAT, rest @ ..] = sealed.as_slice() else { return Err(closed()) };
        let (nonce, content) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(closed)?;
        let mut content = content.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.0.open_in_place(nonce, Aad::from(associated.as_bytes()), &mut content);
        let text = opened.ok().and_then(|plain| std::str::from_utf8(plain).ok()).map(SecretString::from);
        content.zeroize();
        text.ok_or_else(closed)
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _};

    use super::*;

    #[test]
    fn what_is_sealed_opens_for_its_own_record_alone() {
        let (secrets, other) = (Secrets::ephemeral(), Secrets::ephemeral());
        for text in ["", "x", "a password with ä"] {
            let sealed = secrets.seal("clusters/a/admin", &text.into()).unwrap();
            assert_eq!(secrets.open("clusters/a/admin", &sealed).unwrap().expose_secret(), text);
            assert!(secrets.open("clusters/b/admin", &sealed).is_err());
            assert!(other.open("clusters/a/admin", &sealed).is_err());
        }
    }

    #[test]
    fn the_same_secret_is_sealed_differently_and_damage_is_noticed() {
        let secrets = Secrets::ephemeral();
        let sealed = secrets.seal("n", &"secret".into()).unwrap();
        assert_ne!(sealed, secrets.seal("n", &"secret".into()).unwrap());
        let whole = STANDARD.decode(&sealed).unwrap();
        for index in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[index] ^= 1;
            assert!(secrets.open("n", &STANDARD.encode(&damaged)).is_err(), "byte {index}");
            assert!(secrets.open("n", &STANDARD.encode(&whole[..index])).is_err(), "length {index}");
        }
    }

    #[test]
    fn the_key_file_is_private_and_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets.key");
        assert!(matches!(Secrets::load(&path), Err(SecretError::File { .. })));
        let sealed = Secrets::create(&path).unwrap().seal("n", &"secret".into()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Secrets::create(&path).unwrap().open("n", &sealed).unwrap().expose_secret(), "secret");
        fs::write(&path, "c2hvcnQ=").unwrap();
        assert!(matches!(Secrets::create(&path), Err(SecretError::Key { .. })));
    }

    #[test]
    fn passwords_are_long_and_never_twice() {
        let passwords: BTreeSet<String> = (0..100).map(|_| generate_password().expose_secret().to_owned()).collect();
        assert_eq!(passwords.len(), 100);
        let fit = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        assert!(passwords.iter().all(|password| password.len() == 32 && password.chars().all(fit)));
    }
}
