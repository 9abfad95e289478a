//! The user name and password of callbacks: from files, or made here.

use std::path::Path;

use aws_lc_rs::rand;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};

use super::Error;
use crate::{config::MAX_PAIR_CHARS, secret_file, store::StoreError};

/// Of a generated password: 32 characters.
const PASSWORD_BYTES: usize = 24;

/// What ThingSpace is told to put into callbacks.
#[derive(Debug, Clone)]
pub struct Pair {
    pub username: String,
    pub password: SecretString,
}

/// The secret in a file, if ThingSpace takes it for callbacks.
pub(super) async fn read(file: &Path) -> Result<SecretString, Error> {
    let text = secret_file::read(file).await.map_err(Error::Files)?;
    let fits = text.expose_secret().chars().count() <= MAX_PAIR_CHARS;
    let plain = !text.expose_secret().chars().any(char::is_control);
    if fits && plain {
        Ok(text)
    } else {
        let file = file.display();
        Err(Error::Files(format!("{file} holds no text of at most {MAX_PAIR_CHARS} characters")))
    }
}

/// A pair that nobody had before.
pub(super) fn generate() -> Result<Pair, StoreError> {
    let username = format!("gateway-{}", BASE64_URL_SAFE_NO_PAD.encode(random::<6>()?));
    let password = BASE64_URL_SAFE_NO_PAD.encode(random::<PASSWORD_BYTES>()?);
    Ok(Pair { username, password: password.into() })
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| StoreError::Unavailable("no random numbers".to_owned()))?;
    Ok(bytes)
}
