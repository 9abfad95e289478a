//! Status queries to ThingSpace: at most one per request at a time, shared by all its waiters
//! (callers and the poller).
//!
//! - New statuses are appended to the request's log. Callers always read the folded state.
//! - A query is cancelled when its last waiter is gone. It then changes nothing.
//! - An answer that has arrived is always stored, even without a waiter.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, warn};
use uuid::Uuid;

use crate::{
    identity::{AccountName, RequestId},
    log_throttle::LogThrottle,
    proto::storage,
    requests::{
        append,
        error::{Effect, Error},
        fold::{
            event::{self, Kind},
            state::Request,
        },
        hub::{Hub, LastQuery, PollHint, Tracked},
        lock,
    },
    store::{LogName, Position, Store},
    telemetry::causes,
    thingspace::{Client, PollPermit, Purpose, StatusLookup},
};

/// How long the error of a failed query is also returned for further queries about the request.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// How long the answer that ThingSpace does not know an external request stays valid.
const NOT_KNOWN_FOR: Duration = Duration::from_secs(30);

/// The maximum number of such answers in memory.
const MAX_NOT_KNOWN: usize = 10_000;

/// Limits the log lines about requests that ThingSpace also knows under another account.
static OTHER_ACCOUNT: LogThrottle = LogThrottle::new();

type QueryKey = (AccountName, RequestId);
type OutcomeFuture = BoxFuture<'static, Result<QueryOutcome, Error>>;

#[derive(Debug)]
struct RunningQuery {
    number: u64,
    /// Weak, so that this entry does not count as a waiter.
    outcome: WeakShared<OutcomeFuture>,
    /// Sends the poller's permit to a query that waits for one, if the poller joins the query.
    poll: Option<oneshot::Sender<PollPermit>>,
}

#[derive(Debug)]
pub(crate) enum QueriedBy {
    Caller,
    Poller(PollPermit),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryOutcome {
    /// The answer is stored and folded.
    Answered,
    /// ThingSpace does not know the request.
    NotKnown,
}

/// Removes the entry of a query when its task ends, also when it panics.
struct RemoveOnDrop {
    queries: Arc<StatusQueries>,
    key: QueryKey,
    number: u64,
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let running = &mut lock(&self.queries.running).by_request;
        // The query may have been cancelled and a new one may have begun.
        if running.get(&self.key).is_some_and(|query| query.number == self.number) {
            running.remove(&self.key);
        }
    }
}

#[derive(Debug, Default)]
struct RunningQueries {
    by_request: HashMap<QueryKey, RunningQuery>,
    /// The number of the last query.
    last_number: u64,
}

#[derive(Debug)]
pub(crate) struct StatusQueries {
    store: Arc<dyn Store>,
    client: Client,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    /// How long a final status is withheld for its callback, if callbacks arrive for the account.
    grace: Duration,
    running: Mutex<RunningQueries>,
    not_known: Mutex<HashMap<QueryKey, Instant>>,
}

impl StatusQueries {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        client: Client,
        hub: Arc<Hub>,
        tasks: TaskTracker,
        grace: Duration,
    ) -> Self {
        Self {
            store,
            client,
            hub,
            tasks,
            grace,
            running: Mutex::default(),
            not_known: Mutex::default(),
        }
    }

    /// Queries a request in memory, unless its last answer was younger than `max_age` at `began`,
    /// when the call arrived.
    pub(crate) async fn refresh(
        self: &Arc<Self>,
        tracked: &Arc<Tracked>,
        began: Instant,
        max_age: Duration,
        by: QueriedBy,
    ) -> Result<(), Error> {
        let is_fresh =
            |last: LastQuery| last.at.checked_add(max_age).is_none_or(|until| until > began);
        if tracked.last_query().is_some_and(is_fresh) {
            return Ok(());
        }
        if let Some(error) = tracked.query_failure(FAILED_FOR) {
            return Err(error);
        }
        let Some(account) = tracked.lock().request.account.clone() else { return Ok(()) };
        let (purpose, poll) = match by {
            QueriedBy::Caller => {
                let (sender, poll) = oneshot::channel();
                (Purpose::Query { poll }, Some(sender))
            }
            QueriedBy::Poller(permit) => (Purpose::Poll(permit), None),
        };
        // NotKnown changes nothing: ThingSpace may not list a new request yet.
        self.query(&account, &tracked.id, purpose, poll).await.map(|_| ())
    }

    /// Queries an external request that is not in the store.
    pub(crate) async fn look_up(
        self: &Arc<Self>,
        account: &AccountName,
        id: &RequestId,
    ) -> Result<QueryOutcome, Error> {
        let key = (account.clone(), id.clone());
        if lock(&self.not_known).get(&key).is_some_and(|since| since.elapsed() < NOT_KNOWN_FOR) {
            return Ok(QueryOutcome::NotKnown);
        }
        let outcome = self.query(account, id, Purpose::External, None).await?;
        if outcome == QueryOutcome::NotKnown {
            let mut not_known = lock(&self.not_known);
            if not_known.len() >= MAX_NOT_KNOWN {
                not_known.retain(|_, since| since.elapsed() < NOT_KNOWN_FOR);
            }
            if not_known.len() < MAX_NOT_KNOWN {
                not_known.insert(key, Instant::now());
            }
        }
        Ok(outcome)
    }

    async fn query(
        self: &Arc<Self>,
        account: &AccountName,
        id: &RequestId,
        purpose: Purpose,
        poll: Option<oneshot::Sender<PollPermit>>,
    ) -> Result<QueryOutcome, Error> {
        let key = (account.clone(), id.clone());
        let outcome = {
            let mut running = lock(&self.running);
            let query = running.by_request.get_mut(&key);
            match query.map(|query| (query.outcome.upgrade(), &mut query.poll)) {
                Some((Some(outcome), poll)) => {
                    if let Purpose::Poll(permit) = purpose
                        && let Some(poll) = poll.take()
                    {
                        // If the query already has a permit, this one is returned by dropping it.
                        let _ = poll.send(permit);
                    }
                    outcome
                }
                _ => self.start(&mut running, key, purpose, poll),
            }
        };
        outcome.await
    }

    /// Starts a query. Dropping the last clone of the returned future cancels it.
    fn start(
        self: &Arc<Self>,
        running: &mut RunningQueries,
        key: QueryKey,
        purpose: Purpose,
        poll: Option<oneshot::Sender<PollPermit>>,
    ) -> Shared<OutcomeFuture> {
        running.last_number += 1;
        let number = running.last_number;
        let entry = RemoveOnDrop { queries: Arc::clone(self), key: key.clone(), number };
        let cancelled = CancellationToken::new();
        let has_waiters = cancelled.clone().drop_guard();
        let task = self.tasks.spawn(
            async move {
                let (queries, (account, id)) = (&entry.queries, &entry.key);
                let lookup = queries.client.request_status(account, id, purpose);
                let Some(lookup) = cancelled.run_until_cancelled(lookup).await else {
                    return Err(Error::Deadline(Effect::None));
                };
                let outcome = match lookup {
                    Ok((lookup, took)) => queries.store_answer(account, id, lookup, took).await,
                    Err(error) => Err(error.into()),
                };
                if let (Err(error), Some(tracked)) = (&outcome, queries.hub.get(id)) {
                    tracked.set_query_failure(error.clone());
                }
                outcome
            }
            .in_current_span(),
        );
        let outcome = async move {
            // Dropped with the last waiter, which cancels the query.
            let _has_waiters = has_waiters;
            task.await.unwrap_or_else(|panic| {
                Err(Error::Internal(format!("a status query panicked: {panic}")))
            })
        };
        let outcome = outcome.boxed().shared();
        let weak = outcome.downgrade().expect("the future has not been polled yet");
        running.by_request.insert(key, RunningQuery { number, outcome: weak, poll });
        outcome
    }

    /// Appends the events that an answer adds to the request's log.
    async fn store_answer(
        &self,
        account: &AccountName,
        id: &RequestId,
        lookup: StatusLookup,
        took: Duration,
    ) -> Result<QueryOutcome, Error> {
        let attached = self.hub.attach(id).await?.map(|(tracked, _)| tracked);
        let lookup = match (lookup, &attached) {
            (StatusLookup::Found(answer), Some(tracked)) if self.hub.is_called_back(account) => {
                let answer = tracked.withhold(answer, self.grace);
                if tracked.withheld_until().is_some() {
                    // They are released later, outside the span of this query.
                    causes::set(id);
                }
                // The poller releases the withheld statuses in time.
                self.hub.hints.add(id, PollHint::Reschedule);
                StatusLookup::Found(answer)
            }
            (lookup, _) => lookup,
        };
        let (events, known_account, folded_to) = match &attached {
            Some(tracked) => {
                let folded = tracked.lock();
                let request = &folded.request;
                let folded_to = FoldedTo::of(request, folded.position());
                (observations(request, account, &lookup), request.account.clone(), folded_to)
            }
            None => {
                (observations(&Request::default(), account, &lookup), None, FoldedTo::default())
            }
        };
        if known_account.is_some_and(|known| known != *account) {
            if let Some(times) = OTHER_ACCOUNT.count() {
                warn!(
                    request.id = %id,
                    times,
                    "ThingSpace answered for a request of another account; the answer is ignored"
                );
            }
            return Ok(QueryOutcome::NotKnown);
        }
        self.append_observed(id, folded_to, events).await?;
        if let Some(tracked) = attached {
            tracked.set_last_query(took);
        } else if let Some((new, _)) = self.hub.attach(id).await? {
            new.set_last_query(took);
        }
        Ok(match lookup {
            StatusLookup::Found(_) => QueryOutcome::Answered,
            StatusLookup::NotKnown => QueryOutcome::NotKnown,
        })
    }

    /// Appends the statuses that were withheld for long enough.
    pub(crate) async fn release(&self, tracked: &Tracked) -> Result<(), Error> {
        let Some(answer) = tracked.due_statuses() else { return Ok(()) };
        let (events, folded_to) = {
            let folded = tracked.lock();
            let request = &folded.request;
            let Some(account) = &request.account else { return Ok(()) };
            let folded_to = FoldedTo::of(request, folded.position());
            (request.observations(account, &answer), folded_to)
        };
        self.append_observed(&tracked.id, folded_to, events).await
    }

    async fn append_observed(
        &self,
        id: &RequestId,
        FoldedTo { mut first, at }: FoldedTo,
        events: Vec<storage::Observed>,
    ) -> Result<(), Error> {
        let log = LogName::request(id.as_str());
        let mut last = None;
        if !events.is_empty() {
            causes::set(id);
        }
        for observed in events {
            if first.is_none() && last.is_some() {
                // Each later event names the first, so that a log that lost it is never folded.
                first = self.hub.ownership(id, None).await?.first;
            }
            let event_id = at.map_or_else(Uuid::now_v7, |at| event::observed_id(id, at, &observed));
            let observed = Kind::Observed(observed);
            last = Some(append(&*self.store, &log, first, event_id, observed).await?);
        }
        if let Some(position) = last {
            self.hub.wait_until_folded(position).await;
        }
        Ok(())
    }
}

/// The folded part of a request's log that an answer was compared with.
#[derive(Debug, Clone, Copy, Default)]
struct FoldedTo {
    first: Option<Position>,
    /// `None`: the request was not in memory.
    at: Option<Position>,
}

impl FoldedTo {
    fn of(request: &Request, at: Position) -> Self {
        Self { first: request.beginning(), at: Some(at) }
    }
}

fn observations(
    request: &Request,
    account: &AccountName,
    lookup: &StatusLookup,
) -> Vec<storage::Observed> {
    match lookup {
        StatusLookup::Found(answer) => request.observations(account, answer),
        StatusLookup::NotKnown => Vec::new(),
    }
}
