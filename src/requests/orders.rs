//! Places orders: at most one POST per key, even if callers, replicas or this process fail.
//!
//! The steps of an order:
//!
//! 1. Wait for a permit and both tokens, within the caller's deadline.
//! 2. Append `Ordered` to the order's log and set the key's cell to SENDING. Both are durable
//!    before a byte is sent.
//! 3. Send one POST, in a task that no caller can cancel.
//! 4. Append `AcceptedAs` to the order's log and `Accepted` to the request's log, and set the cell
//!    to ACCEPTED. Then answer the caller.
//!
//! This module never resends an order whose outcome is unknown. A call that finds SENDING or
//! UNKNOWN in its key's cell reads the order's log. If the log has the answer, the call completes
//! the missing steps. If not, and another replica may still be sending the order, the call waits
//! for the answer, or until the lease has expired ([`leases`]). Writes that several replicas may
//! make are events with fixed ids, or swaps that only one replica wins.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, debug, error, info, warn};
use uuid::Uuid;

use self::key::KeyCell;
use super::{
    error::{Effect, Error},
    fold::order::OrderOutcome,
    hub::Hub,
    lock,
    locks::Locks,
};
use crate::{
    identity::RequestId,
    proto::storage::KeyPhase,
    store::{CellName, Store, StoreError},
    thingspace::{Client, Order},
};

mod counts;
mod finish;
pub mod key;
mod leases;
mod refusals;
mod reserve;
pub(crate) mod resolve;
mod sending;

use leases::Leases;
use refusals::Refusals;
pub(crate) use reserve::OpenDeviceLimits;
use reserve::{DevicesInFlight, InFlight};
use sending::Sending;

/// The pause between checks of an order that another replica is sending. It doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The longest time between two reconciliations of orders without a caller.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(crate) struct Orders {
    store: Arc<dyn Store>,
    client: Client,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    order_timeout: Duration,
    max_open_devices: OpenDeviceLimits,
    /// The orders that this process is placing.
    in_flight: Arc<Mutex<HashMap<String, DevicesInFlight>>>,
    /// Identifies this process in leases.
    incarnation: String,
    /// The leases of other replicas.
    leases: Leases,
    refusals: Refusals,
    /// Allows one order per key at a time in this process. Between processes, the cell ensures it.
    keys: Locks<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Placement {
    pub(crate) order: Order,
    pub(crate) key: String,
    /// The name of the caller.
    pub(crate) caller: String,
}

/// An order that ThingSpace has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) request_id: RequestId,
    /// Whether an earlier call placed the order.
    pub(crate) replayed: bool,
}

impl Orders {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        client: Client,
        hub: Arc<Hub>,
        tasks: TaskTracker,
        order_timeout: Duration,
        max_open_devices: OpenDeviceLimits,
    ) -> Self {
        client.accounts().for_each(counts::start);
        Self {
            store,
            client,
            hub,
            tasks,
            order_timeout,
            max_open_devices,
            in_flight: Arc::default(),
            incarnation: Uuid::now_v7().to_string(),
            leases: Leases::default(),
            refusals: Refusals::default(),
            keys: Locks::default(),
        }
    }

    /// Places an order. If its key was used before, returns the outcome of that order, and waits
    /// for it if another replica is sending it. Dropping the future never cancels an order in
    /// flight.
    pub(crate) async fn place(
        self: &Arc<Self>,
        placement: Placement,
        deadline: Instant,
    ) -> Result<Placed, Error> {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.place_once(&placement, deadline).await {
                // The drain does not wait for other replicas.
                Err(Error::OrderInProgress)
                    if Instant::now() + pause < deadline && !self.tasks.is_closed() => {}
                result => return result,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn place_once(
        self: &Arc<Self>,
        placement: &Placement,
        deadline: Instant,
    ) -> Result<Placed, Error> {
        let cell = key::cell(&placement.order.account, &placement.key);
        let hash = key::hash(&placement.order);
        let key_lock = tokio::time::timeout_at(deadline, self.lock_key(&cell))
            .await
            .map_err(|_| Error::OrderInProgress)?;
        let state = tokio::time::timeout_at(deadline, self.key_state(&cell, &hash)).await;
        // An earlier call with this key may have sent an order.
        let before = match state.map_err(|_| Error::Deadline(Effect::Unknown))?? {
            KeyState::Free(before) => before,
            KeyState::Placed(request_id) => return Ok(Placed { request_id, replayed: true }),
        };
        if let Some(refusal) = self.refusals.of(&cell.name, &hash) {
            return Err(Error::Refused(refusal));
        }
        // The last free space of the store is reserved for the outcomes of earlier orders.
        if let Some(shortage) = self.store.shortage() {
            return Err(Error::Store(StoreError::Full(shortage)));
        }
        self.place_new(placement.clone(), cell, before, &hash, key_lock, deadline).await
    }

    pub(super) fn reconcile_every(&self) -> Duration {
        RECONCILE_EVERY.min(self.order_timeout)
    }

    /// Reconciles orders without a caller: completes accepted ones, and marks the outcome of an
    /// order as unknown if its sender is gone.
    pub(crate) async fn reconcile(&self) {
        self.complete_accepted().await;
        let open = self.hub.orders_without_outcome(|id, order| {
            let ordered = order.ordered.as_ref().filter(|_| !self.is_in_flight(id))?;
            Some((Arc::clone(id), CellName::retained(ordered.key_cell.clone())))
        });
        for (order_id, cell) in open {
            let reconciled = async {
                let key = KeyCell::load(&*self.store, &cell).await?.filter(|key| {
                    *key.order_id == *order_id
                        && key.phase() == KeyPhase::Sending
                        && !self.may_be_sending(key)
                });
                // If there is an outcome, the next call with the key completes it.
                if let Some(key) = key
                    && self.hub.order(&order_id).await?.outcome.is_none()
                {
                    self.mark_unknown(&cell, &key).await?;
                }
                Ok::<_, StoreError>(())
            };
            if let Err(error) = reconciled.await {
                // The store has logged its failure, and the other orders would fail, too.
                debug!(order.id = &*order_id, %error, "cannot reconcile orders now");
                return;
            }
        }
    }

    /// Marks the outcome of an order as unknown. Returns false if another replica has changed the
    /// key.
    async fn mark_unknown(&self, cell: &CellName, key: &KeyCell) -> Result<bool, StoreError> {
        if key.advance(&*self.store, cell, KeyPhase::Unknown, "").await?.is_none() {
            return Ok(false);
        }
        error!(
            order.id = key.order_id,
            sent = %key.sent_time(),
            "an order was interrupted while it was sent and its outcome is unknown; it is not sent \
             again: look it up in ThingSpace, then run `thingspace-gateway orders settle`"
        );
        Ok(true)
    }

    /// Completes accepted orders whose requests lack `Accepted`, because a process died before it
    /// wrote that, or because the orders were first settled as not placed.
    pub(crate) async fn complete_accepted(&self) {
        for order_id in self.hub.unfinished_orders() {
            if self.is_in_flight(&order_id) {
                continue;
            }
            let completed = async {
                let order = self.hub.order(&order_id).await?;
                info!(order.id = order_id, "completing an accepted order");
                if self.finish(&order_id, &order).await? {
                    self.hub.forget_order(&order_id);
                }
                Ok::<_, StoreError>(())
            };
            if let Err(error) = completed.await {
                warn!(
                    order.id = order_id,
                    %error,
                    "cannot complete an accepted order yet; trying again"
                );
            }
        }
    }

    pub(super) fn is_in_flight(&self, order_id: &str) -> bool {
        lock(&self.in_flight).contains_key(order_id)
    }

    /// Returns whether the process that claimed a key may still be sending its order.
    pub(super) fn may_be_sending(&self, key: &KeyCell) -> bool {
        if key.phase() != KeyPhase::Sending {
            return false;
        }
        if key.incarnation == self.incarnation {
            return self.is_in_flight(&key.order_id);
        }
        !self.store.exclusive()
            && !self.leases.has_expired(&key.order_id, key.version(), key.lease())
    }

    pub(super) async fn lock_key(&self, cell: &CellName) -> OwnedMutexGuard<()> {
        self.keys.lock(&cell.name).await
    }

    /// Decides what a key allows, and completes an earlier order with the key if necessary. A new
    /// order is allowed only if none was placed with the key.
    async fn key_state(&self, cell: &CellName, hash: &[u8]) -> Result<KeyState, Error> {
        let key = match KeyCell::load(&*self.store, cell).await? {
            Some(key) if key.phase() != KeyPhase::Released => key,
            unused => return Ok(KeyState::Free(unused)),
        };
        if !key.is_for(hash) {
            return Err(Error::IdempotencyKeyReused);
        }
        match key.phase() {
            KeyPhase::Accepted => {
                let request_id = RequestId::parse(&key.request_id)
                    .map_err(|_| corrupt("a key cell without a request id"))?;
                return Ok(KeyState::Placed(request_id));
            }
            KeyPhase::Sending | KeyPhase::Unknown => {}
            KeyPhase::Released | KeyPhase::Unspecified => {
                return Err(corrupt("a key cell without a phase"));
            }
        }
        // The log decides, even if the sender is still working.
        let order = self.hub.order(&key.order_id).await?;
        match (&order.outcome, &order.ordered) {
            (Some(OrderOutcome::AcceptedAs(request)), Some(_)) => {
                if self.finish(&key.order_id, &order).await? {
                    Ok(KeyState::Placed(request.clone()))
                } else {
                    Err(unknown(&key.order_id, key.sent_time(), None))
                }
            }
            (Some(OrderOutcome::NotPlaced), _) => {
                let released = key.advance(&*self.store, cell, KeyPhase::Released, "").await?;
                released.map(|key| KeyState::Free(Some(key))).ok_or(Error::OrderInProgress)
            }
            (Some(OrderOutcome::AcceptedAs(_)) | None, _) => {
                if self.may_be_sending(&key)
                    || key.phase() == KeyPhase::Sending && !self.mark_unknown(cell, &key).await?
                {
                    return Err(Error::OrderInProgress);
                }
                Err(unknown(&key.order_id, key.sent_time(), None))
            }
        }
    }

    async fn place_new(
        self: &Arc<Self>,
        placement: Placement,
        cell: CellName,
        before: Option<KeyCell>,
        hash: &[u8],
        key_lock: OwnedMutexGuard<()>,
        deadline: Instant,
    ) -> Result<Placed, Error> {
        let (Placement { order, caller, .. }, order_id) = (placement, Uuid::now_v7().to_string());
        let in_flight = self.reserve(order_id.clone(), &caller, order.devices.len())?;
        let prepared = self.client.prepare_order(&order.account, deadline);
        let prepared = tokio::time::timeout_at(deadline, prepared).await;
        let permit = prepared.map_err(|_| Error::Deadline(Effect::NothingSent))??;
        let sending = Sending {
            order,
            caller,
            order_id,
            cell,
            before,
            hash: hash.to_vec(),
            key: None,
            // Rounded to milliseconds, as in the cell.
            sent_time: Timestamp::from_millisecond(Timestamp::now().as_millisecond())
                .unwrap_or_default(),
            retry_until: deadline,
            send_by: Instant::now() + leases::before_sending(self.order_timeout),
            key_lock: Some(key_lock),
            _in_flight: in_flight,
        };
        let (answer, answered) = oneshot::channel();
        let orders = Arc::clone(self);
        // Runs in a task, so that a cancelled call leaves no claimed key without an outcome.
        self.tasks.spawn(
            async move { orders.send_and_store(sending, permit, answer).await }.in_current_span(),
        );
        let answer = tokio::time::timeout_at(deadline, answered).await;
        answer.map_err(|_| Error::Deadline(Effect::Unknown))?.unwrap_or_else(|_| {
            Err(Error::Internal("an order's task ended without an answer".to_owned()))
        })
    }
}

/// What an idempotency key allows.
enum KeyState {
    /// No order was placed with the key. A claim replaces this content of its cell.
    Free(Option<KeyCell>),
    Placed(RequestId),
}

fn unknown(order_id: &str, sent_time: Timestamp, request_id: Option<RequestId>) -> Error {
    Error::OrderOutcomeUnknown { order_id: order_id.to_owned(), sent_time, request_id }
}

fn corrupt(what: &str) -> Error {
    Error::Store(StoreError::Corrupt(what.to_owned()))
}
