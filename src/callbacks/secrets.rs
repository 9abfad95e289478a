//! What a sender of callbacks has to know: an account's secret in the path, and a user name and password in the body.
//!
//! Everything is derived from one random key in a permanent cell, so that every replica knows it and no restart changes a
//! registered address. A pair is recognised by its authentication code; in plain text the store holds only a pair that
//! was generated here. A replaced pair is accepted for a while, because ThingSpace goes on sending it.
//! Comparisons take the same time whatever is compared, and nothing secret is printed.

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_lc_rs::{hkdf, hmac, rand};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use subtle::{Choice, ConstantTimeEq};
use uuid::Uuid;

use crate::{
    config,
    identity::AccountName,
    proto::storage,
    secret_file,
    store::{CellName, Store, StoreError, Swap, decode_cell, load_or_create},
};

/// Format of the cells.
const FORMAT: u32 = 1;

/// ThingSpace takes no longer user name or password, in characters.
const MAX_PAIR_CHARS: usize = 40;

/// Replaced pairs that are kept for an account.
const MAX_REPLACED: usize = 8;

/// How often a swap is tried again when another replica was first.
const SWAP_TRIES: u32 = 8;

/// Of a generated password: 32 characters.
const PASSWORD_BYTES: usize = 24;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The files of the pair; which, and why not.
    #[error("{0}")]
    Files(String),
    #[error("account {0} is not configured")]
    NotConfigured(AccountName),
}

/// What ThingSpace is told to put into callbacks.
#[derive(Debug, Clone)]
pub struct Pair {
    pub username: String,
    pub password: SecretString,
}

#[derive(Clone)]
pub struct Secrets(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    files: Option<(PathBuf, PathBuf)>,
    grace: Duration,
    keys: Keys,
    paths: Vec<(AccountName, String)>,
    known: Mutex<HashMap<AccountName, Known>>,
    /// Held while a cell is brought up to date, so that what is known here never goes back.
    turn: tokio::sync::Mutex<()>,
}

/// The pairs of an account as they were last read.
struct Known {
    pair: Pair,
    code: Vec<u8>,
    replaced: Vec<storage::ReplacedPair>,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl Secrets {
    /// Reads what there is and makes what is missing.
    pub async fn load_or_create(
        config: &config::Callbacks,
        store: Arc<dyn Store>,
        accounts: &[AccountName],
    ) -> Result<Self, Error> {
        let keys = Keys::load_or_create(&*store).await?;
        let path = |account: &AccountName| {
            let tag = hmac::sign(&keys.path, account.as_str().as_bytes());
            (account.clone(), BASE64_URL_SAFE_NO_PAD.encode(tag))
        };
        let paths = accounts.iter().map(path).collect();
        let files = config.pair_files().map(|(username, password)| (username.into(), password.into()));
        let grace = config.password_grace;
        let secrets = Self(Arc::new(Inner {
            store,
            files,
            grace,
            keys,
            paths,
            known: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }));
        secrets.refresh().await?;
        Ok(secrets)
    }

    /// The accounts there are secrets for.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.0.paths.iter().map(|(account, _)| account)
    }

    /// The last segment of an account's path; empty for an account that is not configured.
    pub fn path(&self, account: &AccountName) -> String {
        let path = self.0.paths.iter().find(|(of, _)| of == account);
        path.map(|(_, path)| path.clone()).unwrap_or_default()
    }

    /// Whose secret it is.
    pub fn account_of(&self, segment: &str) -> Option<AccountName> {
        let mut found = None;
        for (account, path) in &self.0.paths {
            if bool::from(path.as_bytes().ct_eq(segment.as_bytes())) {
                found = Some(account.clone());
            }
        }
        found
    }

    /// Whether a pair is an account's, or was until a short while ago.
    pub fn accepts(&self, account: &AccountName, username: &str, password: &str) -> bool {
        let offered = self.0.keys.code(username, password);
        let known = self.0.known();
        let Some(Known { code, replaced, .. }) = known.get(account) else { return false };
        let mut matches = code.ct_eq(&offered);
        for old in replaced {
            matches |= old.code.ct_eq(&offered) & Choice::from(u8::from(self.0.is_recent(old)));
        }
        matches.into()
    }

    /// The pair an account's callbacks shall carry.
    pub fn pair(&self, account: &AccountName) -> Option<Pair> {
        self.0.known().get(account).map(|known| known.pair.clone())
    }

    /// Replaces a generated pair; one from files is read again.
    pub async fn rotate(&self, account: &AccountName) -> Result<Pair, Error> {
        self.settle(account, true).await
    }

    /// Reads the files and cells again: somebody may have changed them.
    pub async fn refresh(&self) -> Result<(), Error> {
        for (account, _) in &self.0.paths {
            self.settle(account, false).await?;
        }
        Ok(())
    }

    /// The same for one account, whose pair seems to be another one.
    pub(super) async fn refresh_pair(&self, account: &AccountName) -> Result<(), Error> {
        self.settle(account, false).await.map(drop)
    }

    /// Brings the cell of an account's pair up to date, and what is known here.
    async fn settle(&self, account: &AccountName, rotate: bool) -> Result<Pair, Error> {
        if !self.accounts().any(|configured| configured == account) {
            return Err(Error::NotConfigured(account.clone()));
        }
        let Inner { store, files, keys, turn, .. } = &*self.0;
        let _turn = turn.lock().await;
        let given = match files {
            Some((username, password)) => Some(Pair {
                username: read(username).await?.expose_secret().to_owned(),
                password: read(password).await?,
            }),
            None => None,
        };
        let cell = CellName::permanent(format!("callback-pair/{account}"));
        for _ in 0..SWAP_TRIES {
            let held = store.load(&cell).await?;
            let version = held.as_ref().map(|held| held.version);
            let mut stored = match held {
                Some(held) => decode(held.value)?,
                None => storage::CallbackPair::default(),
            };
            let pair = match &given {
                Some(pair) => pair.clone(),
                None if rotate || stored.password.is_empty() => generate()?,
                None => Pair { username: stored.username.clone(), password: stored.password.clone().into() },
            };
            let code = keys.code(&pair.username, pair.password.expose_secret());
            if stored.code != code {
                self.0.replace(&mut stored, code.clone());
                (stored.username, stored.password) = match files {
                    Some(_) => (String::new(), String::new()),
                    None => (pair.username.clone(), pair.password.expose_secret().to_owned()),
                };
                let value = Bytes::from(stored.encode_to_vec());
                if let Swap::Conflict(_) = store.swap(&cell, version, value).await? {
                    continue;
                }
            }
            let known = Known { pair: pair.clone(), code, replaced: stored.replaced };
            self.0.known().insert(account.clone(), known);
            return Ok(pair);
        }
        Err(StoreError::Unavailable("other replicas keep changing the pair".to_owned()).into())
    }

    /// The key that seals what is quarantined.
    pub(super) fn quarantine_key(&self) -> &[u8; 32] {
        &self.0.keys.quarantine
    }
}

impl Inner {
    fn known(&self) -> MutexGuard<'_, HashMap<AccountName, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_recent(&self, old: &storage::ReplacedPair) -> bool {
        let age = Timestamp::now().as_millisecond().saturating_sub(old.replaced_time_ms);
        u64::try_from(age).is_ok_and(|age| Duration::from_millis(age) < self.grace)
    }

    fn replace(&self, stored: &mut storage::CallbackPair, code: Vec<u8>) {
        let old = std::mem::replace(&mut stored.code, code);
        stored.replaced.retain(|replaced| replaced.code != stored.code && self.is_recent(replaced));
        if !old.is_empty() {
            let replaced_time_ms = Timestamp::now().as_millisecond();
            stored.replaced.insert(0, storage::ReplacedPair { code: old, replaced_time_ms });
        }
        stored.replaced.truncate(MAX_REPLACED);
        stored.version = FORMAT;
        stored.nonce = Uuid::now_v7().to_string();
    }
}

/// The keys, each for one purpose.
struct Keys {
    path: hmac::Key,
    pair: hmac::Key,
    quarantine: Zeroizing<[u8; 32]>,
}

impl Keys {
    async fn load_or_create(store: &dyn Store) -> Result<Self, Error> {
        let make = || {
            let key = random::<32>()?.to_vec();
            Ok(storage::CallbackSecrets { version: FORMAT, key }.encode_to_vec().into())
        };
        Self::decode(load_or_create(store, &CellName::permanent("callback-secrets"), make).await?)
    }

    fn decode(value: Bytes) -> Result<Self, Error> {
        let stored = decode_cell(value, FORMAT, |cell: &storage::CallbackSecrets| cell.version)?;
        let root = hkdf::Salt::new(hkdf::HKDF_SHA256, b"thingspace-gateway callbacks").extract(&stored.key);
        let derive = |purpose: &str| {
            let mut key = Zeroizing::new([0; 32]);
            root.expand(&[purpose.as_bytes()], hkdf::HKDF_SHA256)
                .and_then(|okm| okm.fill(&mut *key))
                .expect("HKDF-SHA256 gives 32 bytes");
            key
        };
        Ok(Self {
            path: hmac::Key::new(hmac::HMAC_SHA256, &*derive("path")),
            pair: hmac::Key::new(hmac::HMAC_SHA256, &*derive("pair")),
            quarantine: derive("quarantine"),
        })
    }

    /// User names are the same in any case.
    fn code(&self, username: &str, password: &str) -> Vec<u8> {
        let username = username.to_lowercase();
        let mut context = hmac::Context::with_key(&self.pair);
        context.update(&(username.len() as u64).to_be_bytes());
        context.update(username.as_bytes());
        context.update(password.as_bytes());
        context.sign().as_ref().to_vec()
    }
}

async fn read(file: &std::path::Path) -> Result<SecretString, Error> {
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

fn generate() -> Result<Pair, Error> {
    let username = format!("gateway-{}", BASE64_URL_SAFE_NO_PAD.encode(random::<6>()?));
    let password = BASE64_URL_SAFE_NO_PAD.encode(random::<PASSWORD_BYTES>()?);
    Ok(Pair { username, password: password.into() })
}

fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).map_err(|_| StoreError::Unavailable("no random numbers".to_owned()))?;
    Ok(bytes)
}

fn decode(value: Bytes) -> Result<storage::CallbackPair, Error> {
    let stored = decode_cell(value, FORMAT, |cell: &storage::CallbackPair| cell.version)?;
    Ok(stored)
}

#[cfg(test)]
mod tests;
