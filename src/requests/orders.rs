//! Orders: at most one POST for a key, whatever happens to callers, replicas and this process.
//!
//! The way of an order: a permit, a bearer and a session (within the caller's deadline) → `Ordered`
//! in its log → its key's cell SENDING, durable before a byte leaves → **one POST, which from here
//! belongs to the gateway** → `AcceptedAs` in its log, `Accepted` in the request's → the cell
//! ACCEPTED → the answer.
//!
//! What it never does: send an order again of whose fate nothing is known. Whoever finds SENDING or
//! UNKNOWN in a cell reads the order's log first; if that has the answer, they finish what is
//! missing. If it has not, and the sender may still be at it elsewhere, they wait: for its answer,
//! or until its lease has lapsed ([`leases`]). Everything that several replicas may do at once is
//! an event with an id of its own, or a swap that only one of them wins.

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

use self::key::Key;
use super::{
    error::{Effect, Error},
    fold::{event, order::Outcome},
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
mod flight;
pub mod key;
mod leases;
mod refusals;
pub mod resolve;

use flight::Claimant;
use leases::Leases;
use refusals::Refusals;

/// Between looks at what became of an order that another replica is sending: first, doubling, at
/// most.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// The longest time between looks at orders that nobody waits with.
const TEND_EVERY: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Orders {
    store: Arc<dyn Store>,
    client: Client,
    hub: Arc<Hub>,
    tasks: TaskTracker,
    order_timeout: Duration,
    max_open_devices: usize,
    /// Devices of the orders under way here, which no request has yet.
    devices_under_way: Arc<AtomicUsize>,
    in_flight: Arc<Mutex<HashSet<String>>>,
    /// This process, in leases.
    incarnation: String,
    /// Those of others.
    leases: Leases,
    refusals: Refusals,
    /// One order per key at a time in this process; the cell is what holds between processes.
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
    /// An earlier call had placed it.
    pub replayed: bool,
}

/// Room for the devices of an order under way, within the limit of open devices.
#[derive(Debug)]
struct Room {
    devices: usize,
    of: Arc<AtomicUsize>,
}

impl Drop for Room {
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
            devices_under_way: Arc::default(),
            in_flight: Arc::default(),
            incarnation,
            leases: Leases::default(),
            refusals: Refusals::default(),
            keys: Locks::default(),
        }
    }

    /// Places an order, or says what became of it if its key was used before; waits for a replica
    /// that is sending it. Dropping the future ends the waiting, never an order that is under way.
    pub async fn place(
        self: &Arc<Self>,
        placement: Placement,
        deadline: Instant,
    ) -> Result<Placed, Error> {
        let mut pause = FIRST_LOOK;
        loop {
            match self.place_once(&placement, deadline).await {
                // A drain waits for no other replica.
                Err(Error::OrderInProgress)
                    if Instant::now() + pause < deadline && !self.tasks.is_closed() => {}
                settled => return settled,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_LOOK);
        }
    }

    async fn place_once(
        self: &Arc<Self>,
        placement: &Placement,
        deadline: Instant,
    ) -> Result<Placed, Error> {
        let cell = key::cell(&placement.order.account, &placement.key);
        let hash = key::hash(&placement.order);
        let turn = tokio::time::timeout_at(deadline, self.turn(&cell))
            .await
            .map_err(|_| Error::OrderInProgress)?;
        let settled = async {
            match Key::load(&*self.store, &cell).await? {
                None => Ok(None),
                Some(key) => self.settle(&cell, key, &hash).await.map(Some),
            }
        };
        let settled = tokio::time::timeout_at(deadline, settled).await;
        // An earlier call with this key may have sent an order.
        let before = match settled.map_err(|_| Error::Deadline(Effect::Unknown))?? {
            None => None,
            Some(Settled::Free(key)) => Some(key),
            Some(Settled::Placed(request_id)) => return Ok(Placed { request_id, replayed: true }),
        };
        if let Some(refusal) = self.refusals.of(&cell.name, &hash) {
            return Err(Error::Refused(refusal));
        }
        // The rest of the space is for what becomes of the orders that are known.
        if let Some(shortage) = self.store.shortage() {
            return Err(Error::Store(StoreError::Full(shortage)));
        }
        self.place_new(placement.order.clone(), cell, before, &hash, turn, deadline).await
    }

    /// How often [`Orders::tend`] wants to be called.
    pub(super) fn tend_every(&self) -> Duration {
        TEND_EVERY.min(self.order_timeout)
    }

    /// Looks after the orders that nobody waits with: finishes those that were accepted, and says
    /// of those whose sender has gone that their fate is unknown.
    pub async fn tend(&self) {
        self.recover().await;
        let undecided = self.hub.undecided(|id, order| {
            let ordered = order.ordered.as_ref().filter(|_| !self.is_in_flight(id))?;
            Some((Arc::clone(id), CellName::retained(ordered.key_cell.clone())))
        });
        for (order_id, cell) in undecided {
            let tended = async {
                let key = Key::load(&*self.store, &cell).await?;
                let Some(key) = key.filter(|key| {
                    key.order_id() == &*order_id
                        && key.phase() == KeyPhase::Sending
                        && !self.may_be_sending(key)
                }) else {
                    return Ok(());
                };
                match self.hub.order(&order_id).await?.outcome {
                    None => self.give_up(&cell, &key).await.map(drop),
                    // Its next reader finishes it.
                    Some(_) => Ok(()),
                }
            };
            if let Err(error) = tended.await {
                // It would be the same with the others. The store has logged what is wrong with it.
                debug!(order.id = &*order_id, %error, "cannot look after orders now");
                return;
            }
        }
    }

    /// Says of an order whose sender has gone that its fate is unknown; false if somebody else has
    /// moved its key on.
    async fn give_up(&self, cell: &CellName, key: &Key) -> Result<bool, StoreError> {
        if key.advance(&*self.store, cell, KeyPhase::Unknown, "").await?.is_none() {
            return Ok(false);
        }
        error!(
            order.id = key.order_id(),
            sent = %key.sent_time(),
            "an order was interrupted while it was sent and its fate is unknown; it is not sent again: look it up in \
             ThingSpace, then run `thingspace-gateway orders settle`"
        );
        Ok(true)
    }

    /// Finishes orders that ThingSpace had accepted and whose requests do not know it, because a
    /// process died before it could say so, or because it was believed that they were not placed.
    pub async fn recover(&self) {
        for order_id in self.hub.unfinished_orders() {
            if self.is_in_flight(&order_id) {
                continue;
            }
            let recovered = async {
                let order = self.hub.order(&order_id).await?;
                info!(order.id = order_id, "finishing an order that was accepted");
                if self.finish(&order_id, &order).await? {
                    self.hub.forget_order(&order_id);
                }
                Ok::<_, StoreError>(())
            };
            if let Err(error) = recovered.await {
                warn!(order.id = order_id, %error, "cannot finish an accepted order yet; a call with its key will");
            }
        }
    }

    /// Whether an order is being carried out by this process.
    pub(super) fn is_in_flight(&self, order_id: &str) -> bool {
        lock(&self.in_flight).contains(order_id)
    }

    /// Whether whoever claimed a key, and has not said what came of it, may still be at it, here or
    /// elsewhere.
    pub(super) fn may_be_sending(&self, key: &Key) -> bool {
        if key.phase() != KeyPhase::Sending {
            return false;
        }
        if key.incarnation() == self.incarnation {
            return self.is_in_flight(key.order_id());
        }
        !self.store.exclusive()
            && !self.leases.has_lapsed(key.order_id(), key.version(), key.lease())
    }

    /// A key's turn in this process.
    pub(super) async fn turn(&self, cell: &CellName) -> OwnedMutexGuard<()> {
        self.keys.lock(&cell.name).await
    }

    fn room_for(&self, devices: usize) -> Result<Room, Error> {
        let room = Room { devices, of: Arc::clone(&self.devices_under_way) };
        let under_way = room.of.fetch_add(devices, Ordering::Relaxed) + devices;
        if self.hub.open_devices() + under_way > self.max_open_devices {
            return Err(Error::Overloaded { limit: "limits.open_devices" });
        }
        Ok(room)
    }

    /// What a key that was used before stands for now.
    async fn settle(&self, cell: &CellName, key: Key, hash: &[u8]) -> Result<Settled, Error> {
        if key.phase() == KeyPhase::Released {
            return Ok(Settled::Free(key));
        }
        if !key.stands_for(hash) {
            return Err(Error::IdempotencyKeyReused);
        }
        match key.phase() {
            KeyPhase::Accepted => {
                let request_id = RequestId::parse(key.request_id())
                    .map_err(|_| corrupt("a key cell without a request id"))?;
                return Ok(Settled::Placed(request_id));
            }
            KeyPhase::Sending | KeyPhase::Unknown => {}
            KeyPhase::Released | KeyPhase::Unspecified => {
                return Err(corrupt("a key cell without a phase"));
            }
        }
        // What the log says holds, whoever is still at it.
        let order = self.hub.order(key.order_id()).await?;
        match (&order.outcome, &order.ordered) {
            (Some(Outcome::AcceptedAs(request)), Some(_)) => {
                if self.finish(key.order_id(), &order).await? {
                    Ok(Settled::Placed(request.clone()))
                } else {
                    Err(unknown(key.order_id(), key.sent_time(), None))
                }
            }
            (Some(Outcome::NotPlaced), _) => {
                let freed = key.advance(&*self.store, cell, KeyPhase::Released, "").await?;
                freed.map(Settled::Free).ok_or(Error::OrderInProgress)
            }
            (Some(Outcome::AcceptedAs(_)) | None, _) => {
                if self.may_be_sending(&key)
                    || key.phase() == KeyPhase::Sending && !self.give_up(cell, &key).await?
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
        before: Option<Key>,
        hash: &[u8],
        turn: OwnedMutexGuard<()>,
        deadline: Instant,
    ) -> Result<Placed, Error> {
        let room = self.room_for(order.devices.len())?;
        let prepared = self.client.prepare_order(&order.account, deadline);
        let prepared = tokio::time::timeout_at(deadline, prepared).await;
        let permit = prepared.map_err(|_| Error::Deadline(Effect::NothingSent))??;

        // From here on a caller that goes away would leave a claim behind, so the rest is a task of
        // its own.
        let claimant = Claimant {
            order,
            cell,
            before,
            hash: hash.to_vec(),
            retry_until: deadline,
            turn,
            room,
        };
        let (answer, answered) = oneshot::channel();
        let orders = Arc::clone(self);
        self.tasks
            .spawn(async move { orders.fly(claimant, permit, answer).await }.in_current_span());
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => {
                Err(Error::Internal("an order's task ended without an answer".to_owned()))
            }
            Err(_) => Err(Error::Deadline(Effect::Unknown)),
        }
    }
}

enum Settled {
    /// Nothing was placed under the key: it may be used, over this version.
    Free(Key),
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
