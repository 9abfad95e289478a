//! A watch: where a request stands, then every transition once and in order, then the end.
//!
//! There is no task and no queue per watch: it is a cursor into the request's transitions, and reads a few of them when its
//! reader is ready for a message. One that falls behind what is kept in memory reads on from pages of the request's
//! history, which all watches share. So a reader that stands still holds one message and no transitions.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Attached,
    error::Error,
    hub::{Folded, Hub, Reading, Tracked},
    state::{Counts, DeviceStatus, RequestState, Transition},
    token::{Resume, TokenKey},
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
    pub devices: Arc<Vec<Arc<DeviceStatus>>>,
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

    fn of(tracked: &Tracked, folded: &Folded, devices: Arc<Vec<Arc<DeviceStatus>>>) -> Self {
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
    attached: Attached,
    key: TokenKey,
    cursor: Cursor,
    heartbeat: Duration,
    /// When the reader was last given something.
    last: Option<Instant>,
    reading: Reading,
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
        let cursor = match resume {
            Some(resume) if fits(&hub, &attached.tracked, resume).await? => Cursor::After(resume),
            _ => Cursor::Beginning,
        };
        Ok(Self { hub, attached, key, cursor, heartbeat, last: None, reading: Reading::default() })
    }

    /// The next event after the place that was last completed; `None` after the final state. Dropping the future
    /// loses nothing.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        let event = self.wait().await?;
        if event.is_some() {
            self.last = Some(Instant::now());
        }
        Ok(event)
    }

    /// The reader has been given everything up to a place.
    pub fn complete(&mut self, position: Position, revision: u64) {
        self.cursor = Cursor::After(Resume { position, revision });
    }

    /// The token to continue after an event.
    pub fn token(&self, position: Position, revision: u64) -> String {
        self.key.resume(&self.attached.tracked.id, Resume { position, revision })
    }

    async fn wait(&mut self) -> Result<Option<Event>, Error> {
        let Cursor::After(given) = self.cursor else {
            return Ok(Some(Event::Snapshot(Snapshot::whole(&self.attached.tracked))));
        };
        loop {
            // Seen before the state is read: a change in between wakes the wait below.
            self.attached.changes.borrow_and_update();
            match self.look(given)? {
                Look::New => {
                    let (tracked, reading) = (&self.attached.tracked, &mut self.reading);
                    let transitions = after(&self.hub, tracked, given.revision, reading).await?;
                    if transitions.as_ref().is_none_or(|transitions| !transitions.is_empty()) {
                        return Ok(Some(self.told(transitions)));
                    }
                }
                Look::Ended => return Ok(None),
                Look::Quiet(heartbeat) if self.last.is_none() => return Ok(Some(heartbeat)),
                Look::Quiet(_) => {}
            }
            let alive = self.last.unwrap_or_else(Instant::now) + self.heartbeat;
            tokio::select! {
                changed = self.attached.changes.changed() => if changed.is_err() {
                    return Err(replaced());
                },
                () = tokio::time::sleep_until(alive) => if let Look::Quiet(heartbeat) = self.look(given)? {
                    return Ok(Some(heartbeat));
                },
            }
        }
    }

    /// Transitions as an event; or a snapshot if they are lost, or cannot be told as changes.
    fn told(&self, transitions: Option<Vec<Arc<Transition>>>) -> Event {
        match transitions.filter(|transitions| !transitions.iter().any(|transition| transition.restart)) {
            Some(transitions) => Event::Changes(transitions),
            None => Event::Snapshot(Snapshot::whole(&self.attached.tracked)),
        }
    }

    fn look(&self, given: Resume) -> Result<Look, Error> {
        let folded = self.attached.tracked.lock();
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

/// Whether a token is about a place in the history of this request. After an older copy of the store was put back, its
/// revision may be missing, or may exist again with other content. Then the watch has to begin with a snapshot.
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
    for wanted in [revision, revision + 1].into_iter().filter(|wanted| (1..=latest).contains(wanted)) {
        // The log may no longer be whole.
        let Some(found) = after(hub, tracked, wanted - 1, &mut reading).await? else { return Ok(false) };
        let Some(transition) = found.first() else { return Ok(false) };
        if (wanted == revision) != (transition.position.sequence <= position.sequence) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The next transitions after a revision, from memory or from the log. `None`: the log is no longer whole.
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
