//! Closed requests in memory, limited in size. The least recently used are evicted first.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{ClosedLimits, Hub, Projection, READ_GRACE, Tracked};
use crate::{identity::RequestId, requests::lock};

/// The maximum number of requests in use that one eviction skips.
const MAX_SKIPPED: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Closed {
    requests: HashMap<RequestId, Use>,
    /// By [`Use::number`].
    by_use: BTreeMap<u64, RequestId>,
    uses: u64,
    bytes: usize,
}

#[derive(Debug, Clone, Copy)]
struct Use {
    number: u64,
    at: Instant,
    bytes: usize,
    /// When a watch last read from it.
    read: Option<Instant>,
}

impl Use {
    fn is_being_read(&self) -> bool {
        self.read.is_some_and(|read| read.elapsed() < READ_GRACE)
    }
}

impl Closed {
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    pub(super) fn put(&mut self, id: &RequestId, bytes: usize) {
        if let Some(last) = self.requests.get_mut(id) {
            self.bytes = self.bytes - last.bytes + bytes;
            last.bytes = bytes;
        } else {
            self.bytes += bytes;
            self.insert(id.clone(), bytes, None);
        }
    }

    /// Records a use of a request, if it is closed.
    pub(super) fn touch(&mut self, id: &RequestId) {
        if let Some(last) = self.requests.get(id).copied() {
            self.by_use.remove(&last.number);
            self.insert(id.clone(), last.bytes, last.read);
        }
    }

    /// Records that a watch reads a request, if it is closed. It stays for [`READ_GRACE`].
    fn read(&mut self, id: &RequestId) {
        if let Some(last) = self.requests.get_mut(id) {
            last.read = Some(Instant::now());
            self.touch(id);
        }
    }

    pub(super) fn remove(&mut self, id: &RequestId) {
        if let Some(last) = self.requests.remove(id) {
            self.by_use.remove(&last.number);
            self.bytes -= last.bytes;
        }
    }

    /// Removes and returns the least recently used requests, until the rest fits into `max_bytes`
    /// and was used less than `idle` ago. Skips requests that are in use.
    pub(super) fn evict(
        &mut self,
        max_bytes: usize,
        idle: Duration,
        in_use: impl Fn(&RequestId) -> bool,
    ) -> Vec<RequestId> {
        let (mut evicted, mut skipped) = (Vec::new(), 0);
        while let Some((_, id)) = self.by_use.first_key_value()
            && skipped < MAX_SKIPPED.min(self.by_use.len())
        {
            let id = id.clone();
            let last = self.requests[&id];
            if self.bytes <= max_bytes && last.at.elapsed() < idle {
                break;
            }
            if in_use(&id) || last.is_being_read() {
                skipped += 1;
                self.touch(&id);
                continue;
            }
            self.remove(&id);
            evicted.push(id);
        }
        evicted
    }

    fn insert(&mut self, id: RequestId, bytes: usize, read: Option<Instant>) {
        self.uses += 1;
        let number = self.uses;
        self.by_use.insert(number, id.clone());
        self.requests.insert(id, Use { number, at: Instant::now(), bytes, read });
    }
}

impl Hub {
    /// Returns the request of a watch, if it is still in memory. Records that the watch reads it.
    pub(crate) fn read_again(
        &self,
        id: &RequestId,
        tracked: &Weak<Tracked>,
    ) -> Option<Arc<Tracked>> {
        // While this lock is held, the request is not evicted.
        let mut projection = lock(&self.projection);
        projection.closed.read(id);
        tracked.upgrade()
    }
}

impl Projection {
    /// Records the size of a request if it is closed; `None` if it is open.
    pub(super) fn set_closed(&mut self, id: &RequestId, bytes: Option<usize>) {
        match bytes {
            Some(bytes) => self.closed.put(id, bytes),
            None => self.closed.remove(id),
        }
    }

    /// Removes and returns closed requests that exceed the limits. The caller drops them after it
    /// has released the lock, because dropping 10,000 devices takes a while.
    pub(super) fn evict(&mut self, limits: ClosedLimits) -> Vec<Arc<Tracked>> {
        let requests = &self.requests;
        // Two tasks with different copies of a request would miss each other's changes.
        let in_use =
            |id: &RequestId| requests.get(id).is_some_and(|tracked| Arc::strong_count(tracked) > 1);
        let evicted = self.closed.evict(limits.bytes, limits.idle, in_use);
        evicted.iter().filter_map(|id| self.forget(id)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_hours(1);

    fn id(n: usize) -> RequestId {
        RequestId::parse(&format!("request-{n}")).unwrap()
    }

    fn with(count: usize) -> Closed {
        let mut closed = Closed::default();
        (0..count).for_each(|n| closed.put(&id(n), 10));
        closed
    }

    #[test]
    fn the_least_recently_used_leave_first() {
        let mut closed = with(5);
        closed.touch(&id(0));
        assert_eq!(closed.evict(25, LONG, |_| false), [id(1), id(2), id(3)]);
        assert!(closed.evict(25, LONG, |_| false).is_empty());
        assert_eq!(closed.bytes, 20);
    }

    #[test]
    fn growth_counts_but_is_not_a_use() {
        let mut closed = with(3);
        closed.put(&id(0), 100);
        assert_eq!(closed.evict(100, LONG, |_| false), [id(0)]);
        assert_eq!(closed.bytes, 20);
    }

    #[test]
    fn requests_in_use_stay() {
        let mut closed = with(4);
        assert_eq!(closed.evict(0, LONG, |request| *request != id(2)), [id(2)]);
        closed.remove(&id(1));
        assert_eq!(closed.evict(0, LONG, |_| false), [id(0), id(3)]);
        assert!(closed.requests.is_empty() && closed.by_use.is_empty() && closed.bytes == 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_stays_while_a_watch_reads_it() {
        let mut closed = with(3);
        closed.read(&id(0));
        assert_eq!(closed.evict(0, LONG, |_| false), [id(1), id(2)]);
        tokio::time::advance(READ_GRACE).await;
        assert_eq!(closed.evict(0, LONG, |_| false), [id(0)]);
    }

    #[tokio::test(start_paused = true)]
    async fn unused_requests_leave_after_a_while() {
        let mut closed = with(2);
        tokio::time::advance(Duration::from_mins(1)).await;
        closed.touch(&id(0));
        tokio::time::advance(Duration::from_mins(1)).await;
        assert_eq!(closed.evict(1_000, Duration::from_secs(90), |_| false), [id(1)]);
    }
}
