//! A request in memory: its fold, the transitions watchers may still need, and who waits for more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, warn};

use super::{At, By, KEPT_DEVICES, KEPT_TRANSITIONS, history::batch};
use crate::{
    identity::RequestId,
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

/// What a request takes in memory beside its devices and transitions, in bytes.
const REQUEST_BYTES: usize = 2_048;

/// What a kept transition takes, and what it takes for each device, in bytes.
const TRANSITION_BYTES: usize = 200;
const CHANGE_BYTES: usize = 150;

/// A request in memory.
#[derive(Debug)]
pub struct Tracked {
    pub id: RequestId,
    folded: Mutex<Folded>,
    /// The revision.
    changed: watch::Sender<u64>,
    last_query: Mutex<Option<LastQuery>>,
    /// Why the last question that failed did, and when.
    failed: Mutex<Option<(Instant, Error)>>,
    /// Taken under `folded`, or alone.
    withheld: Mutex<Withheld>,
}

/// When ThingSpace answered a question about a request last, and how long that took it.
#[derive(Debug, Clone, Copy)]
pub struct LastQuery {
    pub at: Instant,
    pub took: Duration,
}

/// What a [`Tracked`] holds under its lock.
#[derive(Debug, Default)]
pub struct Folded {
    pub request: Request,
    /// The last transitions, at most [`KEPT_TRANSITIONS`] with [`KEPT_DEVICES`].
    recent: VecDeque<Arc<Transition>>,
    /// How many devices they name.
    recent_devices: usize,
    /// All devices at a revision, as long as a snapshot of it is being sent.
    snapshot: (u64, Weak<Vec<Arc<DeviceStatus>>>),
    /// Where the last event folded lies.
    last: Option<Position>,
    gone: bool,
    /// The last event that says whether callbacks arrive for the account.
    pub(super) called_back: Option<At<bool>>,
    /// The account of a callback that came before the device set was known.
    early: Option<String>,
    /// What ended it.
    pub(super) finished: Option<At<By>>,
}

/// What folding an entry came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Effect {
    /// Something shown is different.
    pub(super) changed: bool,
    /// A callback could not be placed: ThingSpace knows more than we do.
    pub(super) puzzling: bool,
}

impl Tracked {
    pub(super) fn new(id: RequestId, folded: Folded) -> Arc<Self> {
        let changed = watch::Sender::new(folded.request.revision);
        Arc::new(Self {
            id,
            folded: Mutex::new(folded),
            changed,
            last_query: Mutex::default(),
            failed: Mutex::default(),
            withheld: Mutex::default(),
        })
    }

    /// The request as it is. Held briefly: never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Folded> {
        lock(&self.folded)
    }

    pub fn last_query(&self) -> Option<LastQuery> {
        *lock(&self.last_query)
    }

    pub fn set_last_query(&self, took: Duration) {
        *lock(&self.last_query) = Some(LastQuery { at: Instant::now(), took });
    }

    /// Keeps back, for a while, what of an answer would make devices final; see [`Withheld`].
    /// Nothing of a request that is not polled: nobody would tell it later.
    pub fn withhold(&self, answer: StatusAnswer, grace: Duration) -> StatusAnswer {
        let folded = self.lock();
        if folded.request.is_closed() {
            return answer;
        }
        lock(&self.withheld).sift(&folded.request, answer, grace, Instant::now())
    }

    /// When something that was withheld has to be told.
    pub fn withheld_until(&self) -> Option<Instant> {
        lock(&self.withheld).until()
    }

    /// What was withheld and has to be told.
    pub fn withheld(&self) -> Option<StatusAnswer> {
        let folded = self.lock();
        let mut withheld = lock(&self.withheld);
        withheld.forget(&folded.request);
        withheld.due(Instant::now())
    }

    /// Why asking failed, if that is less than `hold` ago.
    pub fn query_failure(&self, hold: Duration) -> Option<Error> {
        lock(&self.failed)
            .as_ref()
            .filter(|(at, _)| at.elapsed() < hold)
            .map(|(_, error)| error.clone())
    }

    pub fn set_query_failure(&self, error: Error) {
        *lock(&self.failed) = Some((Instant::now(), error));
    }

    /// Whether somebody waits for changes.
    pub fn is_watched(&self) -> bool {
        self.changed.receiver_count() > 0
    }

    /// Wakes whoever waits.
    pub(super) fn wake(&self, revision: u64) {
        self.changed.send_replace(revision);
    }

    /// The store lost this request's events: whoever waits has to come back.
    pub(super) fn lose(&self) {
        self.lock().gone = true;
        self.changed.send_modify(|_| ());
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl Folded {
    /// Where the last event folded lies.
    pub fn position(&self) -> Position {
        self.last.unwrap_or(Position { epoch: 0, sequence: 0 })
    }

    pub fn is_gone(&self) -> bool {
        self.gone
    }

    /// The next transitions after a revision, as many as [`batch`] takes; `None` if they are no
    /// longer in memory.
    pub fn after(&self, revision: u64) -> Option<Vec<Arc<Transition>>> {
        let oldest = self.recent.front().map_or(self.request.revision + 1, |t| t.revision);
        let skipped = usize::try_from((revision + 1).checked_sub(oldest)?).ok()?;
        Some(batch(self.recent.iter().skip(skipped)))
    }

    /// About how many bytes it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let recent = self.recent.len() * TRANSITION_BYTES + self.recent_devices * CHANGE_BYTES;
        REQUEST_BYTES + self.request.bytes() + recent
    }

    /// All devices at the current revision, shared by all who ask for them.
    pub fn all_devices(&mut self) -> Arc<Vec<Arc<DeviceStatus>>> {
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

    /// Folds an entry, unless it was folded before.
    pub(super) fn apply(&mut self, id: &str, entry: &Entry) -> Effect {
        if self.last.is_some_and(|last| entry.position.sequence <= last.sequence) {
            return Effect::default();
        }
        self.last = Some(entry.position);
        let Some(event) = event::decode(&entry.event) else {
            error!(
                request.id = id,
                sequence = entry.position.sequence,
                "an event in the store cannot be decoded; it changes nothing"
            );
            return Effect::default();
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
                "a final state contradicts an earlier one; the first holds"
            );
        }
        if applied.unmatched > 0
            && let Some(times) = UNMATCHED.count()
        {
            warn!(
                request.id = id,
                devices = applied.unmatched,
                times,
                "an event names devices that the request does not have"
            );
        }
        self.take_note(entry.position, event.kind.as_ref(), was_known, was_final);
        let is_callback = matches!(event.kind, Some(Kind::CalledBack(_)));
        let puzzling = is_callback && (!self.request.known || applied.unmatched > 0);
        let Some(transition) = applied.transition else {
            return Effect { changed: false, puzzling };
        };
        self.keep(transition);
        Effect { changed: true, puzzling }
    }

    fn keep(&mut self, transition: Transition) {
        self.recent_devices += transition.devices.len();
        self.recent.push_back(Arc::new(transition));
        let too_much = |kept: &Self| {
            kept.recent.len() > KEPT_TRANSITIONS || kept.recent_devices > KEPT_DEVICES
        };
        while self.recent.len() > 1 && too_much(self) {
            self.recent_devices -= self.recent.pop_front().map_or(0, |oldest| oldest.devices.len());
        }
    }

    /// What an event says beside what it changes; see [`super::arrivals`].
    fn take_note(
        &mut self,
        position: Position,
        kind: Option<&Kind>,
        was_known: bool,
        was_final: bool,
    ) {
        let ours =
            |account: &String| self.request.account.as_ref().is_some_and(|a| a.as_str() == account);
        let (known, ends) = (self.request.known, !was_final && self.request.is_final());
        let arrived = match kind {
            Some(Kind::CalledBack(called_back)) => {
                if !known {
                    self.early = Some(called_back.account.clone());
                }
                known && ours(&called_back.account)
            }
            Some(_) => !was_known && known && self.early.as_ref().is_some_and(ours),
            None => false,
        };
        // A poll that made known a request of others did not wait for a callback.
        let stayed_away = was_known && ends && matches!(kind, Some(Kind::Observed(_)));
        if arrived || stayed_away {
            self.called_back = Some(At { position, what: arrived });
        }
        if ends {
            let by_poll = matches!(kind, Some(Kind::Observed(_))) || !arrived;
            self.finished =
                Some(At { position, what: if by_poll { By::Poll } else { By::Callback } });
        }
    }
}
