//! Keeps ThingSpace calling back: looks what is registered, and registers only what differs.
//!
//! A registration is account-global: whoever registers takes the results away from whoever did
//! before. So nothing of another's is ever replaced or removed unless an operator forces it; what
//! counts as ours is a URL below `public_url` that ends in an account's secret, be it an earlier
//! one. A secret below `public_url` that is not known may be left of a store that is gone: it is
//! replaced once. If it comes back, another gateway has the same address; then nothing more is
//! registered until an operator acts, because the two would go on for ever. Between the end of a
//! registration and the next results are lost: the two calls follow each other at once, and neither
//! a drain nor a caller that goes away comes between.

mod address;
mod stop;
mod turn;

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
use tracing::warn;

use self::{
    address::{Address, Whose},
    turn::{Memory, Turn},
};
use super::secrets::{self, Secrets};
use crate::{
    config::CallbacksConfig,
    identity::AccountName,
    lock::lock,
    log_throttle::LogThrottle,
    thingspace::{self, Client},
};
pub use stop::Stop;

/// After a failure; doubled from one to the next.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);

/// The registrations of the configured accounts. Clones share everything.
#[derive(Debug, Clone)]
pub struct Registration(Arc<Inner>);

struct Inner {
    service: String,
    public: Address,
    recheck: Duration,
    client: Client,
    secrets: Secrets,
    /// One thing at a time is done to an account.
    accounts: HashMap<AccountName, Arc<Mutex<Memory>>>,
    /// What came of the last thing that was done to an account.
    standings: SyncMutex<HashMap<AccountName, Standing>>,
    /// What must not be broken off.
    tasks: TaskTracker,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("service", &self.service).finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was right already.
    Unchanged,
    Registered,
    /// Registered, with another pair or another path.
    Rotated,
    /// There is another pair or path, and no registration: an operator took it away.
    RotatedOnly,
    /// An operator took the registration away.
    Deregistered,
}

/// How the registration of an account is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Registered,
    /// An operator took the registration away.
    Deregistered,
    /// Why it is not what it should be, or cannot be seen.
    Failing(String),
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registered => f.write_str("registered"),
            Self::Deregistered => f.write_str("deregistered by an operator"),
            Self::Failing(why) => f.write_str(why),
        }
    }
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub service: String,
    /// Of the URL: its path may be a secret.
    pub host: String,
    pub username: String,
    /// It leads to this gateway.
    pub ours: bool,
}

/// Another's URL is registered.
#[derive(Debug, thiserror::Error)]
#[error(
    "the {service} callbacks of account {account} go to {host}, which is not this gateway; `callbacks register --force` \
     would take them away from there"
)]
pub struct Taken {
    pub account: AccountName,
    pub service: String,
    /// Of the URL; its path may be a secret.
    pub host: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("account {0} is not configured")]
    NotConfigured(AccountName),
    #[error(transparent)]
    Taken(Taken),
    #[error(transparent)]
    Stopped(#[from] Stop),
    #[error(
        "ThingSpace accepted the registration of the {service} callbacks of account {account} and does not list it; it is \
         looked at again soon"
    )]
    NotListed { account: AccountName, service: String },
    #[error("callbacks.public_url is no http:// or https:// URL")]
    PublicUrl,
    #[error(transparent)]
    Secrets(#[from] secrets::Error),
    #[error(transparent)]
    ThingSpace(#[from] thingspace::Error),
    #[error("the registration ended in a panic")]
    Panicked,
}

impl Registration {
    /// Port 0 in `public_url` is the listener's, as it is in its own address.
    pub fn new(
        config: &CallbacksConfig,
        listener: SocketAddr,
        secrets: Secrets,
        client: Client,
        tasks: TaskTracker,
    ) -> Result<Self, Error> {
        let public =
            Address::parse(&config.public_url).ok_or(Error::PublicUrl)?.or_port(listener.port());
        let accounts =
            secrets.accounts().map(|account| (account.clone(), Arc::default())).collect();
        let (service, recheck, standings) =
            (config.service.clone(), config.recheck, SyncMutex::default());
        let inner = Inner { service, public, recheck, client, secrets, accounts, standings, tasks };
        Ok(Self(Arc::new(inner)))
    }

    /// Registers every account, and looks now and then whether it still holds, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let keep = |account| stop.run_until_cancelled(self.keep(account));
        join_all(self.0.accounts.keys().map(keep)).await;
    }

    async fn keep(&self, account: &AccountName) {
        let mut pause = FIRST_PAUSE;
        let failures = LogThrottle::new();
        loop {
            let wait = match self.look_after(account).await {
                // The log has it; it passes when an operator or the other one acts.
                Ok(_) | Err(Error::Taken(_) | Error::Stopped(_)) => {
                    pause = FIRST_PAUSE;
                    self.0.recheck
                }
                Err(error) => {
                    if let Some(times) = failures.count() {
                        warn!(%account, %error, times, "cannot check or renew the registration of callbacks; trying again");
                    }
                    let wait = pause.min(self.0.recheck);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::time::sleep(jittered(wait)).await;
        }
    }

    async fn look_after(&self, account: &AccountName) -> Result<Outcome, Error> {
        let mut turn = self.turn(account).await?;
        self.carry_through(account, async move { turn.look_after().await }).await
    }

    /// How the registrations are doing; without those that nothing was done to yet.
    pub fn standings(&self) -> HashMap<AccountName, Standing> {
        lock(&self.0.standings).clone()
    }

    /// What is registered for an account, of whatever service.
    pub async fn list(&self, account: &AccountName) -> Result<Vec<Listed>, Error> {
        if !self.0.accounts.contains_key(account) {
            return Err(Error::NotConfigured(account.clone()));
        }
        self.0.secrets.refresh().await?;
        let secret = self.0.secrets.path(account);
        let listed = self.0.client.callbacks(account).await?;
        let line = |registration: thingspace::Registration| Listed {
            host: address::host(&registration.url),
            ours: matches!(
                self.0.public.whose(&registration.url, &secret, |secret| {
                    self.0.secrets.is_own_path(account, secret)
                }),
                Whose::Ours | Whose::Former
            ),
            service: registration.service,
            username: registration.username,
        };
        Ok(listed.into_iter().map(line).collect())
    }

    /// Registers the account unless it is. `force`: also over another's URL.
    pub async fn register(&self, account: &AccountName, force: bool) -> Result<Outcome, Error> {
        let mut turn = self.turn(account).await?;
        self.carry_through(account, async move { turn.register(force).await }).await
    }

    /// Takes our registration away, until [`Registration::register`]: no replica and no restart
    /// registers it before.
    pub async fn deregister(&self, account: &AccountName) -> Result<(), Error> {
        let mut turn = self.turn(account).await?;
        let deregister = async move { turn.deregister().await.map(|()| Outcome::Deregistered) };
        self.carry_through(account, deregister).await.map(drop)
    }

    /// Gives the account another pair and registers it, unless an operator took the registration
    /// away. The old one is accepted for a while: ThingSpace goes on sending it.
    pub async fn rotate(&self, account: &AccountName) -> Result<Outcome, Error> {
        let mut turn = self.turn(account).await?;
        self.carry_through(account, async move { turn.rotate_pair().await }).await
    }

    /// The same with another secret in the path.
    pub async fn rotate_path(&self, account: &AccountName) -> Result<Outcome, Error> {
        let mut turn = self.turn(account).await?;
        self.carry_through(account, async move { turn.rotate_path().await }).await
    }

    async fn turn(&self, account: &AccountName) -> Result<Turn, Error> {
        let memory = self.0.accounts.get(account).cloned();
        let memory = memory.ok_or_else(|| Error::NotConfigured(account.clone()))?;
        let memory = memory.lock_owned().await;
        Ok(Turn { inner: Arc::clone(&self.0), account: account.clone(), memory })
    }

    /// To its end, whatever becomes of the caller; a drain waits for it.
    async fn carry_through(
        &self,
        account: &AccountName,
        work: impl Future<Output = Result<Outcome, Error>> + Send + 'static,
    ) -> Result<Outcome, Error> {
        let (inner, account) = (Arc::clone(&self.0), account.clone());
        let work = async move {
            let outcome = work.await;
            let standing = match &outcome {
                Ok(Outcome::Unchanged | Outcome::Registered | Outcome::Rotated) => {
                    Standing::Registered
                }
                Ok(Outcome::RotatedOnly | Outcome::Deregistered) => Standing::Deregistered,
                Err(error) => Standing::Failing(error.to_string()),
            };
            lock(&inner.standings).insert(account, standing);
            outcome
        };
        self.0.tasks.spawn(work).await.unwrap_or(Err(Error::Panicked))
    }
}

/// Within a tenth of it, so that replicas and accounts drift apart.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.9 + 0.2 * fastrand::f64())
}
