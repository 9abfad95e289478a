//! A watch: first a snapshot of a request, unless a token resumes an earlier watch; then every
//! transition once and in order; then the end.
//!
//! A watch has no task and no queue. It is a cursor into the request's transitions. It reads a few
//! of them when its reader is ready for a message, from memory or from pages of the request's
//! history, which all watches share. For a slow reader one message is kept in memory, but no
//! transitions, no devices and no closed request.

pub mod token;

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{sync::watch::Receiver, time::Instant};

use self::token::{Resume, TokenKey};
use super::{
    Attached,
    error::Error,
    fold::state::{Counts, DeviceStatus, RequestState, Transition},
    hub::{Devices, Hub, PageGuard, Tracked, TrackedState},
};
use crate::{
    identity::{AccountName, RequestId},
    store::{Position, StoreError},
};

#[derive(Debug, Clone)]
pub(crate) enum WatchEvent {
    Snapshot(Snapshot),
    /// The next transitions: those that fit into a message, or a few more. Never empty.
    Changes(Vec<Arc<Transition>>),
    Heartbeat {
        state: RequestState,
        counts: Counts,
        revision: u64,
        position: Position,
    },
}

/// A request at one revision.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) account: Option<AccountName>,
    pub(crate) id: RequestId,
    pub(crate) state: RequestState,
    pub(crate) counts: Counts,
    /// All devices, or the devices of a page.
    pub(crate) devices: Devices,
    pub(crate) revision: u64,
    pub(crate) position: Position,
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    pub(crate) polling_stopped: bool,
}

impl Snapshot {
    /// Returns a snapshot with all devices, which all snapshots of the revision share.
    pub(crate) fn whole(tracked: &Tracked) -> Self {
        let mut folded = tracked.lock();
        let devices = folded.all_devices();
        Self::of(tracked, &folded, devices)
    }

    /// Returns a snapshot with the devices of one page.
    pub(crate) fn page(tracked: &Tracked, from: usize, size: usize) -> Self {
        let folded = tracked.lock();
        let page = folded.request.devices.iter().skip(from).take(size);
        let devices = Arc::new(page.map(Arc::clone).collect());
        Self::of(tracked, &folded, devices)
    }

    fn of(tracked: &Tracked, folded: &TrackedState, devices: Devices) -> Self {
        let request = &folded.request;
        Self {
            account: request.account.clone(),
            id: tracked.id.clone(),
            state: request.state(),
            counts: request.counts,
            devices,
            revision: request.revision,
            position: folded.position(),
            create_time: request.create_time,
            update_time: request.update_time,
            polling_stopped: request.polling_stopped,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Watch {
    hub: Arc<Hub>,
    id: RequestId,
    /// Weak, so that a finished request can be evicted between two events.
    tracked: Weak<Tracked>,
    changes: Receiver<u64>,
    key: TokenKey,
    /// Everything up to here has been sent. `None`: nothing has been sent, and the watch begins
    /// with a snapshot.
    cursor: Option<Resume>,
    unfinished: Option<Unfinished>,
    heartbeat: Duration,
    /// When the last event was returned.
    last: Option<Instant>,
    reading: PageGuard,
}

/// A snapshot that has been sent in part.
#[derive(Debug)]
struct Unfinished {
    /// Without its devices.
    snapshot: Snapshot,
    devices: Weak<Vec<Arc<DeviceStatus>>>,
}

impl Watch {
    pub(super) async fn begin(
        hub: Arc<Hub>,
        attached: Attached,
        key: TokenKey,
        resume: Option<Resume>,
        heartbeat: Duration,
    ) -> Result<Self, Error> {
        let (tracked, changes) = attached;
        let cursor = match resume {
            Some(resume) if fits(&hub, &tracked, resume).await? => Some(resume),
            _ => None,
        };
        Ok(Self {
            hub,
            id: tracked.id.clone(),
            tracked: Arc::downgrade(&tracked),
            changes,
            key,
            cursor,
            unfinished: None,
            heartbeat,
            last: None,
            reading: PageGuard::default(),
        })
    }

    /// Returns the next event, or `None` after the final state. This method is cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Option<WatchEvent>, Error> {
        let event = self.wait().await?;
        if event.is_some() {
            self.last = Some(Instant::now());
        }
        Ok(event)
    }

    /// Records that everything up to a position has been sent. Returns the token to resume there.
    pub(crate) fn complete(&mut self, position: Position, revision: u64) -> String {
        let resume = Resume { position, revision };
        self.cursor = Some(resume);
        self.unfinished = None;
        self.key.resume(&self.id, resume)
    }

    /// Records that a part of a snapshot has been sent. The next event is the same snapshot.
    pub(crate) fn pause(&mut self, mut snapshot: Snapshot) {
        let devices = std::mem::take(&mut snapshot.devices);
        self.hub.hold_snapshot(&devices);
        self.unfinished = Some(Unfinished { snapshot, devices: Arc::downgrade(&devices) });
    }

    async fn wait(&mut self) -> Result<Option<WatchEvent>, Error> {
        if let Some(Unfinished { snapshot, devices }) = &self.unfinished {
            let snapshot = snapshot.clone();
            let devices = match devices.upgrade() {
                Some(devices) => devices,
                None => self.devices_at(&snapshot).await?,
            };
            return Ok(Some(WatchEvent::Snapshot(Snapshot { devices, ..snapshot })));
        }
        let tracked = self.tracked().await?;
        let Some(sent) = self.cursor else {
            return Ok(Some(WatchEvent::Snapshot(Snapshot::whole(&tracked))));
        };
        loop {
            // Marked as seen before the state is read, so that a later change ends the wait below.
            self.changes.borrow_and_update();
            match self.progress(&tracked, sent)? {
                WatchProgress::New => {
                    let transitions =
                        after(&self.hub, &tracked, sent.revision, &mut self.reading).await?;
                    if transitions.as_ref().is_none_or(|transitions| !transitions.is_empty()) {
                        return Ok(Some(as_event(&tracked, transitions)));
                    }
                }
                WatchProgress::Ended => return Ok(None),
                WatchProgress::Quiet(heartbeat) if self.last.is_none() => {
                    return Ok(Some(heartbeat));
                }
                WatchProgress::Quiet(_) => {}
            }
            let heartbeat_due = self.last.unwrap_or_else(Instant::now) + self.heartbeat;
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() {
                    return Err(store_replaced());
                },
                () = tokio::time::sleep_until(heartbeat_due) => {
                    if let WatchProgress::Quiet(heartbeat) = self.progress(&tracked, sent)? {
                        return Ok(Some(heartbeat));
                    }
                }
            }
        }
    }

    /// Returns the request. Reads its log if it was evicted since the last event.
    async fn tracked(&mut self) -> Result<Arc<Tracked>, Error> {
        if let Some(tracked) = self.hub.read_again(&self.id, &self.tracked) {
            return Ok(tracked);
        }
        let (tracked, changes) = self.hub.attach(&self.id).await?.ok_or_else(store_replaced)?;
        let can_continue = {
            let folded = tracked.lock();
            let epoch = folded.position().epoch;
            let is_same = self.cursor.is_none_or(|sent| sent.position.epoch == epoch);
            is_same && !folded.request.is_expired()
        };
        if !can_continue {
            return Err(store_replaced());
        }
        (self.tracked, self.changes) = (Arc::downgrade(&tracked), changes);
        Ok(tracked)
    }

    /// Returns the devices of a snapshot that was dropped because its reader did not read for a
    /// while.
    async fn devices_at(&mut self, snapshot: &Snapshot) -> Result<Devices, Error> {
        let tracked = self.tracked().await?;
        let now = Snapshot::whole(&tracked);
        let is_same =
            now.revision == snapshot.revision && now.position.epoch == snapshot.position.epoch;
        if is_same { Ok(now.devices) } else { Err(Error::SlowReader) }
    }

    fn progress(&self, tracked: &Tracked, sent: Resume) -> Result<WatchProgress, Error> {
        let folded = tracked.lock();
        let request = &folded.request;
        if folded.is_discarded() {
            return Err(store_replaced());
        }
        if request.revision > sent.revision {
            return Ok(WatchProgress::New);
        }
        if self.last.is_some() && request.is_final() {
            return Ok(WatchProgress::Ended);
        }
        if self.last.is_some() && request.polling_stopped {
            return Err(Error::StillPending);
        }
        Ok(WatchProgress::Quiet(WatchEvent::Heartbeat {
            state: request.state(),
            counts: request.counts,
            revision: sent.revision,
            position: sent.position,
        }))
    }
}

/// Returns transitions as an event. Returns a snapshot if they are lost or if one is a restart.
fn as_event(tracked: &Tracked, transitions: Option<Vec<Arc<Transition>>>) -> WatchEvent {
    match transitions.filter(|transitions| !transitions.iter().any(|transition| transition.restart))
    {
        Some(transitions) => WatchEvent::Changes(transitions),
        None => WatchEvent::Snapshot(Snapshot::whole(tracked)),
    }
}

/// Returns whether a resume token matches the history of this request. If not, the watch begins
/// with a snapshot. After the restore of an older store, the token's revision may be missing or
/// different.
async fn fits(hub: &Hub, tracked: &Tracked, resume: Resume) -> Result<bool, Error> {
    let Resume { position, revision } = resume;
    let is_behind = || tracked.lock().position().sequence < position.sequence;
    if is_behind() {
        // The replica that issued the token may be ahead of this one.
        hub.wait_until_folded(position).await;
    }
    if is_behind() {
        if !hub.holds(&tracked.id, position).await? {
            return Ok(false);
        }
        let behind = "this replica is behind the token".to_owned();
        return Err(Error::Store(StoreError::Unavailable(behind)));
    }
    let latest = tracked.lock().request.revision;
    if revision > latest {
        return Ok(false);
    }
    let mut reading = PageGuard::default();
    // The transition of the token's revision is not after its position, but the next one is.
    for wanted in [revision, revision + 1].into_iter().filter(|n| (1..=latest).contains(n)) {
        // `None`: a part of the log is lost.
        let Some(found) = after(hub, tracked, wanted - 1, &mut reading).await? else {
            return Ok(false);
        };
        let Some(transition) = found.first() else { return Ok(false) };
        if (wanted == revision) != (transition.position.sequence <= position.sequence) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the next transitions after a revision. `None`: a part of the log is lost.
async fn after(
    hub: &Hub,
    tracked: &Tracked,
    revision: u64,
    reading: &mut PageGuard,
) -> Result<Option<Vec<Arc<Transition>>>, StoreError> {
    let (in_memory, first) = {
        let folded = tracked.lock();
        (folded.after(revision), folded.request.beginning())
    };
    if in_memory.is_some() {
        *reading = PageGuard::default();
        return Ok(in_memory);
    }
    hub.history(&tracked.id, first, revision, reading).await
}

/// What has happened to a request since the last event that was sent.
enum WatchProgress {
    /// There are transitions to send.
    New,
    /// Nothing has happened. The heartbeat is sent when one is due.
    Quiet(WatchEvent),
    /// The request is final, and everything has been sent.
    Ended,
}

fn store_replaced() -> Error {
    Error::Store(StoreError::Unavailable("the store was replaced".to_owned()))
}
