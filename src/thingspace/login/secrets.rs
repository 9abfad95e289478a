//! The four secrets of a set of credentials, and what is derived from them: the names under which
//! the store knows them, and the keys with which tokens are sealed.
//!
//! A password may be short, and many may be able to read the store. So everything in the store is
//! derived with a slow hash: neither a fingerprint nor a sealed token lets anybody try passwords
//! quickly. A token is sealed twice, with a key of each half of the set. So the tokens of the
//! credentials that were accepted last can be opened after one half has changed, and nobody can
//! open them with the store alone.

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

use super::guard;
use crate::{
    config::{CredentialsConfig, ThingSpaceConfig},
    proto::storage::Guard,
    secret_file::read,
    store::CellName,
    thingspace::http::wire,
};

/// Rounds of PBKDF2-HMAC-SHA256, as OWASP recommends: about a fifth of a second for each new
/// secret.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).expect("it is not zero");

/// Those of derivation 0, with which earlier releases stored fingerprints and sealed tokens.
const EARLIER_ITERATIONS: NonZeroU32 = NonZeroU32::new(30_000).expect("it is not zero");

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
    /// Derived from the other half of the set of credentials.
    other_half: RandomizedNonceKey,
    /// As an earlier release derived them.
    earlier_fingerprint: Fingerprint,
    earlier_seal: RandomizedNonceKey,
}

/// The name and the secret of one half of a set of credentials, and what they are for.
struct Half<'a> {
    kind: &'static str,
    host: &'a str,
    name: &'a str,
    secret: &'a str,
}

/// Where the names are known: host and port of the login and of the token request.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    login: String,
    client: String,
}

impl Hosts {
    pub(super) fn new(thingspace: &ThingSpaceConfig) -> Self {
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
    pub(super) async fn read(files: &CredentialsConfig) -> Result<Self, String> {
        Ok(Self {
            key: read(&files.key_file).await?,
            secret: read(&files.secret_file).await?,
            username: read(&files.username_file).await?,
            password: read(&files.password_file).await?,
        })
    }

    pub(super) fn password(&self) -> &SecretString {
        &self.password
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
        let client = Half { kind: "client", host: &hosts.client, name: key, secret };
        let login = Half { kind: "login", host: &hosts.login, name: username, secret: password };
        let (of_client, of_login) = (client.stretch(ITERATIONS), login.stretch(ITERATIONS));
        let client = Identity::derive(&client, key.trim(), &of_client, &of_login);
        // The user is the same in any case, but a password that was rejected for `User` may be
        // right for `user`.
        let login = Identity::derive(&login, &owner(username), &of_login, &of_client);
        Self { client: Arc::new(client), login: Arc::new(login), raw }
    }

    pub(super) fn raw(&self) -> &Raw {
        &self.raw
    }

    /// The `Authorization` of a token request.
    pub(super) fn basic(&self) -> HeaderValue {
        let [key, secret, ..] = self.raw.values();
        let pair = Zeroizing::new(format!("{key}:{secret}"));
        let mut value =
            HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())))
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
    fn derive(half: &Half<'_>, owner: &str, root: &hkdf::Prk, other_half: &hkdf::Prk) -> Self {
        let &Half { kind, host, .. } = half;
        let earlier = half.stretch(EARLIER_ITERATIONS);
        let seal = |root: &hkdf::Prk, purpose: &str| {
            RandomizedNonceKey::new(&AES_256_GCM, &*expand(root, purpose))
                .expect("AES-256 takes 32 bytes")
        };
        let owner = BASE64_URL_SAFE_NO_PAD.encode(hash(&[host, owner]));
        Self {
            fingerprint: Fingerprint(*expand(root, "fingerprint")),
            cell: CellName::permanent(format!("guard/{kind}/{owner}")),
            seal: seal(root, "seal"),
            other_half: seal(other_half, "seal for the other half"),
            earlier_fingerprint: Fingerprint(*expand(&earlier, "fingerprint")),
            earlier_seal: seal(&earlier, "seal"),
        }
    }

    /// A guard that an earlier release may have written, with this fingerprint as it is derived
    /// now.
    pub(super) fn renamed(&self, guard: Guard) -> Guard {
        guard::renamed(guard, &self.earlier_fingerprint.0, &self.fingerprint.0)
    }

    /// For this half and for the other one. `None`: there are no random numbers.
    pub(super) fn seal(&self, generation: u64, token: &HeaderValue) -> Option<[Vec<u8>; 2]> {
        let own = self.seal_with(&self.seal, generation, token)?;
        Some([own, self.seal_with(&self.other_half, generation, token)?])
    }

    fn seal_with(
        &self,
        key: &RandomizedNonceKey,
        generation: u64,
        token: &HeaderValue,
    ) -> Option<Vec<u8>> {
        let mut sealed = token.as_bytes().to_vec();
        let nonce = key.seal_in_place_append_tag(self.context(generation), &mut sealed).ok()?;
        Some([nonce.as_ref().as_slice(), &sealed].concat())
    }

    /// `None`: it is not one of ours.
    pub(super) fn open(&self, generation: u64, sealed: &[u8]) -> Option<HeaderValue> {
        let keys = [&self.seal, &self.earlier_seal];
        keys.into_iter().find_map(|key| self.open_with(key, generation, sealed))
    }

    /// A token of other credentials of the same name, sealed for the other half.
    pub(super) fn open_for_other_half(
        &self,
        generation: u64,
        sealed: &[u8],
    ) -> Option<HeaderValue> {
        self.open_with(&self.other_half, generation, sealed)
    }

    fn open_with(
        &self,
        key: &RandomizedNonceKey,
        generation: u64,
        sealed: &[u8],
    ) -> Option<HeaderValue> {
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let (nonce, token) = sealed.split_at_mut_checked(NONCE_BYTES)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let token = key.open_in_place(nonce, self.context(generation), token).ok()?;
        let mut value = HeaderValue::from_bytes(token).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// What a sealed token belongs to.
    fn context(&self, generation: u64) -> Aad<Vec<u8>> {
        Aad::from([self.cell.name.as_bytes(), &generation.to_be_bytes()].concat())
    }
}

impl Half<'_> {
    /// Slow on purpose.
    fn stretch(&self, iterations: NonZeroU32) -> hkdf::Prk {
        let mut stretched = Zeroizing::new([0; KEY_BYTES]);
        let salt = hash(&["thingspace-gateway", self.kind, self.host, self.name]);
        let secret = self.secret.as_bytes();
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, secret, &mut *stretched);
        hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &*stretched)
    }
}

fn expand(root: &hkdf::Prk, purpose: &str) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    root.expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut *key))
        .expect("HKDF-SHA256 gives 32 bytes");
    key
}

/// ThingSpace knows a user in any case, and a blank at either end is a slip of the file.
fn owner(username: &str) -> String {
    username.trim().to_lowercase()
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
    use crate::proto::storage::GuardCandidate;

    fn raw([key, secret, username, password]: [&str; 4]) -> Raw {
        Raw {
            key: key.into(),
            secret: secret.into(),
            username: username.into(),
            password: password.into(),
        }
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
        let files = CredentialsConfig {
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
        for padded in [[b" k" as &[u8], b"s", b"u", b"p"], [b"k", b"s", b"u", b"p \n\n"]] {
            assert!(
                read_all(padded).await.is_err(),
                "ThingSpace would count it as a rejected login"
            );
        }
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
        let other = secrets(["k ", "S", " USER", "P"]);
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
    fn only_the_secrets_open_a_token_and_only_in_its_place() {
        let (one, other) = (secrets(["k", "s", "u", "p"]), secrets(["k", "S", "u", "P"]));
        let token = HeaderValue::from_static("a token");
        let [sealed, for_other_half] = one.login.seal(7, &token).unwrap();
        for sealed in [&sealed, &for_other_half] {
            assert!(!sealed.windows(5).any(|part| part == b"token"));
        }
        let opened = one.login.open(7, &sealed).unwrap();
        assert_eq!((&opened, opened.is_sensitive()), (&token, true));
        assert_eq!(one.login.open(8, &sealed), None);
        assert_eq!(other.login.open(7, &sealed), None);
        assert_eq!(one.client.open(7, &sealed), None);
        assert_eq!(one.login.open(7, &sealed[..20]), None);
        assert_eq!(one.login.open(7, &[]), None);
    }

    #[test]
    fn a_token_outlives_a_change_of_one_half() {
        let one = secrets(["k", "s", "u", "p"]);
        let token = HeaderValue::from_static("a token");
        let session = &one.login.seal(7, &token).unwrap()[1];
        let opened = |of: [&str; 4]| secrets(of).login.open_for_other_half(7, session);
        assert_eq!(opened(["k", "s", "u", "P"]).as_ref(), Some(&token));
        assert_eq!(opened(["k", "S", "u", "p"]), None);
        assert_eq!(opened(["k", "s", "other", "p"]), None);
        let bearer = &one.client.seal(7, &token).unwrap()[1];
        let opened = |of: [&str; 4]| secrets(of).client.open_for_other_half(7, bearer);
        assert_eq!(opened(["k", "S", "u", "p"]).as_ref(), Some(&token));
        assert_eq!(opened(["k", "s", "u", "P"]), None);
    }

    /// Computed without this code: what release 0.1 stored for this user and password.
    #[test]
    fn what_an_earlier_release_stored_is_recognised() {
        let stored = "a95f1443e6d91773840ebe59b797fd1a015eec39af4c87fc4d2c1627f66513ea";
        let one = secrets(["k", "s", "u", "p"]);
        let earlier =
            u128::from_be_bytes(one.login.earlier_fingerprint.0[..16].try_into().unwrap());
        assert!(stored.starts_with(&format!("{earlier:032x}")));
        let fingerprint = one.login.earlier_fingerprint.0.to_vec();
        let token = HeaderValue::from_static("a token");
        let sealed = one.login.seal_with(&one.login.earlier_seal, 7, &token).unwrap();
        let candidate =
            GuardCandidate { fingerprint, strikes: 2, sealed, ..GuardCandidate::default() };
        let guard = one.login.renamed(Guard { candidates: vec![candidate], ..Guard::default() });
        let candidate = guard.candidate(&one.login.fingerprint.0).unwrap();
        assert_eq!((candidate.strikes, candidate.derivation), (2, guard::DERIVATION));
        assert_eq!(one.login.open(7, &candidate.sealed), Some(token));
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
