//! Whether callbacks arrive for an account, and whether callbacks or polls finish its requests.
//!
//! An account is *called back* from the first callback for one of its requests until a poll
//! finishes one. The gateway withheld the result of that poll for a callback that did not come.
//! All of this is computed from the events, so all replicas agree, also after a restart.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tracing::info;

use super::{Hub, PollHint, Tracked, TrackedState};
use crate::{
    identity::{AccountName, RequestId},
    requests::{fold::state::RequestState, lock},
    store::{Entry, Position},
    telemetry::{attribute, metrics, names},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FinishedBy {
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

/// A value, and the position of the event that determined it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Positioned<T> {
    pub(super) position: Position,
    pub(super) value: T,
}

/// Whether an entry is a callback, and whether it finished its request.
#[derive(Debug, Default)]
pub(super) struct EntryFacts {
    called_back: Option<(AccountName, bool)>,
    /// What finished the request, its state, and the time since its first event.
    finished: Option<(FinishedBy, RequestState, Duration)>,
}

impl EntryFacts {
    /// Returns the facts of an entry, and with `and_later` also of the entries after it.
    pub(super) fn of(folded: &TrackedState, entry: &Entry, and_later: bool) -> Self {
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
                .map(|at| (at.value, request.state(), request.duration())),
        }
    }
}

impl Hub {
    pub(crate) fn open_requests(&self) -> Vec<RequestId> {
        self.open_tracked().iter().map(|tracked| tracked.id.clone()).collect()
    }

    /// Returns the number of open requests, without a look at each.
    pub(crate) fn open_count(&self) -> usize {
        let projection = lock(&self.projection);
        projection.requests.len() - projection.closed.len()
    }

    pub(crate) fn open_tracked(&self) -> Vec<Arc<Tracked>> {
        let projection = lock(&self.projection);
        let open = |tracked: &&Arc<Tracked>| !tracked.lock().request.is_closed();
        projection.requests.values().filter(open).cloned().collect()
    }

    pub(crate) fn is_called_back(&self, account: &AccountName) -> bool {
        self.takes_callbacks && lock(&self.projection).called_back.contains(account)
    }

    /// Returns the number of requests that were finished since this process caught up.
    pub(crate) fn finished(&self, by: FinishedBy) -> u64 {
        self.finished[by as usize].load(Ordering::Relaxed)
    }

    pub(super) fn apply_facts(&self, id: &RequestId, facts: EntryFacts) {
        if let Some((account, called_back)) = facts.called_back {
            self.set_called_back(&account, called_back);
        }
        if let Some((by, state, took)) = facts.finished
            && self.is_caught_up()
        {
            self.finished[by as usize].fetch_add(1, Ordering::Relaxed);
            let attributes =
                [attribute(names::BY, by.as_str()), attribute(names::STATE, state.name())];
            metrics().request_duration.record(took, &attributes);
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
                 polled as often as without callbacks"
            );
            drop(projection);
            // Their next polls were scheduled late.
            for id in self.open_requests() {
                self.hints.add(&id, PollHint::Reschedule);
            }
        }
    }
}
