//! What a sender of callbacks has to know: an account's secret in the path, and a user name and
//! password in the body.
//!
//! Everything is derived from one random key in a permanent cell, so that every replica knows it
//! and no restart changes a registered address. Until the store has told the key, nobody is known
//! here and nothing can be proved; a store that was replaced gets the key again from whoever still
//! has it. A pair is recognised by its authentication code; in plain text the store holds only a
//! pair that was generated here. A replaced pair or path is accepted for a while, because
//! ThingSpace goes on sending it. No pair shares anything with a login at ThingSpace. Comparisons
//! take the same time whatever is compared, and nothing secret is printed.

mod find;
mod keys;
mod logins;
mod pair;
mod stored;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use subtle::{Choice, ConstantTimeEq};
use tokio::{sync::watch, time::sleep};
use tracing::{debug, warn};

use crate::{
    config::CallbacksConfig,
    identity::AccountName,
    lock::lock,
    proto::storage,
    store::{CellName, SWAP_TRIES, Store, StoreError, Swap, contended, load_cell, swap_cell},
};
use find::Looks;
use keys::Keys;
use pair::{generate, random, read};
use stored::{Change, is_recent};

pub use logins::LoginFiles;
pub use pair::Pair;

/// Earlier secrets of a path that are recognised as ours in a listing.
const MAX_OWN_PATHS: usize = 64;

/// Between attempts to load everything from a store that is away.
const LOAD_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The files of the pair; which, and why not.
    #[error("{0}")]
    Files(String),
    /// The files of the pair hold something that logs in.
    #[error(
        "the callbacks' {what} in {} is also in {}, which logs in at ThingSpace; ThingSpace would send it in every \
         callback: write another one",
        .pair.display(),
        .login.display()
    )]
    Login { what: &'static str, pair: PathBuf, login: PathBuf },
    #[error("account {0} is not configured")]
    NotConfigured(AccountName),
}

/// What ThingSpace shall be told about an account.
pub(super) struct Current {
    pub(super) pair: Pair,
    /// The last segment of the path.
    pub(super) path: String,
    /// The authentication code of the pair.
    pub(super) code: Vec<u8>,
    /// This pair is the one that ThingSpace was told last.
    pub(super) registered: bool,
}

#[derive(Clone)]
pub struct Secrets(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    files: Option<(PathBuf, PathBuf)>,
    logins: OnceLock<Vec<LoginFiles>>,
    grace: Duration,
    accounts: Vec<AccountName>,
    /// As soon as the store has told them.
    keys: watch::Sender<Option<Arc<Keys>>>,
    known: Mutex<HashMap<AccountName, Known>>,
    /// Held while a cell is brought up to date, so that what is known here never goes back.
    turn: tokio::sync::Mutex<()>,
    looks: tokio::sync::Mutex<Looks>,
}

/// The cell of an account as it was last read, and what follows from it.
struct Known {
    pair: Pair,
    path: String,
    /// Earlier paths, and when each was replaced.
    former_paths: Vec<(String, i64)>,
    stored: storage::CallbackPair,
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets(…)")
    }
}

impl Secrets {
    /// Knows nothing before the first [`Secrets::refresh`].
    pub fn new(config: &CallbacksConfig, store: Arc<dyn Store>, accounts: &[AccountName]) -> Self {
        let files =
            config.pair_files().map(|(username, password)| (username.into(), password.into()));
        Self(Arc::new(Inner {
            store,
            files,
            logins: OnceLock::new(),
            grace: config.password_grace,
            accounts: accounts.to_vec(),
            keys: watch::Sender::default(),
            known: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            looks: tokio::sync::Mutex::default(),
        }))
    }

    /// Reads what there is and makes what is missing.
    pub async fn load_or_create(
        config: &CallbacksConfig,
        store: Arc<dyn Store>,
        accounts: &[AccountName],
    ) -> Result<Self, Error> {
        let secrets = Self::new(config, store, accounts);
        secrets.refresh().await?;
        Ok(secrets)
    }

    /// From now on no pair shares its user name or password with one of these.
    pub fn keep_apart_from(&self, logins: Vec<LoginFiles>) {
        // They are the configuration's, which does not change.
        let _ = self.0.logins.set(logins);
    }

    /// The accounts there are secrets for.
    pub fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.0.accounts.iter()
    }

    /// Whether the store has told the secrets.
    pub fn is_loaded(&self) -> bool {
        let known = self.0.known();
        self.accounts().all(|account| known.contains_key(account))
    }

    /// Reads everything again, until the store has told it. One that was replaced has been given it
    /// then.
    pub async fn reload(&self) {
        loop {
            match self.refresh().await {
                Err(Error::Store(error)) => {
                    debug!(%error, "cannot load the secrets of callbacks yet");
                }
                // A mistake in the files, which whoever looks after them tells.
                Err(_) if !self.is_loaded() => {}
                Err(_) | Ok(()) => return,
            }
            sleep(LOAD_RETRY).await;
        }
    }

    /// The last segment of an account's path; empty for an account that is not configured, and as
    /// long as nothing is known.
    pub fn path(&self, account: &AccountName) -> String {
        self.0.known().get(account).map(|known| known.path.clone()).unwrap_or_default()
    }

    /// Whose secret it is, or was until a short while ago.
    pub fn account_of(&self, segment: &str) -> Option<AccountName> {
        let known = self.0.known();
        let mut found = None;
        for (account, Known { path, former_paths, .. }) in &*known {
            let mut matches = path.as_bytes().ct_eq(segment.as_bytes());
            for (former, replaced) in former_paths {
                let recent = Choice::from(u8::from(is_recent(*replaced, self.0.grace)));
                matches |= former.as_bytes().ct_eq(segment.as_bytes()) & recent;
            }
            if bool::from(matches) {
                found = Some(account.clone());
            }
        }
        found
    }

    /// Whether it is, or ever was, the secret of the account's path.
    pub(super) fn is_own_path(&self, account: &AccountName, segment: &str) -> bool {
        let Some(keys) = self.0.keys() else { return false };
        let Some(newest) = self.0.known().get(account).map(|known| known.stored.path_generation)
        else {
            return false;
        };
        let own =
            (0..=newest).rev().take(MAX_OWN_PATHS).map(|generation| keys.path(account, generation));
        own.fold(Choice::from(0), |any, path| any | path.as_bytes().ct_eq(segment.as_bytes()))
            .into()
    }

    /// Whether a pair is an account's, or was until a short while ago.
    pub fn accepts(&self, account: &AccountName, username: &str, password: &str) -> bool {
        let Some(keys) = self.0.keys() else { return false };
        let offered = keys.code(username, password);
        let known = self.0.known();
        let Some(Known { stored, .. }) = known.get(account) else { return false };
        let mut matches = stored.code.ct_eq(&offered);
        for old in &stored.replaced {
            let recent = Choice::from(u8::from(is_recent(old.replaced_time_ms, self.0.grace)));
            matches |= old.code.ct_eq(&offered) & recent;
        }
        matches.into()
    }

    /// Whether ThingSpace sends this password in callbacks, or did until a short while ago.
    pub fn sends(&self, password: &SecretString) -> bool {
        let Some(keys) = self.0.keys() else { return false };
        let offered = keys.password_code(password.expose_secret());
        let known = self.0.known();
        let mut matches = Choice::from(0);
        for Known { stored, .. } in known.values() {
            matches |= stored.password_code.ct_eq(&offered);
            for old in &stored.replaced {
                let recent = Choice::from(u8::from(is_recent(old.replaced_time_ms, self.0.grace)));
                matches |= old.password_code.ct_eq(&offered) & recent;
            }
        }
        matches.into()
    }

    /// The pair an account's callbacks shall carry.
    pub fn pair(&self, account: &AccountName) -> Option<Pair> {
        self.0.known().get(account).map(|known| known.pair.clone())
    }

    pub(super) fn current(&self, account: &AccountName) -> Option<Current> {
        let known = self.0.known();
        let Known { pair, path, stored, .. } = known.get(account)?;
        Some(Current {
            pair: pair.clone(),
            path: path.clone(),
            code: stored.code.clone(),
            registered: stored.registered == stored.code,
        })
    }

    /// Replaces a generated pair; one from files is read again.
    pub async fn rotate(&self, account: &AccountName) -> Result<Pair, Error> {
        self.settle(account, Change::RotatePair).await
    }

    /// Replaces the secret in the path.
    pub async fn rotate_path(&self, account: &AccountName) -> Result<(), Error> {
        self.settle(account, Change::RotatePath).await.map(drop)
    }

    /// Keeps for all replicas whether an account's registration is wanted.
    pub(super) async fn want(&self, account: &AccountName, wanted: bool) -> Result<(), Error> {
        self.settle(account, Change::Want(wanted)).await.map(drop)
    }

    /// Keeps for all replicas which pair ThingSpace was told, by its code.
    pub(super) async fn registered(&self, account: &AccountName, code: &[u8]) -> Result<(), Error> {
        self.settle(account, Change::Registered(code)).await.map(drop)
    }

    /// Whether an operator took an account's registration away, as it was last read.
    pub(super) fn is_unwanted(&self, account: &AccountName) -> bool {
        self.0.known().get(account).is_some_and(|known| known.stored.unwanted)
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

    /// Brings the cell of an account up to date, and what is known here.
    async fn settle(&self, account: &AccountName, change: Change<'_>) -> Result<Pair, Error> {
        if !self.accounts().any(|configured| configured == account) {
            return Err(Error::NotConfigured(account.clone()));
        }
        let Inner { store, turn, grace, .. } = &*self.0;
        let _turn = turn.lock().await;
        let given = self.0.given().await?;
        let keys = self.0.load_keys().await?;
        let cell = CellName::permanent(format!("callback-pair/{account}"));
        // For a store that was replaced, so that the pair that ThingSpace was told stays valid.
        let unstored = || {
            let known = self.0.known();
            known.get(account).map(|known| known.stored.clone()).unwrap_or_default()
        };
        for _ in 0..SWAP_TRIES {
            let held = load_cell(&**store, &cell).await?;
            let version = held.as_ref().map(|held| held.version);
            let before = held.map_or_else(unstored, |held| held.value);
            let pair = match &given {
                Some(pair) => pair.clone(),
                None => self.0.generated(account, &before, change).await?,
            };
            let mut after =
                stored::change(before.clone(), (&pair, given.is_some()), change, &keys, *grace);
            if (after != before || version.is_none())
                && let Swap::Conflict(_) = swap_cell(&**store, &cell, version, &mut after).await?
            {
                continue;
            }
            self.0.known().insert(account.clone(), Known::new(account, pair.clone(), after, &keys));
            return Ok(pair);
        }
        Err(contended(&cell).into())
    }

    /// The key that seals what is quarantined.
    pub(super) fn quarantine_key(&self) -> Result<Zeroizing<[u8; 32]>, StoreError> {
        let unknown =
            || StoreError::Unavailable("it has not told the secrets of callbacks yet".to_owned());
        Ok(Zeroizing::new(*self.0.keys().ok_or_else(unknown)?.quarantine()))
    }
}

impl Known {
    fn new(account: &AccountName, pair: Pair, stored: storage::CallbackPair, keys: &Keys) -> Self {
        let former = stored.replaced_paths.iter();
        let former_paths =
            former.map(|old| (keys.path(account, old.generation), old.replaced_time_ms)).collect();
        Self { pair, path: keys.path(account, stored.path_generation), former_paths, stored }
    }
}

impl Inner {
    fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.borrow().clone()
    }

    /// Reads the keys again: the store may be another one.
    async fn load_keys(&self) -> Result<Arc<Keys>, StoreError> {
        let before = self.keys();
        let keys = Keys::load_or_create(&*self.store, before.as_deref()).await?;
        if let Some(same) = before.as_ref().filter(|before| before.is(&keys)) {
            return Ok(Arc::clone(same));
        }
        if before.is_some() {
            warn!("the store holds other secrets of callbacks: their addresses change");
            self.known().clear();
        }
        let keys = Arc::new(keys);
        self.keys.send_replace(Some(Arc::clone(&keys)));
        Ok(keys)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<AccountName, Known>> {
        lock(&self.known)
    }

    /// The pair in the files, if there are any.
    async fn given(&self) -> Result<Option<Pair>, Error> {
        let Some((username, password)) = &self.files else { return Ok(None) };
        let pair = Pair {
            username: read(username).await?.expose_secret().to_owned(),
            password: read(password).await?,
        };
        match self.shared_with_login(&pair).await {
            None => Ok(Some(pair)),
            Some(logins::Shared { what, file }) => {
                let of_pair = if what == "password" { password } else { username };
                Err(Error::Login { what, pair: of_pair.clone(), login: file })
            }
        }
    }

    /// The pair that the cell holds, or a new one.
    async fn generated(
        &self,
        account: &AccountName,
        stored: &storage::CallbackPair,
        change: Change<'_>,
    ) -> Result<Pair, Error> {
        if change == Change::RotatePair || stored.password.is_empty() {
            return Ok(generate()?);
        }
        let pair =
            Pair { username: stored.username.clone(), password: stored.password.clone().into() };
        let Some(logins::Shared { what, file }) = self.shared_with_login(&pair).await else {
            return Ok(pair);
        };
        let login = file.display();
        warn!(%account, %login, "a login has the generated {what} of callbacks: they get another one");
        Ok(generate()?)
    }

    async fn shared_with_login(&self, pair: &Pair) -> Option<logins::Shared> {
        logins::shared(pair, self.logins.get().map_or(&[][..], Vec::as_slice)).await
    }
}

#[cfg(test)]
mod tests;
