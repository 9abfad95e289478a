//! The domain: orders and requests. Its interface is [`Requests`].
//!
//! - [`fold`]: computes the state of a request or an order from the events of its log; pure
//!   functions.
//! - [`hub`]: the projection: all open requests in memory, folded from the store.
//! - [`orders`]: places an order at most once.
//! - [`query`]: status queries to ThingSpace.
//! - [`watch`]: streams of transitions, and the tokens that resume them.
//!
//! All modules but the hub only append events, wait until they are folded, and read the projection.
//! None uses gRPC codes or HTTP statuses.

mod called_back;
pub mod error;
pub mod fold;
pub mod hub;
mod locks;
pub mod orders;
pub mod query;
mod readiness;
pub mod watch;

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

pub use error::{Effect, Error, TokenKind};
pub use orders::resolve::{SettleError, Settlement, UnknownOrder};
pub use orders::{Placed, Placement};
pub use readiness::StoreState;

use crate::{
    config::Config,
    identity::{AccountName, RequestId},
    lock::lock,
    store::{LogName, Position, Store, StoreError},
    thingspace::Client,
};
use called_back::MAX_SPELLING_LOOKUPS;
use hub::{ClosedLimits, FinishedBy, Hub, Tracked};
use orders::{Orders, resolve::Resolver};
use query::{
    poller::Poller,
    status_queries::{QueriedBy, QueryOutcome, StatusQueries},
};
use watch::{Watch, token::TokenKey};

/// The number of attempts, and the time, for an append with an unknown outcome. All attempts have
/// the same event id.
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
    let (bytes, began) = (fold::event::encode(kind, first), Instant::now());
    let mut may_be_stored = false;
    for tried in 1..=APPEND_TRIES {
        match store.append(log, id, bytes.clone()).await {
            Err(StoreError::UnknownOutcome(reason))
                if tried < APPEND_TRIES && began.elapsed() < APPEND_WITHIN =>
            {
                debug!(log = log.encode(), reason, "repeating an append");
                may_be_stored = true;
            }
            // The first attempt may have been stored.
            Err(StoreError::Unavailable(why) | StoreError::Full(why)) if may_be_stored => {
                return Err(StoreError::UnknownOutcome(why));
            }
            result => return result,
        }
    }
    unreachable!("the last try returns")
}

/// Returns the minimum age of a log by the store's time, from the position and the time stamp of
/// its first event.
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
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    min_age: Duration,
    heartbeat: Duration,
    retention: Duration,
}

/// A request, and its changes from now on (revisions).
#[derive(Debug)]
pub struct Attached {
    pub tracked: Arc<Tracked>,
    pub changes: tokio::sync::watch::Receiver<u64>,
}

/// Counts for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overview {
    pub ready: bool,
    pub open_requests: usize,
    pub open_devices: usize,
    /// Requests that ended since the start.
    pub finished_by_callback: u64,
    pub finished_by_poll: u64,
    /// Callbacks for unknown requests since the start.
    pub stray_callbacks: u64,
}

/// The options of a status call.
#[derive(Debug, Clone, Copy)]
pub struct StatusOptions {
    pub max_age: Duration,
    /// Long poll: answer when the revision exceeds `after_revision`, at the latest at this time.
    pub wait_until: Option<Instant>,
    pub after_revision: u64,
}

impl Requests {
    /// `tasks` tracks the orders and queries that have to end before the process may end.
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
            limits.open_devices,
        ));
        let poller = Poller::new(
            Arc::clone(&store),
            client.clone(),
            Arc::clone(&hub),
            Arc::clone(&queries),
            polling.clone(),
        );
        let resolver = Resolver::new(
            Arc::clone(&store),
            client.clone(),
            Arc::clone(&hub),
            Arc::clone(&orders),
            polling.give_up,
        );
        let limits = Limits {
            min_age: polling.min_age,
            heartbeat: config.grpc.heartbeat,
            retention: config.store.retention,
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
            limits,
        }
    }

    /// Ends all waits for a permit. Calls that have been sent continue.
    pub fn drain(&self) {
        self.client.drain();
    }

    /// Follows the store until `stop`. Polls ThingSpace and resolves unknown orders until `drain`.
    pub async fn run(&self, drain: CancellationToken, stop: CancellationToken) {
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

    /// Returns the logs that cannot be read, and why.
    pub fn unreadable_logs(&self) -> Vec<(String, String)> {
        self.hub.unreadable()
    }

    /// Returns the number of events that were read from the store since the start.
    pub fn events_read(&self) -> u64 {
        self.hub.events_read()
    }

    pub fn overview(&self) -> Overview {
        Overview {
            ready: self.is_ready(),
            open_requests: self.hub.open_requests().len(),
            open_devices: self.hub.open_devices(),
            finished_by_callback: self.hub.finished(FinishedBy::Callback),
            finished_by_poll: self.hub.finished(FinishedBy::Poll),
            stray_callbacks: self.stray_callbacks.load(Ordering::Relaxed),
        }
    }

    /// Returns the unknown orders, oldest first.
    pub async fn unknown_orders(&self) -> Result<Vec<UnknownOrder>, StoreError> {
        self.resolver.unknown_orders().await
    }

    /// Settles an unknown order by an operator's decision. With `force` also if ThingSpace does not
    /// confirm it, or to correct an earlier settlement; then returns why it was not confirmed.
    pub async fn settle_order(
        &self,
        order_id: &str,
        settlement: &Settlement,
        force: bool,
    ) -> Result<Option<String>, SettleError> {
        self.resolver.settle(order_id, settlement, force).await
    }

    /// Checks that credentials are configured for an account.
    pub fn check_account(&self, account: &AccountName) -> Result<(), Error> {
        if self.client.serves(account) {
            Ok(())
        } else {
            Err(Error::AccountNotConfigured(account.clone()))
        }
    }

    pub async fn download(&self, placement: Placement, deadline: Instant) -> Result<Placed, Error> {
        self.check_account(&placement.order.account)?;
        self.orders.place(placement, deadline).await
    }

    /// Returns a request that is as fresh as `query` requires.
    pub async fn status(
        &self,
        account: &AccountName,
        id: &RequestId,
        query: StatusOptions,
    ) -> Result<Attached, Error> {
        let began = Instant::now();
        let Attached { tracked, mut changes } = self.find(account, id).await?;
        if let Some(until) = query.wait_until {
            // Counts as a watcher, so that the poller keeps the request fresh.
            self.begin_watching(&tracked).await;
            let settled = || {
                let request = &tracked.lock().request;
                request.is_final() || request.revision > query.after_revision
            };
            let changed = async { while !settled() && changes.changed().await.is_ok() {} };
            // At the time limit the caller gets the current state.
            let _ = tokio::time::timeout_at(until, changed).await;
        } else if !tracked.lock().request.is_final() {
            // A status call is no watcher: it must not make polls more frequent.
            drop(changes);
            let max_age = query.max_age.max(self.limits.min_age);
            match self.queries.refresh(&tracked, began, max_age, QueriedBy::Caller).await {
                // The answer cannot be stored, so it is not shown. The stored state is still valid.
                Err(Error::Store(StoreError::Full(reason))) => {
                    debug!(request.id = %id, reason, "a status answer cannot be stored");
                }
                refreshed => refreshed?,
            }
            changes = tracked.subscribe();
        }
        Ok(Attached { tracked, changes })
    }

    /// Watches a request, from its beginning or after a resume token. An empty token is no token.
    pub async fn watch(
        &self,
        account: &AccountName,
        id: &RequestId,
        token: &str,
    ) -> Result<Watch, Error> {
        let (key, epoch) = self.token_key().await?;
        let given = id;
        let id = &self.spelling(given).await?;
        let resume = match key.open_resume(id, token, epoch) {
            _ if token.is_empty() => None,
            // The token was issued for another spelling: it is valid, but begins with a snapshot.
            Err(_) if id != given => key.open_resume(given, token, epoch)?.and(None),
            opened => opened?,
        };
        let attached = self.find(account, id).await?;
        self.begin_watching(&attached.tracked).await;
        Watch::begin(Arc::clone(&self.hub), attached, key, resume, self.limits.heartbeat).await
    }

    /// Makes the poller keep a request fresh. A request that was given up is queried once more.
    async fn begin_watching(&self, tracked: &Arc<Tracked>) {
        self.hub.hint_watched(&tracked.id);
        if tracked.lock().request.polling_stopped {
            let refreshed = self
                .queries
                .refresh(tracked, Instant::now(), self.limits.min_age, QueriedBy::Caller)
                .await;
            if let Err(error) = refreshed {
                let id = &tracked.id;
                debug!(request.id = %id, %error, "cannot query a request that was given up");
            }
        }
    }

    /// Returns a token for the page of devices that begins at `offset`.
    pub async fn page_token(&self, id: &RequestId, offset: usize) -> Result<String, Error> {
        Ok(self.token_key().await?.0.page(id, offset))
    }

    /// Returns the offset of the page of a token. The first page has an empty token.
    pub async fn page_offset(&self, id: &RequestId, token: &str) -> Result<usize, Error> {
        if token.is_empty() {
            return Ok(0);
        }
        self.token_key().await?.0.open_page(id, token)
    }

    /// Returns the key of resume and page tokens, and the epoch of the store that it belongs to.
    async fn token_key(&self) -> Result<(TokenKey, u64), Error> {
        let behind = || {
            Error::Store(StoreError::Unavailable("this replica has not caught up yet".to_owned()))
        };
        let epoch = self.hub.epoch().ok_or_else(behind)?;
        let cached = lock(&self.token_key).clone();
        if let Some((key, _)) = cached.filter(|(_, of)| *of == epoch) {
            return Ok((key, epoch));
        }
        let key = TokenKey::load_or_create(&*self.store).await?;
        *lock(&self.token_key) = Some((key.clone(), epoch));
        Ok((key, epoch))
    }

    async fn find(&self, account: &AccountName, id: &RequestId) -> Result<Attached, Error> {
        self.check_account(account)?;
        if let Some(attached) = self.hub.attach(id).await? {
            let (expired, owned) = {
                let request = &attached.0.lock().request;
                (request.is_expired(), request.account.is_some())
            };
            // A log that lost events may give a wrong state.
            if expired {
                return Err(Error::RequestNotFound);
            }
            // A request that only callbacks name has no account yet.
            if owned {
                return self.admit(account, attached);
            }
        }
        match self.queries.look_up(account, id).await? {
            QueryOutcome::NotKnown => Err(Error::RequestNotFound),
            QueryOutcome::Answered => {
                let attached = self.hub.attach(id).await?.ok_or(Error::RequestNotFound)?;
                self.admit(account, attached)
            }
        }
    }

    fn admit(
        &self,
        account: &AccountName,
        attached: (Arc<Tracked>, tokio::sync::watch::Receiver<u64>),
    ) -> Result<Attached, Error> {
        let (tracked, changes) = attached;
        let (owned, age) = {
            let request = &tracked.lock().request;
            let owned = request.account.as_ref() == Some(account);
            (owned, age(&*self.store, request.first, request.create_time))
        };
        // A log whose first events may have expired may give a wrong state.
        let expired = age > self.limits.retention;
        if owned && !expired {
            Ok(Attached { tracked, changes })
        } else {
            Err(Error::RequestNotFound)
        }
    }
}
