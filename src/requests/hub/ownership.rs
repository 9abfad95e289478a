//! Tells which order a request belongs to, and whether it can belong to a given order.

use super::Hub;
use crate::{
    identity::{Device, RequestId},
    proto::storage,
    requests::fold::{event, state::Request},
    store::{LogName, Position, StoreError},
};

/// Why a request cannot be the one that ThingSpace created for an order.
pub(crate) type Mismatch = &'static str;

pub(crate) const OWNED_BY_ANOTHER_ORDER: Mismatch = "the request belongs to another order";

/// The order that a request belongs to, and the comparison of the request with a given order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ownership {
    /// The first position of the request's log. `None`: there is no log yet, or its beginning is
    /// lost.
    pub(crate) first: Option<Position>,
    /// The order that the request belongs to.
    pub(crate) order_id: Option<String>,
    /// The position at which that order was accepted as the request.
    pub(crate) accepted: Option<Position>,
    /// The request has another account or other devices than the order.
    pub(crate) contradicts: bool,
}

impl Ownership {
    fn of(request: &Request, ordered: Option<&storage::Ordered>) -> Self {
        let contradicts = |ordered: &storage::Ordered| {
            let devices: Vec<Device> = ordered.devices.iter().map(event::from_stored).collect();
            request.contradicts(&ordered.account, &devices)
        };
        Self {
            first: request.beginning(),
            order_id: request.order_id.clone(),
            accepted: request.accepted,
            contradicts: ordered.is_some_and(contradicts),
        }
    }

    /// Returns why the request does not belong to this order.
    pub(crate) fn mismatch(&self, order_id: &str) -> Option<Mismatch> {
        match &self.order_id {
            Some(owner) if owner == order_id => None,
            Some(_) => Some(OWNED_BY_ANOTHER_ORDER),
            None if self.contradicts => {
                Some("the request is known with another account or other devices")
            }
            None => None,
        }
    }
}

impl Hub {
    /// Returns why a request does not belong to an order, judged by the requests in memory.
    pub(crate) fn mismatch(
        &self,
        id: &RequestId,
        order_id: &str,
        ordered: &storage::Ordered,
    ) -> Option<Mismatch> {
        let tracked = self.get(&self.spelling_in_memory(id)?)?;
        Ownership::of(&tracked.lock().request, Some(ordered)).mismatch(order_id)
    }

    /// Compares a request with an order. Reads the request's log, unless the request is in memory
    /// and belongs to an order.
    pub(crate) async fn ownership(
        &self,
        id: &RequestId,
        ordered: Option<&storage::Ordered>,
    ) -> Result<Ownership, StoreError> {
        if let Some(tracked) = self.get(id) {
            let request = &tracked.lock().request;
            if request.order_id.is_some() {
                return Ok(Ownership::of(request, ordered));
            }
        }
        Ok(Ownership::of(&self.stored_request(id).await?, ordered))
    }

    /// Folds a request from its log, also if it is in memory.
    pub(super) async fn stored_request(&self, id: &RequestId) -> Result<Request, StoreError> {
        let mut request = Request::default();
        self.read_events(&LogName::request(id.as_str()), |entry, event| {
            request.apply(entry.position, entry.time, &event);
        })
        .await?;
        Ok(request)
    }
}
