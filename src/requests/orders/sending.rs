//! Sends one order: claims its key, sends the POST at most once, and stores the result.
//!
//! This runs in a separate task that no caller can cancel. The POST is repeated only if it is
//! certain that no byte of it was sent. Storing the result is repeated until it succeeds.

use std::time::Duration;

use jiff::Timestamp;
use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    time::Instant,
};
use tracing::{debug, error, info};

use super::{
    InFlight, Orders, Placed, counts,
    finish::{LoggedOrder, log_mismatch},
    key::KeyCell,
    leases, unknown,
};
use crate::{
    identity::RequestId,
    proto::storage::{self, KeyPhase},
    requests::{
        append,
        error::Error,
        fold::{
            event::{self, Kind, Once},
            order::{self, OrderOutcome},
        },
    },
    store::{CellName, LogName, StoreError},
    telemetry::causes,
    thingspace::{self, Order, OrderPermit, Retries},
};

/// The pause between attempts to store a result.
const RETRY: Duration = Duration::from_millis(500);

/// Sends the answer to the caller, who may be gone.
type AnswerSender = oneshot::Sender<Result<Placed, Error>>;

/// An order that has a permit, or is being sent.
pub(super) struct Sending {
    pub(super) order: Order,
    /// The name of the caller.
    pub(super) caller: String,
    pub(super) order_id: String,
    pub(super) cell: CellName,
    /// The content of the key's cell before the claim.
    pub(super) before: Option<KeyCell>,
    pub(super) hash: Vec<u8>,
    /// The claimed key; `None` before the claim.
    pub(super) key: Option<KeyCell>,
    pub(super) sent_time: Timestamp,
    /// Until when the order may be sent again if no byte of it was sent.
    pub(super) retry_until: Instant,
    /// The order is not sent after this, because its lease will expire.
    pub(super) send_by: Instant,
    /// Released early if the result cannot be stored, so that a repeated call gets an answer.
    pub(super) key_lock: Option<OwnedMutexGuard<()>>,
    pub(super) _in_flight: InFlight,
}

impl Sending {
    fn ordered(&self) -> storage::Ordered {
        storage::Ordered {
            account: self.order.account.to_string(),
            service_plan: self.order.service_plan.clone(),
            devices: self.order.devices.iter().map(event::to_stored).collect(),
            key_cell: self.cell.name.clone(),
            caller: self.caller.clone(),
        }
    }
}

/// The result of sending an order, to be stored.
pub(super) enum SendResult {
    AcceptedAs(RequestId),
    Refused(storage::Refused),
    NotSent,
    Unknown,
}

impl Orders {
    pub(super) async fn send_and_store(
        &self,
        mut sending: Sending,
        permit: OrderPermit,
        answer: AnswerSender,
    ) {
        if let Err(error) = self.append_ordered(&sending).await {
            let may_be_stored = matches!(error, StoreError::UnknownOutcome(_));
            let _ = answer.send(Err(error.into()));
            counts::count(&sending.order.account, &SendResult::NotSent);
            if may_be_stored {
                self.append_not_sent(sending).await;
            }
            return;
        }
        let (result, outcome) = match self.claim(&sending).await {
            Ok(Some(key)) => {
                sending.key = Some(key);
                let sent = self.send(&sending, permit).await;
                if let Ok(request) = &sent {
                    causes::set(request);
                }
                send_result(&sending, sent)
            }
            // Another replica has claimed the key first.
            Ok(None) => not_sent(Error::OrderInProgress),
            // The claim may have been stored nevertheless.
            Err(error) => not_sent(error.into()),
        };
        counts::count(&sending.order.account, &result);
        let (answer, is_own_request) =
            self.store_until_stored(&mut sending, &result, &outcome, answer).await;
        let outcome = if is_own_request {
            outcome
        } else {
            Err(unknown(&sending.order_id, sending.sent_time, None))
        };
        if let Err(Error::Refused(refusal)) = &outcome {
            self.refusals.remember(&sending.cell.name, &sending.hash, refusal);
        }
        // Dropped before the answer, so that the next call finds the key unlocked.
        drop(sending);
        if outcome.is_err() {
            // A callback for the order may have arrived while it was in flight.
            self.hub.wake_resolver();
        }
        if let Some(answer) = answer {
            let _ = answer.send(outcome);
        }
    }

    /// Makes the order durable, before its key is claimed and before anything is sent.
    async fn append_ordered(&self, sending: &Sending) -> Result<(), StoreError> {
        let (log, id) = (LogName::order(&sending.order_id), Once::Ordered.id(&sending.order_id));
        append(&*self.store, &log, None, id, Kind::Ordered(sending.ordered())).await.map(drop)
    }

    /// Stores `NotSent` for an order whose `Ordered` may be in the store. Without an outcome, the
    /// order would stay in memory for days, and every start would read all events since then.
    async fn append_not_sent(&self, mut sending: Sending) {
        sending.key_lock = None;
        // The drain does not wait for this.
        while !self.tasks.is_closed() {
            tokio::time::sleep(RETRY).await;
            let appended = async {
                // `Ordered` comes first, so that it cannot be stored after the outcome.
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

    async fn claim(&self, sending: &Sending) -> Result<Option<KeyCell>, StoreError> {
        let lease = leases::lease(self.order_timeout);
        let claim = storage::Key {
            order_id: sending.order_id.clone(),
            request_hash: sending.hash.clone(),
            incarnation: self.incarnation.clone(),
            sent_time_ms: sending.sent_time.as_millisecond(),
            lease_ms: u32::try_from(lease.as_millis()).unwrap_or(u32::MAX),
            ..storage::Key::default()
        };
        KeyCell::claim(&*self.store, &sending.cell, sending.before.as_ref(), claim).await
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
            // No byte was sent, so another try cannot order twice.
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
            permit = tokio::time::timeout_at(by, prepared).await.map_err(|_| error)??;
        }
    }

    /// Stores the result of an order, and repeats that until it succeeds. Returns the caller's
    /// channel, unless the caller was answered before, and the result of [`Self::store`].
    async fn store_until_stored(
        &self,
        sending: &mut Sending,
        result: &SendResult,
        outcome: &Result<Placed, Error>,
        answer: AnswerSender,
    ) -> (Option<AnswerSender>, bool) {
        let mut answer = Some(answer);
        loop {
            let error = match self.store(sending, result).await {
                Ok(is_own_request) => return (answer, is_own_request),
                Err(error) => error,
            };
            if let Some(answer) = answer.take() {
                let early_outcome = match result {
                    SendResult::AcceptedAs(request_id) => {
                        let ordered = sending.ordered();
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
                    "the result of an order cannot be stored yet; trying again: repair the store \
                     before you stop this process, or the outcome becomes unknown"
                );
                let _ = answer.send(early_outcome);
                sending.key_lock = None;
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Stores the result of an order. Returns false if the answered request cannot be the order's.
    /// Then the outcome is unknown.
    async fn store(&self, sending: &Sending, result: &SendResult) -> Result<bool, StoreError> {
        let (order_id, log) = (&sending.order_id, LogName::order(&sending.order_id));
        let ordered = sending.ordered();
        let logged = LoggedOrder { id: order_id, ordered: &ordered, settled: None };
        match result {
            SendResult::AcceptedAs(request_id) => {
                let ownership = self.hub.ownership(request_id, Some(&ordered)).await?;
                let mismatch = match ownership.mismatch(order_id) {
                    None => self.mismatch(logged, request_id).await?,
                    mismatch => mismatch,
                };
                if let Some(mismatch) = mismatch {
                    self.advance(sending, KeyPhase::Unknown, "").await?;
                    log_mismatch(logged, request_id, mismatch);
                    return Ok(false);
                }
                let accepted_as =
                    Kind::AcceptedAs(storage::AcceptedAs { request_id: request_id.to_string() });
                append(&*self.store, &log, None, Once::AcceptedAs.id(order_id), accepted_as)
                    .await?;
                if let Some(mismatch) = self.append_accepted(logged, request_id, ownership).await? {
                    self.withdraw(logged, request_id, mismatch).await?;
                    return Ok(false);
                }
                if !self.advance(sending, KeyPhase::Accepted, request_id.as_str()).await? {
                    // Another replica has changed the key: the lease had expired, or the replica
                    // has read the order's log.
                    let order = self.hub.order(order_id).await?;
                    log_contradiction(order_id, request_id, &order);
                    return self.finish(order_id, &order).await;
                }
            }
            SendResult::Refused(_) | SendResult::NotSent => {
                let event = match result {
                    SendResult::Refused(refused) => Kind::Refused(refused.clone()),
                    _ => Kind::NotSent(storage::NotSent {}),
                };
                append(&*self.store, &log, None, Once::NotPlaced.id(order_id), event).await?;
                if !self.advance(sending, KeyPhase::Released, "").await? {
                    self.set_key_phase(logged, KeyPhase::Released, "", false).await?;
                }
            }
            SendResult::Unknown => {
                self.advance(sending, KeyPhase::Unknown, "").await?;
            }
        }
        Ok(true)
    }

    /// Changes the phase of the claimed key. Returns false if the key was not claimed, or if
    /// another replica has changed it.
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

/// Logs that an order was settled as another request than ThingSpace answered.
fn log_contradiction(order_id: &str, request_id: &RequestId, order: &order::Order) {
    if let Some(settled) = order.former.iter().find(|former| *former != request_id) {
        error!(
            order.id = order_id,
            request.id = %request_id,
            %settled,
            "an order was settled as another request than ThingSpace answered; the answer replaces \
             the settlement"
        );
    } else if let Some(OrderOutcome::AcceptedAs(settled)) = &order.outcome
        && settled != request_id
    {
        error!(
            order.id = order_id,
            request.id = %request_id,
            %settled,
            "an order was settled as another request than ThingSpace answered, and the settlement \
             is kept: compare both requests in ThingSpace"
        );
    }
}

/// Returns what to store about ThingSpace's answer, and the answer to the caller.
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
