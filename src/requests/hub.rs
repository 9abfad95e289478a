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
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    event::{self, Kind},
    lock,
    order::{Order, Outcome},
    state::{Request, Transition},
};
use crate::{
    identity::{AccountName, RequestId},
    store::{self, Entry, Followed, LogClass, LogName, Position, Store, StoreError},
};

mod arrivals;
mod hints;
mod low_water;
mod open_orders;
mod tracked;

pub use arrivals::By;
use arrivals::{At, Finished, Note};
pub use hints::Hint;
use hints::Hints;
pub use low_water::LowWater;
use open_orders::OpenOrders;
pub use tracked::{Asked, Folded, Tracked};

/// Transitions of a request kept in memory for watchers; older ones are read from its log.
pub const KEPT_TRANSITIONS: usize = 1_024;

/// How long an answer waits for this replica to fold what it has just appended.
const FOLD_WAIT: Duration = Duration::from_secs(2);

/// How often the hub looks for entries to drop and raises the low-water mark.
const HOUSEKEEPING: Duration = Duration::from_mins(1);

/// The pause after a failed read of the store.
const READ_RETRY: Duration = Duration::from_millis(500);

/// The projection and its follower.
#[derive(Debug)]
pub struct Hub {
    store: Arc<dyn Store>,
    closed_in_memory: Duration,
    give_up: Duration,
    projection: Mutex<Projection>,
    /// How far the follower has folded, and whether it has caught up.
    progress: watch::Sender<Progress>,
    /// Held while a log is read and put into the projection, so that no event falls between the two.
    loading: tokio::sync::Mutex<()>,
    hints: Hints,
    events_read: AtomicU64,
    finished: Finished,
    /// Something may be done for an order that nobody is waiting with.
    stirred: Notify,
}

#[derive(Debug, Default)]
struct Projection {
    requests: HashMap<RequestId, Arc<Tracked>>,
    /// Orders without an outcome, or whose request does not know of them yet.
    orders: OpenOrders,
    /// Closed logs that were read further than the follower is, and up to which sequence: what it meets of them until then it
    /// need not read again.
    ahead: HashMap<RequestId, u64>,
    open_devices: usize,
    /// Accounts for whose requests callbacks arrive.
    called_back: HashSet<AccountName>,
}

/// How far the follower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    folded: Option<Position>,
    caught_up: bool,
}

impl Hub {
    /// `give_up`: an order whose fate was unknown for this long no longer holds the low-water mark down.
    pub fn new(store: Arc<dyn Store>, closed_in_memory: Duration, give_up: Duration) -> Self {
        Self {
            store,
            closed_in_memory,
            give_up,
            projection: Mutex::default(),
            progress: watch::Sender::default(),
            loading: tokio::sync::Mutex::default(),
            hints: Hints::default(),
            events_read: AtomicU64::new(0),
            finished: Finished::default(),
            stirred: Notify::new(),
        }
    }

    /// Resolves when everything that was stored at the start has been folded.
    pub async fn caught_up(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as self.
        let _ = progress.wait_for(|p| p.caught_up).await;
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
        let _loading = self.loading.lock().await;
        if let Some(found) = self.attached(id) {
            return Ok(Some(found));
        }
        let folded = self.read(id).await?;
        if folded.is_empty() {
            return Ok(None);
        }
        let tracked = Tracked::new(id.clone(), folded);
        let receiver = tracked.subscribe();
        self.insert(Arc::clone(&tracked));
        Ok(Some((tracked, receiver)))
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

    /// Waits for hints and takes them.
    pub async fn hints(&self) -> Vec<(RequestId, Hint)> {
        self.hints.take().await
    }

    /// The transitions of a request after a revision, from its log.
    pub async fn transitions(&self, id: &RequestId, after: u64) -> Result<Vec<Arc<Transition>>, StoreError> {
        let mut request = Request::default();
        let mut found = Vec::new();
        self.read_log(&LogName::request(id.as_str()), |entry| {
            let Some(event) = event::decode(&entry.event) else { return };
            let transition = request.apply(entry.position, entry.time, &event).transition;
            found.extend(transition.filter(|t| t.revision > after).map(Arc::new));
        })
        .await?;
        Ok(found)
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

    /// Follows the store until stopped.
    pub async fn follow(&self, stop: CancellationToken) {
        let mut from = self.low_water(&stop).await;
        while let Some(lost) = stop.run_until_cancelled(self.follow_from(from)).await {
            match lost {
                store::Lost::Replaced => warn!("the store was replaced; starting over"),
                store::Lost::TooOld => {
                    info!("the low-water mark is older than the oldest event; starting from that");
                }
            }
            self.reset();
            from = None;
        }
        // The next start then reads only what is still open.
        self.keep_house().await;
    }

    async fn low_water(&self, stop: &CancellationToken) -> Option<Position> {
        let load = async {
            let mut said = false;
            loop {
                match LowWater::load(&*self.store).await {
                    Ok(mark) => return mark.and_then(LowWater::position),
                    Err(error) => {
                        if !std::mem::replace(&mut said, true) {
                            warn!(%error, "cannot read the low-water mark yet; trying until it works");
                        }
                        tokio::time::sleep(READ_RETRY).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(load).await.flatten()
    }

    async fn follow_from(&self, from: Option<Position>) -> store::Lost {
        let mut followed = self.store.follow(from);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                item = followed.next() => match item {
                    Some(Followed::Event(log, entry)) => {
                        self.events_read.fetch_add(1, Ordering::Relaxed);
                        self.fold(&log, &entry).await;
                        self.progress.send_modify(|p| p.folded = Some(entry.position));
                    }
                    Some(Followed::CaughtUp(position)) => {
                        debug!(sequence = position.sequence, "caught up with the store");
                        self.progress.send_modify(|p| *p = Progress { folded: Some(position.max(p.folded.unwrap_or(position))), caught_up: true });
                    }
                    Some(Followed::Lost(lost)) => return lost,
                    // Closed by us: the stop token comes next.
                    None => std::future::pending().await,
                },
                _ = housekeeping.tick() => self.keep_house().await,
            }
        }
    }

    async fn fold(&self, log: &LogName, entry: &Entry) {
        match log.class {
            LogClass::Order => self.fold_order(&log.id, entry).await,
            LogClass::Request => {
                let Ok(id) = RequestId::parse(&log.id) else { return };
                self.fold_request(id, entry).await;
            }
        }
    }

    async fn fold_order(&self, id: &str, entry: &Entry) {
        let Some(event) = event::decode(&entry.event) else { return };
        {
            let mut projection = lock(&self.projection);
            if projection.orders.contains(id) || matches!(event.kind, Some(Kind::Ordered(_))) {
                return projection.orders.apply(id, entry, &event);
            }
        }
        // An order's log begins with Ordered; a later event of one that is not here is of one that has ended. But ThingSpace's
        // word beats everybody's conclusion that nothing was placed.
        if matches!(event.kind, Some(Kind::AcceptedAs(_))) {
            let order = until_read(id, || self.order(id)).await;
            lock(&self.projection).orders.insert(id, order);
            self.stir();
        }
    }

    async fn fold_request(&self, id: RequestId, entry: &Entry) {
        if self.was_read(&id, entry) {
            return self.take_lead(&id, entry);
        }
        if self.fold_tracked(&id, entry) {
            return;
        }
        let _loading = self.loading.lock().await;
        if self.fold_tracked(&id, entry) {
            return;
        }
        // Open requests are in memory and a callback opens none: what is not here has ended, or is somebody else's. So foreign
        // callbacks cost no reading and no memory.
        if event::decode(&entry.event).is_some_and(|e| matches!(e.kind, Some(Kind::CalledBack(_)))) {
            return self.take_lead(&id, entry);
        }
        let folded = until_read(id.as_str(), || self.read(&id)).await;
        self.close_order(&folded.request);
        self.take_note(&id, Note::of(&folded, entry, true));
        if !folded.request.is_closed() {
            return self.insert(Tracked::new(id, folded));
        }
        let mut projection = lock(&self.projection);
        let last = folded.position().sequence;
        if last > entry.position.sequence {
            projection.ahead.insert(id, last);
        }
    }

    /// A callback for a request of which no order is known here.
    fn take_lead(&self, id: &RequestId, entry: &Entry) {
        if let Some(Kind::CalledBack(called_back)) = event::decode(&entry.event).and_then(|event| event.kind)
            && lock(&self.projection).orders.lead(id, &called_back)
        {
            self.stir();
        }
    }

    /// Whether a closed log was read up to an entry, or further.
    fn was_read(&self, id: &RequestId, entry: &Entry) -> bool {
        let ahead = &mut lock(&self.projection).ahead;
        let Some(&last) = ahead.get(id) else { return false };
        if entry.position.sequence >= last {
            ahead.remove(id);
        }
        entry.position.sequence <= last
    }

    /// Folds an event into a request that is in memory; false if it is not.
    fn fold_tracked(&self, id: &RequestId, entry: &Entry) -> bool {
        let mut projection = lock(&self.projection);
        let Some(tracked) = projection.requests.get(id).map(Arc::clone) else { return false };
        let mut folded = tracked.lock();
        let before = open_devices(&folded.request);
        let effect = folded.apply(id.as_str(), entry);
        projection.open_devices = projection.open_devices + open_devices(&folded.request) - before;
        let (revision, request_open) = (folded.request.revision, !folded.request.is_closed());
        if let Some(order_id) = &folded.request.order_id {
            projection.orders.remove(order_id);
        }
        let note = Note::of(&folded, entry, false);
        let is_lead = folded.request.order_id.is_none();
        drop(folded);
        drop(projection);
        if is_lead {
            self.take_lead(id, entry);
        }
        self.take_note(id, note);
        if effect.puzzling {
            self.hints.add(id, Hint::Soon);
        }
        if effect.changed {
            tracked.wake(revision);
            if before == 0 && request_open {
                self.hint(id);
            }
        }
        true
    }

    fn insert(&self, tracked: Arc<Tracked>) {
        let (devices, open) = {
            let folded = tracked.lock();
            (open_devices(&folded.request), !folded.request.is_closed())
        };
        let id = tracked.id.clone();
        let mut projection = lock(&self.projection);
        projection.open_devices += devices;
        projection.requests.insert(id.clone(), tracked);
        drop(projection);
        if open {
            self.hint(&id);
        }
    }

    fn close_order(&self, request: &Request) {
        if let Some(order_id) = &request.order_id {
            lock(&self.projection).orders.remove(order_id);
        }
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
        }
    }

    async fn keep_house(&self) {
        let mut dropped = 0;
        let oldest_open = {
            let mut projection = lock(&self.projection);
            let expired = |tracked: &Arc<Tracked>| {
                let closed = tracked.lock().closed_since();
                closed.is_some_and(|since| since.elapsed() >= self.closed_in_memory) && !tracked.is_watched()
            };
            projection.requests.retain(|_, tracked| {
                let keep = !expired(tracked);
                dropped += usize::from(!keep);
                keep
            });
            let requests = projection.requests.values().filter_map(|tracked| {
                let folded = tracked.lock();
                folded.request.first.filter(|_| !folded.request.is_closed())
            });
            let now = Timestamp::now();
            let young = |order: &&Order| order.age(now) < self.give_up || order.outcome.is_some();
            let orders = projection
                .orders
                .iter()
                .map(|(_, order)| order)
                .filter(young)
                .filter_map(|order| order.first);
            requests.chain(orders).min()
        };
        let folded = self.progress.borrow().folded;
        // What is not folded yet may be open, too: a log that somebody asked for may have been read further than the follower is.
        if let Some(mark) = oldest_open.into_iter().chain(folded).min()
            && self.is_caught_up()
            && let Err(error) = LowWater::raise(&*self.store, mark).await
        {
            warn!(%error, "cannot raise the low-water mark; the next start reads more than it has to");
        }
        debug!(dropped, "housekeeping");
    }

    fn reset(&self) {
        let projection = std::mem::take(&mut *lock(&self.projection));
        for tracked in projection.requests.values() {
            tracked.lose();
        }
        self.progress.send_replace(Progress::default());
    }
}

/// Reads a log, for as long as it takes.
async fn until_read<T, F>(log: &str, read: impl Fn() -> F) -> T
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut said = false;
    loop {
        match read().await {
            Ok(read) => return read,
            Err(error) => {
                if !std::mem::replace(&mut said, true) {
                    warn!(log, %error, "cannot read a log yet; trying until it works");
                }
                tokio::time::sleep(READ_RETRY).await;
            }
        }
    }
}

fn open_devices(request: &Request) -> usize {
    if request.is_closed() { 0 } else { request.counts.total }
}

#[cfg(test)]
mod tests;
