//! x
use secrecy::SecretString;
pub struct Secrets;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct SecretError;
impl Secrets {
    pub fn ephemeral() -> Self {
        Self
    }
    pub fn seal(&self, _: &str, _: &SecretString) -> Result<String, SecretError> {
        Ok(String::new())
    }
    pub fn open(&self, _: &str, _: &str) -> Result<SecretString, SecretError> {
        Ok(String::new().into())
    }
}
pub fn generate_password() -> SecretString {
    String::new().into()
}
