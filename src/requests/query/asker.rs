//! Asking ThingSpace where a request stands: one question per request at a time, whoever asks.
//!
//! What the answer tells anew is appended to the request's log; the answer to a caller is always
//! the folded state.
//!
//! A question ends with the last who waits for it, a caller or the poller: nothing is asked for
//! nobody. Its answer, once there, is stored whoever has gone. So nothing is ever half-stored for
//! that reason, and a question that was given up has left nothing behind: not an entry, not a
//! failure, not a time at which the request was asked about.

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

use crate::requests::{
    append,
    error::{Effect, Error},
    fold::{
        event::{self, Kind},
        state::Request,
    },
    hub::{Asked, Hub, Tracked},
    lock,
};
use crate::{
    identity::{AccountName, RequestId},
    proto::storage,
    repeated::Repeated,
    store::{LogName, Position, Store},
    thingspace::{Client, PollTurn, Purpose, StatusLookup},
};

/// How long a failure answers whoever asks about the same request: as long as callers are told to
/// wait. Else, while ThingSpace fails, their number would decide how much is asked.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// How long "ThingSpace does not know this request" is believed, for requests made elsewhere.
const NOT_KNOWN_FOR: Duration = Duration::from_secs(30);

/// How many such answers are remembered.
const MAX_NOT_KNOWN: usize = 10_000;

/// Answers about a request that is known under another account. Callers may ask again and again.
static OTHER_ACCOUNT: Repeated = Repeated::new();

/// The answer, for all who wait. When the last of them has gone, the question is given up.
type Waiting = Shared<BoxFuture<'static, Result<Answer, Error>>>;

/// A question under way.
#[derive(Debug)]
struct Flight {
    number: u64,
    /// Does not wait itself.
    answer: WeakShared<BoxFuture<'static, Result<Answer, Error>>>,
    /// Where the poller hands over its turn, if it asks the same while this query waits for one.
    poll: Option<oneshot::Sender<PollTurn>>,
}

/// What a question is asked for.
#[derive(Debug)]
pub enum For {
    Caller,
    Poller(PollTurn),
}

/// What asking came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The request is as up to date as ThingSpace is.
    Told,
    /// ThingSpace does not know the request.
    NotKnown,
}

/// Ends a flight for those who come later, also when it panics.
struct Landing {
    asker: Arc<Asker>,
    key: (AccountName, RequestId),
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let flights = &mut lock(&self.asker.flights).by_request;
        // It may have been given up, and another begun.
        if flights.get(&self.key).is_some_and(|flight| flight.number == self.number) {
            flights.remove(&self.key);
        }
    }
}

/// The questions under way, and how many there ever were.
#[derive(Debug, Default)]
struct Flights {
    by_request: HashMap<(AccountName, RequestId), Flight>,
    count: u64,
}

#[derive(Debug)]
pub struct Asker {
    store: Arc<dyn Store>,
    client: Client,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    /// How long a final word waits for the callback's reason, where callbacks arrive.
    grace: Duration,
    flights: Mutex<Flights>,
    not_known: Mutex<HashMap<(AccountName, RequestId), Instant>>,
}

impl Asker {
    pub fn new(
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
            flights: Mutex::default(),
            not_known: Mutex::default(),
        }
    }

    /// Asks about a request in memory, unless it was asked since `began`, when its caller came, or
    /// less than `max_age` before.
    pub async fn refresh(
        self: &Arc<Self>,
        tracked: &Arc<Tracked>,
        began: Instant,
        max_age: Duration,
        whom: For,
    ) -> Result<(), Error> {
        let fresh = |asked: Asked| asked.at.checked_add(max_age).is_none_or(|until| until > began);
        if tracked.asked().is_some_and(fresh) {
            return Ok(());
        }
        if let Some(error) = tracked.failed(FAILED_FOR) {
            return Err(error);
        }
        let Some(account) = tracked.lock().request.account.clone() else { return Ok(()) };
        // A request of ours that ThingSpace does not know yet stays as it is.
        let (purpose, poll) = match whom {
            For::Caller => {
                let (hand_over, poll) = oneshot::channel();
                (Purpose::Query { poll }, Some(hand_over))
            }
            For::Poller(turn) => (Purpose::Poll(turn), None),
        };
        self.ask(&account, &tracked.id, purpose, poll).await.map(|_| ())
    }

    /// Asks about a request that this gateway has never heard of.
    pub async fn look_up(
        self: &Arc<Self>,
        account: &AccountName,
        id: &RequestId,
    ) -> Result<Answer, Error> {
        let key = (account.clone(), id.clone());
        if lock(&self.not_known).get(&key).is_some_and(|since| since.elapsed() < NOT_KNOWN_FOR) {
            return Ok(Answer::NotKnown);
        }
        let answer = self.ask(account, id, Purpose::Elsewhere, None).await?;
        if answer == Answer::NotKnown {
            let mut not_known = lock(&self.not_known);
            if not_known.len() >= MAX_NOT_KNOWN {
                not_known.retain(|_, since| since.elapsed() < NOT_KNOWN_FOR);
            }
            if not_known.len() < MAX_NOT_KNOWN {
                not_known.insert(key, Instant::now());
            }
        }
        Ok(answer)
    }

    async fn ask(
        self: &Arc<Self>,
        account: &AccountName,
        id: &RequestId,
        purpose: Purpose,
        poll: Option<oneshot::Sender<PollTurn>>,
    ) -> Result<Answer, Error> {
        let key = (account.clone(), id.clone());
        let waiting = {
            let mut flights = lock(&self.flights);
            let under_way = flights.by_request.get_mut(&key);
            match under_way.map(|flight| (flight.answer.upgrade(), &mut flight.poll)) {
                Some((Some(waiting), poll)) => {
                    if let Purpose::Poll(turn) = purpose
                        && let Some(poll) = poll.take()
                    {
                        // A query that has had its turn does not take it, and it goes back.
                        let _ = poll.send(turn);
                    }
                    waiting
                }
                _ => self.launch(&mut flights, key, purpose, poll),
            }
        };
        waiting.await
    }

    fn launch(
        self: &Arc<Self>,
        flights: &mut Flights,
        key: (AccountName, RequestId),
        purpose: Purpose,
        poll: Option<oneshot::Sender<PollTurn>>,
    ) -> Waiting {
        flights.count += 1;
        let number = flights.count;
        let landing = Landing { asker: Arc::clone(self), key: key.clone(), number };
        let wanted = CancellationToken::new();
        let deserted = wanted.clone();
        let task = self.tasks.spawn(
            async move {
                let (asker, (account, id)) = (&landing.asker, &landing.key);
                let asked = asker.client.request_status(account, id, purpose);
                let Some(asked) = deserted.run_until_cancelled(asked).await else {
                    return Err(Error::Deadline(Effect::None));
                };
                let answer = match asked {
                    Ok((lookup, took)) => asker.take_in(account, id, lookup, took).await,
                    Err(error) => Err(error.into()),
                };
                if let (Err(error), Some(tracked)) = (&answer, asker.hub.get(id)) {
                    tracked.set_failed(error.clone());
                }
                answer
            }
            .in_current_span(),
        );
        // Goes with the future below, hence with the last who waits for it.
        let wanted = wanted.drop_guard();
        let waiting = async move {
            let _wanted = wanted;
            task.await.unwrap_or_else(|panic| {
                Err(Error::Internal(format!("a status question panicked: {panic}")))
            })
        };
        let waiting = waiting.boxed().shared();
        let answer = waiting.downgrade().expect("nobody has polled it to its end yet");
        flights.by_request.insert(key, Flight { number, answer, poll });
        waiting
    }

    /// Stores what an answer tells anew.
    async fn take_in(
        &self,
        account: &AccountName,
        id: &RequestId,
        lookup: StatusLookup,
        took: Duration,
    ) -> Result<Answer, Error> {
        let attached = self.hub.attach(id).await?.map(|(tracked, _)| tracked);
        let lookup = match (lookup, &attached) {
            (StatusLookup::Found(answer), Some(tracked)) if self.hub.is_called_back(account) => {
                let answer = tracked.withhold(answer, self.grace);
                // The poller sees to it that what was withheld is told.
                self.hub.hint(id);
                StatusLookup::Found(answer)
            }
            (lookup, _) => lookup,
        };
        let (events, known_account, stand) = match &attached {
            Some(tracked) => {
                let folded = tracked.lock();
                let request = &folded.request;
                let stand = Stand { first: request.beginning(), at: Some(folded.position()) };
                (news(request, account, &lookup), request.account.clone(), stand)
            }
            None => (news(&Request::default(), account, &lookup), None, Stand::default()),
        };
        if known_account.is_some_and(|known| known != *account) {
            if let Some(times) = OTHER_ACCOUNT.count() {
                warn!(request.id = %id, times, "ThingSpace knows a request under another account, too; left alone");
            }
            return Ok(Answer::NotKnown);
        }
        self.observe(id, stand, events).await?;
        // One that was unknown until now is in memory only if it is loaded, and then need not be
        // asked again.
        let tracked = match attached {
            Some(tracked) => Some(tracked),
            None => self.hub.attach(id).await?.map(|(tracked, _)| tracked),
        };
        if let Some(tracked) = tracked {
            tracked.set_asked(took);
        }
        Ok(match lookup {
            StatusLookup::Found(_) => Answer::Told,
            StatusLookup::NotKnown => Answer::NotKnown,
        })
    }

    /// Tells what was withheld for long enough.
    pub async fn release(&self, tracked: &Tracked) -> Result<(), Error> {
        let Some(answer) = tracked.withheld() else { return Ok(()) };
        let (events, stand) = {
            let folded = tracked.lock();
            let request = &folded.request;
            let news = |account| request.news(account, &answer);
            let stand = Stand { first: request.beginning(), at: Some(folded.position()) };
            (request.account.as_ref().map_or_else(Vec::new, news), stand)
        };
        self.observe(&tracked.id, stand, events).await
    }

    async fn observe(
        &self,
        id: &RequestId,
        Stand { mut first, at }: Stand,
        events: Vec<storage::Observed>,
    ) -> Result<(), Error> {
        let log = LogName::request(id.as_str());
        let mut last = None;
        for observed in events {
            if first.is_none() && last.is_some() {
                // The rest of an answer means nothing without its beginning.
                first = self.hub.beginning(id, None).await?.first;
            }
            let event_id = at.map_or_else(Uuid::now_v7, |at| event::observed_id(id, at, &observed));
            let observed = Kind::Observed(observed);
            last = Some(append(&*self.store, &log, first, event_id, observed).await?);
        }
        if let Some(position) = last {
            self.hub.folded(position).await;
        }
        Ok(())
    }
}

/// Where a request's log began, and how far it was folded when it was compared with an answer.
#[derive(Debug, Clone, Copy, Default)]
struct Stand {
    first: Option<Position>,
    /// `None`: it was not in memory.
    at: Option<Position>,
}

fn news(request: &Request, account: &AccountName, lookup: &StatusLookup) -> Vec<storage::Observed> {
    match lookup {
        StatusLookup::Found(answer) => request.news(account, answer),
        StatusLookup::NotKnown => Vec::new(),
    }
}
