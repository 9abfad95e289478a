//! The projection: every open request and order, folded from the store's one sequence of events.
//!
//! Only [`Hub::follow`] and the loading of a log write it, and both only fold what the store holds; so every replica
//! arrives at the same transitions. A log is always folded from its first event: one that is met half-way is read whole.
//! Closed logs leave memory after a while and are read back when somebody asks.
//!
//! Watchers wait on an entry; there is no queue per watcher, so a slow one costs what it has not read yet and nothing else.

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
    event, lock,
    locks::Locks,
    order::{Order, Outcome},
    state::{Request, Transition},
};
use crate::{
    identity::{AccountName, RequestId},
    store::{self, Entry, LogName, Position, Store, StoreError},
};

mod arrivals;
mod beginning;
mod follow;
mod hints;
mod low_water;
mod open_orders;
mod read_ahead;
mod spelling;
mod strays;
mod tracked;
mod unreadable;

pub use arrivals::By;
use arrivals::{At, Finished, Note};
pub use beginning::{Beginning, Objection};
pub use hints::Hint;
use hints::Hints;
pub use low_water::LowWater;
use open_orders::OpenOrders;
pub use spelling::is_same;
pub use strays::Stray;
use strays::Strays;
pub use tracked::{Asked, Folded, Tracked};
use unreadable::Unreadable;

/// Transitions of a request kept in memory for watchers; older ones are read from its log.
pub const KEPT_TRANSITIONS: usize = 1_024;

/// Logs that are read for callers at once. A large one takes tens of milliseconds and megabytes.
const MAX_LOADS: usize = 8;

/// How long an answer waits for this replica to fold what it has just appended.
const FOLD_WAIT: Duration = Duration::from_secs(2);

/// The projection and its follower.
#[derive(Debug)]
pub struct Hub {
    store: Arc<dyn Store>,
    takes_callbacks: bool,
    closed_in_memory: Duration,
    give_up: Duration,
    projection: Mutex<Projection>,
    /// How far the follower has folded, and whether it has caught up.
    progress: watch::Sender<Progress>,
    /// Of each request: held while its log is read and put into the projection, so that no event falls between the two.
    loading: Locks<RequestId>,
    /// Logs that may be read for callers at once. The follower waits for none of them.
    loads: Semaphore,
    unreadable: Unreadable,
    hints: Hints,
    strays: Strays,
    events_read: AtomicU64,
    finished: Finished,
    /// Something may be done for an order that nobody is waiting with.
    stirred: Notify,
    /// The follower ended or stands still, and has made no progress since.
    stalled: AtomicBool,
}

#[derive(Debug, Default)]
struct Projection {
    requests: HashMap<RequestId, Arc<Tracked>>,
    /// Orders without an outcome, or whose request does not know of them yet.
    orders: OpenOrders,
    /// Tracked requests whose ids have capital letters, by the id in small letters.
    capitals: HashMap<String, Vec<RequestId>>,
    /// Closed logs that were read further than the follower is: what it meets of them until then it need not read again.
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
    /// `give_up`: an order whose fate was unknown for this long no longer holds the low-water mark down.
    ///
    /// `takes_callbacks`: whether any can arrive; without, what arrived before says nothing.
    pub fn new(
        store: Arc<dyn Store>,
        closed_in_memory: Duration,
        give_up: Duration,
        takes_callbacks: bool,
    ) -> Self {
        Self {
            store,
            takes_callbacks,
            closed_in_memory,
            give_up,
            projection: Mutex::default(),
            progress: watch::Sender::default(),
            loading: Locks::default(),
            loads: Semaphore::new(MAX_LOADS),
            unreadable: Unreadable::default(),
            hints: Hints::default(),
            strays: Strays::default(),
            events_read: AtomicU64::new(0),
            finished: Finished::default(),
            stirred: Notify::new(),
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

    /// Waits until this replica has folded a position, at most [`FOLD_WAIT`]: a reader then sees its own writes. False
    /// when it gave up waiting.
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

    /// A request and its changes from now on, from memory or from its log; `None` if its log is empty.
    pub async fn attach(
        &self,
        id: &RequestId,
    ) -> Result<Option<(Arc<Tracked>, watch::Receiver<u64>)>, StoreError> {
        if let Some(found) = self.attached(id) {
            return Ok(Some(found));
        }
        // Before the request's lock, which the follower may wait for.
        let _load = self.loads.acquire().await.expect("nobody closes this semaphore");
        let _loading = self.loading.lock(id).await;
        loop {
            if let Some(found) = self.attached(id) {
                return Ok(Some(found));
            }
            let generation = lock(&self.projection).generation;
            let folded = self.read(id).await?;
            if folded.is_empty() {
                return Ok(None);
            }
            let tracked = Tracked::new(id.clone(), folded);
            let receiver = tracked.subscribe();
            // Else it is a log of the store that was lost.
            if self.insert(Arc::clone(&tracked), generation) {
                return Ok(Some((tracked, receiver)));
            }
        }
    }

    // Subscribes under the projection's lock, so that housekeeping does not drop the entry in between.
    fn attached(&self, id: &RequestId) -> Option<(Arc<Tracked>, watch::Receiver<u64>)> {
        let projection = lock(&self.projection);
        let tracked = projection.requests.get(id)?;
        Some((Arc::clone(tracked), tracked.subscribe()))
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

    /// The transitions of a request after a revision, from its log; `None` if the log does not begin at `first` any more.
    pub async fn transitions(
        &self,
        id: &RequestId,
        first: Option<Position>,
        after: u64,
    ) -> Result<Option<Vec<Arc<Transition>>>, StoreError> {
        let mut request = Request::default();
        let mut found = Vec::new();
        self.read_log(&LogName::request(id.as_str()), |entry| {
            let Some(event) = event::decode(&entry.event) else { return };
            let transition = request.apply(entry.position, entry.time, &event).transition;
            found.extend(transition.filter(|t| t.revision > after).map(Arc::new));
        })
        .await?;
        Ok((request.beginning() == first).then_some(found))
    }

    /// Where the log of a request begins, if the request is in memory.
    pub fn first(&self, id: &RequestId) -> Option<Position> {
        self.get(id)?.lock().request.beginning()
    }

    /// Whether the store holds an event of a request at a position.
    pub async fn holds(&self, id: &RequestId, position: Position) -> Result<bool, StoreError> {
        let log = LogName::request(id.as_str());
        let next = self.store.read(&log, position.sequence.saturating_sub(1), 1).await?;
        Ok(next.first().is_some_and(|entry| entry.position == position))
    }

    /// An order, from its log.
    pub async fn order(&self, order_id: &str) -> Result<Order, StoreError> {
        let mut order = Order::default();
        self.read_log(&LogName::order(order_id), |entry| {
            if let Some(event) = event::decode(&entry.event) {
                order.apply(entry.position, entry.time, &event);
            }
        })
        .await?;
        Ok(order)
    }

    /// Orders that ThingSpace accepted and whose request does not know it yet.
    pub fn unfinished_orders(&self) -> Vec<String> {
        let projection = lock(&self.projection);
        let accepted = |order: &Order| matches!(order.outcome, Some(Outcome::AcceptedAs(_)));
        projection.orders.iter().filter(|(_, order)| accepted(order)).map(|(id, _)| id.to_string()).collect()
    }

    /// The request of an accepted order knows of it, as its log says.
    pub fn forget_order(&self, order_id: &str) {
        lock(&self.projection).orders.remove(order_id);
    }

    /// Waits until something may be done for an order that nobody is waiting with.
    pub async fn stirred(&self) {
        self.stirred.notified().await;
    }

    pub fn stir(&self) {
        self.stirred.notify_one();
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
    pub fn undecided<T>(&self, mut look: impl FnMut(&Arc<str>, &Order) -> Option<T>) -> Vec<T> {
        lock(&self.projection).orders.undecided().filter_map(|(id, order)| look(id, order)).collect()
    }

    /// An order without an outcome.
    pub fn undecided_order(&self, order_id: &str) -> Option<Order> {
        let projection = lock(&self.projection);
        projection.orders.get(order_id).filter(|order| order.outcome.is_none()).cloned()
    }

    /// Puts a request into the projection; false if that was begun anew since the log was read.
    fn insert(&self, tracked: Arc<Tracked>, generation: u64) -> bool {
        let (devices, open) = {
            let folded = tracked.lock();
            (open_devices(&folded.request), !folded.request.is_closed())
        };
        let id = tracked.id.clone();
        let mut projection = lock(&self.projection);
        if projection.generation != generation {
            return false;
        }
        projection.open_devices += devices;
        projection.track(tracked);
        drop(projection);
        if open {
            self.hint(&id);
        }
        true
    }

    async fn read(&self, id: &RequestId) -> Result<Folded, StoreError> {
        let mut folded = Folded::default();
        self.read_log(&LogName::request(id.as_str()), |entry| {
            folded.apply(id.as_str(), entry);
        })
        .await?;
        Ok(folded)
    }

    async fn read_log(&self, log: &LogName, mut each: impl FnMut(&Entry)) -> Result<(), StoreError> {
        let mut after = 0;
        loop {
            let entries = self.store.read(log, after, store::MAX_READ).await?;
            self.events_read.fetch_add(entries.len() as u64, Ordering::Relaxed);
            let Some(last) = entries.last() else { return Ok(()) };
            after = last.position.sequence;
            entries.iter().for_each(&mut each);
            let bytes: usize = entries.iter().map(|entry| entry.event.len()).sum();
            if entries.len() < store::MAX_READ && bytes < store::WHOLE_READ_BYTES {
                return Ok(());
            }
        }
    }
}

fn open_devices(request: &Request) -> usize {
    if request.is_closed() { 0 } else { request.counts.total }
}

#[cfg(test)]
mod tests;
