//! Pages of earlier transitions, for watchers that need transitions that are no longer in memory.
//!
//! A page is folded from a request's log and shared by all watchers that need it. Watchers copy
//! small batches and hold no page, so slow readers need no memory. The number of pages is limited.
//! A page that is being read stays for [`READ_GRACE`] after the last read.

use std::{
    ops::ControlFlow,
    pin::pin,
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Hub, MAX_BATCH, READ_GRACE};
use crate::{
    identity::RequestId,
    requests::{
        fold::{
            event,
            state::{Request, Transition},
        },
        lock,
        locks::Locks,
    },
    store::{LogName, Position, StoreError},
};

/// The maximum number of pages of all requests.
pub(super) const MAX_PAGES: usize = 8;

/// The approximate size of a page in bytes. A single transition may be larger.
const PAGE_BYTES: usize = 4 << 20;

/// The size of a transition without its devices, in bytes.
const TRANSITION_BYTES: usize = 200;

/// How often a watcher that waits for a new page tries to evict one.
const SLOT_CHECK: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct History {
    pub(super) pages: Mutex<Vec<Page>>,
    /// [`MAX_PAGES`] permits, one per page.
    slots: Arc<Semaphore>,
    /// Per request: held while a page is made.
    making: Locks<RequestId>,
}

impl Default for History {
    fn default() -> Self {
        let slots = Arc::new(Semaphore::new(MAX_PAGES));
        Self { pages: Mutex::default(), slots, making: Locks::default() }
    }
}

#[derive(Debug)]
pub(super) struct Page {
    id: RequestId,
    first: Position,
    /// Not empty, with consecutive revisions.
    transitions: Vec<Arc<Transition>>,
    readers: Weak<()>,
    used: Instant,
    _slot: OwnedSemaphorePermit,
}

/// While this guard lives, its page counts as being read.
#[derive(Debug, Default)]
pub(crate) struct PageGuard {
    _page: Option<Arc<()>>,
}

impl Page {
    fn holds(&self, id: &RequestId, first: Position, revision: u64) -> bool {
        let revisions =
            self.transitions[0].revision..=self.transitions[self.transitions.len() - 1].revision;
        self.first == first && revisions.contains(&revision) && self.id == *id
    }

    fn read(&mut self, from: u64, reading: &mut PageGuard) -> Vec<Arc<Transition>> {
        self.used = Instant::now();
        let reader = self.readers.upgrade().unwrap_or_default();
        self.readers = Arc::downgrade(&reader);
        *reading = PageGuard { _page: Some(reader) };
        let skipped = from.saturating_sub(self.transitions[0].revision);
        batch(self.transitions.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX)))
    }

    fn is_evictable(&self) -> bool {
        self.readers.strong_count() == 0 || self.used.elapsed() >= READ_GRACE
    }
}

impl History {
    fn read(
        &self,
        id: &RequestId,
        first: Position,
        from: u64,
        reading: &mut PageGuard,
    ) -> Option<Vec<Arc<Transition>>> {
        let mut pages = lock(&self.pages);
        Some(pages.iter_mut().find(|page| page.holds(id, first, from))?.read(from, reading))
    }

    async fn slot(&self) -> OwnedSemaphorePermit {
        let mut acquire = pin!(Arc::clone(&self.slots).acquire_owned());
        loop {
            if self.slots.available_permits() == 0 {
                self.evict();
            }
            if let Ok(permit) = tokio::time::timeout(SLOT_CHECK, &mut acquire).await {
                return permit.expect("the semaphore is never closed");
            }
        }
    }

    /// Drops the least recently used page that no watcher needs.
    fn evict(&self) {
        let mut pages = lock(&self.pages);
        let evictable = pages.iter().enumerate().filter(|(_, page)| page.is_evictable());
        let oldest = evictable.min_by_key(|(_, page)| page.used).map(|(at, _)| at);
        let oldest = oldest.map(|at| pages.swap_remove(at));
        drop(pages);
        drop(oldest);
    }

    pub(super) fn drop_unused(&self, idle: Duration) {
        let mut pages = lock(&self.pages);
        let unused: Vec<_> = pages.extract_if(.., |page| page.used.elapsed() >= idle).collect();
        drop(pages);
        drop(unused);
    }
}

impl Hub {
    /// Reads the transitions after a revision. `None`: the log no longer begins at `first`.
    pub(crate) async fn history(
        &self,
        id: &RequestId,
        first: Option<Position>,
        after: u64,
        reading: &mut PageGuard,
    ) -> Result<Option<Vec<Arc<Transition>>>, StoreError> {
        let Some(first) = first else { return Ok(None) };
        let from = after + 1;
        if let Some(found) = self.history.read(id, first, from, reading) {
            return Ok(Some(found));
        }
        // The previous page may now be evicted.
        *reading = PageGuard::default();
        let _making = self.history.making.lock(id).await;
        if let Some(found) = self.history.read(id, first, from, reading) {
            return Ok(Some(found));
        }
        let slot = self.history.slot().await;
        let _load = self.loads.acquire().await.expect("the semaphore is never closed");
        let Some(transitions) = self.replay(id, first, from).await? else { return Ok(None) };
        if transitions.is_empty() {
            return Ok(Some(transitions));
        }
        let used = Instant::now();
        let mut page =
            Page { id: id.clone(), first, transitions, readers: Weak::new(), used, _slot: slot };
        let found = page.read(from, reading);
        let mut pages = lock(&self.history.pages);
        // An older page with the same beginning is shorter, because the log has grown since.
        pages.retain(|old| !old.holds(id, first, page.transitions[0].revision));
        pages.push(page);
        Ok(Some(found))
    }

    /// Folds a log up to the end of the page that contains a revision, and returns this page. It is
    /// empty if the log ends before that revision. `None`: the log no longer begins at `first`.
    async fn replay(
        &self,
        id: &RequestId,
        first: Position,
        from: u64,
    ) -> Result<Option<Vec<Arc<Transition>>>, StoreError> {
        let (mut request, mut page, mut bytes) = (Request::default(), Vec::new(), 0);
        self.read_log_until(&LogName::request(id.as_str()), |entry| {
            let Some(event) = event::decode(&entry.event) else { return ControlFlow::Continue(()) };
            let Some(transition) = request.apply(entry.position, entry.time, &event).transition
            else {
                return ControlFlow::Continue(());
            };
            let more = size(&transition);
            // Where a page begins does not depend on `from`, so that watchers share pages.
            if bytes + more > PAGE_BYTES && !page.is_empty() {
                if transition.revision > from {
                    return ControlFlow::Break(());
                }
                page.clear();
                bytes = 0;
            }
            bytes += more;
            page.push(Arc::new(transition));
            ControlFlow::Continue(())
        })
        .await?;
        let is_there = page.last().is_some_and(|last| last.revision >= from);
        if !is_there {
            page.clear();
        }
        Ok((request.beginning() == Some(first)).then_some(page))
    }
}

fn size(transition: &Transition) -> usize {
    TRANSITION_BYTES + transition.devices.iter().map(|status| status.bytes()).sum::<usize>()
}

/// Returns the first transitions with at most [`MAX_BATCH`] devices in total, but at least one.
pub(super) fn batch<'a>(
    transitions: impl Iterator<Item = &'a Arc<Transition>>,
) -> Vec<Arc<Transition>> {
    let mut devices = 0;
    let mut fits = |transition: &Transition| {
        let is_first = devices == 0;
        devices += transition.devices.len().max(1);
        is_first || devices <= MAX_BATCH
    };
    transitions.take_while(|transition| fits(transition)).map(Arc::clone).collect()
}
