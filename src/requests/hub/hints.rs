//! Hints for the poller: a request is new or newly watched, its interval has changed, or it has a
//! callback that cannot be assigned to a device.

use std::{collections::HashMap, sync::Mutex};

use tokio::sync::Notify;

use crate::{identity::RequestId, requests::lock};

/// How soon a request should be polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PollHint {
    /// By its schedule, which may have changed.
    Reschedule,
    /// By its schedule, but before others: a caller has begun to watch it.
    Watched,
    /// As soon as the shortest interval allows.
    Soon,
}

/// The hints that wait for the poller, at most one per request.
#[derive(Debug, Default)]
pub(crate) struct PollHints {
    requests: Mutex<HashMap<RequestId, PollHint>>,
    wake: Notify,
}

impl PollHints {
    pub(crate) fn add(&self, id: &RequestId, hint: PollHint) {
        lock(&self.requests).entry(id.clone()).and_modify(|h| *h = hint.max(*h)).or_insert(hint);
        self.wake.notify_one();
    }

    /// Waits for hints, and removes and returns them.
    pub(crate) async fn take(&self) -> Vec<(RequestId, PollHint)> {
        loop {
            let woken = self.wake.notified();
            let hints: Vec<_> = lock(&self.requests).drain().collect();
            if !hints.is_empty() {
                return hints;
            }
            woken.await;
        }
    }
}
