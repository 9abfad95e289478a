//! One order on its way: its key is claimed, it is sent once, and what comes of it is stored.
//!
//! It runs in a task of its own, which no caller can abort. It tries again only what certainly
//! never left. What came of the order is stored, however long that takes: as long as it is not,
//! nobody may use the key.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::Instant,
};
use tracing::{debug, error, info};
use uuid::Uuid;

use super::key::{Claim, Key};
use super::{Orders, Placed, Room, finish::say_not_its_own, leases, ordered, unknown};
use crate::{
    identity::RequestId,
    proto::storage::{self, KeyPhase},
    requests::{
        append,
        error::Error,
        fold::{
            event::{Kind, Once},
            order::{self, Outcome},
        },
        lock,
    },
    store::{CellName, LogName, StoreError},
    thingspace::{self, Order, OrderPermit, Retries},
};

/// Between attempts to store what came of an order.
const RETRY: Duration = Duration::from_millis(500);

/// To the caller, who may be gone.
type Answer = oneshot::Sender<Result<Placed, Error>>;

/// An order that may be sent once its key is claimed.
pub(super) struct Claimant {
    pub(super) order: Order,
    pub(super) cell: CellName,
    pub(super) before: Option<Key>,
    pub(super) hash: Vec<u8>,
    /// Until when an order that certainly never left may be tried again.
    pub(super) retry_until: Instant,
    /// The key's turn in this process.
    pub(super) turn: OwnedMutexGuard<()>,
    pub(super) room: Room,
}

/// An order that is being carried out, and the right to do so.
struct Flight {
    order: Order,
    order_id: String,
    cell: CellName,
    /// Once it is claimed.
    key: Option<Key>,
    sent_time: Timestamp,
    retry_until: Instant,
    /// After this it is not sent any more: others may soon take it for lost.
    send_by: Instant,
    /// Given back early where what came of the order cannot be stored: whoever repeats the call
    /// shall be told so.
    turn: Option<OwnedMutexGuard<()>>,
    _room: Room,
    _under_way: InFlight,
}

/// Says, as long as it lives, that an order is being carried out here.
#[derive(Debug)]
struct InFlight {
    order_id: String,
    of: Arc<Mutex<HashSet<String>>>,
}

impl InFlight {
    fn new(order_id: &str, of: &Arc<Mutex<HashSet<String>>>) -> Self {
        lock(of).insert(order_id.to_owned());
        Self { order_id: order_id.to_owned(), of: Arc::clone(of) }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        lock(&self.of).remove(&self.order_id);
    }
}

/// What came of an order, as it is stored.
enum Came {
    AcceptedAs(RequestId),
    Refused(storage::Refused),
    NotSent,
    Unknown,
}

/// What storing an outcome came to.
enum Kept {
    AsItCame,
    /// The request is not this order's, so the outcome is unknown.
    NotItsOwn,
}

impl Orders {
    /// Claims the key, sends the order and stores what comes of it.
    pub(super) async fn fly(&self, claimant: Claimant, permit: OrderPermit, answer: Answer) {
        let Claimant { order, cell, before, hash, retry_until, turn, room } = claimant;
        let order_id = Uuid::now_v7().to_string();
        let mut flight = Flight {
            _under_way: InFlight::new(&order_id, &self.in_flight),
            order,
            order_id,
            cell,
            key: None,
            // As the cell holds it.
            sent_time: Timestamp::from_millisecond(Timestamp::now().as_millisecond())
                .unwrap_or_default(),
            retry_until,
            send_by: Instant::now() + leases::before_sending(self.order_timeout),
            turn: Some(turn),
            _room: room,
        };
        if let Err(error) = self.announce(&flight).await {
            let may_be_stored = matches!(error, StoreError::UnknownOutcome(_));
            // Nobody may be waiting any more.
            let _ = answer.send(Err(error.into()));
            if may_be_stored {
                self.take_back(flight).await;
            }
            return;
        }
        let (came, outcome) = match self.claim(&flight, before.as_ref(), &hash).await {
            Ok(Some(key)) => {
                flight.key = Some(key);
                let sent = self.send(&flight, permit).await;
                came(&flight, sent)
            }
            // Another replica was first with this key.
            Ok(None) => never_sent(Error::OrderInProgress),
            // It may be claimed all the same.
            Err(error) => never_sent(error.into()),
        };
        let (answer, kept) = self.keep(&mut flight, &came, &outcome, answer).await;
        let outcome = match kept {
            Kept::AsItCame => outcome,
            Kept::NotItsOwn => Err(unknown(&flight.order_id, flight.sent_time, None)),
        };
        if let Err(Error::Refused(refusal)) = &outcome {
            self.refusals.remember(&flight.cell.name, &hash, refusal);
        }
        // The next call finds neither the key taken nor the devices counted twice.
        drop(flight);
        if outcome.is_err() {
            // A callback may have come for it meanwhile.
            self.hub.stir();
        }
        if let Some(answer) = answer {
            let _ = answer.send(outcome);
        }
    }

    /// Makes the order durable. Nothing has been sent when this fails, and no key stands for it.
    async fn announce(&self, flight: &Flight) -> Result<(), StoreError> {
        let ordered = Kind::Ordered(ordered(&flight.order, &flight.cell));
        let log = LogName::order(&flight.order_id);
        append(&*self.store, &log, None, Once::Ordered.id(&flight.order_id), ordered)
            .await
            .map(drop)
    }

    /// Says of an order that may be stored that it is not placed. Without an outcome it would stay
    /// in memory for days and make every start read what happened since.
    async fn take_back(&self, mut flight: Flight) {
        flight.turn = None;
        // A drain does not wait for that.
        while !self.tasks.is_closed() {
            tokio::time::sleep(RETRY).await;
            let taken_back = async {
                // First what is said of it, so that it does not come later.
                self.announce(&flight).await?;
                self.store(&flight, &Came::NotSent).await
            };
            match taken_back.await {
                Ok(_) => return,
                Err(error) => {
                    debug!(order.id = flight.order_id, %error, "cannot take back an order yet");
                }
            }
        }
    }

    async fn claim(
        &self,
        flight: &Flight,
        before: Option<&Key>,
        hash: &[u8],
    ) -> Result<Option<Key>, StoreError> {
        let lease = leases::lease(self.order_timeout);
        let claim = Claim {
            order_id: &flight.order_id,
            hash,
            incarnation: &self.incarnation,
            sent_time: flight.sent_time,
            lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
        };
        Key::claim(&*self.store, &flight.cell, before, claim).await
    }

    async fn send(
        &self,
        flight: &Flight,
        mut permit: OrderPermit,
    ) -> Result<RequestId, thingspace::Error> {
        let mut retries = Retries::default();
        loop {
            let sent = self.client.place_order(permit, &flight.order, flight.send_by).await;
            let Err(error) = sent else { return sent };
            // Nothing left this machine, so trying again cannot order twice. What was turned away
            // is not tried again: that it was not executed is only what ThingSpace says.
            let thingspace::Error::NotConnected { .. } = error else { return Err(error) };
            let pause =
                retries.next(None).filter(|pause| Instant::now() + *pause < flight.retry_until);
            let Some(pause) = pause else { return Err(error) };
            if self.tasks.is_closed() {
                return Err(thingspace::Error::Draining);
            }
            tokio::time::sleep(pause).await;
            let by = flight.retry_until;
            let prepared = self.client.prepare_order(&flight.order.account, by);
            let prepared = tokio::time::timeout_at(by, prepared).await;
            permit = match prepared {
                Ok(Ok(permit)) => permit,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(error),
            };
        }
    }

    /// Stores what came of an order, for as long as it takes. Without the caller's channel in
    /// return, it was told before.
    async fn keep(
        &self,
        flight: &mut Flight,
        came: &Came,
        outcome: &Result<Placed, Error>,
        answer: Answer,
    ) -> (Option<Answer>, Kept) {
        let mut answer = Some(answer);
        loop {
            let error = match self.store(flight, came).await {
                Ok(kept) => return (answer, kept),
                Err(error) => error,
            };
            if let Some(answer) = answer.take() {
                let told = match came {
                    Came::AcceptedAs(request_id) => {
                        let ordered = ordered(&flight.order, &flight.cell);
                        let objection = self.hub.objection(request_id, &flight.order_id, &ordered);
                        let told = Some(request_id.clone()).filter(|_| objection.is_none());
                        Err(unknown(&flight.order_id, flight.sent_time, told))
                    }
                    Came::Refused(_) | Came::NotSent | Came::Unknown => outcome.clone(),
                };
                error!(
                    order.id = flight.order_id,
                    account = %flight.order.account,
                    request.id = outcome.as_ref().ok().map(|placed| placed.request_id.as_str()),
                    %error,
                    "what came of an order cannot be stored yet; it is tried until it can, or this process ends"
                );
                let _ = answer.send(told);
                flight.turn = None;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn store(&self, flight: &Flight, came: &Came) -> Result<Kept, StoreError> {
        let Flight { order_id, .. } = flight;
        let log = LogName::order(order_id);
        let ordered = || ordered(&flight.order, &flight.cell);
        match came {
            Came::AcceptedAs(request_id) => {
                let ordered = ordered();
                let beginning = self.hub.beginning(request_id, Some(&ordered)).await?;
                let objection = match beginning.objection(order_id) {
                    None => self.objection(order_id, &ordered, request_id).await?,
                    objection => objection,
                };
                if let Some(objection) = objection {
                    self.advance(flight, KeyPhase::Unknown, "").await?;
                    say_not_its_own(order_id, &ordered.account, request_id, objection);
                    return Ok(Kept::NotItsOwn);
                }
                let accepted_as =
                    Kind::AcceptedAs(storage::AcceptedAs { request_id: request_id.to_string() });
                append(&*self.store, &log, None, Once::AcceptedAs.id(order_id), accepted_as)
                    .await?;
                let objection =
                    self.append_accepted(order_id, &ordered, request_id, beginning, None).await?;
                if let Some(objection) = objection {
                    self.withdraw(order_id, &ordered, request_id, None, objection).await?;
                    return Ok(Kept::NotItsOwn);
                }
                if !self.advance(flight, KeyPhase::Accepted, request_id.as_str()).await? {
                    // Somebody took the order for lost, or has read what is in its log by now.
                    let order = self.hub.order(order_id).await?;
                    contradict(order_id, request_id, &order);
                    if !self.finish(order_id, &order).await? {
                        return Ok(Kept::NotItsOwn);
                    }
                }
            }
            Came::Refused(_) | Came::NotSent => {
                let event = match came {
                    Came::Refused(refused) => Kind::Refused(refused.clone()),
                    _ => Kind::NotSent(storage::NotSent {}),
                };
                append(&*self.store, &log, None, Once::NotPlaced.id(order_id), event).await?;
                if !self.advance(flight, KeyPhase::Released, "").await? {
                    self.move_key(order_id, &ordered(), KeyPhase::Released, "", false).await?;
                }
            }
            Came::Unknown => {
                self.advance(flight, KeyPhase::Unknown, "").await?;
            }
        }
        Ok(Kept::AsItCame)
    }

    /// Moves the key on as it was claimed; false if it is not, or somebody else has moved it.
    async fn advance(
        &self,
        flight: &Flight,
        phase: KeyPhase,
        request_id: &str,
    ) -> Result<bool, StoreError> {
        let Some(key) = &flight.key else { return Ok(false) };
        Ok(key.advance(&*self.store, &flight.cell, phase, request_id).await?.is_some())
    }
}

/// Reports an order that was settled as another request than ThingSpace's own answer.
fn contradict(order_id: &str, request_id: &RequestId, order: &order::Order) {
    if let Some(settled) = order.former.iter().find(|former| *former != request_id) {
        error!(
            order.id = order_id,
            request.id = %request_id,
            %settled,
            "an order was settled as another request than ThingSpace's answer names; the answer holds from now on"
        );
    } else if let Some(Outcome::AcceptedAs(settled)) = &order.outcome
        && settled != request_id
    {
        error!(
            order.id = order_id,
            request.id = %request_id,
            %settled,
            "an order was settled as another request than ThingSpace says; its key leads to the wrong one"
        );
    }
}

/// What ThingSpace's answer means, stored and told.
fn came(
    flight: &Flight,
    sent: Result<RequestId, thingspace::Error>,
) -> (Came, Result<Placed, Error>) {
    let Flight { order, order_id, .. } = flight;
    let error = match sent {
        Ok(request_id) => {
            info!(order.id = order_id, request.id = %request_id, account = %order.account,
                devices = order.devices.len(), "order accepted");
            return (
                Came::AcceptedAs(request_id.clone()),
                Ok(Placed { request_id, replayed: false }),
            );
        }
        Err(error) => error,
    };
    let (came, outcome) = match error {
        thingspace::Error::Ambiguous { reason, .. } => {
            error!(
                order.id = order_id,
                account = %order.account,
                devices = order.devices.len(),
                reason,
                "an order was sent and its fate is unknown; it is not sent again: look it up in ThingSpace, then run \
                 `thingspace-gateway orders settle`"
            );
            return (Came::Unknown, Err(unknown(order_id, flight.sent_time, None)));
        }
        thingspace::Error::Refused(refusal) => {
            let refused =
                storage::Refused { code: refusal.code.clone(), http_status: refusal.status.into() };
            (Came::Refused(refused), Error::Refused(refusal))
        }
        thingspace::Error::CredentialsRejected { .. }
        | thingspace::Error::CredentialsUnreadable { .. }
        | thingspace::Error::LoginBlocked { .. }
        | thingspace::Error::Store(_)
        | thingspace::Error::Throttled { .. }
        | thingspace::Error::Busy { .. }
        | thingspace::Error::NoDescriptor
        | thingspace::Error::Draining
        | thingspace::Error::NotSent { .. }
        | thingspace::Error::NotConnected { .. } => (Came::NotSent, Error::from(error)),
    };
    info!(order.id = order_id, account = %order.account, reason = %outcome, "order not placed");
    (came, Err(outcome))
}

fn never_sent(error: Error) -> (Came, Result<Placed, Error>) {
    (Came::NotSent, Err(error))
}
