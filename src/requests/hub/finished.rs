//! Whether callbacks arrive for an account, and whether callbacks or polls finish its requests.
//!
//! An account is *called back* from a callback for one of its requests until a poll finishes one:
//! the result of that poll was withheld for a callback that did not come. Both follow from the
//! events, so all replicas agree, also after a restart.

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

/// What finished a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishedBy {
    Callback,
    Poll,
}

impl FinishedBy {
    fn as_str(self) -> &'static str {
        match self {
            Self::Callback => "callback",
            Self::Poll => "poll",
        }
    }
}

/// A value that an event in a request's log determined, and the position of this event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positioned<T> {
    pub(super) position: Position,
    pub(super) value: T,
}

/// What an entry tells about callbacks and the end of its request.
#[derive(Debug, Default)]
pub(super) struct EntryFacts {
    called_back: Option<(AccountName, bool)>,
    finished: Option<(FinishedBy, RequestState)>,
}

impl EntryFacts {
    /// Returns the facts of the last folded entry. With `and_later` also those of the entries after
    /// it, which the follower will skip.
    pub(super) fn of(folded: &Folded, entry: &Entry, and_later: bool) -> Self {
        let counts = |position: Position| {
            position == entry.position || and_later && position.sequence > entry.position.sequence
        };
        let request = &folded.request;
        let called_back = folded.called_back.filter(|at| counts(at.position)).map(|at| at.value);
        Self {
            called_back: request.account.clone().zip(called_back),
            finished: folded
                .finished
                .filter(|at| counts(at.position))
                .map(|at| (at.value, request.state())),
        }
    }
}

/// The numbers of requests that were finished since this process has caught up with the store.
#[derive(Debug, Default)]
pub(super) struct FinishCounts([AtomicU64; 2]);

impl Hub {
    /// Returns the ids of the open requests.
    pub fn open_requests(&self) -> Vec<RequestId> {
        let projection = lock(&self.projection);
        let open = |tracked: &&Arc<Tracked>| !tracked.lock().request.is_closed();
        projection.requests.values().filter(open).map(|tracked| tracked.id.clone()).collect()
    }

    /// Whether callbacks arrive for an account's requests.
    pub fn is_called_back(&self, account: &AccountName) -> bool {
        self.takes_callbacks && lock(&self.projection).called_back.contains(account)
    }

    /// Returns the number of requests that were finished since this process has caught up.
    pub fn finished(&self, by: FinishedBy) -> u64 {
        self.finished.0[by as usize].load(Ordering::Relaxed)
    }

    pub(super) fn apply_facts(&self, id: &RequestId, facts: EntryFacts) {
        if let Some((account, called_back)) = facts.called_back {
            self.set_called_back(&account, called_back);
        }
        if let Some((by, state)) = facts.finished
            && self.is_caught_up()
        {
            self.finished.0[by as usize].fetch_add(1, Ordering::Relaxed);
            info!(request.id = %id, ?state, by = by.as_str(), "a request is finished");
        }
    }

    fn set_called_back(&self, account: &AccountName, called_back: bool) {
        let mut projection = lock(&self.projection);
        if called_back {
            if projection.called_back.insert(account.clone()) {
                info!(
                    account = %account,
                    "callbacks arrive for the account; its requests are polled rarely"
                );
            }
        } else if projection.called_back.remove(account) {
            info!(
                account = %account,
                "a poll finished a request before its callback came; the account's requests are \
                 polled as without callbacks"
            );
            drop(projection);
            // Their next polls were scheduled late.
            for id in self.open_requests() {
                self.hint(&id);
            }
        }
    }
}
