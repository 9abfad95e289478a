//! The projection: all open requests and orders in memory, folded from the store's events.
//!
//! - Only [`Hub::follow`] and the loading of a log change it, and both only fold stored events. So
//!   all replicas compute the same transitions.
//! - A log is always folded from its first event. For an event of a log that is not in memory, the
//!   follower reads the whole log.
//! - Unused closed requests are evicted. They are read again when a caller needs them.
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

use super::{lock, locks::Locks};
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
mod open_devices;
mod open_orders;
mod ownership;
mod read;
mod read_ahead;
mod snapshots;
mod spelling;
mod spelling_variants;
mod tracked;
mod unreadable;
mod watchers;

use closed::Closed;
pub(crate) use finished::FinishedBy;
use finished::{EntryFacts, Positioned};
pub(crate) use hints::PollHint;
use hints::PollHints;
use history::History;
pub(crate) use history::PageGuard;
use open_devices::OpenDevices;
use open_orders::OpenOrders;
pub(crate) use ownership::{Mismatch, OWNED_BY_ANOTHER_ORDER, Ownership};
pub(crate) use snapshots::Devices;
use snapshots::Snapshots;
use spelling::CallbackSpellings;
pub(crate) use spelling::is_same;
pub(crate) use spelling_variants::SpellingVariant;
use spelling_variants::SpellingVariants;
pub(crate) use tracked::{LastQuery, Tracked, TrackedState};
use unreadable::Unreadable;
use watchers::Watchers;

/// The maximum number of a request's transitions in memory. Watchers read older ones from its log.
pub const KEPT_TRANSITIONS: usize = 1_024;

/// The maximum number of devices in these transitions. The last transition may exceed it.
const KEPT_DEVICES: usize = 10_000;

/// The maximum number of devices in the transitions that a watcher gets at once: about one message.
/// The first transition may exceed it.
const MAX_BATCH: usize = 512;

/// How long data stays in memory after a watch has read it, even if other watches need the space.
const READ_GRACE: Duration = Duration::from_secs(1);

/// The maximum number of logs that are read for callers at the same time. Folding a log of 10,000
/// devices takes about 20 MiB.
const MAX_LOADS: usize = 4;

/// How long an answer waits until this replica has folded the event that it appended.
const FOLD_WAIT: Duration = Duration::from_secs(2);

/// A request, and a receiver of its later revisions.
pub(crate) type Attached = (Arc<Tracked>, watch::Receiver<u64>);

/// The limits of closed requests in memory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClosedLimits {
    pub(crate) bytes: usize,
    pub(crate) idle: Duration,
}

#[derive(Debug)]
pub(crate) struct Hub {
    store: Arc<dyn Store>,
    takes_callbacks: bool,
    closed_limits: ClosedLimits,
    give_up: Duration,
    projection: Mutex<Projection>,
    progress: watch::Sender<FollowerProgress>,
    /// Per request: held while its log is read and inserted, so that no event is missed.
    loading: Locks<RequestId>,
    /// Per request: held by the caller that reads its log, on behalf of all callers.
    attaching: Locks<RequestId>,
    /// [`MAX_LOADS`] permits. The follower needs none.
    loads: Semaphore,
    history: History,
    snapshots: Snapshots,
    unreadable: Unreadable,
    pub(crate) hints: PollHints,
    spelling_variants: SpellingVariants,
    watchers: Mutex<Watchers>,
    events_read: AtomicU64,
    /// The numbers of finished requests since this process caught up, by [`FinishedBy`].
    finished: [AtomicU64; 2],
    resolver_woken: Notify,
    /// Whether the follower has ended or stalled, and has made no progress since.
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
    /// The follower skips the events of these logs that were read before.
    closed_ahead: HashMap<RequestId, ClosedAhead>,
    open_devices: OpenDevices,
    /// The number of resets of the projection.
    generation: u64,
    /// The accounts for which callbacks arrive; see [`finished`].
    called_back: HashSet<AccountName>,
}

/// The log of a closed request that was read beyond the follower's position.
#[derive(Debug, Clone)]
struct ClosedAhead {
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
    /// - `give_up`: an unknown order older than this does not hold the low-water mark back.
    /// - `takes_callbacks`: whether the gateway accepts callbacks. If not, earlier callbacks are no
    ///   reason to poll less.
    pub(crate) fn new(
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
            watchers: Mutex::default(),
            events_read: AtomicU64::new(0),
            finished: Default::default(),
            resolver_woken: Notify::new(),
            stalled: AtomicBool::new(false),
        }
    }

    /// Waits until all events that were stored at the start are folded.
    pub(crate) async fn caught_up(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as self.
        let _ = progress.wait_for(|p| p.caught_up).await;
    }

    /// Waits until the store was replaced, or the follower ended or stalled.
    pub(crate) async fn outdated(&self) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as self.
        let _ = progress.wait_for(|p| !p.caught_up).await;
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled.load(Ordering::Relaxed)
    }

    pub(crate) fn is_caught_up(&self) -> bool {
        self.progress.borrow().caught_up
    }

    /// Waits until this replica has folded a position, so that callers see their own writes.
    /// Returns false after [`FOLD_WAIT`].
    pub(crate) async fn wait_until_folded(&self, position: Position) -> bool {
        let mut progress = self.progress.subscribe();
        let is_folded = progress.wait_for(|p| {
            p.folded.is_some_and(|f| f.epoch != position.epoch || f.sequence >= position.sequence)
        });
        tokio::time::timeout(FOLD_WAIT, is_folded).await.is_ok()
    }

    /// Returns the epoch of the store. `None` until the follower has read an event or the end.
    pub(crate) fn epoch(&self) -> Option<u64> {
        self.progress.borrow().folded.map(|p| p.epoch)
    }

    /// Returns the number of events up to `end` that are not folded. Sequences may have gaps, so it
    /// is an upper bound.
    pub(crate) fn lag(&self, end: Position) -> u64 {
        match self.progress.borrow().folded {
            Some(folded) if folded.epoch == end.epoch => {
                end.sequence.saturating_sub(folded.sequence)
            }
            _ => end.sequence,
        }
    }

    pub(crate) fn open_devices(&self) -> usize {
        lock(&self.projection).open_devices.total()
    }

    /// Returns the devices of all open requests that a caller ordered.
    pub(crate) fn open_devices_of(&self, caller: &str) -> usize {
        lock(&self.projection).open_devices.of_caller(caller)
    }

    /// Returns the name of each damaged log with the reason.
    pub(crate) fn unreadable(&self) -> Vec<(String, String)> {
        self.unreadable.list()
    }

    pub(crate) fn events_read(&self) -> u64 {
        self.events_read.load(Ordering::Relaxed)
    }

    pub(crate) fn get(&self, id: &RequestId) -> Option<Arc<Tracked>> {
        lock(&self.projection).requests.get(id).map(Arc::clone)
    }

    /// Returns the first position of a request's log, if the request is in memory.
    pub(crate) fn first(&self, id: &RequestId) -> Option<Position> {
        self.get(id)?.lock().request.beginning()
    }

    pub(crate) async fn resolver_woken(&self) {
        self.resolver_woken.notified().await;
    }

    /// Wakes the resolver, because it may settle or complete an order without a caller now.
    pub(crate) fn wake_resolver(&self) {
        self.resolver_woken.notify_one();
    }
}

#[cfg(test)]
mod tests;
