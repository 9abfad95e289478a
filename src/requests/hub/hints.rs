//! Requests the poller should look at: newly open, newly watched, or called back in a way that only
//! an answer explains.

use std::{collections::HashMap, sync::Mutex};

use tokio::sync::Notify;

use crate::{identity::RequestId, requests::lock};

/// How soon a request wants to be polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hint {
    /// As its turn says, which may have changed.
    Look,
    /// Somebody has begun to watch it: before others, once it is due.
    Watched,
    /// As soon as it may be.
    Soon,
}

/// One for each request, so it is bounded by the requests there are.
#[derive(Debug, Default)]
pub(super) struct Hints {
    requests: Mutex<HashMap<RequestId, Hint>>,
    wake: Notify,
}

impl Hints {
    pub(super) fn add(&self, id: &RequestId, hint: Hint) {
        lock(&self.requests).entry(id.clone()).and_modify(|h| *h = hint.max(*h)).or_insert(hint);
        self.wake.notify_one();
    }

    /// Waits for hints and takes them.
    pub(super) async fn take(&self) -> Vec<(RequestId, Hint)> {
        loop {
            let woken = self.wake.notified();
            let taken: Vec<_> = lock(&self.requests).drain().collect();
            if !taken.is_empty() {
                return taken;
            }
            woken.await;
        }
    }
}
