//! The four secrets of a set of credentials, and what follows from them: by which name the store knows them, and how it keeps
//! what was had for them.
//!
//! A password may be short, and the store may be read by many. So everything stored follows from a slow hash: neither a
//! fingerprint nor a sealed token lets anybody try passwords quickly.

use std::{num::NonZeroU32, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    digest, hkdf, pbkdf2,
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use bytes::Bytes;
use http::HeaderValue;
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};

use crate::{config, secret_file::read, store::CellName, thingspace::wire};

/// Of PBKDF2-HMAC-SHA256: about a hundredth of a second for each secret that is new.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(30_000).expect("it is not zero");

const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// Tells credentials apart without holding them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) [u8; KEY_BYTES]);

/// What the files hold.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    key: SecretString,
    secret: SecretString,
    username: SecretString,
    password: SecretString,
}

#[derive(Debug)]
pub(super) struct Secrets {
    raw: Raw,
    /// Key and secret of the application.
    pub(super) client: Arc<Identity>,
    /// User name and password.
    pub(super) login: Arc<Identity>,
}

/// A name, and the secret that proves it.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) fingerprint: Fingerprint,
    /// The cell of its guard, which belongs to the name alone.
    pub(super) cell: CellName,
    seal: RandomizedNonceKey,
}

/// Where the names are known: host and port of the login and of the token request.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    login: String,
    client: String,
}

impl Hosts {
    pub(super) fn new(thingspace: &config::ThingSpace) -> Self {
        let token_url = Some(&*thingspace.token_url).filter(|url| !url.is_empty());
        Self {
            login: authority(&thingspace.base_url),
            client: authority(token_url.unwrap_or(&thingspace.base_url)),
        }
    }
}

fn authority(url: &str) -> String {
    let parsed = Url::parse(url).ok();
    let host = parsed.as_ref().and_then(Url::host_str).unwrap_or_default();
    let port = parsed.as_ref().and_then(Url::port_or_known_default).unwrap_or_default();
    format!("{host}:{port}")
}

impl Raw {
    /// Or which file cannot be read, and why.
    pub(super) async fn read(files: &config::Credentials) -> Result<Self, String> {
        Ok(Self {
            key: read(&files.key_file).await?,
            secret: read(&files.secret_file).await?,
            username: read(&files.username_file).await?,
            password: read(&files.password_file).await?,
        })
    }

    fn values(&self) -> [&str; 4] {
        [&self.key, &self.secret, &self.username, &self.password].map(ExposeSecret::expose_secret)
    }
}

impl PartialEq for Raw {
    fn eq(&self, other: &Self) -> bool {
        self.values() == other.values()
    }
}

impl Secrets {
    /// Takes a while: not for an async thread.
    pub(super) fn derive(raw: Raw, hosts: &Hosts) -> Self {
        let [key, secret, username, password] = raw.values();
        let client = Identity::derive("client", &hosts.client, key, key, secret);
        // The user is the same in any case, but what was rejected as `User` may be right as `user`.
        let login = Identity::derive("login", &hosts.login, &username.to_lowercase(), username, password);
        Self { client: Arc::new(client), login: Arc::new(login), raw }
    }

    pub(super) fn raw(&self) -> &Raw {
        &self.raw
    }

    /// The `Authorization` of a token request.
    pub(super) fn basic(&self) -> HeaderValue {
        let [key, secret, ..] = self.raw.values();
        let pair = Zeroizing::new(format!("{key}:{secret}"));
        let mut value = HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())))
            .expect("base64 is visible ASCII");
        value.set_sensitive(true);
        value
    }

    /// The body of a login.
    pub(super) fn login(&self) -> Bytes {
        wire::login(&self.raw.username, &self.raw.password)
    }
}

impl Identity {
    fn derive(kind: &str, host: &str, owner: &str, name: &str, secret: &str) -> Self {
        let mut stretched = Zeroizing::new([0; KEY_BYTES]);
        let salt = hash(&["thingspace-gateway", kind, host, name]);
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ITERATIONS, &salt, secret.as_bytes(), &mut *stretched);
        let root = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &*stretched);
        let expand = |purpose: &str| {
            let mut key = Zeroizing::new([0; KEY_BYTES]);
            root.expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
                .and_then(|okm| okm.fill(&mut *key))
                .expect("HKDF-SHA256 gives 32 bytes");
            key
        };
        let owner = BASE64_URL_SAFE_NO_PAD.encode(hash(&[host, owner]));
        Self {
            fingerprint: Fingerprint(*expand("fingerprint")),
            cell: CellName::permanent(format!("guard/{kind}/{owner}")),
            seal: RandomizedNonceKey::new(&AES_256_GCM, &*expand("seal")).expect("AES-256 takes 32 bytes"),
        }
    }

    /// `None`: there are no random numbers.
    pub(super) fn seal(&self, generation: u64, token: &HeaderValue) -> Option<Vec<u8>> {
        let mut sealed = token.as_bytes().to_vec();
        let nonce = self.seal.seal_in_place_append_tag(self.context(generation), &mut sealed).ok()?;
        Some([nonce.as_ref().as_slice(), &sealed].concat())
    }

    /// `None`: it is not one of ours.
    pub(super) fn open(&self, generation: u64, sealed: &[u8]) -> Option<HeaderValue> {
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let (nonce, token) = sealed.split_at_mut_checked(NONCE_BYTES)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let token = self.seal.open_in_place(nonce, self.context(generation), token).ok()?;
        let mut value = HeaderValue::from_bytes(token).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// What a sealed token belongs to.
    fn context(&self, generation: u64) -> Aad<Vec<u8>> {
        Aad::from([self.cell.name.as_bytes(), &generation.to_be_bytes()].concat())
    }
}

/// SHA-256 of some texts, each with its length.
fn hash(texts: &[&str]) -> [u8; digest::SHA256_OUTPUT_LEN] {
    let mut context = digest::Context::new(&digest::SHA256);
    for text in texts {
        context.update(&(text.len() as u64).to_be_bytes());
        context.update(text.as_bytes());
    }
    context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw([key, secret, username, password]: [&str; 4]) -> Raw {
        Raw { key: key.into(), secret: secret.into(), username: username.into(), password: password.into() }
    }

    fn secrets(values: [&str; 4]) -> Secrets {
        let hosts = Hosts { login: "a:443".into(), client: "a:443".into() };
        Secrets::derive(raw(values), &hosts)
    }

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
        let hosts = Hosts { login: "a:443".into(), client: "a:443".into() };
        Raw::read(&files).await.map(|raw| Secrets::derive(raw, &hosts))
    }

    #[tokio::test]
    async fn one_line_break_at_the_end_is_none_of_the_secret() {
        let plain = read_all([b"k", b"s", b"u", b"p"]).await.unwrap();
        let lines = read_all([b"k\n", b"s\r\n", b"u", b"p\n"]).await.unwrap();
        assert_eq!(plain.raw, lines.raw);
        assert_eq!(plain.basic(), format!("Basic {}", BASE64_STANDARD.encode("k:s")));
        assert_eq!(&lines.login()[..], br#"{"username":"u","password":"p"}"#);
        let kept = read_all([b" k", b"s", b"u", b"p \n\n"]).await.unwrap();
        assert_eq!(&kept.login()[..], br#"{"username":"u","password":"p \n"}"#);
    }

    #[test]
    fn application_and_user_have_fingerprints_of_their_own() {
        let one = secrets(["k", "s", "u", "p"]);
        let of = |values| {
            let other = secrets(values);
            (
                other.client.fingerprint == one.client.fingerprint,
                other.login.fingerprint == one.login.fingerprint,
            )
        };
        assert_eq!(of(["k", "s", "u", "p"]), (true, true));
        assert_eq!(of(["K", "s", "u", "p"]), (false, true));
        assert_eq!(of(["k", "S", "u", "p"]), (false, true));
        assert_eq!(of(["k", "s", "U", "p"]), (true, false));
        assert_eq!(of(["k", "s", "u", "P"]), (true, false));
        assert_eq!(of(["ks", "", "up", ""]), (false, false));
        assert_ne!(secrets(["x", "x", "x", "x"]).login.fingerprint, {
            secrets(["x", "x", "x", "x"]).client.fingerprint
        });
    }

    #[test]
    fn a_cell_belongs_to_a_host_and_a_name() {
        let one = secrets(["k", "s", "user", "p"]);
        let other = secrets(["k", "S", "USER", "P"]);
        assert_eq!((&one.client.cell, &one.login.cell), (&other.client.cell, &other.login.cell));
        let hosts = Hosts { login: "b:443".into(), client: "a:443".into() };
        let elsewhere = Secrets::derive(raw(["k", "s", "user", "p"]), &hosts);
        assert_eq!(elsewhere.client.cell, one.client.cell);
        assert_ne!(elsewhere.login.cell, one.login.cell);
        assert_ne!(elsewhere.login.fingerprint, one.login.fingerprint);
        for (url, host) in [
            ("https://A.example/api", "a.example:443"),
            ("https://a.example:443", "a.example:443"),
            ("http://a.example:80/x", "a.example:80"),
            ("http://[::1]:8080/api", "[::1]:8080"),
        ] {
            assert_eq!(authority(url), host);
        }
    }

    #[test]
    fn only_who_knows_the_secret_opens_a_token_and_only_in_its_place() {
        let (one, other) = (secrets(["k", "s", "u", "p"]), secrets(["k", "S", "u", "P"]));
        let token = HeaderValue::from_static("a token");
        let sealed = one.login.seal(7, &token).unwrap();
        assert!(!sealed.windows(5).any(|part| part == b"token"));
        let opened = one.login.open(7, &sealed).unwrap();
        assert_eq!((&opened, opened.is_sensitive()), (&token, true));
        assert_eq!(one.login.open(8, &sealed), None);
        assert_eq!(other.login.open(7, &sealed), None);
        assert_eq!(one.client.open(7, &sealed), None);
        assert_eq!(one.login.open(7, &sealed[..20]), None);
        assert_eq!(one.login.open(7, &[]), None);
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
