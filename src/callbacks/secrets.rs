//! What a sender of callbacks has to know: an account's secret in the path, and a user name and password in the body.
//!
//! Everything is derived from one random key in a permanent cell, so that every replica knows it and no restart changes a
//! registered address. Until the store has told the key, nobody is known here and nothing can be proved; a store that was
//! replaced gets the key again from whoever still has it. A pair is recognised by its authentication code; in plain text the store holds only a pair that
//! was generated here. A replaced pair is accepted for a while, because ThingSpace goes on sending it.
//! Comparisons take the same time whatever is compared, and nothing secret is printed.

mod keys;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use aws_lc_rs::rand;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use subtle::{Choice, ConstantTimeEq};
use tokio::{sync::watch, time::sleep};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::{
    config::{self, MAX_PAIR_CHARS},
    identity::AccountName,
    proto::storage,
    secret_file,
    store::{CellName, Store, StoreError, Swap, decode_cell},
};
use keys::Keys;

/// Format of the cells.
const FORMAT: u32 = 1;

/// Replaced pairs that are kept for an account.
const MAX_REPLACED: usize = 8;

/// How often a swap is tried again when another replica was first.
const SWAP_TRIES: u32 = 8;

/// Between attempts to load everything from a store that is away.
const LOAD_RETRY: Duration = Duration::from_millis(500);

/// Of a generated password: 32 characters.
const PASSWORD_BYTES: usize = 24;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The files of the pair; which, and why not.
    #[error("{0}")]
    Files(String),
    /// The file of the pair holds a password that logs in.
    #[error(
        "{} holds the same password as {}, which logs in at ThingSpace; ThingSpace would send it in every callback: write \
         another one",
        .pair.display(),
        .login.display()
    )]
    Login { pair: PathBuf, login: PathBuf },
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
    /// The files of the passwords that log in. None of them may be sent in callbacks.
    logins: OnceLock<Vec<PathBuf>>,
    grace: Duration,
    accounts: Vec<AccountName>,
    /// As soon as the store has told them.
    paths: watch::Sender<Option<Arc<Paths>>>,
    known: Mutex<HashMap<AccountName, Known>>,
    /// Held while a cell is brought up to date, so that what is known here never goes back.
    turn: tokio::sync::Mutex<()>,
}

/// The keys, and the paths that follow from them.
struct Paths {
    keys: Keys,
    paths: Vec<(AccountName, String)>,
}

/// The pairs of an account as they were last read.
struct Known {
    pair: Pair,
    code: Vec<u8>,
    replaced: Vec<storage::ReplacedPair>,
    unwanted: bool,
}

/// What is done to an account's cell, beside bringing it up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    Rotate,
    Want(bool),
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl Secrets {
    /// Knows nothing before the first [`Secrets::refresh`].
    pub fn new(config: &config::Callbacks, store: Arc<dyn Store>, accounts: &[AccountName]) -> Self {
        let files = config.pair_files().map(|(username, password)| (username.into(), password.into()));
        Self(Arc::new(Inner {
            store,
            files,
            logins: OnceLock::new(),
            grace: config.password_grace,
            accounts: accounts.to_vec(),
            paths: watch::Sender::default(),
            known: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        }))
    }

    /// Reads what there is and makes what is missing.
    pub async fn load_or_create(
        config: &config::Callbacks,
        store: Arc<dyn Store>,
        accounts: &[AccountName],
    ) -> Result<Self, Error> {
        let secrets = Self::new(config, store, accounts);
        secrets.refresh().await?;
        Ok(secrets)
    }

    /// From now on no pair is taken whose password is in one of these files.
    pub fn keep_apart_from(&self, logins: Vec<PathBuf>) {
        // They are the configuration's, which does not change.
        let _ = self.0.logins.set(logins);
    }

    /// The accounts there are secrets for.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.0.accounts.iter()
    }

    /// Whether the store has told the secrets.
    pub fn is_loaded(&self) -> bool {
        self.0.paths.borrow().is_some()
    }

    /// Reads everything again, until the store has told it. One that was replaced has been given it then.
    pub async fn reload(&self) {
        loop {
            match self.refresh().await {
                Err(Error::Store(error)) => debug!(%error, "cannot load the secrets of callbacks yet"),
                // A mistake in the files, which whoever looks after them tells.
                Err(_) if !self.is_loaded() => {}
                Err(_) | Ok(()) => return,
            }
            sleep(LOAD_RETRY).await;
        }
    }

    /// The last segment of an account's path; empty for an account that is not configured, and as long as nothing is known.
    pub fn path(&self, account: &AccountName) -> String {
        let Some(paths) = self.0.paths() else { return String::new() };
        let path = paths.paths.iter().find(|(of, _)| of == account);
        path.map(|(_, path)| path.clone()).unwrap_or_default()
    }

    /// Whose secret it is.
    pub fn account_of(&self, segment: &str) -> Option<AccountName> {
        let mut found = None;
        for (account, path) in &self.0.paths()?.paths {
            if bool::from(path.as_bytes().ct_eq(segment.as_bytes())) {
                found = Some(account.clone());
            }
        }
        found
    }

    /// Whether a pair is an account's, or was until a short while ago.
    pub fn accepts(&self, account: &AccountName, username: &str, password: &str) -> bool {
        let Some(paths) = self.0.paths() else { return false };
        let offered = paths.keys.code(username, password);
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
        self.settle(account, Change::Rotate).await
    }

    /// Keeps for all replicas whether an account's registration is wanted.
    pub(super) async fn want(&self, account: &AccountName, wanted: bool) -> Result<(), Error> {
        self.settle(account, Change::Want(wanted)).await.map(drop)
    }

    /// Whether an operator took an account's registration away, as it was last read.
    pub(super) fn is_unwanted(&self, account: &AccountName) -> bool {
        self.0.known().get(account).is_some_and(|known| known.unwanted)
    }

    /// Reads the files and cells again: somebody may have changed them.
    pub async fn refresh(&self) -> Result<(), Error> {
        for account in &self.0.accounts {
            self.settle(account, Change::Nothing).await?;
        }
        Ok(())
    }

    /// The same for one account, whose pair seems to be another one.
    pub(super) async fn refresh_pair(&self, account: &AccountName) -> Result<(), Error> {
        self.settle(account, Change::Nothing).await.map(drop)
    }

    /// Brings the cell of an account's pair up to date, and what is known here.
    async fn settle(&self, account: &AccountName, change: Change) -> Result<Pair, Error> {
        if !self.accounts().any(|configured| configured == account) {
            return Err(Error::NotConfigured(account.clone()));
        }
        let Inner { store, files, turn, .. } = &*self.0;
        let _turn = turn.lock().await;
        let given = match files {
            Some((username, password)) => {
                let logins = self.0.logins.get().map_or(&[][..], Vec::as_slice);
                for login in logins {
                    if secret_file::same(password, login).await {
                        return Err(Error::Login { pair: password.clone(), login: login.clone() });
                    }
                }
                Some(Pair {
                    username: read(username).await?.expose_secret().to_owned(),
                    password: read(password).await?,
                })
            }
            None => None,
        };
        let keys = &self.0.load_keys().await?.keys;
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
                None if change == Change::Rotate => generate()?,
                None if stored.password.is_empty() => {
                    match self.pair(account).filter(|_| version.is_none()) {
                        // The store was replaced: what ThingSpace has been told goes on to hold.
                        Some(known) => known,
                        None => generate()?,
                    }
                }
                None => Pair { username: stored.username.clone(), password: stored.password.clone().into() },
            };
            let code = keys.code(&pair.username, pair.password.expose_secret());
            let unwanted = match change {
                Change::Want(wanted) => !wanted,
                Change::Nothing | Change::Rotate => stored.unwanted,
            };
            if stored.code != code || stored.unwanted != unwanted {
                stored.unwanted = unwanted;
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
            let known = Known { pair: pair.clone(), code, replaced: stored.replaced, unwanted };
            self.0.known().insert(account.clone(), known);
            return Ok(pair);
        }
        Err(StoreError::Unavailable("other replicas keep changing the pair".to_owned()).into())
    }

    /// The key that seals what is quarantined.
    pub(super) fn quarantine_key(&self) -> Result<Zeroizing<[u8; 32]>, StoreError> {
        let unknown = || StoreError::Unavailable("it has not told the secrets of callbacks yet".to_owned());
        Ok(Zeroizing::new(*self.0.paths().ok_or_else(unknown)?.keys.quarantine()))
    }
}

impl Inner {
    fn paths(&self) -> Option<Arc<Paths>> {
        self.paths.borrow().clone()
    }

    /// Reads the keys again: the store may be another one.
    async fn load_keys(&self) -> Result<Arc<Paths>, StoreError> {
        let before = self.paths();
        let known = before.as_ref().map(|paths| &paths.keys);
        let keys = Keys::load_or_create(&*self.store, known).await?;
        if let Some(same) = before.as_ref().filter(|before| before.keys.is(&keys)) {
            return Ok(Arc::clone(same));
        }
        if before.is_some() {
            warn!("the store holds other secrets of callbacks: their addresses change");
            self.known().clear();
        }
        let path = |account: &AccountName| (account.clone(), keys.path(account));
        let paths = self.accounts.iter().map(path).collect();
        let paths = Arc::new(Paths { keys, paths });
        self.paths.send_replace(Some(Arc::clone(&paths)));
        Ok(paths)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<AccountName, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_recent(&self, old: &storage::ReplacedPair) -> bool {
        let age = Timestamp::now().as_millisecond().saturating_sub(old.replaced_time_ms);
        // Negative where the replica that replaced the pair has a clock ahead of this one: no age.
        Duration::from_millis(u64::try_from(age).unwrap_or(0)) < self.grace
    }

    fn replace(&self, stored: &mut storage::CallbackPair, code: Vec<u8>) {
        let old = std::mem::replace(&mut stored.code, code);
        let old = if old == stored.code { Vec::new() } else { old };
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
