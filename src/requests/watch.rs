//! A watch: first a snapshot of a request, unless a token resumes an earlier watch; then every
//! transition once and in order; then the end.
//!
//! A watch has no task and no queue. It is a cursor into the request's transitions. It reads a few
//! of them when its reader is ready for a message, from memory or from pages of the request's
//! history, which all watches share. It keeps no message, transition, device or closed request.
//! There may be 100,000 watches, so what only some of them need is in a box.

mod snapshot;
pub mod token;

use std::{
    pin::Pin,
    sync::{Arc, LazyLock, Weak},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::watch::Receiver,
    time::{Instant, Sleep, sleep_until},
};

pub(crate) use self::snapshot::Snapshot;
use self::token::{Resume, TokenKey};
use super::{
    Attached,
    error::Error,
    fold::state::{Counts, DeviceStatus, RequestState, Transition},
    hub::{Devices, Hub, PageGuard, Tracked},
};
use crate::{
    identity::RequestId,
    store::{Position, StoreError},
    telemetry::metrics,
};

/// Heartbeats are earlier by up to one part in this many of their interval. Otherwise a change,
/// which all watches of a request get at once, would be followed by all their heartbeats at once.
const HEARTBEAT_SPREAD: u32 = 5;

/// Heartbeats are due at multiples of one part in this many of their interval. So those of a
/// connection become due together, and are sent in one write.
const HEARTBEAT_STEPS: u32 = 50;

/// From where these multiples are counted.
static STEPS_BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

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

/// What a watch returns.
#[derive(Debug)]
pub(crate) enum Watched {
    Event(WatchEvent),
    /// The final state has been sent.
    Final,
    /// The given time has passed.
    TimedOut,
}

#[derive(Debug)]
pub(crate) struct Watch {
    hub: Arc<Hub>,
    id: RequestId,
    /// The name of the caller.
    caller: Arc<str>,
    /// Weak, so that a finished request can be evicted between two events.
    tracked: Weak<Tracked>,
    changes: Receiver<u64>,
    key: TokenKey,
    /// Everything up to here has been sent. `None`: nothing has been sent, and the watch begins
    /// with a snapshot.
    cursor: Option<Resume>,
    unfinished: Option<Box<Unfinished>>,
    heartbeat: Duration,
    /// When the next heartbeat is due. `None`: no event was returned yet.
    due: Option<Instant>,
    /// Ends a wait, not later than it has to end. It is moved only when it has fired, because that
    /// costs more than a wake-up that is too early.
    timer: Pin<Box<Sleep>>,
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
        caller: Arc<str>,
        key: TokenKey,
        resume: Option<Resume>,
        heartbeat: Duration,
    ) -> Result<Self, Error> {
        let (tracked, changes) = attached;
        let cursor = match resume {
            Some(resume) if fits(&hub, &tracked, resume).await? => Some(resume),
            _ => None,
        };
        hub.add_watcher(&tracked.id, &caller);
        Ok(Self {
            hub,
            id: tracked.id.clone(),
            caller,
            tracked: Arc::downgrade(&tracked),
            changes,
            key,
            cursor,
            unfinished: None,
            heartbeat,
            due: None,
            timer: Box::pin(sleep_until(Instant::now())),
            reading: PageGuard::default(),
        })
    }

    /// Waits for the next event, at most until `end`. This method is cancel safe.
    ///
    /// It does not call another async method for what it waits for: that would take memory for each
    /// watch.
    pub(crate) async fn next(&mut self, end: Option<Instant>) -> Result<Watched, Error> {
        if self.unfinished.is_some() {
            let event = Box::pin(self.unfinished()).await?;
            return Ok(self.returns(event));
        }
        let tracked = self.tracked().await?;
        let Some(sent) = self.cursor else {
            return Ok(self.returns(WatchEvent::Snapshot(Snapshot::whole(&tracked))));
        };
        let mut waited = false;
        loop {
            // Marked as seen before the state is read, so that a later change ends the wait below.
            self.changes.borrow_and_update();
            let is_new = match self.progress(&tracked, sent)? {
                WatchProgress::New => true,
                WatchProgress::Ended => return Ok(Watched::Final),
                WatchProgress::Quiet(heartbeat) if self.due.is_none_or(reached) => {
                    return Ok(self.returns(heartbeat));
                }
                WatchProgress::Quiet(_) => false,
            };
            if is_new {
                let transitions =
                    after(&self.hub, &tracked, sent.revision, &mut self.reading).await?;
                if transitions.as_ref().is_none_or(|transitions| !transitions.is_empty()) {
                    if let Some(newest) = transitions.iter().flatten().last()
                        && waited
                    {
                        let took = Timestamp::now().duration_since(newest.time);
                        metrics().watch_delay.record(took.try_into().unwrap_or_default(), &[]);
                    }
                    return Ok(self.returns(as_event(&tracked, transitions)));
                }
            }
            if end.is_some_and(reached) {
                return Ok(Watched::TimedOut);
            }
            let at = self.due.into_iter().chain(end).min();
            if let Some(at) = at.filter(|at| self.timer.is_elapsed() || *at < self.timer.deadline())
            {
                self.timer.as_mut().reset(at);
            }
            tokio::select! {
                changed = self.changes.changed() => match changed {
                    Ok(()) => waited = true,
                    Err(_) => return Err(store_replaced()),
                },
                () = self.timer.as_mut(), if at.is_some() => {}
            }
        }
    }

    /// Returns an event, and sets when the next heartbeat is due.
    fn returns(&mut self, event: WatchEvent) -> Watched {
        self.due = Some(heartbeat_due(self.heartbeat));
        Watched::Event(event)
    }

    /// Returns the id as ThingSpace spells it.
    pub(crate) fn id(&self) -> &RequestId {
        &self.id
    }

    /// Records that everything up to a position has been sent.
    pub(crate) fn complete(&mut self, sent: Resume) {
        self.cursor = Some(sent);
        self.unfinished = None;
    }

    /// Returns the token to resume at a position.
    pub(crate) fn token_at(&self, resume: Resume) -> String {
        self.key.resume(&self.id, resume)
    }

    /// Returns the token to resume after what has been sent, if anything has.
    pub(crate) fn token(&self) -> Option<String> {
        self.cursor.map(|sent| self.token_at(sent))
    }

    /// Records that a part of a snapshot has been sent. The next event is the same snapshot.
    pub(crate) fn pause(&mut self, mut snapshot: Snapshot) {
        let devices = std::mem::take(&mut snapshot.devices);
        self.hub.hold_snapshot(&devices);
        let devices = Arc::downgrade(&devices);
        self.unfinished = Some(Box::new(Unfinished { snapshot, devices }));
    }

    /// Returns the snapshot that has been sent in part.
    async fn unfinished(&mut self) -> Result<WatchEvent, Error> {
        let Unfinished { snapshot, devices } =
            &**self.unfinished.as_ref().expect("a snapshot is unfinished");
        let snapshot = snapshot.clone();
        let devices = match devices.upgrade() {
            Some(devices) => devices,
            None => self.devices_at(&snapshot).await?,
        };
        Ok(WatchEvent::Snapshot(Snapshot { devices, ..snapshot }))
    }

    /// Returns the request. Reads its log if it was evicted since the last event.
    async fn tracked(&mut self) -> Result<Arc<Tracked>, Error> {
        if let Some(tracked) = self.hub.read_again(&self.id, &self.tracked) {
            return Ok(tracked);
        }
        let attached = Box::pin(self.hub.attach(&self.id)).await?;
        let (tracked, changes) = attached.ok_or_else(store_replaced)?;
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
        if self.due.is_some() && request.is_final() {
            return Ok(WatchProgress::Ended);
        }
        if self.due.is_some() && request.polling_stopped {
            return Err(Error::StillPending);
        }
        // All events up to here have been folded, so all watches at this revision can resume here,
        // and their heartbeats are the same.
        let position = folded.position();
        Ok(WatchProgress::Quiet(WatchEvent::Heartbeat {
            state: request.state(),
            counts: request.counts,
            revision: sent.revision,
            position,
        }))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.remove_watcher(&self.id, &self.caller);
    }
}

/// Returns when the next heartbeat is due.
fn heartbeat_due(interval: Duration) -> Instant {
    let part = 1.0 - fastrand::f64() / f64::from(HEARTBEAT_SPREAD);
    let due = Instant::now() + interval.mul_f64(part);
    let step = (interval / HEARTBEAT_STEPS).as_nanos().max(1);
    let after_step = due.saturating_duration_since(*STEPS_BEGIN).as_nanos() % step;
    due - Duration::from_nanos(u64::try_from(after_step).unwrap_or_default())
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
    Box::pin(hub.history(&tracked.id, first, revision, reading)).await
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

fn reached(time: Instant) -> bool {
    Instant::now() >= time
}

fn store_replaced() -> Error {
    Error::Store(StoreError::Unavailable("the store was replaced".to_owned()))
}
