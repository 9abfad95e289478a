//! The four secrets of a set of credentials, and what is derived from them: the names of the guards
//! in the store, and the keys that seal tokens.
//!
//! A password may be short, and many people may be able to read the store. So everything in the
//! store is derived with a slow hash: neither a fingerprint nor a sealed token helps anyone to
//! guess passwords quickly. A token is sealed twice, with a key of each half of the credentials. So
//! the tokens of the credentials that were accepted last can be opened after one half has changed,
//! and never with the store alone.

use std::{num::NonZeroU32, sync::Arc};

use aws_lc_rs::{hkdf, pbkdf2};
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
    crypto::{SealingKey, digest_of},
    proto::storage::Guard,
    secret_file::read,
    store::CellName,
    thingspace::http::wire,
};

/// Rounds of PBKDF2-HMAC-SHA256, as OWASP recommends: about 0.2 s for each new secret.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(600_000).expect("it is not zero");

/// The rounds of derivation 0, with which earlier releases stored fingerprints and sealed tokens.
const EARLIER_ITERATIONS: NonZeroU32 = NonZeroU32::new(30_000).expect("it is not zero");

const KEY_BYTES: usize = 32;

/// Identifies a name with its secret, and reveals neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) [u8; KEY_BYTES]);

/// The two halves of a set of credentials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Half {
    /// Key and secret; gets the bearer token.
    Application,
    /// User name and password; gets the session token.
    User,
}

/// What the files contain.
#[derive(Debug, Clone)]
pub(super) struct RawSecrets {
    key: SecretString,
    secret: SecretString,
    username: SecretString,
    password: SecretString,
}

#[derive(Debug)]
pub(super) struct CredentialSecrets {
    raw: RawSecrets,
    pub(super) application: Arc<HalfIdentity>,
    pub(super) user: Arc<HalfIdentity>,
}

/// What is derived from the name and the secret of one half.
#[derive(Debug)]
pub(super) struct HalfIdentity {
    pub(super) fingerprint: Fingerprint,
    /// The cell of the guard, which depends only on the name.
    pub(super) cell: CellName,
    seal: SealingKey,
    /// A key of the other half of the credentials.
    other_half: SealingKey,
    /// As earlier releases derived them.
    earlier_fingerprint: Fingerprint,
    earlier_seal: SealingKey,
}

/// Host and port of the server that knows the user, and of the one that knows the application.
#[derive(Debug, Clone)]
pub(super) struct Hosts {
    user: String,
    application: String,
}

impl Hosts {
    pub(super) fn new(thingspace: &ThingSpaceConfig) -> Self {
        let token_url = Some(&*thingspace.token_url).filter(|url| !url.is_empty());
        Self {
            user: authority(&thingspace.base_url),
            application: authority(token_url.unwrap_or(&thingspace.base_url)),
        }
    }
}

fn authority(url: &str) -> String {
    let parsed = Url::parse(url).ok();
    let host = parsed.as_ref().and_then(Url::host_str).unwrap_or_default();
    let port = parsed.as_ref().and_then(Url::port_or_known_default).unwrap_or_default();
    format!("{host}:{port}")
}

impl RawSecrets {
    /// An error says which file cannot be read, and why.
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

impl PartialEq for RawSecrets {
    fn eq(&self, other: &Self) -> bool {
        self.values() == other.values()
    }
}

impl CredentialSecrets {
    /// Takes about a second of CPU time: not for an async thread.
    pub(super) fn derive(raw: RawSecrets, hosts: &Hosts) -> Self {
        let [key, secret, username, password] = raw.values();
        let application_root = |rounds| stretch("client", &hosts.application, key, secret, rounds);
        let user_root = |rounds| stretch("login", &hosts.user, username, password, rounds);
        let (of_application, of_user) = (application_root(ITERATIONS), user_root(ITERATIONS));
        let application = HalfIdentity::derive(
            guard_cell("client", &hosts.application, key.trim()),
            &of_application,
            &of_user,
            &application_root(EARLIER_ITERATIONS),
        );
        // ThingSpace ignores the case of a user name, and a blank at either end is a mistake in the
        // file. But a password that was rejected for `User` may be right for `user`, so only the
        // cell ignores the case.
        let user = HalfIdentity::derive(
            guard_cell("login", &hosts.user, &username.trim().to_lowercase()),
            &of_user,
            &of_application,
            &user_root(EARLIER_ITERATIONS),
        );
        Self { application: Arc::new(application), user: Arc::new(user), raw }
    }

    pub(super) fn raw(&self) -> &RawSecrets {
        &self.raw
    }

    pub(super) fn identity(&self, half: Half) -> &Arc<HalfIdentity> {
        match half {
            Half::Application => &self.application,
            Half::User => &self.user,
        }
    }

    /// The `Authorization` header of a token request.
    pub(super) fn basic(&self) -> HeaderValue {
        let [key, secret, ..] = self.raw.values();
        let pair = Zeroizing::new(format!("{key}:{secret}"));
        let mut value =
            HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())))
                .expect("base64 is visible ASCII");
        value.set_sensitive(true);
        value
    }

    pub(super) fn login_body(&self) -> Bytes {
        wire::login(&self.raw.username, &self.raw.password)
    }
}

impl HalfIdentity {
    fn derive(
        cell: CellName,
        own: &hkdf::Prk,
        other_half: &hkdf::Prk,
        earlier: &hkdf::Prk,
    ) -> Self {
        let seal = |root: &hkdf::Prk, purpose: &str| SealingKey::new(&expand(root, purpose));
        Self {
            fingerprint: Fingerprint(*expand(own, "fingerprint")),
            cell,
            seal: seal(own, "seal"),
            other_half: seal(other_half, "seal for the other half"),
            earlier_fingerprint: Fingerprint(*expand(earlier, "fingerprint")),
            earlier_seal: seal(earlier, "seal"),
        }
    }

    /// Returns a guard that an earlier release may have written, with the present fingerprint.
    pub(super) fn renamed(&self, guard: Guard) -> Guard {
        guard::renamed(guard, &self.earlier_fingerprint.0, &self.fingerprint.0)
    }

    /// Seals a token for this half and for the other one. `None`: the system has no random numbers.
    pub(super) fn seal(&self, generation: u64, token: &HeaderValue) -> Option<[Vec<u8>; 2]> {
        let seal = |key: &SealingKey| key.seal(&self.context(generation), token.as_bytes());
        Some([seal(&self.seal)?, seal(&self.other_half)?])
    }

    /// Opens a token that was sealed for this half. `None`: it was sealed with other credentials.
    pub(super) fn open(&self, generation: u64, sealed: &[u8]) -> Option<HeaderValue> {
        let keys = [&self.seal, &self.earlier_seal];
        keys.into_iter().find_map(|key| self.open_with(key, generation, sealed))
    }

    /// Opens a token of this name that was sealed for the other half.
    pub(super) fn open_for_other_half(
        &self,
        generation: u64,
        sealed: &[u8],
    ) -> Option<HeaderValue> {
        self.open_with(&self.other_half, generation, sealed)
    }

    fn open_with(&self, key: &SealingKey, generation: u64, sealed: &[u8]) -> Option<HeaderValue> {
        let token = key.open(&self.context(generation), sealed)?;
        let mut value = HeaderValue::from_bytes(&token).ok()?;
        value.set_sensitive(true);
        Some(value)
    }

    /// Binds a sealed token to its cell and its generation.
    fn context(&self, generation: u64) -> Vec<u8> {
        [self.cell.name.as_bytes(), &generation.to_be_bytes()].concat()
    }
}

fn guard_cell(kind: &str, host: &str, owner: &str) -> CellName {
    let owner = BASE64_URL_SAFE_NO_PAD.encode(digest_of(&[host, owner]));
    CellName::permanent(format!("guard/{kind}/{owner}"))
}

/// Slow on purpose.
fn stretch(kind: &str, host: &str, name: &str, secret: &str, iterations: NonZeroU32) -> hkdf::Prk {
    let mut stretched = Zeroizing::new([0; KEY_BYTES]);
    let salt = digest_of(&["thingspace-gateway", kind, host, name]);
    let secret = secret.as_bytes();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, secret, &mut *stretched);
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, &*stretched)
}

fn expand(root: &hkdf::Prk, purpose: &str) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    root.expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
        .and_then(|okm| okm.fill(&mut *key))
        .expect("HKDF-SHA256 gives 32 bytes");
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::storage::GuardCandidate;

    fn raw([key, secret, username, password]: [&str; 4]) -> RawSecrets {
        RawSecrets {
            key: key.into(),
            secret: secret.into(),
            username: username.into(),
            password: password.into(),
        }
    }

    fn secrets(values: [&str; 4]) -> CredentialSecrets {
        let hosts = Hosts { user: "a:443".into(), application: "a:443".into() };
        CredentialSecrets::derive(raw(values), &hosts)
    }

    /// What the four files hold, and the outcome of reading them.
    async fn read_all(texts: [&[u8]; 4]) -> Result<CredentialSecrets, String> {
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
        let hosts = Hosts { user: "a:443".into(), application: "a:443".into() };
        RawSecrets::read(&files).await.map(|raw| CredentialSecrets::derive(raw, &hosts))
    }

    #[tokio::test]
    async fn one_line_break_at_the_end_is_none_of_the_secret() {
        let plain = read_all([b"k", b"s", b"u", b"p"]).await.unwrap();
        let lines = read_all([b"k\n", b"s\r\n", b"u", b"p\n"]).await.unwrap();
        assert_eq!(plain.raw, lines.raw);
        assert_eq!(plain.basic(), format!("Basic {}", BASE64_STANDARD.encode("k:s")));
        assert_eq!(&lines.login_body()[..], br#"{"username":"u","password":"p"}"#);
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
                other.application.fingerprint == one.application.fingerprint,
                other.user.fingerprint == one.user.fingerprint,
            )
        };
        assert_eq!(of(["k", "s", "u", "p"]), (true, true));
        assert_eq!(of(["K", "s", "u", "p"]), (false, true));
        assert_eq!(of(["k", "S", "u", "p"]), (false, true));
        assert_eq!(of(["k", "s", "U", "p"]), (true, false));
        assert_eq!(of(["k", "s", "u", "P"]), (true, false));
        assert_eq!(of(["ks", "", "up", ""]), (false, false));
        assert_ne!(secrets(["x", "x", "x", "x"]).user.fingerprint, {
            secrets(["x", "x", "x", "x"]).application.fingerprint
        });
    }

    #[test]
    fn a_cell_belongs_to_a_host_and_a_name() {
        let one = secrets(["k", "s", "user", "p"]);
        let other = secrets(["k ", "S", " USER", "P"]);
        assert_eq!(
            (&one.application.cell, &one.user.cell),
            (&other.application.cell, &other.user.cell)
        );
        let hosts = Hosts { user: "b:443".into(), application: "a:443".into() };
        let elsewhere = CredentialSecrets::derive(raw(["k", "s", "user", "p"]), &hosts);
        assert_eq!(elsewhere.application.cell, one.application.cell);
        assert_ne!(elsewhere.user.cell, one.user.cell);
        assert_ne!(elsewhere.user.fingerprint, one.user.fingerprint);
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
        let [sealed, for_other_half] = one.user.seal(7, &token).unwrap();
        for sealed in [&sealed, &for_other_half] {
            assert!(!sealed.windows(5).any(|part| part == b"token"));
        }
        let opened = one.user.open(7, &sealed).unwrap();
        assert_eq!((&opened, opened.is_sensitive()), (&token, true));
        assert_eq!(one.user.open(8, &sealed), None);
        assert_eq!(other.user.open(7, &sealed), None);
        assert_eq!(one.application.open(7, &sealed), None);
        assert_eq!(one.user.open(7, &sealed[..20]), None);
        assert_eq!(one.user.open(7, &[]), None);
    }

    #[test]
    fn a_token_outlives_a_change_of_one_half() {
        let one = secrets(["k", "s", "u", "p"]);
        let token = HeaderValue::from_static("a token");
        let session = &one.user.seal(7, &token).unwrap()[1];
        let opened = |of: [&str; 4]| secrets(of).user.open_for_other_half(7, session);
        assert_eq!(opened(["k", "s", "u", "P"]).as_ref(), Some(&token));
        assert_eq!(opened(["k", "S", "u", "p"]), None);
        assert_eq!(opened(["k", "s", "other", "p"]), None);
        let bearer = &one.application.seal(7, &token).unwrap()[1];
        let opened = |of: [&str; 4]| secrets(of).application.open_for_other_half(7, bearer);
        assert_eq!(opened(["k", "S", "u", "p"]).as_ref(), Some(&token));
        assert_eq!(opened(["k", "s", "u", "P"]), None);
    }

    /// Computed without this code: what release 0.1 stored for this user and password.
    #[test]
    fn what_an_earlier_release_stored_is_recognised() {
        let stored = "a95f1443e6d91773840ebe59b797fd1a015eec39af4c87fc4d2c1627f66513ea";
        let one = secrets(["k", "s", "u", "p"]);
        let earlier = u128::from_be_bytes(one.user.earlier_fingerprint.0[..16].try_into().unwrap());
        assert!(stored.starts_with(&format!("{earlier:032x}")));
        let fingerprint = one.user.earlier_fingerprint.0.to_vec();
        let token = HeaderValue::from_static("a token");
        let sealed = one.user.earlier_seal.seal(&one.user.context(7), b"a token").unwrap();
        let candidate =
            GuardCandidate { fingerprint, strikes: 2, sealed, ..GuardCandidate::default() };
        let guard = one.user.renamed(Guard { candidates: vec![candidate], ..Guard::default() });
        let candidate = guard.candidate(&one.user.fingerprint.0).unwrap();
        assert_eq!((candidate.strikes, candidate.derivation), (2, guard::DERIVATION));
        assert_eq!(one.user.open(7, &candidate.sealed), Some(token));
    }

    #[tokio::test]
    async fn what_cannot_be_a_secret_is_refused_and_not_shown() {
        let long = vec![b'x'; 5000];
        for wrong in [&b""[..], b"\n", b"\xff\xfe", &long] {
            let error = read_all([b"k", b"s", b"u", wrong]).await.unwrap_err();
            assert!(error.contains("password") && error.len() < 500, "{error}");
        }
        let secrets = read_all([b"open", b"sesame", b"aladdin", b"baba"]).await.unwrap();
        let shown = format!("{secrets:?} {:?}", secrets.basic());
        for word in ["open", "sesame", "aladdin", "baba", "Basic"] {
            assert!(!shown.contains(word), "{shown}");
        }
    }
}
