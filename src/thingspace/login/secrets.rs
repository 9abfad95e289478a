//! The four secrets of a set of credentials, and what is derived from them: fingerprints, the names
//! of the guards' cells, and the keys that seal tokens.
//!
//! A password may be short, and many people may be able to read the store. So fingerprints and keys
//! are derived with a slow hash: neither a fingerprint nor a sealed token helps anyone to guess
//! passwords quickly. A token is sealed twice: with a key of its own half of the credentials, and
//! with a key of the other half. So it can be opened after one half has changed, and never with the
//! store alone.

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

/// ThingSpace's own host. Earlier builds named the cell of a user's guard after the user and the
/// configured host, which may be a proxy. But ThingSpace has one count for a user.
const THINGSPACE_HOST: &str = "thingspace.verizon.com:443";

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

impl Half {
    /// Returns the name of its token in metrics.
    pub(super) fn token(self) -> &'static str {
        match self {
            Self::Application => "bearer",
            Self::User => "session",
        }
    }
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
    /// The cell of the guard. Its name depends only on the user name, or on the application's key
    /// and host.
    pub(super) cell: CellName,
    /// The cells in which earlier builds may have kept the guard of a user.
    pub(super) earlier_cells: Vec<CellName>,
    seal: SealingKey,
    /// The key of the other half of the credentials, for tokens of this half.
    other_half: SealingKey,
    /// The fingerprint and the key as earlier releases derived them.
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
    /// Reads the files. An error says which file cannot be read, and why.
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
    /// Takes about a second of CPU time, so call it only on a blocking thread.
    pub(super) fn derive(raw: RawSecrets, hosts: &Hosts) -> Self {
        let [key, secret, username, password] = raw.values();
        let application_root = |rounds| stretch("client", &hosts.application, key, secret, rounds);
        let user_root = |rounds| stretch("login", &hosts.user, username, password, rounds);
        let (of_application, of_user) = (application_root(ITERATIONS), user_root(ITERATIONS));
        let application = HalfIdentity::derive(
            guard_cell("client", &[&hosts.application, key.trim()]),
            &of_application,
            &of_user,
            &application_root(EARLIER_ITERATIONS),
        );
        // ThingSpace ignores the case of a user name, and a blank at either end is a mistake in the
        // file. So all spellings share one cell. Their fingerprints differ, because a password that
        // was rejected for `User` may be accepted for `user`.
        let name = username.trim().to_lowercase();
        let cell = guard_cell("login", &[&name]);
        let mut earlier_hosts = vec![THINGSPACE_HOST, &hosts.user];
        earlier_hosts.dedup();
        let earlier_cells = earlier_hosts.into_iter();
        let user = HalfIdentity {
            earlier_cells: earlier_cells.map(|host| guard_cell("login", &[host, &name])).collect(),
            ..HalfIdentity::derive(cell, &of_user, &of_application, &user_root(EARLIER_ITERATIONS))
        };
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
            earlier_cells: Vec::new(),
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

    /// Seals a token with the key of this half, and with that of the other half. `None`: the system
    /// has no random numbers.
    pub(super) fn seal(&self, generation: u64, token: &HeaderValue) -> Option<[Vec<u8>; 2]> {
        let seal = |key: &SealingKey| key.seal(&self.context(generation), token.as_bytes());
        Some([seal(&self.seal)?, seal(&self.other_half)?])
    }

    /// Opens a token with the key of this half. `None`: it was sealed with other credentials.
    pub(super) fn open(&self, generation: u64, sealed: &[u8]) -> Option<HeaderValue> {
        let keys = [&self.seal, &self.earlier_seal];
        keys.into_iter().find_map(|key| self.open_with(key, generation, sealed))
    }

    /// Opens a token of this half with the key of the other half.
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

    /// Returns what binds a sealed token to its cell and its generation.
    fn context(&self, generation: u64) -> Vec<u8> {
        [self.cell.name.as_bytes(), &generation.to_be_bytes()].concat()
    }
}

fn guard_cell(kind: &str, owner: &[&str]) -> CellName {
    let owner = BASE64_URL_SAFE_NO_PAD.encode(digest_of(owner));
    CellName::permanent(format!("guard/{kind}/{owner}"))
}

/// Derives a key slowly, so that nobody can test many secrets quickly.
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
mod tests;
