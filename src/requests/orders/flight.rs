//! One order on its way: its key is claimed, it is sent once, and what comes of it is stored.
//!
//! It runs in a task of its own, which no caller can abort. It tries again only what certainly never left.

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
use tracing::{error, info, warn};
use uuid::Uuid;

use super::{Orders, Placed, Room, ordered, unknown};
use crate::{
    identity::RequestId,
    proto::storage::{self, KeyPhase},
    requests::{
        append,
        error::Error,
        event::{Kind, Once},
        key::{Claim, Key},
        lock,
    },
    store::{CellName, LogName, StoreError},
    thingspace::{self, Order, OrderPermit},
};

/// Between attempts to send an order that never left, and to store what came of one.
const RETRY: Duration = Duration::from_millis(500);

/// What a lease adds to the time a POST may take, for the writes around it.
const LEASE_SLACK: Duration = Duration::from_secs(30);

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
    key: Key,
    retry_until: Instant,
    _turn: OwnedMutexGuard<()>,
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

impl Orders {
    /// Claims the key, sends the order and stores what comes of it.
    pub(super) async fn fly(&self, claimant: Claimant, permit: OrderPermit, answer: Answer) {
        let flight = match self.claim(claimant).await {
            Ok(flight) => flight,
            Err(error) => {
                // Nobody may be waiting any more.
                let _ = answer.send(Err(error));
                return;
            }
        };
        let (answer, outcome) = match self.send(&flight, permit).await {
            Ok(request_id) => self.accepted(&flight, request_id, answer).await,
            Err(error) => (Some(answer), Err(self.not_accepted(&flight, error).await)),
        };
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

    /// Makes the order durable: its log and its key's cell. Nothing has been sent when this fails.
    async fn claim(&self, claimant: Claimant) -> Result<Flight, Error> {
        let Claimant { order, cell, before, hash, retry_until, turn, room } = claimant;
        let order_id = Uuid::now_v7().to_string();
        let in_flight = InFlight::new(&order_id, &self.in_flight);
        let log = LogName::order(&order_id);
        let ordered = Kind::Ordered(ordered(&order, &cell));
        append(&*self.store, &log, Once::Ordered.id(&order_id), ordered).await?;
        let lease = self.order_timeout * 2 + LEASE_SLACK;
        let claim = Claim {
            order_id: &order_id,
            hash: &hash,
            incarnation: &self.incarnation,
            sent_time: Timestamp::now(),
            lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
        };
        match Key::claim(&*self.store, &cell, before.as_ref(), claim).await {
            Ok(Some(key)) => Ok(Flight {
                order,
                order_id,
                cell,
                key,
                retry_until,
                _turn: turn,
                _room: room,
                _under_way: in_flight,
            }),
            // Another replica was first with this key, or the store failed: this order never was.
            claimed => {
                let not_sent = Kind::NotSent(storage::NotSent {});
                append(&*self.store, &log, Once::NotPlaced.id(&order_id), not_sent).await?;
                claimed?;
                Err(Error::OrderInProgress)
            }
        }
    }

    async fn send(&self, flight: &Flight, mut permit: OrderPermit) -> Result<RequestId, thingspace::Error> {
        loop {
            let sent = self.client.place_order(permit, &flight.order).await;
            let Err(error @ thingspace::Error::NotSent { .. }) = sent else { return sent };
            // Nothing left this machine, so trying again cannot order twice. A drain does not wait for that, and a caller is
            // told in time.
            if self.tasks.is_closed() || Instant::now() + 2 * RETRY >= flight.retry_until {
                return Err(error);
            }
            tokio::time::sleep(RETRY).await;
            let prepared =
                tokio::time::timeout_at(flight.retry_until, self.client.prepare_order(&flight.order.account))
                    .await;
            permit = match prepared {
                Ok(Ok(permit)) => permit,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(error),
            };
        }
    }

    /// Stores that an order was accepted, for as long as it takes. Without the caller's channel in return, it was told before.
    async fn accepted(
        &self,
        flight: &Flight,
        request_id: RequestId,
        answer: Answer,
    ) -> (Option<Answer>, Result<Placed, Error>) {
        info!(order.id = flight.order_id, request.id = %request_id, account = %flight.order.account,
            devices = flight.order.devices.len(), "order accepted");
        let mut answer = Some(answer);
        while let Err(error) = self.store_accepted(flight, &request_id).await {
            if let Some(answer) = answer.take() {
                error!(
                    order.id = flight.order_id,
                    request.id = %request_id,
                    account = %flight.order.account,
                    %error,
                    "an accepted order cannot be stored yet; it is tried until it can, or this process ends"
                );
                let outcome = unknown(&flight.order_id, flight.key.sent_time(), Some(request_id.clone()));
                let _ = answer.send(Err(outcome));
            }
            tokio::time::sleep(RETRY).await;
        }
        (answer, Ok(Placed { request_id, replayed: false }))
    }

    async fn store_accepted(&self, flight: &Flight, request_id: &RequestId) -> Result<(), StoreError> {
        let accepted_as = Kind::AcceptedAs(storage::AcceptedAs { request_id: request_id.to_string() });
        let log = LogName::order(&flight.order_id);
        append(&*self.store, &log, Once::AcceptedAs.id(&flight.order_id), accepted_as).await?;
        let ordered = ordered(&flight.order, &flight.cell);
        self.append_accepted(&flight.order_id, &ordered, request_id).await?;
        // A conflict means that somebody has read the order's log and said the same.
        flight.key.advance(&*self.store, &flight.cell, KeyPhase::Accepted, request_id.as_str()).await?;
        Ok(())
    }

    /// Stores that an order was not accepted, and says so in the domain's terms.
    async fn not_accepted(&self, flight: &Flight, error: thingspace::Error) -> Error {
        let (event, outcome) = match error {
            thingspace::Error::Ambiguous { reason } => {
                error!(
                    order.id = flight.order_id,
                    account = %flight.order.account,
                    devices = flight.order.devices.len(),
                    reason,
                    "an order was sent and its fate is unknown; look it up in ThingSpace, it is not sent again"
                );
                // If this fails, the cell says SENDING, which its next reader takes for the same.
                if let Err(error) =
                    flight.key.advance(&*self.store, &flight.cell, KeyPhase::Unknown, "").await
                {
                    warn!(order.id = flight.order_id, %error, "cannot store that an order's fate is unknown");
                }
                return unknown(&flight.order_id, flight.key.sent_time(), None);
            }
            thingspace::Error::Refused(refusal) => {
                let refused =
                    storage::Refused { code: refusal.code.clone(), http_status: refusal.status.into() };
                (Kind::Refused(refused), Error::Refused(refusal))
            }
            thingspace::Error::CredentialsRejected { .. }
            | thingspace::Error::LoginBlocked { .. }
            | thingspace::Error::Store(_)
            | thingspace::Error::Throttled { .. }
            | thingspace::Error::NotSent { .. } => (Kind::NotSent(storage::NotSent {}), Error::from(error)),
        };
        info!(order.id = flight.order_id, account = %flight.order.account, reason = %outcome, "order not placed");
        if let Err(error) = self.release(flight, event).await {
            // Certainly nothing was placed, but nobody else can know that before it is stored.
            error!(order.id = flight.order_id, %error, "cannot store that an order was not placed; its fate will be reported as unknown");
        }
        outcome
    }

    async fn release(&self, flight: &Flight, event: Kind) -> Result<(), StoreError> {
        append(&*self.store, &LogName::order(&flight.order_id), Once::NotPlaced.id(&flight.order_id), event)
            .await?;
        flight.key.advance(&*self.store, &flight.cell, KeyPhase::Released, "").await?;
        Ok(())
    }
}
