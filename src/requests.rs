//! The domain: orders and requests. Its interface is [`Requests`].
//!
//! - [`fold`]: computes the state of a request or an order from the events of its log; pure
//!   functions.
//! - [`hub`]: the projection: all open requests in memory, folded from the store.
//! - [`orders`]: places an order at most once.
//! - [`query`]: status queries to ThingSpace.
//! - [`inspect`]: what operators see of open requests, and of the history of one.
//! - [`watch`]: streams of transitions, and the tokens that resume them.
//!
//! All modules except the hub only append events, wait until they are folded, and read the
//! projection.
//! None uses gRPC codes or HTTP statuses.

mod called_back;
mod error;
pub mod fold;
pub(crate) mod hub;
pub(crate) mod inspect;
mod locks;
mod orders;
mod query;
mod readiness;
pub(crate) mod watch;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;
use uuid::Uuid;

pub(crate) use error::{Effect, Error, TokenKind};
pub use hub::KEPT_TRANSITIONS;
pub(crate) use orders::{
    Placed, Placement,
    resolve::{SettleError, UnknownOrder},
};
pub use orders::{key, resolve::Settlement};
pub(crate) use readiness::StoreState;
pub use watch::token;

use crate::{
    config::Config,
    identity::{AccountName, RequestId},
    lock::lock,
    store::{LogName, Position, Store, StoreError, StoreMeasures},
    thingspace::Client,
};
use called_back::MAX_SPELLING_LOOKUPS;
use hub::{Attached, ClosedLimits, FinishedBy, Hub, PollHint, Tracked};
use inspect::ages::LastAges;
use orders::{OpenDeviceLimits, Orders, resolve::Resolver};
use query::{
    poller::Poller,
    status_queries::{QueriedBy, QueryOutcome, StatusQueries},
};
use watch::{Watch, token::TokenKey};

/// The number of attempts for an append with an unknown outcome, and the time for them. All
/// attempts have the same event id.
const APPEND_TRIES: u32 = 3;
const APPEND_WITHIN: Duration = Duration::from_secs(2);

/// Appends an event to a log. `first` is the log's first position, if it is known. The event is
/// durable when this returns.
async fn append(
    store: &dyn Store,
    log: &LogName,
    first: Option<Position>,
    id: Uuid,
    kind: fold::event::Kind,
) -> Result<Position, StoreError> {
    let (bytes, began, mut tries) = (fold::event::encode(kind, first), Instant::now(), 1);
    loop {
        match store.append(log, id, bytes.clone()).await {
            Err(StoreError::UnknownOutcome(reason))
                if tries < APPEND_TRIES && began.elapsed() < APPEND_WITHIN =>
            {
                debug!(log = log.encode(), reason, "repeating an append");
                tries += 1;
            }
            // An earlier attempt may have been stored.
            Err(StoreError::Unavailable(why) | StoreError::Full(why)) if tries > 1 => {
                return Err(StoreError::UnknownOutcome(why));
            }
            result => return result,
        }
    }
}

/// Returns the minimum age of a log by the store's time. `time` is the time of its first event.
fn age(store: &dyn Store, first: Option<Position>, time: Timestamp) -> Duration {
    first.map_or(Duration::ZERO, |first| store.age(first, time))
}

/// The operations on orders and requests.
#[derive(Debug, Clone)]
pub struct Requests {
    hub: Arc<Hub>,
    queries: Arc<StatusQueries>,
    orders: Arc<Orders>,
    poller: Arc<Poller>,
    resolver: Arc<Resolver>,
    client: Client,
    store: Arc<dyn Store>,
    token_key: Arc<Mutex<Option<(TokenKey, u64)>>>,
    /// Callbacks for unknown requests since the start.
    stray_callbacks: Arc<AtomicU64>,
    spelling_lookups: Arc<Semaphore>,
    last_ages: LastAges,
    min_age: Duration,
    heartbeat: Duration,
    retention: Duration,
}

/// Counts for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overview {
    /// Requests that the gateway polls.
    pub open_requests: usize,
    /// All devices of the open requests, also those with a result.
    pub open_devices: usize,
    /// Requests whose last result came by a callback since the start.
    pub finished_by_callback: u64,
    /// Requests whose last result came by a status query since the start.
    pub finished_by_poll: u64,
    /// Callbacks for unknown requests since the start.
    pub stray_callbacks: u64,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct StatusOptions {
    pub(crate) max_age: Duration,
    /// The end of a long poll, which is answered earlier if the revision exceeds `after_revision`.
    pub(crate) wait_until: Option<Instant>,
    pub(crate) after_revision: u64,
}

impl Requests {
    /// Creates the parts of the domain; [`Self::run`] runs them. `tasks` tracks the orders and
    /// queries that have to end before the process may end.
    pub fn new(
        config: &Config,
        store: Arc<dyn Store>,
        client: Client,
        tasks: &TaskTracker,
    ) -> Self {
        let (limits, polling) = (&config.limits, &config.polling);
        let hub = Arc::new(Hub::new(
            Arc::clone(&store),
            ClosedLimits { bytes: limits.closed_bytes, idle: limits.closed_in_memory },
            polling.give_up,
            config.callbacks.enabled,
        ));
        let queries = Arc::new(StatusQueries::new(
            Arc::clone(&store),
            client.clone(),
            Arc::clone(&hub),
            tasks.clone(),
            config.callbacks.grace,
        ));
        let orders = Arc::new(Orders::new(
            Arc::clone(&store),
            client.clone(),
            Arc::clone(&hub),
            tasks.clone(),
            config.thingspace.order_timeout,
            OpenDeviceLimits { total: limits.open_devices, of_caller: limits.caller_open_devices },
        ));
        let poller = Poller {
            store: Arc::clone(&store),
            client: client.clone(),
            hub: Arc::clone(&hub),
            queries: Arc::clone(&queries),
            config: polling.clone(),
            schedule: Mutex::default(),
        };
        let resolver = Resolver {
            store: Arc::clone(&store),
            client: client.clone(),
            hub: Arc::clone(&hub),
            orders: Arc::clone(&orders),
            give_up: polling.give_up,
        };
        Self {
            hub,
            queries,
            orders,
            poller: Arc::new(poller),
            resolver: Arc::new(resolver),
            client,
            store,
            token_key: Arc::default(),
            stray_callbacks: Arc::default(),
            spelling_lookups: Arc::new(Semaphore::new(MAX_SPELLING_LOOKUPS)),
            last_ages: LastAges::default(),
            min_age: polling.min_age,
            heartbeat: config.grpc.heartbeat,
            retention: config.store.retention,
        }
    }

    /// Ends all waits for a permit. Calls that have been sent continue.
    pub(crate) fn drain(&self) {
        self.client.drain();
    }

    /// Follows the store until `stop`. Polls ThingSpace and resolves unknown orders until `drain`.
    pub(crate) async fn run(&self, drain: CancellationToken, stop: CancellationToken) {
        let follow = self.hub.follow(stop);
        let poll = async {
            if drain.run_until_cancelled(self.hub.caught_up()).await.is_some() {
                self.hub.wake_resolver();
                tokio::join!(
                    Arc::clone(&self.poller).run(drain.clone()),
                    self.resolver.run(drain.clone())
                );
            }
        };
        tokio::join!(follow, poll);
    }

    /// Returns the name of each damaged log with the reason. Damaged logs are skipped.
    pub fn unreadable_logs(&self) -> Vec<(String, String)> {
        self.hub.unreadable()
    }

    /// Returns the number of events that were read from the store since the start.
    pub fn events_read(&self) -> u64 {
        self.hub.events_read()
    }

    /// Returns the counts for `status`.
    pub fn overview(&self) -> Overview {
        Overview {
            open_requests: self.hub.open_count(),
            open_devices: self.hub.open_devices(),
            finished_by_callback: self.hub.finished(FinishedBy::Callback),
            finished_by_poll: self.hub.finished(FinishedBy::Poll),
            stray_callbacks: self.stray_callbacks.load(Ordering::Relaxed),
        }
    }

    /// Returns the number of requests whose poll is due and has not begun.
    pub(crate) fn poll_backlog(&self) -> usize {
        self.poller.backlog()
    }

    /// Returns what operators measure of the store, and the events that were not read yet, if that
    /// is known.
    pub(crate) fn store_measures(&self) -> (StoreMeasures, Option<u64>) {
        let measures = self.store.measures();
        let lag = measures.end.map(|end| self.hub.lag(end));
        (measures, lag)
    }

    /// Returns the unknown orders, oldest first.
    pub async fn unknown_orders(&self) -> Result<Vec<UnknownOrder>, StoreError> {
        self.resolver.unknown_orders().await
    }

    /// Settles an unknown order by an operator's decision. With `force`, does so even if ThingSpace
    /// does not confirm the decision, and may correct an earlier settlement. Then returns why
    /// ThingSpace did not confirm the decision, if it did not.
    pub async fn settle_order(
        &self,
        order_id: &str,
        settlement: &Settlement,
        force: bool,
    ) -> Result<Option<String>, SettleError> {
        self.resolver.settle(order_id, settlement, force).await
    }

    /// Returns the account and the number of devices of an order, if it can be read.
    pub(crate) async fn ordered(&self, order_id: &str) -> Option<(String, usize)> {
        self.resolver.ordered(order_id).await
    }

    /// Returns the number of orders that this process is placing.
    pub(crate) fn orders_in_flight(&self) -> usize {
        self.orders.in_flight()
    }

    /// Checks that credentials are configured for an account.
    pub(crate) fn check_account(&self, account: &AccountName) -> Result<(), Error> {
        let served = self.client.serves(account);
        served.then_some(()).ok_or_else(|| Error::AccountNotConfigured(account.clone()))
    }

    pub(crate) async fn download(
        &self,
        placement: Placement,
        deadline: Instant,
    ) -> Result<Placed, Error> {
        self.check_account(&placement.order.account)?;
        self.orders.place(placement, deadline).await
    }

    /// Returns a request that is as fresh as `query` requires.
    pub(crate) async fn status(
        &self,
        account: &AccountName,
        id: &RequestId,
        query: StatusOptions,
    ) -> Result<Attached, Error> {
        let began = Instant::now();
        let (tracked, mut changes) = self.find(account, id).await?;
        if let Some(until) = query.wait_until {
            // Counts as a watcher, so that the poller keeps the request fresh.
            self.begin_watching(&tracked).await;
            let is_new = || {
                let request = &tracked.lock().request;
                request.is_final() || request.revision > query.after_revision
            };
            let changed = async { while !is_new() && changes.changed().await.is_ok() {} };
            // At the time limit the caller gets the current state.
            let _ = tokio::time::timeout_at(until, changed).await;
        } else if !tracked.lock().request.is_final() {
            // Watchers make polls more frequent, so a status call must not count as a watcher.
            drop(changes);
            let max_age = query.max_age.max(self.min_age);
            match self.queries.refresh(&tracked, began, max_age, QueriedBy::Caller).await {
                // The caller gets the stored state, which is valid.
                Err(Error::Store(StoreError::Full(reason))) => {
                    debug!(request.id = %id, reason, "a status answer cannot be stored");
                }
                refreshed => refreshed?,
            }
            changes = tracked.subscribe();
        }
        Ok((tracked, changes))
    }

    /// Watches a request for a caller, from its beginning or after a resume token. An empty token
    /// is no token.
    pub(crate) async fn watch(
        &self,
        account: &AccountName,
        id: &RequestId,
        token: &str,
        caller: Arc<str>,
    ) -> Result<Watch, Error> {
        let (key, epoch) = self.token_key().await?;
        let caller_id = id;
        let id = &self.spelling(caller_id).await?;
        let resume = match key.open_resume(id, token, epoch) {
            _ if token.is_empty() => None,
            // A token for another spelling is valid, but the watch begins with a snapshot.
            Err(_) if id != caller_id => key.open_resume(caller_id, token, epoch)?.and(None),
            opened => opened?,
        };
        let attached = self.find(account, id).await?;
        self.begin_watching(&attached.0).await;
        Watch::begin(Arc::clone(&self.hub), attached, caller, key, resume, self.heartbeat).await
    }

    /// Makes the poller keep a request fresh. Sends one query if the gateway gave up polling it.
    async fn begin_watching(&self, tracked: &Arc<Tracked>) {
        let id = &tracked.id;
        self.hub.hints.add(id, PollHint::Watched);
        if tracked.lock().request.polling_stopped
            && let Err(error) =
                self.queries.refresh(tracked, Instant::now(), self.min_age, QueriedBy::Caller).await
        {
            debug!(request.id = %id, %error, "cannot query a request that was given up");
        }
    }

    async fn find(&self, account: &AccountName, id: &RequestId) -> Result<Attached, Error> {
        self.check_account(account)?;
        let attached = self.hub.attach(id).await?;
        // A log that lost events may give a wrong state.
        if attached.as_ref().is_some_and(|(tracked, _)| tracked.lock().request.is_expired()) {
            return Err(Error::RequestNotFound);
        }
        // A request that only callbacks name has no account yet.
        let mut found = attached.filter(|(tracked, _)| tracked.lock().request.account.is_some());
        if found.is_none() {
            found = match self.queries.look_up(account, id).await? {
                QueryOutcome::NotKnown => None,
                QueryOutcome::Answered => self.hub.attach(id).await?,
            };
        }
        let found = found.filter(|(tracked, _)| {
            let request = &tracked.lock().request;
            let age = age(&*self.store, request.first, request.create_time);
            // A log whose first events may have expired may give a wrong state.
            request.account.as_ref() == Some(account) && age <= self.retention
        });
        found.ok_or(Error::RequestNotFound)
    }
}
