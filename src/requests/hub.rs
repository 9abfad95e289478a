//! The projection: all open requests and orders in memory, folded from the store's sequence of
//! events.
//!
//! - Only [`Hub::follow`] and the loading of a log change it, and both only fold stored events. So
//!   all replicas compute the same transitions.
//! - A log is always folded from its first event. If the follower meets a log in the middle, it
//!   reads the whole log.
//! - Closed requests leave memory after a while. They are read again when a caller needs them.
//! - Watchers wait for changes of a request. They have no queues, so slow watchers need no memory.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, Semaphore, watch};

use super::{
    fold::{
        order::{Order, OrderOutcome},
        state::Request,
    },
    lock,
    locks::Locks,
};
use crate::{
    identity::{AccountName, RequestId},
    store::{Position, Store},
};

mod closed;
mod finished;
mod follow;
mod hints;
mod history;
mod low_water;
mod open_orders;
mod ownership;
mod read;
mod read_ahead;
mod snapshots;
mod spelling;
mod spelling_variants;
mod tracked;
mod unreadable;

use closed::Closed;
pub use finished::FinishedBy;
use finished::{EntryFacts, FinishCounts, Positioned};
pub use hints::PollHint;
use hints::PollHints;
use history::History;
pub use history::PageGuard;
pub use low_water::LowWater;
use open_orders::OpenOrders;
pub use ownership::{Mismatch, OWNED_BY_ANOTHER_ORDER, Ownership};
pub use snapshots::Devices;
use snapshots::Snapshots;
use spelling::CallbackSpellings;
pub use spelling::is_same;
pub use spelling_variants::SpellingVariant;
use spelling_variants::SpellingVariants;
pub use tracked::{Folded, LastQuery, Tracked};
use unreadable::Unreadable;

/// The number of a request's transitions in memory. Watchers read older ones from its log.
pub const KEPT_TRANSITIONS: usize = 1_024;

/// The number of devices in these transitions. The last transition may exceed it.
const KEPT_DEVICES: usize = 10_000;

/// The number of devices in the transitions that a watcher gets at once; about one message. The
/// first transition may exceed it.
const MAX_BATCH: usize = 512;

/// How long data stays in memory after a watch has read from it. So the watches of many requests do
/// not evict each other's data.
const READ_GRACE: Duration = Duration::from_secs(1);

/// The number of logs that are read for callers at the same time. Folding a log of 10,000 devices
/// takes about 20 MiB.
const MAX_LOADS: usize = 4;

/// How long an answer waits until this replica has folded the event that it appended.
const FOLD_WAIT: Duration = Duration::from_secs(2);

/// The limits of closed requests in memory. They can be read again from the store.
#[derive(Debug, Clone, Copy)]
pub struct ClosedLimits {
    /// The size of all closed requests.
    pub bytes: usize,
    /// The time since the last use.
    pub idle: Duration,
}

/// The projection and its follower.
#[derive(Debug)]
pub struct Hub {
    store: Arc<dyn Store>,
    takes_callbacks: bool,
    closed_limits: ClosedLimits,
    give_up: Duration,
    projection: Mutex<Projection>,
    progress: watch::Sender<FollowerProgress>,
    /// Per request: held while its log is read and inserted, so that no event is missed in between.
    loading: Locks<RequestId>,
    /// Per request: held by the caller that reads its log, on behalf of all callers.
    attaching: Locks<RequestId>,
    /// [`MAX_LOADS`] permits. The follower needs none.
    loads: Semaphore,
    history: History,
    snapshots: Snapshots,
    unreadable: Unreadable,
    hints: PollHints,
    spelling_variants: SpellingVariants,
    events_read: AtomicU64,
    finished: FinishCounts,
    resolver_woken: Notify,
    /// The follower ended or stalled, and has made no progress since.
    stalled: AtomicBool,
}

#[derive(Debug, Default)]
struct Projection {
    requests: HashMap<RequestId, Arc<Tracked>>,
    closed: Closed,
    orders: OpenOrders,
    /// The ids with capital letters in `requests`, by the id in small letters.
    capitals: HashMap<String, Vec<RequestId>>,
    callback_spellings: CallbackSpellings,
    /// Logs of closed requests that were read beyond the follower's position. It skips their events
    /// up to there.
    closed_ahead: HashMap<RequestId, ClosedAhead>,
    open_devices: usize,
    /// The number of resets of the projection.
    generation: u64,
    /// The accounts for which callbacks arrive; see [`finished`].
    called_back: HashSet<AccountName>,
}

/// The log of a closed request that was read beyond the follower's position.
#[derive(Debug, Clone)]
struct ClosedAhead {
    /// The sequence of its last event.
    last: u64,
    order_id: Option<String>,
}

/// The position of the follower, and whether it has read all events that were stored at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct FollowerProgress {
    folded: Option<Position>,
    caught_up: bool,
}

impl Hub {
    /// - `give_up`: unknown orders older than this do not keep the low-water mark from rising.
    /// - `takes_callbacks`: whether the gateway accepts callbacks. If not, earlier callbacks are no
    ///   reason to poll less.
    pub fn new(
        store: Arc<dyn Store>,
        closed_limits: ClosedLimits,
        give_up: Duration,
        takes_callbacks: bool,
    ) -> Self {
        Self {
            store,
            takes_callbacks,
            closed_limits,
            give_up,
            projection: Mutex::default(),
            progress: watch::Sender::default(),
            loading: Locks::default(),
            attaching: Locks::default(),
            loads: Semaphore::new(MAX_LOADS),
            history: History::default(),
            snapshots: Snapshots::default(),
            unreadable: Unreadable::default(),
            hints: PollHints::default(),
            spelling_variants: SpellingVariants::default(),
            events_read: AtomicU64::new(0),
            finished: FinishCounts::default(),
            resolver_woken: Notify::new(),
            stalled: AtomicBool::new(false),
        }
    }

    /// Waits until all events that were stored at the start are folded.
    pub async fn caught_up(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as self.
        let _ = progress.wait_for(|p| p.caught_up).await;
    }

    /// Waits until the projection is no longer up to date: the store was replaced, or the follower
    /// ended or stalled.
    pub async fn lost(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as self.
        let _ = progress.wait_for(|p| !p.caught_up).await;
    }

    /// Whether the follower ended or stalled.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    pub fn is_caught_up(&self) -> bool {
        self.progress.borrow().caught_up
    }

    /// Waits until this replica has folded a position, so that callers see their own writes.
    /// Returns false after [`FOLD_WAIT`].
    pub async fn folded(&self, position: Position) -> bool {
        let mut progress = self.progress.subscribe();
        let there = progress.wait_for(|p| {
            p.folded.is_some_and(|f| f.epoch != position.epoch || f.sequence >= position.sequence)
        });
        tokio::time::timeout(FOLD_WAIT, there).await.is_ok()
    }

    /// Returns the epoch of the store. `None` until the follower has read an event or the end.
    pub fn epoch(&self) -> Option<u64> {
        self.progress.borrow().folded.map(|p| p.epoch)
    }

    /// Returns the number of devices of all open requests.
    pub fn open_devices(&self) -> usize {
        lock(&self.projection).open_devices
    }

    /// Returns the damaged logs that are skipped, and the reasons.
    pub fn unreadable(&self) -> Vec<(String, String)> {
        self.unreadable.list()
    }

    /// Returns the number of events that were read from the store since the start.
    pub fn events_read(&self) -> u64 {
        self.events_read.load(Ordering::Relaxed)
    }

    /// Returns a request that is in memory.
    pub fn get(&self, id: &RequestId) -> Option<Arc<Tracked>> {
        lock(&self.projection).requests.get(id).map(Arc::clone)
    }

    /// Tells the poller to schedule a request again.
    pub fn hint(&self, id: &RequestId) {
        self.hints.add(id, PollHint::Reschedule);
    }

    /// Tells the poller that a caller has begun to watch a request.
    pub fn hint_watched(&self, id: &RequestId) {
        self.hints.add(id, PollHint::Watched);
    }

    /// Waits for hints and takes them.
    pub async fn hints(&self) -> Vec<(RequestId, PollHint)> {
        self.hints.take().await
    }

    /// Returns the first position of a request's log, if the request is in memory.
    pub fn first(&self, id: &RequestId) -> Option<Position> {
        self.get(id)?.lock().request.beginning()
    }

    /// Returns the accepted orders whose acceptance may not be in the request's log yet.
    pub fn unfinished_orders(&self) -> Vec<String> {
        let projection = lock(&self.projection);
        let accepted = |order: &Order| matches!(order.outcome, Some(OrderOutcome::AcceptedAs(_)));
        projection
            .orders
            .iter()
            .filter(|(_, order)| accepted(order))
            .map(|(id, _)| id.to_string())
            .collect()
    }

    /// Removes an accepted order whose acceptance is in the request's log.
    pub fn forget_order(&self, order_id: &str) {
        lock(&self.projection).orders.remove(order_id);
    }

    /// Waits for [`Self::wake_resolver`].
    pub async fn resolver_woken(&self) {
        self.resolver_woken.notified().await;
    }

    /// Wakes the resolver: an order without a caller may be settled or completed now.
    pub fn wake_resolver(&self) {
        self.resolver_woken.notify_one();
    }

    /// Returns the requests that may belong to orders without an outcome, and these orders.
    pub fn candidates(&self) -> Vec<(Arc<str>, RequestId)> {
        lock(&self.projection).orders.candidates()
    }

    /// Drops a candidate that does not belong to the order. It is not returned again.
    pub fn drop_candidate(&self, order_id: &str, request: &RequestId) {
        lock(&self.projection).orders.drop_candidate(order_id, request);
    }

    /// Maps the orders without an outcome, and returns the results that are not `None`.
    pub fn orders_without_outcome<T>(
        &self,
        mut select: impl FnMut(&Arc<str>, &Order) -> Option<T>,
    ) -> Vec<T> {
        lock(&self.projection)
            .orders
            .orders_without_outcome()
            .filter_map(|(id, order)| select(id, order))
            .collect()
    }

    /// Returns an order that is in memory and has no outcome.
    pub fn order_without_outcome(&self, order_id: &str) -> Option<Order> {
        let projection = lock(&self.projection);
        projection.orders.get(order_id).filter(|order| order.outcome.is_none()).cloned()
    }
}

fn open_devices(request: &Request) -> usize {
    if request.is_closed() { 0 } else { request.counts.total }
}

#[cfg(test)]
mod tests;
