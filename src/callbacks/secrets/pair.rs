//! The pair of user name and password in callbacks.

use std::path::Path;

use aws_lc_rs::rand;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};

use super::SecretsError;
use crate::{config::MAX_PAIR_CHARS, secret_file, store::StoreError};

/// The random bytes of a generated password. In base64 they are 32 characters.
const PASSWORD_BYTES: usize = 24;

/// The user name and password that ThingSpace puts into callbacks.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the names say all")]
pub struct Pair {
    pub username: String,
    pub password: SecretString,
}

impl Pair {
    pub(super) async fn read(username: &Path, password: &Path) -> Result<Self, SecretsError> {
        let username = read(username).await?.expose_secret().to_owned();
        Ok(Self { username, password: read(password).await? })
    }

    pub(super) fn generate() -> Result<Self, StoreError> {
        let username = format!("gateway-{}", BASE64_URL_SAFE_NO_PAD.encode(random::<6>()?));
        let password = BASE64_URL_SAFE_NO_PAD.encode(random::<PASSWORD_BYTES>()?);
        Ok(Self { username, password: password.into() })
    }
}

/// Reads a secret that ThingSpace accepts in a registration.
async fn read(file: &Path) -> Result<SecretString, SecretsError> {
    let text = secret_file::read(file).await.map_err(SecretsError::Files)?;
    let characters = text.expose_secret().chars();
    if characters.clone().count() <= MAX_PAIR_CHARS && !characters.clone().any(char::is_control) {
        return Ok(text);
    }
    Err(SecretsError::Files(format!(
        "{} must have at most {MAX_PAIR_CHARS} characters and no control characters",
        file.display()
    )))
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| StoreError::Unavailable("no random numbers".to_owned()))?;
    Ok(bytes)
}
