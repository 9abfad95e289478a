//! Polling: every open request is asked about now and then, until it is finished or given up.
//!
//! The schedule is the lease: a cell per request counts its polls. A replica that thinks a poll is due looks there first: if the
//! count has moved since it looked last, another replica has polled, and it waits another interval from now; else it
//! swaps, and polls only if the swap won. So a thousand watchers, or ten replicas, cost one poll, and whoever sees no count
//! move for an interval of its own takes over.

mod schedule;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};
use uuid::Uuid;

use super::{
    age, append,
    asker::{Asker, For},
    error::Error,
    event::Kind,
    hub::{Hint, Hub, Tracked},
};
use crate::{
    config,
    identity::RequestId,
    proto::storage,
    store::{CellName, LogName, Store, StoreError, Swap, decode_cell},
};
use schedule::{Counted, Schedule, Turn, polled_elsewhere, rest_after};

/// Polls under way at once; the rate is ThingSpace's limiter's business.
const MAX_POLLS: usize = 64;

/// The longest interval where callbacks arrive, watched or not.
const LONGEST_CALLED_BACK: Duration = Duration::from_mins(10);

/// The pause after a failure to store what was withheld.
const RELEASE_RETRY: Duration = Duration::from_millis(500);

/// Format of the poll cell.
const FORMAT: u32 = 1;

#[derive(Debug)]
pub struct Poller {
    store: Arc<dyn Store>,
    hub: Arc<Hub>,
    asker: Arc<Asker>,
    config: config::Polling,
}

/// What became of a poll.
#[derive(Debug)]
enum Polled {
    /// Asked, here or by another replica.
    Again(Counted),
    /// What was withheld has been told, and nothing was asked.
    Released,
    /// The request is closed.
    Done,
    /// The store did not let us.
    Failed,
}

impl Poller {
    pub fn new(store: Arc<dyn Store>, hub: Arc<Hub>, asker: Arc<Asker>, config: config::Polling) -> Self {
        Self { store, hub, asker, config }
    }

    /// Polls until stopped. Questions under way end then, unless a caller waits for them; an answer that is there is stored.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut schedule = Schedule::default();
        let mut polls = JoinSet::new();
        loop {
            let next = if polls.len() < MAX_POLLS { schedule.next() } else { None };
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                hinted = self.hub.hints() => for (id, hint) in hinted {
                    self.look(&mut schedule, &id, hint);
                },
                Some(finished) = polls.join_next() => {
                    let Ok((id, polled)) = finished else { continue };
                    self.settle(&mut schedule, &id, &polled);
                },
                () = due => if let Some((id, turn)) = schedule.take(Instant::now()) {
                    let poller = Arc::clone(&self);
                    polls.spawn(async move { (id.clone(), poller.poll(&id, turn.seen).await) });
                },
            }
        }
    }

    /// A request is new here, or watched, or puzzling: its next poll may have to come sooner.
    fn look(&self, schedule: &mut Schedule, id: &RequestId, hint: Hint) {
        let turn = schedule.get(id).unwrap_or_else(|| Turn::new(Instant::now()));
        let turn = Turn { soon: turn.soon || hint == Hint::Soon, ..turn };
        schedule.set(id, Turn { due: turn.due.map(|_| self.due(id, &turn)), ..turn });
    }

    fn settle(&self, schedule: &mut Schedule, id: &RequestId, polled: &Polled) {
        let now = Instant::now();
        let before = schedule.get(id).unwrap_or_else(|| Turn::new(now));
        let turn = match polled {
            Polled::Done => {
                schedule.remove(id);
                // Somebody may have come while it was polled, whose hint found a poll under way.
                if self.hub.get(id).is_some_and(|tracked| is_polled(&tracked)) {
                    self.look(schedule, id, Hint::Look);
                }
                return;
            }
            Polled::Again(counted) => before.polled(now, *counted),
            Polled::Released => before,
            Polled::Failed => before.failed(now),
        };
        schedule.set(id, Turn { due: Some(self.due(id, &turn)), ..turn });
    }

    /// When a request is due: soon, if that is asked for, when what was withheld has to be told, or in its turn.
    fn due(&self, id: &RequestId, turn: &Turn) -> Instant {
        let Some(tracked) = self.hub.get(id) else { return turn.last };
        let took = tracked.asked().map_or(Duration::ZERO, |asked| asked.took);
        let account = tracked.lock().request.account.clone();
        let longest = match account {
            Some(account) if self.hub.is_called_back(&account) => LONGEST_CALLED_BACK,
            _ if tracked.is_watched() => self.config.max_watched,
            _ => self.config.max,
        };
        let longest = if turn.soon { self.config.min_age.min(longest) } else { longest };
        let in_turn = turn.last + turn.interval(&self.config, longest, took);
        let release = tracked.withheld_until().map(|until| until.max(turn.last + RELEASE_RETRY));
        release.map_or(in_turn, |release| release.min(in_turn))
    }

    /// `seen`: what the request's cell said when this replica looked last.
    async fn poll(&self, id: &RequestId, seen: Option<u32>) -> Polled {
        let Some(tracked) = self.hub.get(id) else { return Polled::Done };
        if !is_polled(&tracked) {
            return Polled::Done;
        }
        if tracked.withheld_until().is_some_and(|until| until <= Instant::now()) {
            return match self.asker.release(&tracked).await {
                Ok(()) if is_polled(&tracked) => Polled::Released,
                Ok(()) => Polled::Done,
                Err(error) => {
                    say(id, &error);
                    Polled::Failed
                }
            };
        }
        let (first, created) = {
            let request = &tracked.lock().request;
            (request.first, request.create_time)
        };
        let took = tracked.asked().map_or(Duration::ZERO, |asked| asked.took);
        let counted = match self.claim(id, seen, rest_after(took)).await {
            Ok(Claim::Ours(counted)) => counted,
            Ok(Claim::Others(counted)) => {
                debug!(request.id = %id, "another replica polls");
                return Polled::Again(counted);
            }
            Err(error) => {
                say(id, &error.into());
                return Polled::Failed;
            }
        };
        let asked = self.asker.refresh(&tracked, Instant::now(), self.config.min_age, For::Poller).await;
        if let Err(error) = asked {
            say(id, &error);
        }
        if !is_polled(&tracked) {
            return Polled::Done;
        }
        if tracked.withheld_until().is_some() {
            return Polled::Again(counted);
        }
        // Giving up cannot be undone, so no wall clock may bring it about.
        if age(&*self.store, first, created) >= self.config.give_up {
            return self.give_up(id).await;
        }
        Polled::Again(counted)
    }

    async fn give_up(&self, id: &RequestId) -> Polled {
        let event_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{id}/abandoned").as_bytes());
        let log = LogName::request(id.as_str());
        match append(&*self.store, &log, self.hub.first(id), event_id, Kind::Abandoned(storage::Abandoned {}))
            .await
        {
            Ok(_) => {
                info!(request.id = %id, "gave up polling; the request is still pending");
                Polled::Done
            }
            Err(error) => {
                say(id, &error.into());
                Polled::Failed
            }
        }
    }

    /// Counts a poll in the request's cell, unless another replica has since this one looked.
    async fn claim(&self, id: &RequestId, seen: Option<u32>, rest: Duration) -> Result<Claim, StoreError> {
        let cell = CellName::retained(format!("poll/{id}"));
        let held = self.store.load(&cell).await?;
        let (version, poll) = match held {
            Some(held) => (Some(held.version), Some(decode(held.value)?)),
            None => (None, None),
        };
        let before = poll.as_ref().map(|poll| poll.count);
        if let Some(poll) = poll.filter(|_| polled_elsewhere(seen, before, self.store.exclusive())) {
            return Ok(Claim::Others(counted(&poll)));
        }
        let next = storage::Poll {
            version: FORMAT,
            nonce: Uuid::now_v7().to_string(),
            count: before.unwrap_or(0).saturating_add(1),
            rest_ms: u32::try_from(rest.as_millis()).unwrap_or(u32::MAX),
        };
        match self.store.swap(&cell, version, Bytes::from(next.encode_to_vec())).await? {
            // Its own rest follows from the answer.
            Swap::Swapped(_) => Ok(Claim::Ours(Counted { count: next.count, rest: Duration::ZERO })),
            Swap::Conflict(Some(current)) => Ok(Claim::Others(counted(&decode(current.value)?))),
            // It has just expired: nobody polls.
            Swap::Conflict(None) => Ok(Claim::Others(Counted { count: 0, rest })),
        }
    }
}

/// Whose poll it is.
#[derive(Debug)]
enum Claim {
    Ours(Counted),
    Others(Counted),
}

fn counted(poll: &storage::Poll) -> Counted {
    Counted { count: poll.count, rest: Duration::from_millis(poll.rest_ms.into()) }
}

/// Client and store log their outages once; every open request repeating it would say no more.
fn say(id: &RequestId, error: &Error) {
    match error {
        Error::Internal(_) | Error::Store(StoreError::Corrupt(_) | StoreError::TooLarge(_)) => {
            error!(request.id = %id, %error, "a request cannot be polled");
        }
        error => debug!(request.id = %id, %error, "a request was not polled"),
    }
}

/// Open requests are, and one of others whose devices are not known yet as long as somebody watches it.
fn is_polled(tracked: &Tracked) -> bool {
    let watched = tracked.is_watched();
    let request = &tracked.lock().request;
    !request.is_closed() || (watched && !request.known && !request.polling_stopped)
}

fn decode(value: Bytes) -> Result<storage::Poll, StoreError> {
    decode_cell(value, FORMAT, |poll: &storage::Poll| poll.version)
}
