//! Telling an order's request and key what became of it, and taking back an acceptance that turns out to be wrong.
//!
//! A request belongs to the first order whose `Accepted` is in its log. An order that was answered with the id of another
//! order's request has an unknown outcome: its devices are not that request's.

use tracing::error;

use super::Orders;
use crate::{
    identity::RequestId,
    proto::storage::{self, KeyPhase},
    requests::{
        append,
        event::{self, Kind},
        hub::Beginning,
        key::Key,
        order::{Order, Outcome},
    },
    store::{CellName, LogName, Position, StoreError},
};

impl Orders {
    /// Tells request and key what became of an order, as its log says. False: the request belongs to another order, and the
    /// acceptance was withdrawn.
    pub(in crate::requests) async fn finish(
        &self,
        order_id: &str,
        order: &Order,
    ) -> Result<bool, StoreError> {
        let (Some(ordered), Some(outcome)) = (&order.ordered, &order.outcome) else { return Ok(true) };
        for former in &order.former {
            self.disown(order_id, former, order.settled).await?;
        }
        let corrects = !order.former.is_empty();
        match outcome {
            Outcome::NotPlaced => self.move_key(order_id, ordered, KeyPhase::Released, "", corrects).await?,
            Outcome::AcceptedAs(request) => {
                let beginning = self.hub.beginning(request).await?;
                if !self.append_accepted(order_id, ordered, request, beginning, order.settled).await? {
                    self.withdraw(order_id, ordered, request, order.settled).await?;
                    return Ok(false);
                }
                self.move_key(order_id, ordered, KeyPhase::Accepted, request.as_str(), corrects).await?;
            }
        }
        Ok(true)
    }

    /// Makes a request an order's. False: it belongs to another order.
    pub(super) async fn append_accepted(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        request: &RequestId,
        beginning: Beginning,
        settled: Option<Position>,
    ) -> Result<bool, StoreError> {
        if let Some(owner) = beginning.order_id {
            return Ok(owner == order_id);
        }
        let accepted = Kind::Accepted(storage::Accepted {
            order_id: order_id.to_owned(),
            account: ordered.account.clone(),
            service_plan: ordered.service_plan.clone(),
            devices: ordered.devices.clone(),
        });
        let (log, id) = (LogName::request(request.as_str()), event::accepted_id(order_id, settled));
        let position = append(&*self.store, &log, beginning.first, id, accepted).await?;
        self.hub.folded(position).await;
        // Another replica may have been first with another order.
        let owner = self.hub.beginning(request).await?.order_id;
        Ok(owner.is_none_or(|owner| owner == order_id))
    }

    /// Takes back that an order was accepted as a request that belongs to another order.
    pub(super) async fn withdraw(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        request: &RequestId,
        settled: Option<Position>,
    ) -> Result<(), StoreError> {
        let id = event::withdrawn_id(order_id, request, settled);
        let log = LogName::order(order_id);
        let position = append(&*self.store, &log, None, id, withdrawn(order_id, request)).await?;
        self.move_key(order_id, ordered, KeyPhase::Unknown, "", true).await?;
        say_duplicate_id(order_id, &ordered.account, request);
        self.hub.folded(position).await;
        Ok(())
    }

    /// Takes an order's devices out of a request that it was settled as by mistake.
    async fn disown(
        &self,
        order_id: &str,
        request: &RequestId,
        settled: Option<Position>,
    ) -> Result<(), StoreError> {
        let Beginning { first, order_id: owner } = self.hub.beginning(request).await?;
        if owner.as_deref() == Some(order_id) {
            let (log, id) =
                (LogName::request(request.as_str()), event::withdrawn_id(order_id, request, settled));
            let position = append(&*self.store, &log, first, id, withdrawn(order_id, request)).await?;
            self.hub.folded(position).await;
        }
        Ok(())
    }

    /// Moves an order's key on, unless it stands for another order by now. A key that leads to a request is only moved to
    /// correct that: an acceptance beats every conclusion that the order was not placed.
    pub(super) async fn move_key(
        &self,
        order_id: &str,
        ordered: &storage::Ordered,
        phase: KeyPhase,
        request_id: &str,
        corrects: bool,
    ) -> Result<(), StoreError> {
        let cell = CellName::retained(ordered.key_cell.clone());
        if let Some(key) = Key::load(&*self.store, &cell).await?.filter(|key| key.order_id() == order_id)
            && (key.phase(), key.request_id()) != (phase, request_id)
            && (key.phase() != KeyPhase::Accepted || corrects)
        {
            // A conflict means that somebody has read the order's log and said the same.
            key.advance(&*self.store, &cell, phase, request_id).await?;
        }
        Ok(())
    }
}

fn withdrawn(order_id: &str, request: &RequestId) -> Kind {
    Kind::Withdrawn(storage::Withdrawn { order_id: order_id.to_owned(), request_id: request.to_string() })
}

/// Reports an order that was accepted under the id of another order's request.
pub(super) fn say_duplicate_id(order_id: &str, account: &str, request: &RequestId) {
    error!(
        order.id = order_id,
        account,
        request.id = %request,
        "an order was accepted as a request that belongs to another order; its outcome is unknown and it is not sent again: \
         look it up in ThingSpace, then run `thingspace-gateway orders settle`"
    );
}
