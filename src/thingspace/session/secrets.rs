//! The four secrets of a set of credentials, read from their files each time they are needed.

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};

use crate::{config, secret_file::read, thingspace::wire};

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
pub(super) struct Fingerprint(pub(super) [u8; digest::SHA256_OUTPUT_LEN]);

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

#[cfg(test)]
mod tests {
    use super::*;

    /// What the four files hold, and the outcome of reading them.
    async fn read_all(texts: [&[u8]; 4]) -> Result<Secrets, String> {
        let folder = tempfile::tempdir().unwrap();
        let mut paths =
            ["key", "secret", "user", "password"].map(|name| folder.path().join(name)).into_iter();
        for (path, text) in paths.clone().zip(texts) {
            std::fs::write(path, text).unwrap();
        }
        let mut next = || paths.next().unwrap();
        let files = config::Credentials {
            name: "test".into(),
            accounts: vec![],
            key_file: next(),
            secret_file: next(),
            username_file: next(),
            password_file: next(),
        };
        Secrets::read(&files).await
    }

    #[tokio::test]
    async fn one_line_break_at_the_end_is_none_of_the_secret() {
        let plain = read_all([b"k", b"s", b"u", b"p"]).await.unwrap();
        let lines = read_all([b"k\n", b"s\r\n", b"u", b"p\n"]).await.unwrap();
        assert_eq!(plain.fingerprint, lines.fingerprint);
        assert_eq!(plain.basic(), format!("Basic {}", BASE64_STANDARD.encode("k:s")));
        assert_eq!(&lines.login()[..], br#"{"username":"u","password":"p"}"#);
        let kept = read_all([b" k", b"s", b"u", b"p \n\n"]).await.unwrap();
        assert_eq!(&kept.login()[..], br#"{"username":"u","password":"p \n"}"#);
    }

    #[tokio::test]
    async fn each_value_and_its_place_count() {
        let values: [[&[u8]; 4]; 5] = [
            [b"k", b"s", b"u", b"p"],
            [b"k", b"s", b"p", b"u"],
            [b"ks", b"u", b"p", b"x"],
            [b"k", b"su", b"p", b"x"],
            [b"k", b"s", b"u", b"P"],
        ];
        let mut seen = Vec::new();
        for value in values {
            let fingerprint = read_all(value).await.unwrap().fingerprint;
            assert!(!seen.contains(&fingerprint), "{value:?}");
            seen.push(fingerprint);
        }
    }

    #[tokio::test]
    async fn what_cannot_be_a_secret_is_refused_and_not_shown() {
        let long = vec![b'x'; 5000];
        for wrong in [&b""[..], b"\n", b"\xff\xfe", &long] {
            let error = read_all([b"k", b"s", b"u", wrong]).await.unwrap_err();
            assert!(error.contains("password") && error.len() < 500, "{error}");
        }
        let secrets = read_all([b"open", b"sesame", b"ali", b"baba"]).await.unwrap();
        let shown = format!("{secrets:?} {:?}", secrets.basic());
        for word in ["open", "sesame", "ali", "baba", "Basic"] {
            assert!(!shown.contains(word), "{shown}");
        }
    }
}
