//! The four secrets of a set of credentials, read from their files each time they are needed.

use std::path::Path;

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use tokio::io::AsyncReadExt;

use crate::{config, thingspace::wire};

const MAX_SECRET_BYTES: u64 = 4096;

#[derive(Debug)]
pub(super) struct Secrets {
    key: SecretString,
    secret: SecretString,
    username: SecretString,
    password: SecretString,
    pub(super) fingerprint: Fingerprint,
}

/// Tells credentials apart without holding them: the SHA-256 of the four values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; digest::SHA256_OUTPUT_LEN]);

impl Secrets {
    /// Or which file cannot be read, and why.
    pub(super) async fn read(files: &config::Credentials) -> Result<Self, String> {
        let key = read(&files.key_file).await?;
        let secret = read(&files.secret_file).await?;
        let username = read(&files.username_file).await?;
        let password = read(&files.password_file).await?;
        let mut hash = digest::Context::new(&digest::SHA256);
        for value in [&key, &secret, &username, &password] {
            let value = value.expose_secret().as_bytes();
            hash.update(&value.len().to_be_bytes());
            hash.update(value);
        }
        let fingerprint = hash.finish().as_ref().try_into().expect("SHA-256 has 32 bytes");
        Ok(Self { key, secret, username, password, fingerprint: Fingerprint(fingerprint) })
    }

    /// The `Authorization` of a token request.
    pub(super) fn basic(&self) -> HeaderValue {
        let pair = Zeroizing::new(format!("{}:{}", self.key.expose_secret(), self.secret.expose_secret()));
        let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())))
            .expect("base64 is visible ASCII");
        value.set_sensitive(true);
        value
    }

    /// The body of a login.
    pub(super) fn login(&self) -> Bytes {
        wire::login(&self.username, &self.password)
    }
}

/// The file's text without the line break at its end.
async fn read(path: &Path) -> Result<SecretString, String> {
    let unreadable = |why: &dyn std::fmt::Display| format!("cannot read {}: {why}", path.display());
    let file = tokio::fs::File::open(path).await.map_err(|error| unreadable(&error))?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_SECRET_BYTES + 1).read_to_end(&mut bytes).await.map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > MAX_SECRET_BYTES {
        return Err(unreadable(&format_args!("more than {MAX_SECRET_BYTES} bytes")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| unreadable(&"not UTF-8"))?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(unreadable(&"empty"));
    }
    Ok(text.into())
}
