//! Reading logs: of requests that are not in memory, and whatever else only a log tells.

use std::{
    ops::ControlFlow,
    sync::{Arc, atomic::Ordering},
};

use tokio::sync::watch;

use super::{Hub, Tracked, open_devices, tracked::Folded};
use crate::{
    identity::RequestId,
    requests::{
        fold::{event, order::Order},
        lock,
    },
    store::{self, Entry, LogName, Position, StoreError},
};

impl Hub {
    /// A request and its changes from now on, from memory or from its log; `None` if its log is
    /// empty.
    pub async fn attach(
        &self,
        id: &RequestId,
    ) -> Result<Option<(Arc<Tracked>, watch::Receiver<u64>)>, StoreError> {
        if let Some(found) = self.attached(id) {
            return Ok(Some(found));
        }
        // Callers who want the same request wait here, and occupy one of the loads together.
        let _attaching = self.attaching.lock(id).await;
        if let Some(found) = self.attached(id) {
            return Ok(Some(found));
        }
        // Before the request's lock, which the follower may wait for.
        let _load = self.loads.acquire().await.expect("nobody closes this semaphore");
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
            // Else it is a log of the store that was lost.
            if self.insert(Arc::clone(&tracked), generation) {
                return Ok(Some((tracked, receiver)));
            }
        }
    }

    // Subscribes under the projection's lock, so that housekeeping does not drop the entry in
    // between.
    fn attached(&self, id: &RequestId) -> Option<(Arc<Tracked>, watch::Receiver<u64>)> {
        let mut projection = lock(&self.projection);
        let tracked = Arc::clone(projection.requests.get(id)?);
        projection.closed.touch(id);
        let receiver = tracked.subscribe();
        Some((tracked, receiver))
    }

    /// Whether the store holds an event of a request at a position.
    pub async fn holds(&self, id: &RequestId, position: Position) -> Result<bool, StoreError> {
        let log = LogName::request(id.as_str());
        let next = self.store.read(&log, position.sequence.saturating_sub(1), 1).await?;
        Ok(next.first().is_some_and(|entry| entry.position == position))
    }

    /// An order, from its log.
    pub async fn order(&self, order_id: &str) -> Result<Order, StoreError> {
        let mut order = Order::default();
        self.read_log(&LogName::order(order_id), |entry| {
            if let Some(event) = event::decode(&entry.event) {
                order.apply(entry.position, entry.time, &event);
            }
        })
        .await?;
        Ok(order)
    }

    /// Puts a request into the projection; false if that was begun anew since the log was read.
    pub(super) fn insert(&self, tracked: Arc<Tracked>, generation: u64) -> bool {
        let (devices, closed) = {
            let folded = tracked.lock();
            (open_devices(&folded.request), folded.request.is_closed().then(|| folded.bytes()))
        };
        let id = tracked.id.clone();
        let mut projection = lock(&self.projection);
        if projection.generation != generation {
            return false;
        }
        projection.open_devices += devices;
        projection.track(tracked);
        projection.set_closed(&id, closed);
        let evicted = projection.evict(self.keep);
        drop(projection);
        drop(evicted);
        if closed.is_none() {
            self.hint(&id);
        }
        true
    }

    pub(super) async fn read(&self, id: &RequestId) -> Result<Folded, StoreError> {
        let mut folded = Folded::default();
        self.read_log(&LogName::request(id.as_str()), |entry| {
            folded.apply(id.as_str(), entry);
        })
        .await?;
        Ok(folded)
    }

    pub(super) async fn read_log(
        &self,
        log: &LogName,
        mut each: impl FnMut(&Entry),
    ) -> Result<(), StoreError> {
        let each = |entry: &Entry| {
            each(entry);
            ControlFlow::Continue(())
        };
        self.read_log_until(log, each).await
    }

    /// Reads a log in pages of the store, to its end or until `each` breaks.
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
