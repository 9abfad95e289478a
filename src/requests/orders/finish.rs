//! Completes the outcome of an order in its request and its key, and withdraws a wrong acceptance.
//!
//! A request belongs to the first order whose `Accepted` is in its log, or in the log of an id that
//! differs only in case. If ThingSpace answers another order with the same id, or with the id of a
//! request that has other devices, the outcome of that order is unknown.

use tracing::error;
use uuid::Uuid;

use super::Orders;
use super::key::KeyCell;
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

impl Orders {
    /// Writes the outcome of an order to its request and its key. False: the request belongs to
    /// another order, and the acceptance was withdrawn.
    pub(in crate::requests) async fn finish(
        &self,
        order_id: &str,
        order: &Order,
    ) -> Result<bool, StoreError> {
        let (Some(ordered), Some(outcome)) = (&order.ordered, &order.outcome) else {
            return Ok(true);
        };
        for former in &order.former {
            let id = event::withdrawn_id(order_id, former, order.settled);
            self.remove_from_request(order_id, former, id).await?;
        }
        let corrects = !order.former.is_empty();
        match outcome {
            OrderOutcome::NotPlaced => {
                self.move_key(order_id, ordered, KeyPhase::Released, "", corrects).await?;
            }
            OrderOutcome::AcceptedAs(request) => {
                let settled = order.settled;
                let ownership = self.hub.ownership(request, Some(ordered)).await?;
                let mismatch =
                    self.append_accepted(order_id, ordered, request, ownership, settled).await?;
                if let Some(mismatch) = mismatch {
                    self.withdraw(order_id, ordered, request, settled, mismatch).await?;
                    return Ok(false);
                }
                self.move_key(order_id, ordered, KeyPhase::Accepted, request.as_str(), corrects)
                    .await?;
            }
        }
        Ok(true)
    }

    /// Returns why a request with the answered id, in any case, cannot belong to an order.
    pub(super) async fn mismatch(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        request: &RequestId,
    ) -> Result<Option<Mismatch>, StoreError> {
        for spelling in self.hub.other_spellings(request).await? {
            let other = self.hub.ownership(&spelling, Some(ordered)).await?;
            if let Some(mismatch) = other.mismatch(order_id) {
                return Ok(Some(mismatch));
            }
        }
        Ok(None)
    }

    /// Assigns a request to an order, or returns why it does not belong to it. A settlement may
    /// contradict what is known of the request.
    pub(super) async fn append_accepted(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        request: &RequestId,
        ownership: Ownership,
        settled: Option<Position>,
    ) -> Result<Option<Mismatch>, StoreError> {
        let mismatch = ownership.mismatch(order_id);
        if ownership.order_id.is_some() && mismatch.is_none() {
            return self.earlier_owner(order_id, ordered, request, settled).await;
        }
        if ownership.order_id.is_some() || settled.is_none() && ownership.contradicts {
            return Ok(mismatch);
        }
        let accepted = Kind::Accepted(storage::Accepted {
            order_id: order_id.to_owned(),
            account: ordered.account.clone(),
            service_plan: ordered.service_plan.clone(),
            devices: ordered.devices.clone(),
        });
        let (log, id) = (LogName::request(request.as_str()), event::accepted_id(order_id, settled));
        let position = append(&*self.store, &log, ownership.first, id, accepted).await?;
        self.hub.folded(position).await;
        // Another replica may have assigned another order first.
        match self.hub.ownership(request, None).await?.mismatch(order_id) {
            None => self.earlier_owner(order_id, ordered, request, settled).await,
            mismatch => Ok(mismatch),
        }
    }

    /// Returns why a stored acceptance must be withdrawn: another order has stored a request id
    /// before that differs only in case. Two orders that are answered at the same time see each
    /// other only here.
    ///
    /// Earlier callbacks with another spelling are added to the request.
    async fn earlier_owner(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        request: &RequestId,
        settled: Option<Position>,
    ) -> Result<Option<Mismatch>, StoreError> {
        let own = self.hub.ownership(request, None).await?;
        let own = own.accepted.filter(|_| own.order_id.as_deref() == Some(order_id));
        for spelling in self.hub.other_spellings(request).await? {
            let other = self.hub.ownership(&spelling, Some(ordered)).await?;
            let Some(owner) = other.order_id else {
                self.hub
                    .add_spelling_variant(SpellingVariant { from: spelling, to: request.clone() });
                self.hub.wake_resolver();
                continue;
            };
            // For a settlement, a request with other devices is another request.
            let is_same = settled.is_none() || !other.contradicts;
            let is_earlier = own.is_none_or(|own| other.accepted.is_some_and(|other| other < own));
            if owner != order_id && is_same && is_earlier {
                return Ok(Some(OWNED_BY_ANOTHER_ORDER));
            }
        }
        Ok(None)
    }

    /// Withdraws the acceptance of an order as a request that belongs to another one.
    pub(super) async fn withdraw(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        request: &RequestId,
        settled: Option<Position>,
        mismatch: Mismatch,
    ) -> Result<(), StoreError> {
        // First, because `finish` ignores an order without an outcome.
        self.remove_from_request(
            order_id,
            request,
            event::given_back_id(order_id, request, settled),
        )
        .await?;
        let id = event::withdrawn_id(order_id, request, settled);
        let log = LogName::order(order_id);
        let position = append(&*self.store, &log, None, id, withdrawn(order_id, request)).await?;
        self.move_key(order_id, ordered, KeyPhase::Unknown, "", true).await?;
        log_not_its_own(order_id, &ordered.account, request, mismatch);
        self.hub.folded(position).await;
        Ok(())
    }

    /// Removes an order's devices from a request.
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
            self.hub.folded(position).await;
        }
        Ok(())
    }

    /// Changes the phase of an order's key, unless the key belongs to another order. An accepted
    /// key is only changed to correct it: an acceptance overrides "not placed".
    pub(super) async fn move_key(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        phase: KeyPhase,
        request_id: &str,
        corrects: bool,
    ) -> Result<(), StoreError> {
        let cell = CellName::retained(ordered.key_cell.clone());
        if let Some(key) =
            KeyCell::load(&*self.store, &cell).await?.filter(|key| key.order_id() == order_id)
            && (key.phase(), key.request_id()) != (phase, request_id)
            && (key.phase() != KeyPhase::Accepted || corrects)
        {
            // After a conflict, another replica has read the order's log and written the same.
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

/// Logs that an order was answered with the id of a request that belongs to another one.
pub(super) fn log_not_its_own(
    order_id: &str,
    account: &str,
    request: &RequestId,
    mismatch: Mismatch,
) {
    error!(
        order.id = order_id,
        account,
        request.id = %request,
        "ThingSpace answered an order with a request id that cannot be the order's: {mismatch}; \
         its outcome is unknown and it is not sent again: look it up in ThingSpace, then run \
         `thingspace-gateway orders settle`"
    );
}
