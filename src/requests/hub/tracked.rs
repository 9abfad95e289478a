//! A request in memory: its fold, the transitions watchers may still need, and who waits for more.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};
use tracing::{error, warn};

use super::KEPT_TRANSITIONS;
use crate::{
    identity::RequestId,
    requests::{
        error::Error,
        event, lock,
        state::{Request, Transition},
    },
    store::{Entry, Position},
};

/// A request in memory.
#[derive(Debug)]
pub struct Tracked {
    pub id: RequestId,
    folded: Mutex<Folded>,
    /// The revision.
    changed: watch::Sender<u64>,
    asked: Mutex<Option<Asked>>,
    /// Why the last question that failed did, and when.
    failed: Mutex<Option<(Instant, Error)>>,
}

/// When ThingSpace answered a question about a request last, and how long that took it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub at: Instant,
    pub took: Duration,
}

/// What a [`Tracked`] holds under its lock.
#[derive(Debug, Default)]
pub struct Folded {
    pub request: Request,
    /// The last [`KEPT_TRANSITIONS`].
    pub(super) recent: VecDeque<Arc<Transition>>,
    /// Where the last event folded lies.
    last: Option<Position>,
    closed_since: Option<Instant>,
    gone: bool,
}

impl Tracked {
    pub(super) fn new(id: RequestId, folded: Folded) -> Arc<Self> {
        let changed = watch::Sender::new(folded.request.revision);
        Arc::new(Self {
            id,
            folded: Mutex::new(folded),
            changed,
            asked: Mutex::default(),
            failed: Mutex::default(),
        })
    }

    /// The request as it is. Held briefly: never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Folded> {
        lock(&self.folded)
    }

    pub fn asked(&self) -> Option<Asked> {
        *lock(&self.asked)
    }

    pub fn set_asked(&self, took: Duration) {
        *lock(&self.asked) = Some(Asked { at: Instant::now(), took });
    }

    /// Why asking failed, if that is less than `hold` ago.
    pub fn failed(&self, hold: Duration) -> Option<Error> {
        lock(&self.failed).as_ref().filter(|(at, _)| at.elapsed() < hold).map(|(_, error)| error.clone())
    }

    pub fn set_failed(&self, error: Error) {
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

    /// The transitions after a revision, or `None` if some of them are no longer in memory.
    pub fn after(&self, revision: u64) -> Option<Vec<Arc<Transition>>> {
        let oldest = self.recent.front().map_or(self.request.revision + 1, |t| t.revision);
        if revision + 1 < oldest {
            return None;
        }
        Some(self.recent.iter().filter(|t| t.revision > revision).map(Arc::clone).collect())
    }

    /// Since when nothing is waited for any more.
    pub(super) fn closed_since(&self) -> Option<Instant> {
        self.closed_since
    }

    pub(super) fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Folds an entry, unless it was folded before; true if that changed anything shown.
    pub(super) fn apply(&mut self, id: &str, entry: &Entry) -> bool {
        if self.last.is_some_and(|last| entry.position.sequence <= last.sequence) {
            return false;
        }
        self.last = Some(entry.position);
        let Some(event) = event::decode(&entry.event) else {
            error!(
                request.id = id,
                sequence = entry.position.sequence,
                "an event in the store cannot be decoded; it changes nothing"
            );
            return false;
        };
        let applied = self.request.apply(entry.position, entry.time, &event);
        if applied.contradictions > 0 {
            warn!(
                request.id = id,
                devices = applied.contradictions,
                "a final state contradicts an earlier one; the first holds"
            );
        }
        if applied.unmatched > 0 {
            warn!(
                request.id = id,
                devices = applied.unmatched,
                "an event names devices that the request does not have"
            );
        }
        self.closed_since = self.request.is_closed().then(|| self.closed_since.unwrap_or_else(Instant::now));
        let Some(transition) = applied.transition else { return false };
        self.recent.push_back(Arc::new(transition));
        if self.recent.len() > KEPT_TRANSITIONS {
            self.recent.pop_front();
        }
        true
    }
}
