//! Reads logs, for example of requests that are not in memory.

use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
};

use super::{Attached, Hub, PollHint, Tracked, TrackedState, open_devices::RequestDevices};
use crate::{
    identity::RequestId,
    proto::storage::Event,
    requests::{
        fold::{event, order::Order},
        lock,
    },
    store::{self, Entry, LogName, Position, StoreError},
};

impl Hub {
    /// Returns a request, and subscribes to its changes. Reads its log if it is not in memory.
    /// `None`: its log is empty.
    pub(crate) async fn attach(&self, id: &RequestId) -> Result<Option<Attached>, StoreError> {
        if let Some(found) = self.attached(id) {
            return Ok(Some(found));
        }
        // Callers of the same request share one permit to load.
        let _attaching = self.attaching.lock(id).await;
        if let Some(found) = self.attached(id) {
            return Ok(Some(found));
        }
        // Acquired before the lock of the request, because the follower may need that lock.
        let _load = self.loads.acquire().await.expect("the semaphore is never closed");
        let _loading = self.loading.lock(id).await;
        loop {
            if let Some(found) = self.attached(id) {
                return Ok(Some(found));
            }
            let generation = lock(&self.projection).generation;
            let folded = self.read(id).await?;
            if folded.is_empty() {
                return Ok(None);
            }
            let tracked = Tracked::new(id.clone(), folded);
            let receiver = tracked.subscribe();
            // Otherwise the projection was reset, and the log was read from the former store.
            if self.insert(Arc::clone(&tracked), generation) {
                return Ok(Some((tracked, receiver)));
            }
        }
    }

    /// Subscribes under the projection's lock, so that the request is not evicted in between.
    fn attached(&self, id: &RequestId) -> Option<Attached> {
        let mut projection = lock(&self.projection);
        let tracked = Arc::clone(projection.requests.get(id)?);
        projection.closed.touch(id);
        let receiver = tracked.subscribe();
        Some((tracked, receiver))
    }

    /// Returns whether a request's log has an event at a position.
    pub(crate) async fn holds(
        &self,
        id: &RequestId,
        position: Position,
    ) -> Result<bool, StoreError> {
        let log = LogName::request(id.as_str());
        let next = self.store.read(&log, position.sequence.saturating_sub(1), 1).await?;
        Ok(next.first().is_some_and(|entry| entry.position == position))
    }

    /// Folds an order from its log.
    pub(crate) async fn order(&self, order_id: &str) -> Result<Order, StoreError> {
        let mut order = Order::default();
        self.read_events(&LogName::order(order_id), |entry, event| {
            order.apply(entry.position, entry.time, &event);
        })
        .await?;
        Ok(order)
    }

    /// Inserts a request. Returns false if the projection was reset since the log was read.
    pub(super) fn insert(&self, tracked: Arc<Tracked>, generation: u64) -> bool {
        let (devices, closed) = {
            let folded = tracked.lock();
            (
                RequestDevices::of(&folded.request),
                folded.request.is_closed().then(|| folded.bytes()),
            )
        };
        let id = tracked.id.clone();
        let mut projection = lock(&self.projection);
        if projection.generation != generation {
            return false;
        }
        projection.open_devices.replace(&RequestDevices::default(), devices);
        projection.track(tracked);
        projection.set_closed(&id, closed);
        let evicted = projection.evict(self.closed_limits);
        drop(projection);
        drop(evicted);
        if closed.is_none() {
            self.hints.add(&id, PollHint::Reschedule);
        }
        true
    }

    pub(super) async fn read(&self, id: &RequestId) -> Result<TrackedState, StoreError> {
        let mut folded = TrackedState::default();
        self.read_log_until(&LogName::request(id.as_str()), |entry| {
            folded.apply(id.as_str(), entry);
            ControlFlow::Continue(())
        })
        .await?;
        Ok(folded)
    }

    /// Calls `each` with every event of a log, except those that cannot be decoded.
    pub(crate) async fn read_events(
        &self,
        log: &LogName,
        mut each: impl FnMut(&Entry, Event),
    ) -> Result<(), StoreError> {
        self.read_log_until(log, |entry| {
            if let Some(event) = event::decode(&entry.event) {
                each(entry, event);
            }
            ControlFlow::Continue(())
        })
        .await
    }

    /// Reads a log to its end or until `each` breaks.
    pub(super) async fn read_log_until(
        &self,
        log: &LogName,
        mut each: impl FnMut(&Entry) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut after = 0;
        loop {
            let entries = self.store.read(log, after, store::MAX_READ).await?;
            self.events_read.fetch_add(entries.len() as u64, Ordering::Relaxed);
            let Some(last) = entries.last() else { return Ok(()) };
            after = last.position.sequence;
            if entries.iter().try_for_each(&mut each).is_break() {
                return Ok(());
            }
            let bytes: usize = entries.iter().map(|entry| entry.event.len()).sum();
            if entries.len() < store::MAX_READ && bytes < store::WHOLE_READ_BYTES {
                return Ok(());
            }
        }
    }
}
