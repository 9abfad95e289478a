//! The projection: every open request and order, folded from the store's one sequence of events.
//!
//! Only [`Hub::follow`] and the loading of a log write it, and both only fold what the store holds;
//! so every replica arrives at the same transitions. A log is always folded from its first event:
//! one that is met half-way is read whole. Closed logs leave memory after a while and are read back
//! when somebody asks.
//!
//! Watchers wait on an entry; there is no queue per watcher, so a slow one costs what it has not
//! read yet and nothing else.

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

mod arrivals;
mod beginning;
mod closed;
mod follow;
mod hints;
mod history;
mod low_water;
mod open_orders;
mod read;
mod read_ahead;
mod snapshots;
mod spelling;
mod strays;
mod tracked;
mod unreadable;

pub use arrivals::By;
use arrivals::{At, Finished, Note};
pub use beginning::{Beginning, OF_ANOTHER_ORDER, Objection};
use closed::Closed;
pub use hints::Hint;
use hints::Hints;
use history::History;
pub use history::Reading;
pub use low_water::LowWater;
use open_orders::OpenOrders;
pub use snapshots::Devices;
use snapshots::Snapshots;
use spelling::Heard;
pub use spelling::is_same;
pub use strays::Stray;
use strays::Strays;
pub use tracked::{Folded, LastQuery, Tracked};
use unreadable::Unreadable;

/// Transitions of a request kept in memory for watchers; older ones are read from its log.
pub const KEPT_TRANSITIONS: usize = 1_024;

/// Devices that the kept transitions name, the last transition apart.
const KEPT_DEVICES: usize = 10_000;

/// Devices that the transitions given to a watcher at once name, the first transition apart. About
/// as many fit into a message.
const MAX_BATCH: usize = 512;

/// What a watch has read from within this time stays in memory, so that watches of many requests do
/// not displace what the others are reading.
const UNDISTURBED: Duration = Duration::from_secs(1);

/// Logs that are read for callers at once. While it is folded, a log of 10,000 devices takes about
/// 20 MiB.
const MAX_LOADS: usize = 4;

/// How long an answer waits for this replica to fold what it has just appended.
const FOLD_WAIT: Duration = Duration::from_secs(2);

/// What stays in memory although it can be read again from the store.
#[derive(Debug, Clone, Copy)]
pub struct Keep {
    /// Of all closed requests together.
    pub bytes: usize,
    /// Since the last use.
    pub idle: Duration,
}

/// The projection and its follower.
#[derive(Debug)]
pub struct Hub {
    store: Arc<dyn Store>,
    takes_callbacks: bool,
    keep: Keep,
    give_up: Duration,
    projection: Mutex<Projection>,
    /// How far the follower has folded, and whether it has caught up.
    progress: watch::Sender<Progress>,
    /// Of each request: held while its log is read and put into the projection, so that no event
    /// falls between the two.
    loading: Locks<RequestId>,
    /// Of each request: held by the one caller that reads its log, for all callers that want it.
    attaching: Locks<RequestId>,
    /// Logs that may be read for callers at once. The follower waits for none of them.
    loads: Semaphore,
    history: History,
    snapshots: Snapshots,
    unreadable: Unreadable,
    hints: Hints,
    strays: Strays,
    events_read: AtomicU64,
    finished: Finished,
    /// Something may be done for an order that nobody is waiting with.
    resolver_woken: Notify,
    /// The follower ended or stands still, and has made no progress since.
    stalled: AtomicBool,
}

#[derive(Debug, Default)]
struct Projection {
    requests: HashMap<RequestId, Arc<Tracked>>,
    /// Those of them that are closed.
    closed: Closed,
    /// Orders without an outcome, or whose request does not know of them yet.
    orders: OpenOrders,
    /// Tracked requests whose ids have capital letters, by the id in small letters.
    capitals: HashMap<String, Vec<RequestId>>,
    /// Ids in mixed case that only callbacks have named.
    heard: Heard,
    /// Closed logs that were read further than the follower is: what it meets of them until then it
    /// need not read again.
    ahead: HashMap<RequestId, Ahead>,
    open_devices: usize,
    /// How often the projection was begun anew.
    generation: u64,
    /// Accounts for whose requests callbacks arrive.
    called_back: HashSet<AccountName>,
}

/// A closed log that was read ahead of the follower.
#[derive(Debug, Clone)]
struct Ahead {
    /// The sequence of its last event.
    last: u64,
    /// The order that its request belongs to.
    order_id: Option<String>,
}

/// How far the follower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    folded: Option<Position>,
    caught_up: bool,
}

impl Hub {
    /// `give_up`: an order whose fate was unknown for this long no longer holds the low-water mark
    /// down.
    ///
    /// `takes_callbacks`: whether any can arrive; without, what arrived before says nothing.
    pub fn new(
        store: Arc<dyn Store>,
        keep: Keep,
        give_up: Duration,
        takes_callbacks: bool,
    ) -> Self {
        Self {
            store,
            takes_callbacks,
            keep,
            give_up,
            projection: Mutex::default(),
            progress: watch::Sender::default(),
            loading: Locks::default(),
            attaching: Locks::default(),
            loads: Semaphore::new(MAX_LOADS),
            history: History::default(),
            snapshots: Snapshots::default(),
            unreadable: Unreadable::default(),
            hints: Hints::default(),
            strays: Strays::default(),
            events_read: AtomicU64::new(0),
            finished: Finished::default(),
            resolver_woken: Notify::new(),
            stalled: AtomicBool::new(false),
        }
    }

    /// Resolves when everything that was stored at the start has been folded.
    pub async fn caught_up(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as self.
        let _ = progress.wait_for(|p| p.caught_up).await;
    }

    /// Resolves when what was folded is void, because the store is another one.
    pub async fn lost(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as self.
        let _ = progress.wait_for(|p| !p.caught_up).await;
    }

    /// Whether the store is no longer followed.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    pub fn is_caught_up(&self) -> bool {
        self.progress.borrow().caught_up
    }

    /// Waits until this replica has folded a position, at most [`FOLD_WAIT`]: a reader then sees
    /// its own writes. False when it gave up waiting.
    pub async fn folded(&self, position: Position) -> bool {
        let mut progress = self.progress.subscribe();
        let there = progress.wait_for(|p| {
            p.folded.is_some_and(|f| f.epoch != position.epoch || f.sequence >= position.sequence)
        });
        tokio::time::timeout(FOLD_WAIT, there).await.is_ok()
    }

    /// The epoch of the store that is being followed, once an event or the end was seen.
    pub fn epoch(&self) -> Option<u64> {
        self.progress.borrow().folded.map(|p| p.epoch)
    }

    /// Devices of all open requests.
    pub fn open_devices(&self) -> usize {
        lock(&self.projection).open_devices
    }

    /// Logs that cannot be read and were set aside, and why.
    pub fn unreadable(&self) -> Vec<(String, String)> {
        self.unreadable.list()
    }

    /// How many events were read from the store since the start, by following and by loading.
    pub fn events_read(&self) -> u64 {
        self.events_read.load(Ordering::Relaxed)
    }

    /// A request, if it is in memory.
    pub fn get(&self, id: &RequestId) -> Option<Arc<Tracked>> {
        lock(&self.projection).requests.get(id).map(Arc::clone)
    }

    /// Tells the poller that a request deserves a look.
    pub fn hint(&self, id: &RequestId) {
        self.hints.add(id, Hint::Look);
    }

    /// Tells the poller that somebody has begun to watch a request.
    pub fn hint_watched(&self, id: &RequestId) {
        self.hints.add(id, Hint::Watched);
    }

    /// Waits for hints and takes them.
    pub async fn hints(&self) -> Vec<(RequestId, Hint)> {
        self.hints.take().await
    }

    /// Where the log of a request begins, if the request is in memory.
    pub fn first(&self, id: &RequestId) -> Option<Position> {
        self.get(id)?.lock().request.beginning()
    }

    /// Orders that ThingSpace accepted and whose request does not know it yet.
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

    /// The request of an accepted order knows of it, as its log says.
    pub fn forget_order(&self, order_id: &str) {
        lock(&self.projection).orders.remove(order_id);
    }

    /// Waits until something may be done for an order that nobody is waiting with.
    pub async fn resolver_woken(&self) {
        self.resolver_woken.notified().await;
    }

    pub fn wake_resolver(&self) {
        self.resolver_woken.notify_one();
    }

    /// Requests that may be what became of orders without an outcome.
    pub fn leads(&self) -> Vec<(Arc<str>, RequestId)> {
        lock(&self.projection).orders.leads()
    }

    /// A lead came to nothing, and need not be followed again.
    pub fn drop_lead(&self, order_id: &str, request: &RequestId) {
        lock(&self.projection).orders.drop_lead(order_id, request);
    }

    /// Looks at the orders without an outcome.
    pub fn orders_without_outcome<T>(
        &self,
        mut look: impl FnMut(&Arc<str>, &Order) -> Option<T>,
    ) -> Vec<T> {
        lock(&self.projection)
            .orders
            .orders_without_outcome()
            .filter_map(|(id, order)| look(id, order))
            .collect()
    }

    /// An order without an outcome.
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
