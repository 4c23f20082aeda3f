//! The join token: what a person carries from the coordinator to a machine that is to become a node.
//!
//! Its text is `regent1.SECRET.FINGERPRINT`: the secret (16 bytes) in URL-safe base64 without padding, and the SHA-256 of the
//! authority's certificate (DER) in hexadecimal, so that the machine knows the coordinator before it trusts anything.
//! The coordinator stores only the digest of the secret.
//!
//! **Invariant:** neither `Debug` nor an error shows the secret; only `Display` does.

use std::{fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    digest::{SHA256, digest},
    rand::{SecureRandom as _, SystemRandom},
};

use crate::hex::hex;

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    secret: [u8; SECRET_LENGTH],
    ca_fingerprint: String,
}

/// Why a text is no join token. The text itself is not repeated: it may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts.
    #[error("the join token is not of the form regent1.SECRET.FINGERPRINT: copy it whole")]
    Form,
    /// A later version, or something else.
    #[error("the join token does not start with \"regent1.\": it is no token of this version")]
    Version,
    /// The secret is damaged.
    #[error("the secret of the join token is damaged: copy it whole")]
    Secret,
    /// The fingerprint is damaged.
    #[error("the fingerprint of the join token is not 64 hexadecimal digits: copy it whole")]
    Fingerprint,
}

/// The operating system gives no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random bytes")]
pub struct NoRandomness;

const SECRET_LENGTH: usize = 16;
const VERSION: &str = "regent1";

// === impl JoinToken ===

impl JoinToken {
    /// Makes a new one for the authority with this fingerprint (lower-case hexadecimal SHA-256).
    pub fn generate(ca_fingerprint: impl Into<String>) -> Result<Self, NoRandomness> {
        let mut secret = [0; SECRET_LENGTH];
        SystemRandom::new().fill(&mut secret).map_err(|_| NoRandomness)?;
        Ok(Self { secret, ca_fingerprint: ca_fingerprint.into() })
    }

    /// The fingerprint of the authority that the joining machine must find, in lower-case hexadecimal.
    pub fn ca_fingerprint(&self) -> &str {
        &self.ca_fingerprint
    }

    /// SHA-256 of the secret in lower-case hexadecimal: what may be stored and logged.
    pub fn digest(&self) -> String {
        hex(digest(&SHA256, &self.secret))
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}.{}", URL_SAFE_NO_PAD.encode(self.secret), self.ca_fingerprint)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("ca_fingerprint", &self.ca_fingerprint).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split('.');
        let (Some(version), Some(secret), Some(fingerprint), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(TokenError::Form);
        };
        if version != VERSION {
            return Err(TokenError::Version);
        }
        let bytes = URL_SAFE_NO_PAD.decode(secret).map_err(|_| TokenError::Secret)?;
        let secret = bytes.try_into().map_err(|_| TokenError::Secret)?;
        if fingerprint.len() != 64 || !fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(TokenError::Fingerprint);
        }
        Ok(Self { secret, ca_fingerprint: fingerprint.to_ascii_lowercase() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_printed_and_is_new_each_time() {
        let token = JoinToken::generate("ab".repeat(32)).unwrap();
        let read: JoinToken = format!(" {token}\n").parse().unwrap();
        assert_eq!(read, token);
        assert_eq!((read.ca_fingerprint(), read.digest()), (token.ca_fingerprint(), token.digest()));
        assert_ne!(JoinToken::generate("ab".repeat(32)).unwrap(), token);
    }

    #[test]
    fn the_secret_is_not_in_debug_nor_is_its_digest_the_secret() {
        let token = JoinToken::generate("ab".repeat(32)).unwrap();
        let text = token.to_string();
        let secret = text.split('.').nth(1).unwrap();
        assert!(!format!("{token:?}").contains(secret) && !token.digest().contains(secret));
    }

    #[test]
    fn damaged_tokens_are_refused() {
        let token = JoinToken::generate("ab".repeat(32)).unwrap().to_string();
        let secret = token.split('.').nth(1).unwrap();
        for (text, error) in [
            ("", TokenError::Form),
            ("regent1.abc", TokenError::Form),
            (&format!("{token}.x"), TokenError::Form),
            (&token.replace("regent1", "regent2"), TokenError::Version),
            (&token.replace(secret, &secret[1..]), TokenError::Secret),
            (&token[..token.len() - 1], TokenError::Fingerprint),
            (&token.replace("abab", "zbab"), TokenError::Fingerprint),
        ] {
            assert_eq!(text.parse::<JoinToken>(), Err(error), "{text:?}");
        }
    }
}
