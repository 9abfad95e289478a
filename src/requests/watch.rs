//! A watch: where a request stands, then every transition once and in order, then the end.
//!
//! There is no task and no queue per watch: it is a cursor into the request's transitions, and reads them when its reader is
//! ready. One that falls behind what is kept in memory reads on from the request's log.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    Attached,
    error::Error,
    hub::{Hub, Tracked},
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
    /// Never empty.
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
    pub devices: Vec<Arc<DeviceStatus>>,
    pub revision: u64,
    pub position: Position,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    pub polling_stopped: bool,
}

impl Snapshot {
    pub fn of(tracked: &Tracked) -> Self {
        let folded = tracked.lock();
        let request = &folded.request;
        Self {
            account: request.account.clone(),
            id: tracked.id.clone(),
            state: request.state(),
            counts: request.counts,
            devices: request.devices.clone(),
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
        Ok(Self { hub, attached, key, cursor, heartbeat, last: None })
    }

    /// The next event; `None` after the final state. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        let event = self.wait().await?;
        if let Some(event) = &event {
            self.last = Some(Instant::now());
            self.cursor = match event {
                Event::Snapshot(Snapshot { position, revision, .. }) => {
                    Cursor::After(Resume { position: *position, revision: *revision })
                }
                Event::Changes(transitions) => transitions.last().map_or(self.cursor, |t| {
                    Cursor::After(Resume { position: t.position, revision: t.revision })
                }),
                Event::Heartbeat { .. } => self.cursor,
            };
        }
        Ok(event)
    }

    /// The token to continue after an event.
    pub fn token(&self, position: Position, revision: u64) -> String {
        self.key.resume(&self.attached.tracked.id, Resume { position, revision })
    }

    async fn wait(&mut self) -> Result<Option<Event>, Error> {
        let Cursor::After(given) = self.cursor else {
            return Ok(Some(Event::Snapshot(Snapshot::of(&self.attached.tracked))));
        };
        loop {
            // Seen before the state is read: a change in between wakes the wait below.
            self.attached.changes.borrow_and_update();
            match self.look(given)? {
                Look::New(Some(transitions)) => return Ok(Some(self.told(Some(transitions)))),
                Look::New(None) => {
                    let tracked = &self.attached.tracked;
                    let first = tracked.lock().request.beginning();
                    let transitions = self.hub.transitions(&tracked.id, first, given.revision).await?;
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
            None => Event::Snapshot(Snapshot::of(&self.attached.tracked)),
        }
    }

    fn look(&self, given: Resume) -> Result<Look, Error> {
        let folded = self.attached.tracked.lock();
        let request = &folded.request;
        if folded.is_gone() {
            return Err(replaced());
        }
        if request.revision > given.revision {
            return Ok(Look::New(folded.after(given.revision)));
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
    let before = revision.saturating_sub(1);
    let in_memory = tracked.lock().after(before);
    let transitions = if in_memory.is_some() {
        in_memory
    } else {
        let first = tracked.lock().request.beginning();
        hub.transitions(&tracked.id, first, before).await?
    };
    // The log is no longer whole.
    let Some(transitions) = transitions else { return Ok(false) };
    let is_there = revision == 0 || transitions.iter().any(|t| t.revision == revision);
    let in_order =
        |t: &Arc<Transition>| (t.revision <= revision) == (t.position.sequence <= position.sequence);
    Ok(is_there && transitions.iter().all(in_order))
}

/// What there is for a watch.
enum Look {
    /// Transitions; `None`: they are no longer in memory.
    New(Option<Vec<Arc<Transition>>>),
    /// Nothing new; a sign of life, should one be due.
    Quiet(Event),
    Ended,
}

fn replaced() -> Error {
    Error::Store(StoreError::Unavailable("the store was replaced".to_owned()))
}
