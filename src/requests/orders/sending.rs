//! Sends one order: claims its key, sends the POST once, and stores the result.
//!
//! This runs in a separate task that no caller can cancel. A POST is repeated only if certainly no
//! byte of it was sent. Storing the result is repeated until it succeeds. Until then the key cannot
//! be used.

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

use super::key::{KeyCell, KeyClaim};
use super::{Orders, Placed, ReservedDevices, finish::log_not_its_own, leases, ordered, unknown};
use crate::{
    identity::RequestId,
    proto::storage::{self, KeyPhase},
    requests::{
        append,
        error::Error,
        fold::{
            event::{Kind, Once},
            order::{self, OrderOutcome},
        },
        lock,
    },
    store::{CellName, LogName, StoreError},
    thingspace::{self, Order, OrderPermit, Retries},
};

/// The pause between attempts to store a result.
const RETRY: Duration = Duration::from_millis(500);

/// Sends the answer to the caller, who may be gone.
type AnswerSender = oneshot::Sender<Result<Placed, Error>>;

/// An order that has a permit and may be sent when its key is claimed.
pub(super) struct PreparedOrder {
    pub(super) order: Order,
    pub(super) cell: CellName,
    pub(super) before: Option<KeyCell>,
    pub(super) hash: Vec<u8>,
    /// Until when an order may be sent again if no byte of it was sent.
    pub(super) retry_until: Instant,
    pub(super) key_lock: OwnedMutexGuard<()>,
    pub(super) reserved: ReservedDevices,
}

/// An order that this process is sending.
struct Sending {
    order: Order,
    order_id: String,
    cell: CellName,
    /// The claimed key; `None` before the claim.
    key: Option<KeyCell>,
    sent_time: Timestamp,
    retry_until: Instant,
    /// The order is not sent after this, because its lease will expire.
    send_by: Instant,
    /// Released early if the result cannot be stored, so that a repeated call gets an answer.
    key_lock: Option<OwnedMutexGuard<()>>,
    _reserved: ReservedDevices,
    _in_flight: InFlight,
}

/// Registers an order as in flight in this process while it lives.
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

/// The result of sending an order, to be stored.
enum SendResult {
    AcceptedAs(RequestId),
    Refused(storage::Refused),
    NotSent,
    Unknown,
}

/// How a result was stored.
enum StoredAs {
    Answered,
    /// The request is not this order's, so the outcome is unknown.
    NotItsOwn,
}

impl Orders {
    /// Claims the key, sends the order and stores the result.
    pub(super) async fn send_and_store(
        &self,
        prepared: PreparedOrder,
        permit: OrderPermit,
        answer: AnswerSender,
    ) {
        let PreparedOrder { order, cell, before, hash, retry_until, key_lock, reserved } = prepared;
        let order_id = Uuid::now_v7().to_string();
        let mut sending = Sending {
            _in_flight: InFlight::new(&order_id, &self.in_flight),
            order,
            order_id,
            cell,
            key: None,
            // In milliseconds, as in the cell.
            sent_time: Timestamp::from_millisecond(Timestamp::now().as_millisecond())
                .unwrap_or_default(),
            retry_until,
            send_by: Instant::now() + leases::before_sending(self.order_timeout),
            key_lock: Some(key_lock),
            _reserved: reserved,
        };
        if let Err(error) = self.append_ordered(&sending).await {
            let may_be_stored = matches!(error, StoreError::UnknownOutcome(_));
            // The caller may be gone.
            let _ = answer.send(Err(error.into()));
            if may_be_stored {
                self.append_not_sent(sending).await;
            }
            return;
        }
        let (result, outcome) = match self.claim(&sending, before.as_ref(), &hash).await {
            Ok(Some(key)) => {
                sending.key = Some(key);
                let sent = self.send(&sending, permit).await;
                send_result(&sending, sent)
            }
            // Another replica has claimed the key first.
            Ok(None) => not_sent(Error::OrderInProgress),
            // The key may be claimed nevertheless.
            Err(error) => not_sent(error.into()),
        };
        let (answer, stored) =
            self.store_until_stored(&mut sending, &result, &outcome, answer).await;
        let outcome = match stored {
            StoredAs::Answered => outcome,
            StoredAs::NotItsOwn => Err(unknown(&sending.order_id, sending.sent_time, None)),
        };
        if let Err(Error::Refused(refusal)) = &outcome {
            self.refusals.remember(&sending.cell.name, &hash, refusal);
        }
        // Before the answer, so that the next call finds the key unlocked and the devices counted
        // once.
        drop(sending);
        if outcome.is_err() {
            // A callback for the order may have arrived meanwhile.
            self.hub.wake_resolver();
        }
        if let Some(answer) = answer {
            let _ = answer.send(outcome);
        }
    }

    /// Makes the order durable, before its key is claimed and before anything is sent.
    async fn append_ordered(&self, sending: &Sending) -> Result<(), StoreError> {
        let ordered = Kind::Ordered(ordered(&sending.order, &sending.cell));
        let log = LogName::order(&sending.order_id);
        append(&*self.store, &log, None, Once::Ordered.id(&sending.order_id), ordered)
            .await
            .map(drop)
    }

    /// Stores that an order that may be in the store was not sent. Without an outcome it would stay
    /// in memory for days, and every start would read all events since.
    async fn append_not_sent(&self, mut sending: Sending) {
        sending.key_lock = None;
        // The drain does not wait for this.
        while !self.tasks.is_closed() {
            tokio::time::sleep(RETRY).await;
            let appended = async {
                // First, so that the event cannot be stored after the outcome.
                self.append_ordered(&sending).await?;
                self.store(&sending, &SendResult::NotSent).await
            };
            match appended.await {
                Ok(_) => return,
                Err(error) => {
                    debug!(
                        order.id = sending.order_id,
                        %error,
                        "cannot store yet that an order was not sent"
                    );
                }
            }
        }
    }

    async fn claim(
        &self,
        sending: &Sending,
        before: Option<&KeyCell>,
        hash: &[u8],
    ) -> Result<Option<KeyCell>, StoreError> {
        let lease = leases::lease(self.order_timeout);
        let claim = KeyClaim {
            order_id: &sending.order_id,
            hash,
            incarnation: &self.incarnation,
            sent_time: sending.sent_time,
            lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
        };
        KeyCell::claim(&*self.store, &sending.cell, before, claim).await
    }

    async fn send(
        &self,
        sending: &Sending,
        mut permit: OrderPermit,
    ) -> Result<RequestId, thingspace::Error> {
        let mut retries = Retries::default();
        loop {
            let sent = self.client.place_order(permit, &sending.order, sending.send_by).await;
            let Err(error) = sent else { return sent };
            // No byte was sent, so another try cannot order twice. A refused order is not tried
            // again: only ThingSpace says that it was not executed.
            let thingspace::Error::NotConnected { .. } = error else { return Err(error) };
            let pause =
                retries.next(None).filter(|pause| Instant::now() + *pause < sending.retry_until);
            let Some(pause) = pause else { return Err(error) };
            if self.tasks.is_closed() {
                return Err(thingspace::Error::Draining);
            }
            tokio::time::sleep(pause).await;
            let by = sending.retry_until;
            let prepared = self.client.prepare_order(&sending.order.account, by);
            let prepared = tokio::time::timeout_at(by, prepared).await;
            permit = match prepared {
                Ok(Ok(permit)) => permit,
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(error),
            };
        }
    }

    /// Stores the result of an order, until that succeeds. Returns the channel of the caller, or
    /// `None` if the caller was answered before.
    async fn store_until_stored(
        &self,
        sending: &mut Sending,
        result: &SendResult,
        outcome: &Result<Placed, Error>,
        answer: AnswerSender,
    ) -> (Option<AnswerSender>, StoredAs) {
        let mut answer = Some(answer);
        loop {
            let error = match self.store(sending, result).await {
                Ok(stored) => return (answer, stored),
                Err(error) => error,
            };
            if let Some(answer) = answer.take() {
                let known = match result {
                    SendResult::AcceptedAs(request_id) => {
                        let ordered = ordered(&sending.order, &sending.cell);
                        let mismatch = self.hub.mismatch(request_id, &sending.order_id, &ordered);
                        let request_id = Some(request_id.clone()).filter(|_| mismatch.is_none());
                        Err(unknown(&sending.order_id, sending.sent_time, request_id))
                    }
                    SendResult::Refused(_) | SendResult::NotSent | SendResult::Unknown => {
                        outcome.clone()
                    }
                };
                error!(
                    order.id = sending.order_id,
                    account = %sending.order.account,
                    request.id = outcome.as_ref().ok().map(|placed| placed.request_id.as_str()),
                    %error,
                    "the result of an order cannot be stored yet; it is tried again until this \
                     process ends"
                );
                let _ = answer.send(known);
                sending.key_lock = None;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn store(&self, sending: &Sending, result: &SendResult) -> Result<StoredAs, StoreError> {
        let Sending { order_id, .. } = sending;
        let log = LogName::order(order_id);
        let ordered = || ordered(&sending.order, &sending.cell);
        match result {
            SendResult::AcceptedAs(request_id) => {
                let ordered = ordered();
                let ownership = self.hub.ownership(request_id, Some(&ordered)).await?;
                let mismatch = match ownership.mismatch(order_id) {
                    None => self.mismatch(order_id, &ordered, request_id).await?,
                    mismatch => mismatch,
                };
                if let Some(mismatch) = mismatch {
                    self.advance(sending, KeyPhase::Unknown, "").await?;
                    log_not_its_own(order_id, &ordered.account, request_id, mismatch);
                    return Ok(StoredAs::NotItsOwn);
                }
                let accepted_as =
                    Kind::AcceptedAs(storage::AcceptedAs { request_id: request_id.to_string() });
                append(&*self.store, &log, None, Once::AcceptedAs.id(order_id), accepted_as)
                    .await?;
                let mismatch =
                    self.append_accepted(order_id, &ordered, request_id, ownership, None).await?;
                if let Some(mismatch) = mismatch {
                    self.withdraw(order_id, &ordered, request_id, None, mismatch).await?;
                    return Ok(StoredAs::NotItsOwn);
                }
                if !self.advance(sending, KeyPhase::Accepted, request_id.as_str()).await? {
                    // The lease has expired, or another replica has read the log.
                    let order = self.hub.order(order_id).await?;
                    log_contradiction(order_id, request_id, &order);
                    if !self.finish(order_id, &order).await? {
                        return Ok(StoredAs::NotItsOwn);
                    }
                }
            }
            SendResult::Refused(_) | SendResult::NotSent => {
                let event = match result {
                    SendResult::Refused(refused) => Kind::Refused(refused.clone()),
                    _ => Kind::NotSent(storage::NotSent {}),
                };
                append(&*self.store, &log, None, Once::NotPlaced.id(order_id), event).await?;
                if !self.advance(sending, KeyPhase::Released, "").await? {
                    self.move_key(order_id, &ordered(), KeyPhase::Released, "", false).await?;
                }
            }
            SendResult::Unknown => {
                self.advance(sending, KeyPhase::Unknown, "").await?;
            }
        }
        Ok(StoredAs::Answered)
    }

    /// Changes the phase of the claimed key. False: it is not claimed, or another replica changed
    /// it.
    async fn advance(
        &self,
        sending: &Sending,
        phase: KeyPhase,
        request_id: &str,
    ) -> Result<bool, StoreError> {
        let Some(key) = &sending.key else { return Ok(false) };
        Ok(key.advance(&*self.store, &sending.cell, phase, request_id).await?.is_some())
    }
}

/// Logs that an order was settled as another request than that of ThingSpace's answer.
fn log_contradiction(order_id: &str, request_id: &RequestId, order: &order::Order) {
    if let Some(settled) = order.former.iter().find(|former| *former != request_id) {
        error!(
            order.id = order_id,
            request.id = %request_id,
            %settled,
            "an order was settled as another request than ThingSpace's answer names; the answer \
             is valid from now on"
        );
    } else if let Some(OrderOutcome::AcceptedAs(settled)) = &order.outcome
        && settled != request_id
    {
        error!(
            order.id = order_id,
            request.id = %request_id,
            %settled,
            "an order was settled as another request than ThingSpace says; its key leads to the \
             wrong one"
        );
    }
}

/// Returns what is stored and what the caller is told about an answer of ThingSpace.
fn send_result(
    sending: &Sending,
    sent: Result<RequestId, thingspace::Error>,
) -> (SendResult, Result<Placed, Error>) {
    let Sending { order, order_id, .. } = sending;
    let error = match sent {
        Ok(request_id) => {
            info!(order.id = order_id, request.id = %request_id, account = %order.account,
                devices = order.devices.len(), "order accepted");
            return (
                SendResult::AcceptedAs(request_id.clone()),
                Ok(Placed { request_id, replayed: false }),
            );
        }
        Err(error) => error,
    };
    let (result, outcome) = match error {
        thingspace::Error::OutcomeUnknown { reason, .. } => {
            error!(
                order.id = order_id,
                account = %order.account,
                devices = order.devices.len(),
                reason,
                "an order was sent and its outcome is unknown; it is not sent again: look it up in \
                 ThingSpace, then run `thingspace-gateway orders settle`"
            );
            return (SendResult::Unknown, Err(unknown(order_id, sending.sent_time, None)));
        }
        thingspace::Error::Refused(refusal) => {
            let refused =
                storage::Refused { code: refusal.code.clone(), http_status: refusal.status.into() };
            (SendResult::Refused(refused), Error::Refused(refusal))
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
        | thingspace::Error::NotConnected { .. } => (SendResult::NotSent, Error::from(error)),
    };
    info!(order.id = order_id, account = %order.account, reason = %outcome, "order not placed");
    (result, Err(outcome))
}

fn not_sent(error: Error) -> (SendResult, Result<Placed, Error>) {
    (SendResult::NotSent, Err(error))
}
