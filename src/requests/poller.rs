//! Polling: every open request is asked about now and then, until it is finished or given up.
//!
//! The schedule is the lease: a cell per request counts its polls, and whoever thinks a poll is due swaps it first and
//! polls only if the swap won. So a thousand watchers, or ten replicas, cost one poll.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use prost::Message;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};
use uuid::Uuid;

use super::{
    append,
    asker::Asker,
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

/// Polls under way at once; the rate is ThingSpace's limiter's business.
const MAX_POLLS: usize = 64;

/// A poll is never sooner than this many times what the last answer took.
const REST: u32 = 10;

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

/// When which request is due. Knows nothing of why.
#[derive(Debug, Default)]
struct Schedule {
    due: BTreeSet<(Instant, RequestId)>,
    by_request: HashMap<RequestId, Turn>,
}

#[derive(Debug, Clone, Copy)]
struct Turn {
    /// `None`: being polled right now.
    due: Option<Instant>,
    /// When it was polled last, or first heard of.
    last: Instant,
    count: u32,
    /// Asked for again while it was being polled.
    soon: bool,
}

impl Schedule {
    fn set(&mut self, id: &RequestId, turn: Turn) {
        self.remove(id);
        if let Some(due) = turn.due {
            self.due.insert((due, id.clone()));
        }
        self.by_request.insert(id.clone(), turn);
    }

    fn remove(&mut self, id: &RequestId) {
        if let Some(Turn { due: Some(due), .. }) = self.by_request.remove(id) {
            self.due.remove(&(due, id.clone()));
        }
    }

    fn next(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes the first request that is due.
    fn take(&mut self, now: Instant) -> Option<RequestId> {
        let (due, id) = self.due.first().cloned()?;
        if due > now {
            return None;
        }
        self.due.pop_first();
        if let Some(turn) = self.by_request.get_mut(&id) {
            (turn.due, turn.soon) = (None, false);
        }
        Some(id)
    }
}

/// What became of a poll.
#[derive(Debug)]
enum Polled {
    /// Asked, or somebody else was; the polls there were so far.
    Again(u32),
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

    /// Polls until stopped. Polls under way are left to the asker, which finishes them.
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
                () = due => if let Some(id) = schedule.take(Instant::now()) {
                    let poller = Arc::clone(&self);
                    polls.spawn(async move { (id.clone(), poller.poll(&id).await) });
                },
            }
        }
    }

    /// A request is new here, or watched, or puzzling: its next poll may have to come sooner.
    fn look(&self, schedule: &mut Schedule, id: &RequestId, hint: Hint) {
        let now = Instant::now();
        let new = Turn { due: Some(now), last: now, count: 0, soon: false };
        let turn = schedule.by_request.get(id).copied().unwrap_or(new);
        let soon = turn.soon || hint == Hint::Soon;
        let due = turn.due.map(|_| self.due(id, turn.last, turn.count, soon));
        schedule.set(id, Turn { due, soon, ..turn });
    }

    fn settle(&self, schedule: &mut Schedule, id: &RequestId, polled: &Polled) {
        let before = schedule.by_request.get(id).copied();
        let soon = before.is_some_and(|turn| turn.soon);
        let mut last = Instant::now();
        let count = match polled {
            Polled::Done => {
                schedule.remove(id);
                // Somebody may have come while it was polled, whose hint found a poll under way.
                if self.hub.get(id).is_some_and(|tracked| is_polled(&tracked)) {
                    self.look(schedule, id, Hint::Look);
                }
                return;
            }
            Polled::Again(count) => *count,
            Polled::Released => {
                last = before.map_or(last, |turn| turn.last);
                before.map_or(0, |turn| turn.count)
            }
            Polled::Failed => before.map_or(0, |turn| turn.count + 1),
        };
        let due = Some(self.due(id, last, count, soon));
        schedule.set(id, Turn { due, last, count, soon });
    }

    /// When a request is due that was polled last then: `soon`, when what was withheld has to be told, or in its turn.
    fn due(&self, id: &RequestId, last: Instant, count: u32, soon: bool) -> Instant {
        let Some(tracked) = self.hub.get(id) else { return last };
        let took = tracked.asked().map_or(Duration::ZERO, |asked| asked.took);
        let account = tracked.lock().request.account.clone();
        let longest = match account {
            Some(account) if self.hub.is_called_back(&account) => LONGEST_CALLED_BACK,
            _ if tracked.is_watched() => self.config.max_watched,
            _ => self.config.max,
        };
        let longest = if soon { self.config.min_age.min(longest) } else { longest };
        let interval = interval(&self.config, count, longest, took);
        let release = tracked.withheld_until().map(|until| until.max(last + RELEASE_RETRY));
        release.map_or(last + interval, |release| release.min(last + interval))
    }

    async fn poll(&self, id: &RequestId) -> Polled {
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
        let created = tracked.lock().request.create_time;
        let (count, won) = match self.claim(id).await {
            Ok(claim) => claim,
            Err(error) => {
                say(id, &error.into());
                return Polled::Failed;
            }
        };
        if !won {
            debug!(request.id = %id, "another replica polls");
            return Polled::Again(count);
        }
        if let Err(error) = self.asker.refresh(&tracked, Instant::now(), self.config.min_age).await {
            say(id, &error);
        }
        if !is_polled(&tracked) {
            return Polled::Done;
        }
        if tracked.withheld_until().is_some() {
            return Polled::Again(count);
        }
        let age = Timestamp::now().duration_since(created);
        if age >= jiff::SignedDuration::try_from(self.config.give_up).unwrap_or(jiff::SignedDuration::MAX) {
            return self.give_up(id).await;
        }
        Polled::Again(count)
    }

    async fn give_up(&self, id: &RequestId) -> Polled {
        let event_id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{id}/abandoned").as_bytes());
        let log = LogName::request(id.as_str());
        match append(&*self.store, &log, event_id, Kind::Abandoned(storage::Abandoned {})).await {
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

    /// Counts a poll in the request's cell: how many there were, and whether this one is ours to make.
    async fn claim(&self, id: &RequestId) -> Result<(u32, bool), StoreError> {
        let cell = CellName::retained(format!("poll/{id}"));
        let held = self.store.load(&cell).await?;
        let count = match &held {
            Some(held) => decode(held.value.clone())?.count,
            None => 0,
        };
        let next = storage::Poll {
            version: FORMAT,
            nonce: Uuid::now_v7().to_string(),
            count: count.saturating_add(1),
        };
        let expected = held.map(|held| held.version);
        match self.store.swap(&cell, expected, Bytes::from(next.encode_to_vec())).await? {
            Swap::Swapped(_) => Ok((next.count, true)),
            Swap::Conflict(Some(current)) => Ok((decode(current.value)?.count, false)),
            Swap::Conflict(None) => Ok((0, false)),
        }
    }
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

/// How long to wait after the poll that was number `count`.
fn interval(config: &config::Polling, count: u32, longest: Duration, took: Duration) -> Duration {
    let grown = config.first.as_secs_f64() * config.factor.powf(f64::from(count.min(1_000)));
    let grown = if grown < longest.as_secs_f64() { Duration::from_secs_f64(grown) } else { longest };
    grown.max(took * REST)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> config::Polling {
        config::Polling {
            min_age: Duration::from_secs(1),
            first: Duration::from_secs(2),
            factor: 1.6,
            max_watched: Duration::from_mins(1),
            max: Duration::from_mins(5),
            give_up: Duration::from_hours(72),
        }
    }

    #[test]
    fn intervals_grow_to_their_bound_and_leave_ten_times_the_rest() {
        let config::Polling { max_watched, max, .. } = config();
        let of = |count, longest, took| interval(&config(), count, longest, Duration::from_millis(took));
        assert_eq!(of(0, max_watched, 0), Duration::from_secs(2));
        assert_eq!(of(1, max_watched, 0), Duration::from_millis(3_200));
        assert_eq!(of(100, max_watched, 0), Duration::from_mins(1));
        assert_eq!(of(u32::MAX, max, 0), Duration::from_mins(5));
        assert_eq!(of(u32::MAX, LONGEST_CALLED_BACK, 0), Duration::from_mins(10));
        assert_eq!(of(0, max_watched, 1_000), Duration::from_secs(10));
    }

    #[test]
    fn a_request_is_taken_once_when_due() {
        let mut schedule = Schedule::default();
        let (now, id) = (Instant::now(), RequestId::parse("r1").unwrap());
        schedule.set(&id, Turn { due: Some(now), last: now, count: 0, soon: false });
        schedule.set(&id, Turn { due: Some(now + Duration::from_secs(1)), last: now, count: 0, soon: false });
        assert_eq!(schedule.take(now), None);
        assert_eq!(schedule.take(now + Duration::from_secs(1)), Some(id.clone()));
        assert_eq!(schedule.take(now + Duration::from_secs(9)), None);
        assert!(schedule.next().is_none());
    }
}
