//! Completes the outcome of an order in its request and its key, and withdraws a wrong acceptance.
//!
//! A request belongs to the first order whose `Accepted` is in its log, or in the log of an id that
//! differs only in case. If ThingSpace answers another order with the same id, or with the id of a
//! request that has other devices, the outcome of that order is unknown.

use tracing::error;
use uuid::Uuid;

use super::{Orders, key::KeyCell};
use crate::{
    identity::RequestId,
    proto::storage::{self, KeyPhase},
    requests::{
        append,
        fold::{
            event::{self, Kind},
            order::{Order, OrderOutcome},
        },
        hub::{Mismatch, OWNED_BY_ANOTHER_ORDER, Ownership, SpellingVariant},
    },
    store::{CellName, LogName, Position, StoreError},
};

/// An order whose `Ordered` is in its log.
#[derive(Debug, Clone, Copy)]
pub(super) struct LoggedOrder<'a> {
    pub(super) id: &'a str,
    pub(super) ordered: &'a storage::Ordered,
    /// The position of the settlement that decided the outcome; `None` for ThingSpace's answer.
    pub(super) settled: Option<Position>,
}

impl Orders {
    /// Writes the outcome of an order to its request and its key. Returns false if the acceptance
    /// was withdrawn, because the request belongs to another order.
    pub(in crate::requests) async fn finish(
        &self,
        order_id: &str,
        order: &Order,
    ) -> Result<bool, StoreError> {
        let (Some(ordered), Some(outcome)) = (&order.ordered, &order.outcome) else {
            return Ok(true);
        };
        let logged = LoggedOrder { id: order_id, ordered, settled: order.settled };
        for former in &order.former {
            let id = event::withdrawn_id(order_id, former, order.settled);
            self.remove_from_request(order_id, former, id).await?;
        }
        let corrects = !order.former.is_empty();
        match outcome {
            OrderOutcome::NotPlaced => {
                self.set_key_phase(logged, KeyPhase::Released, "", corrects).await?;
            }
            OrderOutcome::AcceptedAs(request) => {
                let ownership = self.hub.ownership(request, Some(ordered)).await?;
                if let Some(mismatch) = self.append_accepted(logged, request, ownership).await? {
                    self.withdraw(logged, request, mismatch).await?;
                    return Ok(false);
                }
                self.set_key_phase(logged, KeyPhase::Accepted, request.as_str(), corrects).await?;
            }
        }
        Ok(true)
    }

    /// Returns why a request cannot belong to an order, judged by the logs of its id in another
    /// case.
    pub(super) async fn mismatch(
        &self,
        order: LoggedOrder<'_>,
        request: &RequestId,
    ) -> Result<Option<Mismatch>, StoreError> {
        for spelling in self.hub.other_spellings(request).await? {
            let other = self.hub.ownership(&spelling, Some(order.ordered)).await?;
            if let Some(mismatch) = other.mismatch(order.id) {
                return Ok(Some(mismatch));
            }
        }
        Ok(None)
    }

    /// Assigns a request to an order, or returns why it does not belong to it. A settlement may
    /// contradict what is known about the request.
    pub(super) async fn append_accepted(
        &self,
        order: LoggedOrder<'_>,
        request: &RequestId,
        ownership: Ownership,
    ) -> Result<Option<Mismatch>, StoreError> {
        let LoggedOrder { id: order_id, ordered, settled } = order;
        let mismatch = ownership.mismatch(order_id);
        if ownership.order_id.is_some() && mismatch.is_none() {
            return self.earlier_owner(order, request).await;
        }
        if ownership.order_id.is_some() || settled.is_none() && ownership.contradicts {
            return Ok(mismatch);
        }
        let accepted = Kind::Accepted(storage::Accepted {
            order_id: order_id.to_owned(),
            account: ordered.account.clone(),
            service_plan: ordered.service_plan.clone(),
            devices: ordered.devices.clone(),
            caller: ordered.caller.clone(),
        });
        let (log, id) = (LogName::request(request.as_str()), event::accepted_id(order_id, settled));
        let position = append(&*self.store, &log, ownership.first, id, accepted).await?;
        self.hub.wait_until_folded(position).await;
        // Another replica may have assigned another order first.
        match self.hub.ownership(request, None).await?.mismatch(order_id) {
            None => self.earlier_owner(order, request).await,
            mismatch => Ok(mismatch),
        }
    }

    /// Returns why a stored acceptance must be withdrawn: another order was accepted earlier with
    /// the same id in another case. Only this check finds two orders that are answered at the same
    /// time.
    ///
    /// Also asks the resolver to copy earlier callbacks under another spelling to the request.
    async fn earlier_owner(
        &self,
        order: LoggedOrder<'_>,
        request: &RequestId,
    ) -> Result<Option<Mismatch>, StoreError> {
        let own = self.hub.ownership(request, None).await?;
        let own = own.accepted.filter(|_| own.order_id.as_deref() == Some(order.id));
        for spelling in self.hub.other_spellings(request).await? {
            let other = self.hub.ownership(&spelling, Some(order.ordered)).await?;
            let Some(owner) = other.order_id else {
                self.hub
                    .add_spelling_variant(SpellingVariant { from: spelling, to: request.clone() });
                self.hub.wake_resolver();
                continue;
            };
            // For a settlement, a request with other devices is another request.
            let is_same = order.settled.is_none() || !other.contradicts;
            let is_earlier = own.is_none_or(|own| other.accepted.is_some_and(|other| other < own));
            if owner != order.id && is_same && is_earlier {
                return Ok(Some(OWNED_BY_ANOTHER_ORDER));
            }
        }
        Ok(None)
    }

    /// Withdraws that an order was accepted as a request that cannot be its own.
    pub(super) async fn withdraw(
        &self,
        order: LoggedOrder<'_>,
        request: &RequestId,
        mismatch: Mismatch,
    ) -> Result<(), StoreError> {
        let LoggedOrder { id: order_id, settled, .. } = order;
        // The request comes first. When the order has no outcome any more, `finish` ignores it.
        let id = event::given_back_id(order_id, request, settled);
        self.remove_from_request(order_id, request, id).await?;
        let id = event::withdrawn_id(order_id, request, settled);
        let log = LogName::order(order_id);
        let position = append(&*self.store, &log, None, id, withdrawn(order_id, request)).await?;
        self.set_key_phase(order, KeyPhase::Unknown, "", true).await?;
        log_mismatch(order, request, mismatch);
        self.hub.wait_until_folded(position).await;
        Ok(())
    }

    async fn remove_from_request(
        &self,
        order_id: &str,
        request: &RequestId,
        id: Uuid,
    ) -> Result<(), StoreError> {
        let Ownership { first, order_id: owner, .. } = self.hub.ownership(request, None).await?;
        if owner.as_deref() == Some(order_id) {
            let log = LogName::request(request.as_str());
            let position =
                append(&*self.store, &log, first, id, withdrawn(order_id, request)).await?;
            self.hub.wait_until_folded(position).await;
        }
        Ok(())
    }

    /// Changes the phase of an order's key, unless the key belongs to another order. An accepted
    /// key is only changed to correct it: an acceptance overrides "not placed".
    pub(super) async fn set_key_phase(
        &self,
        order: LoggedOrder<'_>,
        phase: KeyPhase,
        request_id: &str,
        corrects: bool,
    ) -> Result<(), StoreError> {
        let cell = CellName::retained(order.ordered.key_cell.clone());
        if let Some(key) = KeyCell::load(&*self.store, &cell).await?
            && key.order_id == order.id
            && (key.phase(), &*key.request_id) != (phase, request_id)
            && (key.phase() != KeyPhase::Accepted || corrects)
        {
            // On a conflict, another replica has read the order's log and written the same.
            key.advance(&*self.store, &cell, phase, request_id).await?;
        }
        Ok(())
    }
}

fn withdrawn(order_id: &str, request: &RequestId) -> Kind {
    Kind::Withdrawn(storage::Withdrawn {
        order_id: order_id.to_owned(),
        request_id: request.to_string(),
    })
}

/// Logs that ThingSpace answered an order with the id of a request that cannot be its own.
pub(super) fn log_mismatch(order: LoggedOrder<'_>, request: &RequestId, mismatch: Mismatch) {
    error!(
        order.id = order.id,
        account = order.ordered.account,
        request.id = %request,
        "ThingSpace answered an order with a request id that cannot be the order's: {mismatch}; \
         its outcome is unknown and it is not sent again: look it up in ThingSpace, then run \
         `thingspace-gateway orders settle`"
    );
}
