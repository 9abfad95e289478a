//! Polls open requests until they are final or given up.
//!
//! All replicas share the schedule through a cell per request, which counts its polls. A replica
//! with a due poll reads the cell first. If the count has changed since its last read, another
//! replica has polled, and this one waits for another interval. If not, it increments the count,
//! and polls only if the swap succeeds. So the number of polls does not depend on the number of
//! watchers and replicas, and any replica takes over from one that dies.
//!
//! Each account waits for its own permit. The request to poll is chosen only when the account has
//! its permit. So the backlog of one account delays no other account, and a new watch does not wait
//! for the requests that were due before it.

mod schedule;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info, info_span};

use super::status_queries::{QueriedBy, StatusQueries};
use crate::{
    config::PollingConfig,
    identity::{AccountName, RequestId},
    proto::storage,
    requests::{
        age, append,
        error::Error,
        fold::event::{self, Kind},
        hub::{Hub, PollHint, Tracked},
        lock,
    },
    store::{CellName, LogName, Store, StoreError, Swap, decode_cell, load_cell, swap_cell},
    telemetry::{attribute, causes, metrics, names},
    thingspace::{Client, PollPermit},
};
pub(in crate::requests) use schedule::Schedule;
use schedule::{PollCount, ScheduledPoll, Urgency, pause_after, polled_elsewhere};

/// The longest interval between polls of a request, if callbacks arrive for its account.
const LONGEST_CALLED_BACK: Duration = Duration::from_mins(10);

/// The pause after a failed append of withheld statuses.
const RELEASE_RETRY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Poller {
    pub(in crate::requests) store: Arc<dyn Store>,
    pub(in crate::requests) client: Client,
    pub(in crate::requests) hub: Arc<Hub>,
    pub(in crate::requests) queries: Arc<StatusQueries>,
    pub(in crate::requests) config: PollingConfig,
    pub(in crate::requests) schedule: Mutex<Schedule>,
}

enum TaskResult {
    /// An account has waited for a permit. `None`: no call can be made now.
    Wait(AccountName, Option<PollPermit>),
    /// `None`: withheld statuses were released, without a poll of the account.
    Polled(Option<AccountName>, RequestId, PollResult),
}

#[derive(Debug)]
enum PollResult {
    /// This or another replica has polled.
    Counted(PollCount),
    /// Withheld statuses were appended, without a poll.
    Released,
    Closed,
    /// The store or ThingSpace could not be reached.
    Failed,
}

impl Poller {
    /// Polls until stopped. Then cancels queries in progress, unless a caller waits for them.
    /// Answers that have arrived are stored.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut tasks = JoinSet::new();
        loop {
            let accounts = lock(&self.schedule).begin_waiting(Instant::now());
            for account in accounts {
                let poller = Arc::clone(&self);
                tasks.spawn(async move {
                    let permit = poller.client.prepare_poll(&account).await;
                    let permit =
                        permit.inspect_err(|error| debug!(%error, "no poll can be made now"));
                    TaskResult::Wait(account, permit.ok())
                });
            }
            loop {
                let Some(id) = lock(&self.schedule).take_release(Instant::now()) else { break };
                let poller = Arc::clone(&self);
                tasks.spawn(async move {
                    let released = poller.release(&id).await;
                    TaskResult::Polled(None, id, released)
                });
            }
            let next = lock(&self.schedule).next();
            let due = async {
                match next {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                hinted = self.hub.hints.take() => {
                    let mut schedule = lock(&self.schedule);
                    for (id, hint) in hinted {
                        self.reschedule(&mut schedule, &id, hint);
                    }
                }
                Some(task) = tasks.join_next() => match task {
                    Ok(TaskResult::Wait(account, permit)) => {
                        let now = Instant::now();
                        let next = lock(&self.schedule).take(&account, now);
                        let Some((id, scheduled, due)) = next else { continue };
                        metrics().poll_delay.record(now.saturating_duration_since(due), &[]);
                        let poller = Arc::clone(&self);
                        tasks.spawn(async move {
                            let polled = poller.poll(&id, scheduled.seen, permit).await;
                            TaskResult::Polled(Some(account), id, polled)
                        });
                    }
                    Ok(TaskResult::Polled(account, id, polled)) => {
                        let mut schedule = lock(&self.schedule);
                        if let Some(account) = account {
                            schedule.finished(&account);
                        }
                        self.schedule_next(&mut schedule, &id, &polled);
                    }
                    // The task panicked. The panic hook has logged it.
                    Err(_) => {}
                },
                () = due => {}
            }
        }
    }

    /// Returns the number of requests whose poll is due and has not begun.
    pub(in crate::requests) fn backlog(&self) -> usize {
        lock(&self.schedule).backlog(Instant::now())
    }

    /// Reschedules the next poll of a request, because of a hint.
    fn reschedule(&self, schedule: &mut Schedule, id: &RequestId, hint: PollHint) {
        let Some(mut poll) = schedule.get(id).or_else(|| self.first_poll(id)) else { return };
        poll.hint = poll.hint.max(Some(hint));
        self.schedule(schedule, id, poll);
    }

    /// Returns the first poll of a request by this process. `None`: the request is not in memory,
    /// or its account is not known.
    fn first_poll(&self, id: &RequestId) -> Option<ScheduledPoll> {
        let tracked = self.hub.get(id)?;
        let account = tracked.lock().request.account.clone()?;
        let (now, age, longest) = (Instant::now(), self.age(&tracked), self.longest(&tracked));
        Some(ScheduledPoll::resumed(account, now, age, &self.config, longest, fastrand::f64()))
    }

    /// Stores a poll in the schedule. Computes when it is due, unless it is in progress.
    fn schedule(&self, schedule: &mut Schedule, id: &RequestId, mut poll: ScheduledPoll) {
        if poll.due.is_some() {
            self.set_due(id, &mut poll);
        }
        schedule.set(id, poll);
    }

    /// Schedules the poll after a finished one.
    fn schedule_next(&self, schedule: &mut Schedule, id: &RequestId, polled: &PollResult) {
        let now = Instant::now();
        let Some(before) = schedule.get(id) else { return };
        let poll = match polled {
            PollResult::Closed => {
                schedule.remove(id);
                // The hint of a new watch may have come during the poll.
                if self.hub.get(id).is_some_and(|tracked| is_polled(&tracked)) {
                    self.reschedule(schedule, id, PollHint::Reschedule);
                }
                return;
            }
            PollResult::Counted(counted) => before.polled(now, *counted),
            PollResult::Released => before,
            PollResult::Failed => before.failed(now),
        };
        // A poll with `due` is no longer in progress.
        self.schedule(schedule, id, ScheduledPoll { due: Some((now, Urgency::Rest)), ..poll });
    }

    fn age(&self, tracked: &Tracked) -> Duration {
        let request = &tracked.lock().request;
        age(&*self.store, request.first, request.create_time)
    }

    /// Returns the longest interval between polls of a request.
    fn longest(&self, tracked: &Tracked) -> Duration {
        let account = tracked.lock().request.account.clone();
        match account {
            Some(account) if self.hub.is_called_back(&account) => LONGEST_CALLED_BACK,
            _ if tracked.is_watched() => self.config.max_watched,
            _ => self.config.max,
        }
    }

    /// Sets when a request is polled and when its withheld statuses are released.
    fn set_due(&self, id: &RequestId, poll: &mut ScheduledPoll) {
        poll.due = Some((poll.last, Urgency::Rest));
        let Some(tracked) = self.hub.get(id) else { return };
        let took = tracked.last_query().map_or(Duration::ZERO, |last| last.took);
        let mut longest = self.longest(&tracked);
        if poll.hint == Some(PollHint::Soon) {
            longest = longest.min(self.config.min_age);
        }
        let urgency = match poll.hint {
            Some(PollHint::Watched | PollHint::Soon) => Urgency::First,
            Some(PollHint::Reschedule) | None if tracked.is_watched() || poll.count == 0 => {
                Urgency::Watched
            }
            Some(PollHint::Reschedule) | None => Urgency::Rest,
        };
        poll.due = Some((poll.last + poll.interval(&self.config, longest, took), urgency));
        poll.release = tracked.withheld_until().map(|until| until.max(poll.last + RELEASE_RETRY));
    }

    /// Appends the statuses that were withheld for long enough.
    async fn release(&self, id: &RequestId) -> PollResult {
        let Some(tracked) = self.hub.get(id) else { return PollResult::Closed };
        match self.queries.release(&tracked).await {
            Ok(()) if is_polled(&tracked) => PollResult::Released,
            Ok(()) => PollResult::Closed,
            Err(error) => {
                log_failure(id, &error);
                PollResult::Failed
            }
        }
    }

    /// Polls a request, or gives it up. `seen` is the count that this replica last read.
    async fn poll(
        &self,
        id: &RequestId,
        seen: Option<u32>,
        permit: Option<PollPermit>,
    ) -> PollResult {
        let Some(tracked) = self.hub.get(id) else { return PollResult::Closed };
        if !is_polled(&tracked) {
            return PollResult::Closed;
        }
        let polled = if let Some(permit) = permit {
            self.query(id, &tracked, seen, permit).await
        } else {
            count("no_permit");
            PollResult::Failed
        };
        if !is_polled(&tracked) {
            return PollResult::Closed;
        }
        // Giving up cannot be undone, so the age is by the store's time, not by this process's
        // clock.
        if tracked.withheld_until().is_none() && self.age(&tracked) >= self.config.give_up {
            return self.give_up(id).await;
        }
        polled
    }

    async fn query(
        &self,
        id: &RequestId,
        tracked: &Arc<Tracked>,
        seen: Option<u32>,
        permit: PollPermit,
    ) -> PollResult {
        let took = tracked.last_query().map_or(Duration::ZERO, |last| last.took);
        let counted = match self.claim(id, seen, pause_after(took)).await {
            Ok(PollClaim::ThisReplica(counted)) => counted,
            Ok(PollClaim::OtherReplica(counted)) => {
                count("elsewhere");
                debug!(request.id = %id, "another replica polls");
                return PollResult::Counted(counted);
            }
            Err(error) => {
                count("not_claimed");
                log_failure(id, &error.into());
                return PollResult::Failed;
            }
        };
        let span = info_span!("poll");
        causes::link(&span, id);
        let queried = self
            .queries
            .refresh(tracked, Instant::now(), self.config.min_age, QueriedBy::Poller(permit))
            .instrument(span)
            .await;
        count(if queried.is_ok() { "answered" } else { "failed" });
        if let Err(error) = queried {
            log_failure(id, &error);
        }
        PollResult::Counted(counted)
    }

    async fn give_up(&self, id: &RequestId) -> PollResult {
        let (log, first) = (LogName::request(id.as_str()), self.hub.first(id));
        let abandoned = Kind::Abandoned(storage::Abandoned {});
        match append(&*self.store, &log, first, event::abandoned_id(id), abandoned).await {
            Ok(_) => {
                info!(request.id = %id, "gave up polling; the request is still pending");
                PollResult::Closed
            }
            Err(error) => {
                log_failure(id, &error.into());
                PollResult::Failed
            }
        }
    }

    /// Returns the number of polls of a request by all replicas. `None`: none, or the count has
    /// expired.
    pub(crate) async fn polls(&self, id: &RequestId) -> Result<Option<u32>, StoreError> {
        let stored = load_cell::<storage::Poll>(&*self.store, &poll_cell(id)).await?;
        Ok(stored.map(|stored| stored.value.count))
    }

    /// Increments the count in the request's cell, unless another replica has done so since `seen`.
    async fn claim(
        &self,
        id: &RequestId,
        seen: Option<u32>,
        pause: Duration,
    ) -> Result<PollClaim, StoreError> {
        let cell = poll_cell(id);
        let stored = load_cell::<storage::Poll>(&*self.store, &cell).await?;
        let before = stored.as_ref().map(|stored| stored.value.count);
        let version = stored.as_ref().map(|stored| stored.version);
        if let Some(stored) = stored
            && polled_elsewhere(seen, before, self.store.exclusive())
        {
            return Ok(PollClaim::OtherReplica(poll_count(&stored.value)));
        }
        let mut next = storage::Poll {
            count: before.unwrap_or(0).saturating_add(1),
            rest_ms: u32::try_from(pause.as_millis()).unwrap_or(u32::MAX),
            ..storage::Poll::default()
        };
        match swap_cell(&*self.store, &cell, version, &mut next).await? {
            // This replica computes its own pause from the answer.
            Swap::Swapped(_) => {
                Ok(PollClaim::ThisReplica(PollCount { count: next.count, pause: Duration::ZERO }))
            }
            Swap::Conflict(Some(stored)) => {
                Ok(PollClaim::OtherReplica(poll_count(&decode_cell(stored.value)?)))
            }
            // The cell has just expired: no replica polls.
            Swap::Conflict(None) => Ok(PollClaim::OtherReplica(PollCount { count: 0, pause })),
        }
    }
}

fn poll_cell(id: &RequestId) -> CellName {
    CellName::retained(format!("poll/{id}"))
}

/// The replica that polls now.
#[derive(Debug)]
enum PollClaim {
    ThisReplica(PollCount),
    OtherReplica(PollCount),
}

fn poll_count(poll: &storage::Poll) -> PollCount {
    PollCount { count: poll.count, pause: Duration::from_millis(poll.rest_ms.into()) }
}

/// Counts a poll that ended, or that this replica did not make.
fn count(outcome: &'static str) {
    metrics().polls.add(&[attribute(names::OUTCOME, outcome)]);
}

/// Logs a failed poll. Outages are logged at debug level, because the client and the store have
/// already logged them.
fn log_failure(id: &RequestId, error: &Error) {
    match error {
        Error::Internal(_) | Error::Store(StoreError::Corrupt(_) | StoreError::TooLarge(_)) => {
            error!(request.id = %id, %error, "a request cannot be polled now; trying again later");
        }
        error => debug!(request.id = %id, %error, "a request was not polled"),
    }
}

/// Returns whether a request is polled: it is open, or it is watched and its devices are not known.
fn is_polled(tracked: &Tracked) -> bool {
    let watched = tracked.is_watched();
    let request = &tracked.lock().request;
    !request.is_closed() || (watched && !request.known && !request.polling_stopped)
}
