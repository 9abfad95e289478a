//! Registers the callbacks of each account at ThingSpace, and keeps them registered.
//!
//! An account has one registration for each service. A new one takes the callbacks away from the
//! system that registered before. Therefore:
//!
//! - A registration of another system is replaced or removed only if an operator forces it. A URL
//!   is this gateway's if it is below `public_url` and ends in a path secret of the account,
//!   current or earlier.
//! - A URL below `public_url` with an unknown secret may be left from a lost store, so it is
//!   replaced once. If it comes back, the registration is *contested*: another gateway has the same
//!   address, and the two would replace each other for ever. So nothing is registered until an
//!   operator acts.
//! - A right registration is not changed, because callbacks are lost between a deregistration and
//!   the registration of a replacement. The two calls follow each other at once. Neither a drain
//!   nor a caller that goes away interrupts them.

mod account;
mod address;
mod error;
mod probe;

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex as SyncMutex},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::sync::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, info_span, warn};

use self::{
    account::{AccountRegistrar, AccountRegistrarState},
    address::{Address, UrlOwner},
};
use super::secrets::CallbackSecrets;
use crate::{
    backoff::{backoff, jittered},
    config::CallbacksConfig,
    identity::AccountName,
    lock::lock,
    log_throttle::LogThrottle,
    thingspace::Client,
};
pub use error::{RegistrationError, StopReason};

/// The pauses after failures in a row.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// Registers the callbacks of the configured accounts. Clones share everything.
#[derive(Debug, Clone)]
pub struct Registrar(Arc<RegistrarInner>);

#[derive(Debug)]
struct RegistrarInner {
    service: String,
    public_url: Address,
    recheck: Duration,
    client: Client,
    secrets: CallbackSecrets,
    /// Locked while an operation on the account runs.
    accounts: HashMap<AccountName, Arc<Mutex<AccountRegistrarState>>>,
    /// The result of the last operation on each account.
    states: SyncMutex<HashMap<AccountName, RegistrationState>>,
    /// Operations that must not be interrupted.
    tasks: TaskTracker,
}

/// What an operation on an account did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistrationOutcome {
    /// The registration was right.
    Unchanged,
    /// It was missing or wrong.
    Registered,
    /// Registered with a new pair or path.
    Rotated,
    /// The pair or path is new, but nothing is registered: an operator deregistered the account.
    RotatedOnly,
    /// Nothing is registered: an operator deregistered the account.
    Deregistered,
}

/// The result of an operation on an account.
pub type RegistrationResult = Result<RegistrationOutcome, RegistrationError>;

/// The state of an account's registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RegistrationState {
    /// The registration is right.
    Registered,
    /// An operator deregistered the account.
    Deregistered,
    /// Why the registration is missing or wrong.
    Failing(String),
    /// The last check failed. The registration may be right.
    CheckFailing {
        /// Why the check failed.
        why: String,
        /// Whether the last check that did not fail found the right registration.
        was_registered: bool,
    },
}

/// The name of the state of an account whose registration was not checked yet.
const UNCHECKED: &str = "unchecked";

impl RegistrationState {
    /// The names of all states in metrics.
    pub(crate) const NAMES: [&str; 5] =
        ["registered", "deregistered", "failing", "check_failing", UNCHECKED];

    /// Returns the name of a state in metrics. `None`: it was not checked yet.
    pub(crate) fn name(state: Option<&Self>) -> &'static str {
        match state {
            Some(Self::Registered) => "registered",
            Some(Self::Deregistered) => "deregistered",
            Some(Self::Failing(_)) => "failing",
            Some(Self::CheckFailing { .. }) => "check_failing",
            None => UNCHECKED,
        }
    }

    /// Returns the state after an operation, from the state before it.
    fn after(result: &RegistrationResult, before: Option<&Self>) -> Self {
        match (result, before) {
            (Ok(RegistrationOutcome::RotatedOnly | RegistrationOutcome::Deregistered), _) => {
                Self::Deregistered
            }
            (Ok(_), _) => Self::Registered,
            // What was wrong before is probably still wrong.
            (Err(error), Some(before @ (Self::Failing(_) | Self::Deregistered)))
                if error.leaves_it_unknown() =>
            {
                before.clone()
            }
            (Err(error), before) if error.leaves_it_unknown() => Self::CheckFailing {
                why: error.to_string(),
                was_registered: matches!(
                    before,
                    Some(Self::Registered | Self::CheckFailing { was_registered: true, .. })
                ),
            },
            (Err(error), _) => Self::Failing(error.to_string()),
        }
    }
}

impl fmt::Display for RegistrationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered => f.write_str("registered"),
            Self::Deregistered => f.write_str("deregistered by an operator"),
            Self::Failing(why) => f.write_str(why),
            Self::CheckFailing { why, was_registered: true } => {
                write!(f, "registered when it was last checked, but now the check fails: {why}")
            }
            Self::CheckFailing { why, was_registered: false } => {
                write!(f, "not known, because the check fails: {why}")
            }
        }
    }
}

/// A registration that ThingSpace lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRegistration {
    /// The service whose callbacks it concerns.
    pub service: String,
    /// The host of the URL. The path may be a secret.
    pub host: String,
    /// Whether the URL is this gateway's.
    pub ours: bool,
    /// Whether the URL is below this gateway's `public_url` and has an unknown path secret: another
    /// gateway has the same address, or the store was lost.
    pub same_address: bool,
}

impl Registrar {
    /// A port of 0 in `public_url` means the port of the listener. `tasks` tracks operations, so
    /// that a drain waits for them.
    pub fn new(
        config: &CallbacksConfig,
        listener: SocketAddr,
        secrets: CallbackSecrets,
        client: Client,
        tasks: TaskTracker,
    ) -> Result<Self, RegistrationError> {
        let public_url = Address::parse(&config.public_url).ok_or(RegistrationError::PublicUrl)?;
        Ok(Self(Arc::new(RegistrarInner {
            service: config.service.clone(),
            public_url: public_url.or_port(listener.port()),
            recheck: config.recheck,
            client,
            accounts: secrets.accounts().map(|account| (account.clone(), Arc::default())).collect(),
            secrets,
            states: SyncMutex::default(),
            tasks,
        })))
    }

    /// Registers every account and checks the registrations regularly, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let keep = |account| stop.run_until_cancelled(self.keep_registered(account));
        join_all(self.0.accounts.keys().map(keep)).await;
    }

    async fn keep_registered(&self, account: &AccountName) {
        let (mut failures, throttle) = (0, LogThrottle::new());
        loop {
            let checked = self
                .with_account(account, |mut registrar| async move { registrar.check().await })
                .await;
            let wait = match checked {
                // The operation has logged these errors. An operator or the other system must act.
                Ok(_) | Err(RegistrationError::Taken { .. } | RegistrationError::Stopped(_)) => {
                    failures = 0;
                    jittered(self.0.recheck, fastrand::f64())
                }
                Err(error) => {
                    if let Some(times) = throttle.count() {
                        warn!(
                            %account, %error, times,
                            "cannot check or renew the registration of callbacks; trying again"
                        );
                    }
                    failures += 1;
                    backoff(failures - 1, FIRST_PAUSE, LONGEST_PAUSE).min(self.0.recheck)
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Returns the result of the last operation on each account.
    pub fn states(&self) -> HashMap<AccountName, RegistrationState> {
        lock(&self.0.states).clone()
    }

    /// Lists the registrations of an account for every service.
    pub async fn list(
        &self,
        account: &AccountName,
    ) -> Result<Vec<ListedRegistration>, RegistrationError> {
        let RegistrarInner { public_url, client, secrets, accounts, .. } = &*self.0;
        if !accounts.contains_key(account) {
            return Err(RegistrationError::NotConfigured(account.clone()));
        }
        secrets.refresh().await?;
        let secret = secrets.path(account);
        let is_own = |secret: &str| secrets.is_own_path(account, secret);
        let listed = client.callbacks(account).await?.into_iter().map(|registration| {
            let owner = public_url.owner(&registration.url, &secret, is_own);
            ListedRegistration {
                host: address::host(&registration.url),
                ours: matches!(owner, UrlOwner::Ours | UrlOwner::OursBefore),
                same_address: owner == UrlOwner::SameAddress,
                service: registration.service,
            }
        });
        Ok(listed.collect())
    }

    /// Registers the account unless it is registered. `force` replaces a registration of another
    /// system.
    pub async fn register(&self, account: &AccountName, force: bool) -> RegistrationResult {
        self.with_account(account, |mut registrar| async move { registrar.register(force).await })
            .await
    }

    /// Removes this gateway's registration. Afterwards only [`Registrar::register`] registers the
    /// account, on any replica and after any restart.
    pub async fn deregister(&self, account: &AccountName) -> Result<(), RegistrationError> {
        self.with_account(account, |mut registrar| async move { registrar.deregister().await })
            .await
            .map(drop)
    }

    /// Replaces the account's pair, and registers the new one unless an operator deregistered the
    /// account. The old one is accepted for a while, because ThingSpace still sends it.
    pub async fn rotate(&self, account: &AccountName) -> RegistrationResult {
        self.with_account(account, |mut registrar| async move { registrar.rotate_pair().await })
            .await
    }

    /// Replaces the account's path secret in the same way as [`Self::rotate`] replaces the pair.
    pub async fn rotate_path(&self, account: &AccountName) -> RegistrationResult {
        self.with_account(account, |mut registrar| async move { registrar.rotate_path().await })
            .await
    }

    /// Runs an operation on an account when no other operation on it runs. The operation continues
    /// if its caller goes away, and a drain waits for it.
    async fn with_account<F>(
        &self,
        account: &AccountName,
        operation: impl FnOnce(AccountRegistrar) -> F,
    ) -> RegistrationResult
    where
        F: Future<Output = RegistrationResult> + Send + 'static,
    {
        let state = self.0.accounts.get(account).cloned();
        let state = state.ok_or_else(|| RegistrationError::NotConfigured(account.clone()))?;
        let (shared, account) = (Arc::clone(&self.0), account.clone());
        let state = state.lock_owned().await;
        let operation = operation(AccountRegistrar {
            shared: Arc::clone(&shared),
            account: account.clone(),
            state,
        });
        let operation = async move {
            let outcome = operation.await;
            let mut states = lock(&shared.states);
            let state = RegistrationState::after(&outcome, states.get(&account));
            states.insert(account, state);
            drop(states);
            outcome
        };
        let operation = operation.instrument(info_span!(parent: None, "registration"));
        self.0.tasks.spawn(operation).await.unwrap_or(Err(RegistrationError::Panicked))
    }
}
