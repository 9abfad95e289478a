//! Asking ThingSpace where a request stands: one question per request at a time, whoever asks.
//!
//! What the answer tells anew is appended to the request's log; the answer to a caller is always the folded state. A question
//! once begun is finished even if everybody who asked has gone.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture, future::Shared};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, warn};
use uuid::Uuid;

use super::{
    append,
    error::Error,
    event::Kind,
    hub::{Asked, Hub, Tracked},
    lock,
    state::Request,
};
use crate::{
    identity::{AccountName, RequestId},
    proto::storage,
    store::{LogName, Store},
    thingspace::{Client, Purpose, StatusLookup},
};

/// How long a failure answers whoever asks about the same request: as long as callers are told to wait. Else, while ThingSpace
/// fails, their number would decide how much is asked.
const FAILED_FOR: Duration = Duration::from_secs(1);

/// How long "ThingSpace does not know this request" is believed, for requests made elsewhere.
const NOT_KNOWN_FOR: Duration = Duration::from_secs(30);

/// How many such answers are remembered.
const MAX_NOT_KNOWN: usize = 10_000;

type Flight = Shared<BoxFuture<'static, Result<Answer, Error>>>;

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
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.asker.flights).remove(&self.key);
    }
}

#[derive(Debug)]
pub struct Asker {
    store: Arc<dyn Store>,
    client: Client,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    /// How long a final word waits for the callback's reason, where callbacks arrive.
    grace: Duration,
    flights: Mutex<HashMap<(AccountName, RequestId), Flight>>,
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
        Self { store, client, hub, tasks, grace, flights: Mutex::default(), not_known: Mutex::default() }
    }

    /// Asks about a request in memory, unless it was asked since `began`, when its caller came, or less than `max_age` before.
    pub async fn refresh(
        self: &Arc<Self>,
        tracked: &Arc<Tracked>,
        began: Instant,
        max_age: Duration,
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
        self.ask(&account, &tracked.id, Purpose::Poll).await.map(|_| ())
    }

    /// Asks about a request that this gateway has never heard of.
    pub async fn look_up(self: &Arc<Self>, account: &AccountName, id: &RequestId) -> Result<Answer, Error> {
        let key = (account.clone(), id.clone());
        if lock(&self.not_known).get(&key).is_some_and(|since| since.elapsed() < NOT_KNOWN_FOR) {
            return Ok(Answer::NotKnown);
        }
        let answer = self.ask(account, id, Purpose::Foreign).await?;
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
    ) -> Result<Answer, Error> {
        let key = (account.clone(), id.clone());
        let flight = {
            let mut flights = lock(&self.flights);
            flights.entry(key.clone()).or_insert_with(|| self.launch(key, purpose)).clone()
        };
        flight.await
    }

    fn launch(self: &Arc<Self>, key: (AccountName, RequestId), purpose: Purpose) -> Flight {
        let landing = Landing { asker: Arc::clone(self), key };
        let task = self.tasks.spawn(
            async move {
                let (asker, (account, id)) = (&landing.asker, &landing.key);
                let answer = asker.ask_alone(account, id, purpose).await;
                if let (Err(error), Some(tracked)) = (&answer, asker.hub.get(id)) {
                    tracked.set_failed(error.clone());
                }
                answer
            }
            .in_current_span(),
        );
        task.map(|joined| {
            joined
                .unwrap_or_else(|panic| Err(Error::Internal(format!("a status question panicked: {panic}"))))
        })
        .boxed()
        .shared()
    }

    async fn ask_alone(
        &self,
        account: &AccountName,
        id: &RequestId,
        purpose: Purpose,
    ) -> Result<Answer, Error> {
        let (lookup, took) = self.client.request_status(account, id, purpose).await?;
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
        let (events, known_account) = match &attached {
            Some(tracked) => {
                let request = &tracked.lock().request;
                (news(request, account, &lookup), request.account.clone())
            }
            None => (news(&Request::default(), account, &lookup), None),
        };
        if known_account.is_some_and(|known| known != *account) {
            warn!(request.id = %id, "ThingSpace knows this request under another account, too; left alone");
            return Ok(Answer::NotKnown);
        }
        self.observe(id, events).await?;
        // One that was unknown until now is in memory only if it is loaded, and then need not be asked again.
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
        let events = {
            let request = &tracked.lock().request;
            request.account.as_ref().map_or_else(Vec::new, |account| request.news(account, &answer))
        };
        self.observe(&tracked.id, events).await
    }

    async fn observe(&self, id: &RequestId, events: Vec<storage::Observed>) -> Result<(), Error> {
        let mut last = None;
        for observed in events {
            let log = LogName::request(id.as_str());
            last = Some(append(&*self.store, &log, Uuid::now_v7(), Kind::Observed(observed)).await?);
        }
        if let Some(position) = last {
            self.hub.folded(position).await;
        }
        Ok(())
    }
}

fn news(request: &Request, account: &AccountName, lookup: &StatusLookup) -> Vec<storage::Observed> {
    match lookup {
        StatusLookup::Found(answer) => request.news(account, answer),
        StatusLookup::NotKnown => Vec::new(),
    }
}
