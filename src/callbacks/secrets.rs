//! The secrets that prove the sender of a callback: an account's path secret, and its pair of user
//! name and password.
//!
//! - Path secrets are derived from one random key in a permanent cell. So every replica knows them,
//!   and a restart does not change a registered URL.
//! - No sender is accepted until the store has answered once.
//! - If the store was replaced by an empty one, the first replica that still knows the secrets
//!   writes them into it.
//! - A pair comes from files, or is generated. It is compared by its authentication code. Only
//!   generated pairs are stored in plain text.
//! - A replaced pair or path secret is accepted for a while, because ThingSpace still sends it.
//! - No pair shares its user name or password with a user at ThingSpace.
//! - Comparisons take constant time, and no secret is printed.

mod keys;
mod lookup;
mod pair;
mod stored;
mod users;

use std::{
    collections::HashMap,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString, zeroize::Zeroizing};
use subtle::{Choice, ConstantTimeEq};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::{
    config::CallbacksConfig,
    identity::AccountName,
    lock::lock,
    proto::storage,
    store::{CellName, Store, StoreError, change_cell},
};
use keys::Keys;
use lookup::Lookups;
use stored::is_recent;
use users::{SharedSecret, UserSecrets};

pub use pair::Pair;
pub(super) use stored::SecretsChange;
pub(crate) use users::UserFiles;

/// The most path secrets of an account, newest first, that are recognised in the URLs that
/// ThingSpace lists.
const MAX_OWN_PATHS: usize = 64;

/// The pause between attempts to load the secrets from a store that does not answer.
const LOAD_RETRY: Duration = Duration::from_millis(500);

/// Why the secrets cannot be loaded or changed.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say all")]
pub enum SecretsError {
    #[error("{0}")]
    Store(#[from] StoreError),
    /// A file of the pair cannot be used.
    #[error("{0}")]
    Files(String),
    #[error(
        "the callbacks' {what} in {} is also that of a user at ThingSpace, in {}; ThingSpace would \
         send it in every callback; write another one",
        .pair.display(),
        .user.display()
    )]
    SharedWithUser { what: &'static str, pair: PathBuf, user: PathBuf },
    #[error("account {0} is not configured")]
    NotConfigured(AccountName),
}

impl SecretsError {
    /// Whether the content of a file is refused. The store may fail as well.
    pub(super) fn is_about_files(&self) -> bool {
        match self {
            Self::Files(_) | Self::SharedWithUser { .. } => true,
            Self::Store(_) | Self::NotConfigured(_) => false,
        }
    }
}

/// The secrets of all accounts. Clones share everything.
#[derive(Clone)]
pub struct CallbackSecrets(Arc<SecretsInner>);

struct SecretsInner {
    store: Arc<dyn Store>,
    /// The files of the pair: user name and password.
    files: Option<(PathBuf, PathBuf)>,
    users: OnceLock<Vec<UserFiles>>,
    grace: Duration,
    accounts: Vec<AccountName>,
    state: Mutex<SecretsState>,
    /// Held during an update, so that an older state never replaces a newer one.
    updating: tokio::sync::Mutex<()>,
    lookups: tokio::sync::Mutex<Lookups>,
}

#[derive(Default)]
struct SecretsState {
    keys: Option<Arc<Keys>>,
    accounts: HashMap<AccountName, AccountSecrets>,
}

/// The cell of an account as it was last read, and the secrets that follow from it.
#[derive(Clone)]
pub(super) struct AccountSecrets {
    pub(super) pair: Pair,
    /// The path secret.
    pub(super) path: String,
    /// Earlier path secrets, and when each was replaced.
    replaced_paths: Vec<(String, i64)>,
    stored: storage::CallbackPair,
}

impl fmt::Debug for CallbackSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallbackSecrets(…)")
    }
}

impl CallbackSecrets {
    /// Contains no secrets before the first [`CallbackSecrets::refresh`].
    pub fn new(config: &CallbacksConfig, store: Arc<dyn Store>, accounts: &[AccountName]) -> Self {
        let files = config.pair_files();
        Self(Arc::new(SecretsInner {
            store,
            files: files.map(|(username, password)| (username.into(), password.into())),
            users: OnceLock::new(),
            grace: config.password_grace,
            accounts: accounts.to_vec(),
            state: Mutex::default(),
            updating: tokio::sync::Mutex::default(),
            lookups: tokio::sync::Mutex::default(),
        }))
    }

    /// Sets the users. No pair may have the user name or the password of one of them.
    pub(crate) fn keep_apart_from(&self, users: Vec<UserFiles>) {
        // A second call would pass the same list: the configuration is read once.
        let _ = self.0.users.set(users);
    }

    pub(crate) fn accounts(&self) -> impl Iterator<Item = &AccountName> {
        self.0.accounts.iter()
    }

    /// Returns whether the secrets of all accounts were loaded from the store.
    pub(super) fn is_loaded(&self) -> bool {
        let state = lock(&self.0.state);
        self.accounts().all(|account| state.accounts.contains_key(account))
    }

    /// Refreshes the secrets. Repeats this until the store has answered.
    pub(crate) async fn reload(&self) {
        loop {
            match self.refresh().await {
                Err(SecretsError::Store(error)) => {
                    debug!(%error, "cannot load the secrets of callbacks yet");
                }
                // `Callbacks::reload` logs that files cannot be used.
                Err(_) if !self.is_loaded() => {}
                Err(_) | Ok(()) => return,
            }
            sleep(LOAD_RETRY).await;
        }
    }

    /// Returns the path secret of an account. It is empty until the secrets are loaded.
    pub fn path(&self, account: &AccountName) -> String {
        self.of(account).map(|known| known.path).unwrap_or_default()
    }

    /// Returns the account with this path secret, current or recently replaced.
    fn account_of(&self, segment: &str) -> Option<AccountName> {
        let state = lock(&self.0.state);
        let mut found = None;
        for (account, known) in &state.accounts {
            let replaced = known.replaced_paths.iter().map(|(path, time)| (path.as_bytes(), *time));
            if self.matches(segment.as_bytes(), known.path.as_bytes(), replaced).into() {
                found = Some(account.clone());
            }
        }
        found
    }

    /// Returns whether this is or was a path secret of the account.
    pub(super) fn is_own_path(&self, account: &AccountName, segment: &str) -> bool {
        let state = lock(&self.0.state);
        let (Some(keys), Some(known)) = (&state.keys, state.accounts.get(account)) else {
            return false;
        };
        let newest = known.stored.path_generation;
        let own = (0..=newest).rev().take(MAX_OWN_PATHS).map(|of| keys.path(account, of));
        own.fold(Choice::from(0), |any, path| any | path.as_bytes().ct_eq(segment.as_bytes()))
            .into()
    }

    /// Returns whether this is the account's pair, current or recently replaced.
    pub(super) fn accepts(&self, account: &AccountName, username: &str, password: &str) -> bool {
        let state = lock(&self.0.state);
        let (Some(keys), Some(known)) = (&state.keys, state.accounts.get(account)) else {
            return false;
        };
        let stored = &known.stored;
        let replaced = stored.replaced.iter().map(|old| (&*old.code, old.replaced_time_ms));
        self.matches(&keys.code(username, password), &stored.code, replaced).into()
    }

    /// Returns whether this is the password of a pair, current or recently replaced.
    pub(crate) fn sends(&self, password: &SecretString) -> bool {
        let state = lock(&self.0.state);
        let Some(keys) = &state.keys else { return false };
        let offered = keys.password_code(password.expose_secret());
        let matches = state.accounts.values().map(|AccountSecrets { stored, .. }| {
            let replaced = stored.replaced.iter();
            let replaced = replaced.map(|old| (&*old.password_code, old.replaced_time_ms));
            self.matches(&offered, &stored.password_code, replaced)
        });
        matches.fold(Choice::from(0), |any, one| any | one).into()
    }

    /// Compares with the current secret, and with replaced ones that are still accepted.
    fn matches<'a>(
        &self,
        offered: &[u8],
        current: &[u8],
        replaced: impl Iterator<Item = (&'a [u8], i64)>,
    ) -> Choice {
        replaced.fold(current.ct_eq(offered), |any, (old, replaced_time_ms)| {
            let recent = Choice::from(u8::from(is_recent(replaced_time_ms, self.0.grace)));
            any | (old.ct_eq(offered) & recent)
        })
    }

    /// Returns the current pair of an account; `None` until the secrets are loaded.
    pub fn pair(&self, account: &AccountName) -> Option<Pair> {
        self.of(account).map(|known| known.pair)
    }

    pub(super) fn of(&self, account: &AccountName) -> Option<AccountSecrets> {
        lock(&self.0.state).accounts.get(account).cloned()
    }

    /// Replaces a generated pair, or reads the files of the pair again.
    pub async fn rotate(&self, account: &AccountName) -> Result<Pair, SecretsError> {
        self.update(account, SecretsChange::RotatePair).await
    }

    /// Reads the files and the cells of all accounts, and creates missing secrets.
    pub async fn refresh(&self) -> Result<(), SecretsError> {
        for account in &self.0.accounts {
            self.update(account, SecretsChange::None).await?;
        }
        Ok(())
    }

    /// Reads the files and the cell of an account, makes a change, and remembers the result.
    pub(super) async fn update(
        &self,
        account: &AccountName,
        change: SecretsChange<'_>,
    ) -> Result<Pair, SecretsError> {
        if !self.accounts().any(|configured| configured == account) {
            return Err(SecretsError::NotConfigured(account.clone()));
        }
        let SecretsInner { store, users, updating, grace, .. } = &*self.0;
        let _updating = updating.lock().await;
        let users = users::read(users.get().map_or(&[], Vec::as_slice)).await;
        let from_files = self.0.pair_from_files(&users).await?;
        let keys = self.0.load_keys().await?;
        let known = lock(&self.0.state).accounts.get(account).map(|known| known.stored.clone());
        let generated = Pair::generate()?;
        let cell = CellName::permanent(format!("callback-pair/{account}"));
        let changed = change_cell(&**store, &cell, |stored: &mut storage::CallbackPair| {
            // The store was replaced by an empty one. ThingSpace still uses the known secrets.
            if let (true, Some(known)) = (stored.code.is_empty(), &known) {
                stored.clone_from(known);
            }
            let kept = || stored_pair(account, stored, &users);
            let pair = match &from_files {
                Some(pair) => pair.clone(),
                None if change == SecretsChange::RotatePair => generated.clone(),
                None => kept().unwrap_or_else(|| generated.clone()),
            };
            stored::change(stored, (&pair, from_files.is_some()), change, &keys, *grace);
            AccountSecrets::new(account, pair, stored.clone(), &keys)
        });
        let changed = changed.await?;
        let pair = changed.pair.clone();
        lock(&self.0.state).accounts.insert(account.clone(), changed);
        Ok(pair)
    }

    /// Returns the key that seals quarantined callbacks.
    pub(super) fn quarantine_key(&self) -> Result<Zeroizing<[u8; 32]>, StoreError> {
        let key = lock(&self.0.state).keys.as_ref().map(|keys| Zeroizing::new(*keys.quarantine()));
        let why = "the secrets of callbacks are not loaded yet";
        key.ok_or_else(|| StoreError::Unavailable(why.to_owned()))
    }
}

/// Returns the generated pair in the cell of an account, unless a user has its name or password.
fn stored_pair(
    account: &AccountName,
    stored: &storage::CallbackPair,
    users: &[UserSecrets],
) -> Option<Pair> {
    if stored.password.is_empty() {
        return None;
    }
    let pair = Pair { username: stored.username.clone(), password: stored.password.clone().into() };
    let Some(SharedSecret { what, file }) = users::shared(&pair, users) else { return Some(pair) };
    let user = file.display();
    warn!(%account, %user, "a user has the callbacks' {what}, so another pair is generated");
    None
}

impl AccountSecrets {
    fn new(account: &AccountName, pair: Pair, stored: storage::CallbackPair, keys: &Keys) -> Self {
        let replaced = stored.replaced_paths.iter();
        let replaced_paths = replaced
            .map(|old| (keys.path(account, old.generation), old.replaced_time_ms))
            .collect();
        Self { pair, path: keys.path(account, stored.path_generation), replaced_paths, stored }
    }

    /// Returns the authentication code of the pair.
    pub(super) fn code(&self) -> &[u8] {
        &self.stored.code
    }

    /// Returns whether the last registration had this pair.
    pub(super) fn is_registered(&self) -> bool {
        self.stored.registered == self.stored.code
    }

    pub(super) fn is_deregistered(&self) -> bool {
        self.stored.unwanted
    }
}

impl SecretsInner {
    /// Reads the keys again, because the store may have been replaced.
    async fn load_keys(&self) -> Result<Arc<Keys>, StoreError> {
        let known = lock(&self.state).keys.clone();
        let stored = Keys::load_or_create(&*self.store, known.as_deref()).await?;
        match known {
            Some(known) if known.same_as(&stored) => return Ok(known),
            Some(_) => {
                warn!("the store has another key for callbacks, so their URLs change");
            }
            None => {}
        }
        let keys = Arc::new(stored);
        *lock(&self.state) =
            SecretsState { keys: Some(Arc::clone(&keys)), ..SecretsState::default() };
        Ok(keys)
    }

    async fn pair_from_files(&self, users: &[UserSecrets]) -> Result<Option<Pair>, SecretsError> {
        let Some((username, password)) = &self.files else { return Ok(None) };
        let pair = Pair::read(username, password).await?;
        match users::shared(&pair, users) {
            None => Ok(Some(pair)),
            Some(SharedSecret { what, file }) => {
                let pair = if what == users::PASSWORD { password } else { username };
                Err(SecretsError::SharedWithUser { what, pair: pair.clone(), user: file })
            }
        }
    }
}

#[cfg(test)]
mod tests;
