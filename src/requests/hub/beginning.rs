//! How the log of a request begins, and whether the request can be an order's.

use super::Hub;
use crate::{
    identity::{Device, RequestId},
    proto::storage,
    requests::fold::{event, state::Request},
    store::{LogName, Position, StoreError},
};

/// Why ThingSpace's answer to an order cannot name this request.
pub type Objection = &'static str;

/// A request belongs to one order only.
pub const OF_ANOTHER_ORDER: Objection = "the request belongs to another order";

/// How a request's log begins, and what it says about an order.
#[derive(Debug, Clone, Default)]
pub struct Beginning {
    /// Where; `None` if there is no log yet, or its beginning is lost.
    pub first: Option<Position>,
    /// The order that the request belongs to.
    pub order_id: Option<String>,
    /// The position of the acceptance by that order.
    pub accepted: Option<Position>,
    /// The request has another account or other devices than the order that it was compared with.
    pub contradicts: bool,
}

impl Beginning {
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

    /// Why the request is not this order's.
    pub fn objection(&self, order_id: &str) -> Option<Objection> {
        match &self.order_id {
            Some(owner) if owner == order_id => None,
            Some(_) => Some(OF_ANOTHER_ORDER),
            None if self.contradicts => {
                Some("the request is known with another account or other devices")
            }
            None => None,
        }
    }
}

impl Hub {
    /// Why a request is not an order's, as far as the requests in memory tell.
    pub fn objection(
        &self,
        id: &RequestId,
        order_id: &str,
        ordered: &storage::Ordered,
    ) -> Option<Objection> {
        let tracked = self.get(&self.spelling_in_memory(id)?)?;
        Beginning::of(&tracked.lock().request, Some(ordered)).objection(order_id)
    }

    /// How a request's log begins, and how the request compares to an order. The log is read,
    /// unless the request is in memory and belongs to an order.
    pub async fn beginning(
        &self,
        id: &RequestId,
        ordered: Option<&storage::Ordered>,
    ) -> Result<Beginning, StoreError> {
        if let Some(tracked) = self.get(id) {
            let request = &tracked.lock().request;
            if request.order_id.is_some() {
                return Ok(Beginning::of(request, ordered));
            }
        }
        Ok(Beginning::of(&self.stored_request(id).await?, ordered))
    }

    /// A request as its log in the store says, whether or not it is in memory.
    pub(super) async fn stored_request(&self, id: &RequestId) -> Result<Request, StoreError> {
        let mut request = Request::default();
        self.read_log(&LogName::request(id.as_str()), |entry| {
            if let Some(event) = event::decode(&entry.event) {
                request.apply(entry.position, entry.time, &event);
            }
        })
        .await?;
        Ok(request)
    }
}
