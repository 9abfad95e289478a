//! How requests of ours end here: by callbacks, or by polls.
//!
//! An account is *called back* as long as callbacks arrive for its requests. It stops being so when
//! a poll had to end a request, because then the poll's word had waited for a callback in vain; the
//! next callback makes it so again. Both are read off the events that are followed, so every
//! replica knows, and a restart does as soon as it has caught up.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tracing::info;

use super::{Folded, Hub, Tracked};
use crate::{
    identity::{AccountName, RequestId},
    requests::{fold::state::RequestState, lock},
    store::{Entry, Position},
};

/// What ended a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Callback,
    Poll,
}

impl By {
    fn as_str(self) -> &'static str {
        match self {
            Self::Callback => "callback",
            Self::Poll => "poll",
        }
    }
}

/// Something that an event of a request's log says, and where it lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct At<T> {
    pub(super) position: Position,
    pub(super) what: T,
}

/// What an entry says beside what it changes.
#[derive(Debug, Default)]
pub(super) struct Note {
    called_back: Option<(AccountName, bool)>,
    finished: Option<(By, RequestState)>,
}

impl Note {
    /// Of a log that was folded up to an entry; or further, and what follows will not be met again.
    pub(super) fn of(folded: &Folded, entry: &Entry, further: bool) -> Self {
        let said = |position: Position| {
            position == entry.position || further && position.sequence > entry.position.sequence
        };
        let request = &folded.request;
        let called_back = folded.called_back.filter(|at| said(at.position)).map(|at| at.what);
        Self {
            called_back: request.account.clone().zip(called_back),
            finished: folded
                .finished
                .filter(|at| said(at.position))
                .map(|at| (at.what, request.state())),
        }
    }
}

/// Requests that ended while this process followed the store.
#[derive(Debug, Default)]
pub(super) struct Finished {
    by_callback: AtomicU64,
    by_poll: AtomicU64,
}

impl Finished {
    fn count(&self, by: By) -> &AtomicU64 {
        match by {
            By::Callback => &self.by_callback,
            By::Poll => &self.by_poll,
        }
    }
}

impl Hub {
    /// The ids of the open requests.
    pub fn open_requests(&self) -> Vec<RequestId> {
        let projection = lock(&self.projection);
        let open = |tracked: &&Arc<Tracked>| !tracked.lock().request.is_closed();
        projection.requests.values().filter(open).map(|tracked| tracked.id.clone()).collect()
    }

    /// Whether callbacks arrive for an account's requests.
    pub fn is_called_back(&self, account: &AccountName) -> bool {
        self.takes_callbacks && lock(&self.projection).called_back.contains(account)
    }

    /// How many requests were ended by a callback, or a poll, since this process has caught up with
    /// the store.
    pub fn finished(&self, by: By) -> u64 {
        self.finished.count(by).load(Ordering::Relaxed)
    }

    pub(super) fn take_note(&self, id: &RequestId, note: Note) {
        if let Some((account, called_back)) = note.called_back {
            self.set_called_back(&account, called_back);
        }
        if let Some((by, state)) = note.finished
            && self.is_caught_up()
        {
            self.finished.count(by).fetch_add(1, Ordering::Relaxed);
            info!(request.id = %id, ?state, by = by.as_str(), "a request is finished");
        }
    }

    fn set_called_back(&self, account: &AccountName, called_back: bool) {
        let mut projection = lock(&self.projection);
        if called_back {
            if projection.called_back.insert(account.clone()) {
                info!(account = %account, "callbacks arrive; polling rarely");
            }
        } else if projection.called_back.remove(account) {
            info!(account = %account, "a callback stayed away; polling as without");
            drop(projection);
            // Their next polls are far away.
            for id in self.open_requests() {
                self.hint(&id);
            }
        }
    }
}
