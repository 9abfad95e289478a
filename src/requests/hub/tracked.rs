//! A request in memory: its folded state, its last transitions, and its watchers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, warn};

use super::{FinishedBy, KEPT_DEVICES, KEPT_TRANSITIONS, Positioned, history::batch};
use crate::{
    identity::{AccountName, RequestId},
    log_throttle::LogThrottle,
    requests::{
        error::Error,
        fold::{
            event::{self, Kind},
            state::{DeviceStatus, Request, Transition},
        },
        lock,
        query::withheld::Withheld,
    },
    store::{Entry, Position},
    thingspace::StatusAnswer,
};

static CONTRADICTED: LogThrottle = LogThrottle::new();
static UNMATCHED: LogThrottle = LogThrottle::new();

/// The size of a request without its devices and transitions, in bytes.
const REQUEST_BYTES: usize = 2_048;

/// The size of a transition, and of a device in it, in bytes.
const TRANSITION_BYTES: usize = 200;
const CHANGE_BYTES: usize = 150;

#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) id: RequestId,
    folded: Mutex<TrackedState>,
    /// Sends the current revision to the watches.
    changed: watch::Sender<u64>,
    last_query: Mutex<Option<LastQuery>>,
    last_failure: Mutex<Option<(Instant, Error)>>,
    /// Lock order: after `folded`.
    withheld: Mutex<Withheld>,
}

/// When ThingSpace last answered a status query, and how long it took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastQuery {
    pub(crate) at: Instant,
    pub(crate) took: Duration,
}

/// The part of a [`Tracked`] that is behind its lock.
#[derive(Debug, Default)]
pub(crate) struct TrackedState {
    pub(crate) request: Request,
    /// The last transitions, at most [`KEPT_TRANSITIONS`] with [`KEPT_DEVICES`].
    recent: VecDeque<Arc<Transition>>,
    /// The number of devices in `recent`.
    recent_devices: usize,
    /// The devices at a revision, while a snapshot of it is being sent.
    snapshot: (u64, Weak<Vec<Arc<DeviceStatus>>>),
    /// The position of the last folded event.
    last: Option<Position>,
    discarded: bool,
    /// Whether callbacks arrive for the account, by the last event that shows it.
    pub(super) called_back: Option<Positioned<bool>>,
    /// The account of a callback that came before the device set was known.
    early_callback: Option<String>,
    pub(super) finished: Option<Positioned<FinishedBy>>,
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FoldEffect {
    pub(super) changed: bool,
    /// A callback could not be assigned to a device. A status query may list the device.
    pub(super) unassigned: bool,
}

impl Tracked {
    pub(super) fn new(id: RequestId, folded: TrackedState) -> Arc<Self> {
        let changed = watch::Sender::new(folded.request.revision);
        Arc::new(Self {
            id,
            folded: Mutex::new(folded),
            changed,
            last_query: Mutex::default(),
            last_failure: Mutex::default(),
            withheld: Mutex::default(),
        })
    }

    /// Locks the state. The guard must not be held across an await.
    pub(crate) fn lock(&self) -> MutexGuard<'_, TrackedState> {
        lock(&self.folded)
    }

    pub(crate) fn last_query(&self) -> Option<LastQuery> {
        *lock(&self.last_query)
    }

    pub(crate) fn set_last_query(&self, took: Duration) {
        *lock(&self.last_query) = Some(LastQuery { at: Instant::now(), took });
    }

    /// Withholds statuses that would make devices final, and returns the rest of the answer; see
    /// [`Withheld`]. Withholds nothing of a closed request, because the poller would not release
    /// it.
    pub(crate) fn withhold(&self, answer: StatusAnswer, grace: Duration) -> StatusAnswer {
        let folded = self.lock();
        if folded.request.is_closed() {
            return answer;
        }
        lock(&self.withheld).withhold(&folded.request, answer, grace, Instant::now())
    }

    pub(crate) fn withheld_until(&self) -> Option<Instant> {
        lock(&self.withheld).until()
    }

    /// Returns the withheld statuses that must be released now.
    pub(crate) fn due_statuses(&self) -> Option<StatusAnswer> {
        let folded = self.lock();
        let mut withheld = lock(&self.withheld);
        withheld.forget(&folded.request);
        withheld.due(Instant::now())
    }

    /// Returns the error of the last failed query, if it is less than `hold` old.
    pub(crate) fn query_failure(&self, hold: Duration) -> Option<Error> {
        let failure = lock(&self.last_failure);
        failure.as_ref().filter(|(at, _)| at.elapsed() < hold).map(|(_, error)| error.clone())
    }

    pub(crate) fn set_query_failure(&self, error: Error) {
        *lock(&self.last_failure) = Some((Instant::now(), error));
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    pub(super) fn wake(&self, revision: u64) {
        self.changed.send_replace(revision);
    }

    /// Ends all watches, because this state is no longer valid. Callers may resume them.
    pub(super) fn discard(&self) {
        self.lock().discarded = true;
        self.changed.send_modify(|_| ());
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl TrackedState {
    pub(crate) fn position(&self) -> Position {
        self.last.unwrap_or(Position { epoch: 0, sequence: 0 })
    }

    pub(crate) fn is_discarded(&self) -> bool {
        self.discarded
    }

    /// Returns a [`batch`] of transitions after a revision. `None`: they are no longer in memory.
    pub(crate) fn after(&self, revision: u64) -> Option<Vec<Arc<Transition>>> {
        let oldest = self.recent.front().map_or(self.request.revision + 1, |t| t.revision);
        let skipped = usize::try_from((revision + 1).checked_sub(oldest)?).ok()?;
        Some(batch(self.recent.iter().skip(skipped)))
    }

    /// The approximate size in bytes.
    pub(super) fn bytes(&self) -> usize {
        let recent = self.recent.len() * TRANSITION_BYTES + self.recent_devices * CHANGE_BYTES;
        REQUEST_BYTES + self.request.bytes() + recent
    }

    /// Returns all devices at the current revision, shared by all callers.
    pub(crate) fn all_devices(&mut self) -> Arc<Vec<Arc<DeviceStatus>>> {
        let (revision, devices) = &self.snapshot;
        if *revision == self.request.revision
            && let Some(devices) = devices.upgrade()
        {
            return devices;
        }
        let devices = Arc::new(self.request.devices.clone());
        self.snapshot = (self.request.revision, Arc::downgrade(&devices));
        devices
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Folds an entry, unless it is already folded.
    pub(super) fn apply(&mut self, id: &str, entry: &Entry) -> FoldEffect {
        if self.last.is_some_and(|last| entry.position.sequence <= last.sequence) {
            return FoldEffect::default();
        }
        self.last = Some(entry.position);
        let Some(event) = event::decode(&entry.event) else {
            error!(
                request.id = id,
                sequence = entry.position.sequence,
                "an event in the store is damaged and is ignored: restore the store from a backup \
                 to get it back"
            );
            return FoldEffect::default();
        };
        let (was_known, was_final) = (self.request.known, self.request.is_final());
        let applied = self.request.apply(entry.position, entry.time, &event);
        if applied.contradictions > 0
            && let Some(times) = CONTRADICTED.count()
        {
            warn!(
                request.id = id,
                devices = applied.contradictions,
                times,
                "the result of a device contradicts its earlier result, which is kept: check the \
                 device in ThingSpace"
            );
        }
        if applied.unmatched > 0
            && let Some(times) = UNMATCHED.count()
        {
            warn!(
                request.id = id,
                devices = applied.unmatched,
                times,
                "ThingSpace reported devices that the request does not have; they are ignored: \
                 check the request in ThingSpace"
            );
        }
        self.record_finish(entry.position, event.kind.as_ref(), was_known, was_final);
        let is_callback = matches!(event.kind, Some(Kind::CalledBack(_)));
        let unassigned = is_callback && (!self.request.known || applied.unmatched > 0);
        let changed = applied.transition.is_some();
        applied.transition.into_iter().for_each(|transition| self.push(transition));
        FoldEffect { changed, unassigned }
    }

    fn push(&mut self, transition: Transition) {
        self.recent_devices += transition.devices.len();
        self.recent.push_back(Arc::new(transition));
        let too_much = |kept: &Self| {
            kept.recent.len() > KEPT_TRANSITIONS || kept.recent_devices > KEPT_DEVICES
        };
        while self.recent.len() > 1 && too_much(self) {
            self.recent_devices -= self.recent.pop_front().map_or(0, |oldest| oldest.devices.len());
        }
    }

    /// Records whether callbacks arrive and what finished the request; see [`super::finished`].
    fn record_finish(
        &mut self,
        position: Position,
        kind: Option<&Kind>,
        was_known: bool,
        was_final: bool,
    ) {
        let account = self.request.account.as_ref().map(AccountName::as_str);
        let is_own = |other: &String| account == Some(other.as_str());
        let (known, becomes_final) = (self.request.known, !was_final && self.request.is_final());
        let callback_arrived = match kind {
            Some(Kind::CalledBack(called_back)) => {
                if !known {
                    self.early_callback = Some(called_back.account.clone());
                }
                known && is_own(&called_back.account)
            }
            Some(_) => !was_known && known && self.early_callback.as_ref().is_some_and(is_own),
            None => false,
        };
        // Only if the devices were known before: the first answer about an external request is
        // never withheld for a callback.
        let callback_missing =
            was_known && becomes_final && matches!(kind, Some(Kind::Observed(_)));
        if callback_arrived || callback_missing {
            self.called_back = Some(Positioned { position, value: callback_arrived });
        }
        if becomes_final {
            let by_poll = matches!(kind, Some(Kind::Observed(_))) || !callback_arrived;
            let value = if by_poll { FinishedBy::Poll } else { FinishedBy::Callback };
            self.finished = Some(Positioned { position, value });
        }
    }
}
