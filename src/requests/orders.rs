//! Places orders: at most one POST per key, whatever happens to callers, replicas and this process.
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
//! UNKNOWN in a cell reads the order's log. If the log has the answer, the call completes the
//! missing steps. Otherwise, while another replica may still be sending, it waits for the answer or
//! until the lease has expired ([`leases`]). Writes that several replicas may make are events with
//! fixed ids, or swaps that only one replica wins.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
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
    fold::{event, order::OrderOutcome},
    hub::Hub,
    lock,
    locks::Locks,
};
use crate::{
    identity::RequestId,
    proto::storage::{self, KeyPhase},
    store::{CellName, Store, StoreError},
    thingspace::{Client, Order},
};

mod finish;
pub mod key;
mod leases;
mod refusals;
pub mod resolve;
mod sending;

use leases::Leases;
use refusals::Refusals;
use sending::PreparedOrder;

/// The first pause between checks of an order that another replica is sending. It doubles up to the
/// longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The longest time between two reconciliations of orders without a caller.
const RECONCILE_EVERY: Duration = Duration::from_secs(30);

/// Places orders and completes their outcomes.
#[derive(Debug)]
pub struct Orders {
    store: Arc<dyn Store>,
    client: Client,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    order_timeout: Duration,
    max_open_devices: usize,
    /// Devices of the orders that this process is sending. No request has them yet.
    devices_in_flight: Arc<AtomicUsize>,
    in_flight: Arc<Mutex<HashSet<String>>>,
    /// Identifies this process in leases.
    incarnation: String,
    /// The leases of other replicas.
    leases: Leases,
    refusals: Refusals,
    /// One order per key at a time in this process. Between processes the cell ensures that.
    keys: Locks<String>,
}

/// A caller's order.
#[derive(Debug, Clone)]
pub struct Placement {
    pub order: Order,
    pub key: String,
}

/// An order that ThingSpace has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    pub request_id: RequestId,
    /// Whether an earlier call placed it.
    pub replayed: bool,
}

/// The share of the limit of open devices that an order in flight uses.
#[derive(Debug)]
struct ReservedDevices {
    devices: usize,
    of: Arc<AtomicUsize>,
}

impl Drop for ReservedDevices {
    fn drop(&mut self) {
        self.of.fetch_sub(self.devices, Ordering::Relaxed);
    }
}

impl Orders {
    pub fn new(
        store: Arc<dyn Store>,
        client: Client,
        hub: Arc<Hub>,
        tasks: TaskTracker,
        order_timeout: Duration,
        max_open_devices: usize,
    ) -> Self {
        let incarnation = Uuid::now_v7().to_string();
        Self {
            store,
            client,
            hub,
            tasks,
            order_timeout,
            max_open_devices,
            devices_in_flight: Arc::default(),
            in_flight: Arc::default(),
            incarnation,
            leases: Leases::default(),
            refusals: Refusals::default(),
            keys: Locks::default(),
        }
    }

    /// Places an order. If its key was used before, returns the outcome of that order, and waits
    /// for it if another replica is sending it. Dropping the future never cancels an order in
    /// flight.
    pub async fn place(
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
        let earlier = async {
            match KeyCell::load(&*self.store, &cell).await? {
                None => Ok(None),
                Some(key) => self.settle(&cell, key, &hash).await.map(Some),
            }
        };
        let earlier = tokio::time::timeout_at(deadline, earlier).await;
        // An earlier call with this key may have sent an order.
        let before = match earlier.map_err(|_| Error::Deadline(Effect::Unknown))?? {
            None => None,
            Some(KeyState::Free(key)) => Some(key),
            Some(KeyState::Placed(request_id)) => return Ok(Placed { request_id, replayed: true }),
        };
        if let Some(refusal) = self.refusals.of(&cell.name, &hash) {
            return Err(Error::Refused(refusal));
        }
        // The last free space is reserved for the outcomes of earlier orders.
        if let Some(shortage) = self.store.shortage() {
            return Err(Error::Store(StoreError::Full(shortage)));
        }
        self.place_new(placement.order.clone(), cell, before, &hash, key_lock, deadline).await
    }

    /// The interval of [`Orders::reconcile`].
    pub(super) fn reconcile_every(&self) -> Duration {
        RECONCILE_EVERY.min(self.order_timeout)
    }

    /// Reconciles orders without a caller: completes accepted ones, and marks the outcome of an
    /// order as unknown if its sender is gone.
    pub async fn reconcile(&self) {
        self.recover().await;
        let open = self.hub.orders_without_outcome(|id, order| {
            let ordered = order.ordered.as_ref().filter(|_| !self.is_in_flight(id))?;
            Some((Arc::clone(id), CellName::retained(ordered.key_cell.clone())))
        });
        for (order_id, cell) in open {
            let reconciled = async {
                let key = KeyCell::load(&*self.store, &cell).await?;
                let Some(key) = key.filter(|key| {
                    key.order_id() == &*order_id
                        && key.phase() == KeyPhase::Sending
                        && !self.may_be_sending(key)
                }) else {
                    return Ok(());
                };
                match self.hub.order(&order_id).await?.outcome {
                    None => self.mark_unknown(&cell, &key).await.map(drop),
                    // The next call with the key completes it.
                    Some(_) => Ok(()),
                }
            };
            if let Err(error) = reconciled.await {
                // The store has logged its failure, and the other orders would fail, too.
                debug!(order.id = &*order_id, %error, "cannot reconcile orders now");
                return;
            }
        }
    }

    /// Marks the outcome of an order as unknown. False: another replica has changed the key.
    async fn mark_unknown(&self, cell: &CellName, key: &KeyCell) -> Result<bool, StoreError> {
        if key.advance(&*self.store, cell, KeyPhase::Unknown, "").await?.is_none() {
            return Ok(false);
        }
        error!(
            order.id = key.order_id(),
            sent = %key.sent_time(),
            "an order was interrupted while it was sent and its outcome is unknown; it is not sent \
             again: look it up in ThingSpace, then run `thingspace-gateway orders settle`"
        );
        Ok(true)
    }

    /// Completes accepted orders whose requests lack `Accepted`: a process died too early, or they
    /// were settled as not placed.
    pub async fn recover(&self) {
        for order_id in self.hub.unfinished_orders() {
            if self.is_in_flight(&order_id) {
                continue;
            }
            let recovered = async {
                let order = self.hub.order(&order_id).await?;
                info!(order.id = order_id, "completing an accepted order");
                if self.finish(&order_id, &order).await? {
                    self.hub.forget_order(&order_id);
                }
                Ok::<_, StoreError>(())
            };
            if let Err(error) = recovered.await {
                warn!(
                    order.id = order_id,
                    %error,
                    "cannot complete an accepted order yet; a call with its key will"
                );
            }
        }
    }

    /// Whether this process is sending an order.
    pub(super) fn is_in_flight(&self, order_id: &str) -> bool {
        lock(&self.in_flight).contains(order_id)
    }

    /// Whether the process that claimed a key may still be sending its order.
    pub(super) fn may_be_sending(&self, key: &KeyCell) -> bool {
        if key.phase() != KeyPhase::Sending {
            return false;
        }
        if key.incarnation() == self.incarnation {
            return self.is_in_flight(key.order_id());
        }
        !self.store.exclusive()
            && !self.leases.has_expired(key.order_id(), key.version(), key.lease())
    }

    /// Locks a key in this process.
    pub(super) async fn lock_key(&self, cell: &CellName) -> OwnedMutexGuard<()> {
        self.keys.lock(&cell.name).await
    }

    fn reserve(&self, devices: usize) -> Result<ReservedDevices, Error> {
        let reserved = ReservedDevices { devices, of: Arc::clone(&self.devices_in_flight) };
        let in_flight = reserved.of.fetch_add(devices, Ordering::Relaxed) + devices;
        if self.hub.open_devices() + in_flight > self.max_open_devices {
            return Err(Error::Overloaded { limit: "limits.open_devices" });
        }
        Ok(reserved)
    }

    /// Returns the state of a key that was used before, and completes its order if necessary.
    async fn settle(&self, cell: &CellName, key: KeyCell, hash: &[u8]) -> Result<KeyState, Error> {
        if key.phase() == KeyPhase::Released {
            return Ok(KeyState::Free(key));
        }
        if !key.is_for(hash) {
            return Err(Error::IdempotencyKeyReused);
        }
        match key.phase() {
            KeyPhase::Accepted => {
                let request_id = RequestId::parse(key.request_id())
                    .map_err(|_| corrupt("a key cell without a request id"))?;
                return Ok(KeyState::Placed(request_id));
            }
            KeyPhase::Sending | KeyPhase::Unknown => {}
            KeyPhase::Released | KeyPhase::Unspecified => {
                return Err(corrupt("a key cell without a phase"));
            }
        }
        // The log decides, even if the sender is still working.
        let order = self.hub.order(key.order_id()).await?;
        match (&order.outcome, &order.ordered) {
            (Some(OrderOutcome::AcceptedAs(request)), Some(_)) => {
                if self.finish(key.order_id(), &order).await? {
                    Ok(KeyState::Placed(request.clone()))
                } else {
                    Err(unknown(key.order_id(), key.sent_time(), None))
                }
            }
            (Some(OrderOutcome::NotPlaced), _) => {
                let freed = key.advance(&*self.store, cell, KeyPhase::Released, "").await?;
                freed.map(KeyState::Free).ok_or(Error::OrderInProgress)
            }
            (Some(OrderOutcome::AcceptedAs(_)) | None, _) => {
                if self.may_be_sending(&key)
                    || key.phase() == KeyPhase::Sending && !self.mark_unknown(cell, &key).await?
                {
                    return Err(Error::OrderInProgress);
                }
                Err(unknown(key.order_id(), key.sent_time(), None))
            }
        }
    }

    async fn place_new(
        self: &Arc<Self>,
        order: Order,
        cell: CellName,
        before: Option<KeyCell>,
        hash: &[u8],
        key_lock: OwnedMutexGuard<()>,
        deadline: Instant,
    ) -> Result<Placed, Error> {
        let reserved = self.reserve(order.devices.len())?;
        let prepared = self.client.prepare_order(&order.account, deadline);
        let prepared = tokio::time::timeout_at(deadline, prepared).await;
        let permit = prepared.map_err(|_| Error::Deadline(Effect::NothingSent))??;

        // A separate task, so that a caller that goes away does not leave a claimed key behind.
        let prepared = PreparedOrder {
            order,
            cell,
            before,
            hash: hash.to_vec(),
            retry_until: deadline,
            key_lock,
            reserved,
        };
        let (answer, answered) = oneshot::channel();
        let orders = Arc::clone(self);
        self.tasks.spawn(
            async move { orders.send_and_store(prepared, permit, answer).await }.in_current_span(),
        );
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                Err(Error::Internal("an order's task ended without an answer".to_owned()))
            }
            Err(_) => Err(Error::Deadline(Effect::Unknown)),
        }
    }
}

/// The state of a key that was used before.
enum KeyState {
    /// No order was placed with the key. It may be claimed again, replacing this version.
    Free(KeyCell),
    /// An order was placed.
    Placed(RequestId),
}

fn ordered(order: &Order, cell: &CellName) -> storage::Ordered {
    storage::Ordered {
        account: order.account.to_string(),
        service_plan: order.service_plan.clone(),
        devices: order.devices.iter().map(event::to_stored).collect(),
        key_cell: cell.name.clone(),
    }
}

fn unknown(order_id: &str, sent_time: Timestamp, request_id: Option<RequestId>) -> Error {
    Error::OrderOutcomeUnknown { order_id: order_id.to_owned(), sent_time, request_id }
}

fn corrupt(what: &str) -> Error {
    Error::Store(StoreError::Corrupt(what.to_owned()))
}
