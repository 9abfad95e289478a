//! A watch: where a request stands, then every transition once and in order, then the end.
//!
//! There is no task and no queue per watch: it is a cursor into the request's transitions, and
//! reads a few of them when its reader is ready for a message. One that falls behind what is kept
//! in memory reads on from pages of the request's history, which all watches share. A reader that
//! stands still holds one message: no transitions, no devices and no finished request.

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
    hub::{Devices, Folded, Hub, Reading, Tracked},
};
use crate::{
    identity::{AccountName, RequestId},
    store::{Position, StoreError},
};

/// What a watcher sees.
#[derive(Debug, Clone)]
pub enum Event {
    Snapshot(Snapshot),
    /// The next transitions, as many as fit into a message or a few more. Never empty.
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
pub struct Snapshot {
    pub account: Option<AccountName>,
    pub id: RequestId,
    pub state: RequestState,
    pub counts: Counts,
    /// All devices, or those of a page.
    pub devices: Devices,
    pub revision: u64,
    pub position: Position,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    pub polling_stopped: bool,
}

impl Snapshot {
    /// With all devices, which are shared with the other snapshots of the revision.
    pub fn whole(tracked: &Tracked) -> Self {
        let mut folded = tracked.lock();
        let devices = folded.all_devices();
        Self::of(tracked, &folded, devices)
    }

    /// With the devices of a page only.
    pub fn page(tracked: &Tracked, from: usize, size: usize) -> Self {
        let folded = tracked.lock();
        let page = folded.request.devices.iter().skip(from).take(size);
        let devices = Arc::new(page.map(Arc::clone).collect());
        Self::of(tracked, &folded, devices)
    }

    fn of(tracked: &Tracked, folded: &Folded, devices: Devices) -> Self {
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
pub struct Watch {
    hub: Arc<Hub>,
    id: RequestId,
    /// Held only while the watch is polled, so that a finished request can leave memory.
    tracked: Weak<Tracked>,
    changes: Receiver<u64>,
    key: TokenKey,
    cursor: Cursor,
    unfinished: Option<Unfinished>,
    heartbeat: Duration,
    /// When the reader was last given something.
    last: Option<Instant>,
    reading: Reading,
}

/// A snapshot of which a part has been given.
#[derive(Debug)]
struct Unfinished {
    /// Without its devices.
    snapshot: Snapshot,
    devices: Weak<Vec<Arc<DeviceStatus>>>,
}

#[derive(Debug, Clone, Copy)]
enum Cursor {
    Beginning,
    /// Everything up to this place has been given.
    After(Resume),
}

impl Watch {
    pub(super) async fn begin(
        hub: Arc<Hub>,
        attached: Attached,
        key: TokenKey,
        resume: Option<Resume>,
        heartbeat: Duration,
    ) -> Result<Self, Error> {
        let Attached { tracked, changes } = attached;
        let cursor = match resume {
            Some(resume) if fits(&hub, &tracked, resume).await? => Cursor::After(resume),
            _ => Cursor::Beginning,
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
            reading: Reading::default(),
        })
    }

    /// The next event after the place that was last completed; `None` after the final state.
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        let event = self.wait().await?;
        if event.is_some() {
            self.last = Some(Instant::now());
        }
        Ok(event)
    }

    /// Records that the reader has been given everything up to a place. Returns the token to
    /// continue there.
    pub fn complete(&mut self, position: Position, revision: u64) -> String {
        let resume = Resume { position, revision };
        self.cursor = Cursor::After(resume);
        self.unfinished = None;
        self.key.resume(&self.id, resume)
    }

    /// The reader has been given a part of a snapshot. The next event is the same snapshot.
    pub fn pause(&mut self, mut snapshot: Snapshot) {
        let devices = std::mem::take(&mut snapshot.devices);
        self.hub.hold_snapshot(&devices);
        self.unfinished = Some(Unfinished { snapshot, devices: Arc::downgrade(&devices) });
    }

    async fn wait(&mut self) -> Result<Option<Event>, Error> {
        if let Some(Unfinished { snapshot, devices }) = &self.unfinished {
            let snapshot = snapshot.clone();
            let devices = match devices.upgrade() {
                Some(devices) => devices,
                None => self.devices_at(&snapshot).await?,
            };
            return Ok(Some(Event::Snapshot(Snapshot { devices, ..snapshot })));
        }
        let tracked = self.tracked().await?;
        let Cursor::After(given) = self.cursor else {
            return Ok(Some(Event::Snapshot(Snapshot::whole(&tracked))));
        };
        loop {
            // Seen before the state is read: a change in between wakes the wait below.
            self.changes.borrow_and_update();
            match self.look(&tracked, given)? {
                Look::New => {
                    let transitions =
                        after(&self.hub, &tracked, given.revision, &mut self.reading).await?;
                    if transitions.as_ref().is_none_or(|transitions| !transitions.is_empty()) {
                        return Ok(Some(told(&tracked, transitions)));
                    }
                }
                Look::Ended => return Ok(None),
                Look::Quiet(heartbeat) if self.last.is_none() => return Ok(Some(heartbeat)),
                Look::Quiet(_) => {}
            }
            let alive = self.last.unwrap_or_else(Instant::now) + self.heartbeat;
            tokio::select! {
                changed = self.changes.changed() => if changed.is_err() {
                    return Err(replaced());
                },
                () = tokio::time::sleep_until(alive) => {
                    if let Look::Quiet(heartbeat) = self.look(&tracked, given)? {
                        return Ok(Some(heartbeat));
                    }
                }
            }
        }
    }

    /// The request, read from its log if it has left memory since the last event.
    async fn tracked(&mut self) -> Result<Arc<Tracked>, Error> {
        if let Some(tracked) = self.hub.read_on(&self.id, &self.tracked) {
            return Ok(tracked);
        }
        let (tracked, changes) = self.hub.attach(&self.id).await?.ok_or_else(replaced)?;
        let is_whole = {
            let folded = tracked.lock();
            let epoch = folded.position().epoch;
            let is_same = |given: Resume| given.position.epoch == epoch;
            let given = match self.cursor {
                Cursor::After(given) => Some(given),
                Cursor::Beginning => None,
            };
            given.is_none_or(is_same) && !folded.request.is_expired()
        };
        if !is_whole {
            return Err(replaced());
        }
        (self.tracked, self.changes) = (Arc::downgrade(&tracked), changes);
        Ok(tracked)
    }

    /// The devices of a snapshot that has left memory because its reader stood still.
    async fn devices_at(&mut self, snapshot: &Snapshot) -> Result<Devices, Error> {
        let tracked = self.tracked().await?;
        let now = Snapshot::whole(&tracked);
        let is_same =
            now.revision == snapshot.revision && now.position.epoch == snapshot.position.epoch;
        if is_same { Ok(now.devices) } else { Err(Error::SlowReader) }
    }

    fn look(&self, tracked: &Tracked, given: Resume) -> Result<Look, Error> {
        let folded = tracked.lock();
        let request = &folded.request;
        if folded.is_gone() {
            return Err(replaced());
        }
        if request.revision > given.revision {
            return Ok(Look::New);
        }
        if self.last.is_some() && request.is_final() {
            return Ok(Look::Ended);
        }
        if self.last.is_some() && request.polling_stopped {
            return Err(Error::StillPending);
        }
        Ok(Look::Quiet(Event::Heartbeat {
            state: request.state(),
            counts: request.counts,
            revision: given.revision,
            position: given.position,
        }))
    }
}

/// Transitions as an event; or a snapshot if they are lost, or cannot be told as changes.
fn told(tracked: &Tracked, transitions: Option<Vec<Arc<Transition>>>) -> Event {
    match transitions.filter(|transitions| !transitions.iter().any(|transition| transition.restart))
    {
        Some(transitions) => Event::Changes(transitions),
        None => Event::Snapshot(Snapshot::whole(tracked)),
    }
}

/// Whether a token is about a place in the history of this request. After an older copy of the
/// store was put back, its revision may be missing, or may exist again with other content. Then the
/// watch has to begin with a snapshot.
async fn fits(hub: &Hub, tracked: &Tracked, resume: Resume) -> Result<bool, Error> {
    let Resume { position, revision } = resume;
    let is_behind = || tracked.lock().position().sequence < position.sequence;
    if is_behind() {
        // Another replica may have been ahead of this one.
        hub.folded(position).await;
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
    let mut reading = Reading::default();
    // The token's revision must lie before its position, and the next one behind it.
    for wanted in
        [revision, revision + 1].into_iter().filter(|wanted| (1..=latest).contains(wanted))
    {
        // The log may no longer be whole.
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

/// The next transitions after a revision, from memory or from the log. `None`: the log is no longer
/// whole.
async fn after(
    hub: &Hub,
    tracked: &Tracked,
    revision: u64,
    reading: &mut Reading,
) -> Result<Option<Vec<Arc<Transition>>>, StoreError> {
    let (in_memory, first) = {
        let folded = tracked.lock();
        (folded.after(revision), folded.request.beginning())
    };
    if in_memory.is_some() {
        *reading = Reading::default();
        return Ok(in_memory);
    }
    hub.history(&tracked.id, first, revision, reading).await
}

/// What there is for a watch.
enum Look {
    /// Transitions.
    New,
    /// Nothing new; a sign of life, should one be due.
    Quiet(Event),
    Ended,
}

fn replaced() -> Error {
    Error::Store(StoreError::Unavailable("the store was replaced".to_owned()))
}
