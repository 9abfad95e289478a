//! Pages of history, for watchers that are further behind than what is kept in memory.
//!
//! A page is folded from a request's log and shared by all watchers of the request that are at the
//! same place. Watchers take small batches out of it and hold no page themselves, so a reader that
//! stands still costs nothing. The number of pages in memory is bounded. A page that is being read
//! stays for at least [`UNDISTURBED`], so that watchers of many requests do not displace each
//! other's pages unread.

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

use super::{Hub, MAX_BATCH, UNDISTURBED};
use crate::{
    identity::RequestId,
    requests::{
        fold::{
            event,
            state::{DeviceStatus, Request, Transition},
        },
        lock,
        locks::Locks,
    },
    store::{LogName, Position, StoreError},
};

/// Pages in memory, of all requests together.
pub(super) const MAX_PAGES: usize = 8;

/// About how large a page is, in bytes; one transition may be larger.
const PAGE_BYTES: usize = 4 << 20;

/// A transition, and a device in it, without the device's texts, in bytes.
const TRANSITION_BYTES: usize = 200;
const DEVICE_BYTES: usize = 400;

/// How often a watcher that waits for room looks for a page to displace.
const ROOM_CHECK: Duration = Duration::from_millis(50);

/// The pages in memory.
#[derive(Debug)]
pub(super) struct History {
    pub(super) pages: Mutex<Vec<Page>>,
    room: Arc<Semaphore>,
    /// Of each request: held while a page is made.
    making: Locks<RequestId>,
}

impl Default for History {
    fn default() -> Self {
        let room = Arc::new(Semaphore::new(MAX_PAGES));
        Self { pages: Mutex::default(), room, making: Locks::default() }
    }
}

#[derive(Debug)]
pub(super) struct Page {
    id: RequestId,
    /// Where the request's log begins.
    first: Position,
    /// Never empty; their revisions are consecutive.
    transitions: Vec<Arc<Transition>>,
    readers: Weak<()>,
    used: Instant,
    _room: OwnedSemaphorePermit,
}

/// That a watcher is reading a page, as long as this lives.
#[derive(Debug, Default)]
pub struct Reading {
    _page: Option<Arc<()>>,
}

impl Page {
    fn holds(&self, id: &RequestId, first: Position, revision: u64) -> bool {
        let revisions =
            self.transitions[0].revision..=self.transitions[self.transitions.len() - 1].revision;
        self.first == first && revisions.contains(&revision) && self.id == *id
    }

    /// The transitions from a revision on, as many as a batch takes.
    fn read(&mut self, from: u64, reading: &mut Reading) -> Vec<Arc<Transition>> {
        self.used = Instant::now();
        let reader = self.readers.upgrade().unwrap_or_default();
        self.readers = Arc::downgrade(&reader);
        *reading = Reading { _page: Some(reader) };
        let skipped = from.saturating_sub(self.transitions[0].revision);
        batch(self.transitions.iter().skip(usize::try_from(skipped).unwrap_or(usize::MAX)))
    }

    fn may_leave(&self) -> bool {
        self.readers.strong_count() == 0 || self.used.elapsed() >= UNDISTURBED
    }
}

impl History {
    fn read(
        &self,
        id: &RequestId,
        first: Position,
        from: u64,
        reading: &mut Reading,
    ) -> Option<Vec<Arc<Transition>>> {
        let mut pages = lock(&self.pages);
        Some(pages.iter_mut().find(|page| page.holds(id, first, from))?.read(from, reading))
    }

    /// Waits until there may be one more page.
    async fn room(&self) -> OwnedSemaphorePermit {
        let mut acquire = pin!(Arc::clone(&self.room).acquire_owned());
        loop {
            if self.room.available_permits() == 0 {
                self.displace();
            }
            if let Ok(permit) = tokio::time::timeout(ROOM_CHECK, &mut acquire).await {
                return permit.expect("nobody closes this semaphore");
            }
        }
    }

    /// Drops the least recently used page of those that may leave.
    fn displace(&self) {
        let mut pages = lock(&self.pages);
        let may_leave = pages.iter().enumerate().filter(|(_, page)| page.may_leave());
        let oldest = may_leave.min_by_key(|(_, page)| page.used).map(|(at, _)| at);
        let oldest = oldest.map(|at| pages.swap_remove(at));
        drop(pages);
        drop(oldest);
    }

    /// Drops the pages that were not used for a while.
    pub(super) fn drop_unused(&self, idle: Duration) {
        let mut pages = lock(&self.pages);
        let unused: Vec<_> = pages.extract_if(.., |page| page.used.elapsed() >= idle).collect();
        drop(pages);
        drop(unused);
    }
}

impl Hub {
    /// The next transitions of a request after a revision, as many as a batch takes, from its log.
    /// `None` if the log does not begin at `first` any more.
    pub async fn history(
        &self,
        id: &RequestId,
        first: Option<Position>,
        after: u64,
        reading: &mut Reading,
    ) -> Result<Option<Vec<Arc<Transition>>>, StoreError> {
        let Some(first) = first else { return Ok(None) };
        let from = after + 1;
        if let Some(found) = self.history.read(id, first, from, reading) {
            return Ok(Some(found));
        }
        // The page that was read so far may make room.
        *reading = Reading::default();
        let _making = self.history.making.lock(id).await;
        if let Some(found) = self.history.read(id, first, from, reading) {
            return Ok(Some(found));
        }
        let room = self.history.room().await;
        let _load = self.loads.acquire().await.expect("nobody closes this semaphore");
        let Some(transitions) = self.replay(id, first, from).await? else { return Ok(None) };
        if transitions.is_empty() {
            return Ok(Some(transitions));
        }
        let used = Instant::now();
        let mut page =
            Page { id: id.clone(), first, transitions, readers: Weak::new(), used, _room: room };
        let found = page.read(from, reading);
        let mut pages = lock(&self.history.pages);
        // A page that reached the end of the log when it was made may have been continued.
        pages.retain(|old| !old.holds(id, first, page.transitions[0].revision));
        pages.push(page);
        Ok(Some(found))
    }

    /// Folds a log up to the end of the page that holds a revision, and returns that page. Empty if
    /// the log ends before.
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
            // Pages always begin at the same revisions, so that watchers share them.
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

/// About how many bytes a transition takes in memory.
fn size(transition: &Transition) -> usize {
    let device = |status: &Arc<DeviceStatus>| DEVICE_BYTES + status.text_bytes();
    TRANSITION_BYTES + transition.devices.iter().map(device).sum::<usize>()
}

/// The first of some transitions: as many as name [`MAX_BATCH`] devices together, and at least one.
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
