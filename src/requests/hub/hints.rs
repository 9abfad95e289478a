//! Requests the poller should look at: newly open or newly watched.

use std::{collections::HashSet, sync::Mutex};

use tokio::sync::Notify;

use crate::{identity::RequestId, requests::lock};

/// A set, so it is bounded by the requests there are.
#[derive(Debug, Default)]
pub(super) struct Hints {
    requests: Mutex<HashSet<RequestId>>,
    wake: Notify,
}

impl Hints {
    pub(super) fn add(&self, id: &RequestId) {
        lock(&self.requests).insert(id.clone());
        self.wake.notify_one();
    }

    /// Waits for hints and takes them.
    pub(super) async fn take(&self) -> Vec<RequestId> {
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
