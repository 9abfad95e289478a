//! The events of logs: their ids, their encoding and their size limit.
//!
//! An event that may be written twice, after a crash or by two replicas, has an id that is derived
//! from its content. So the store keeps it once.

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

pub use crate::proto::storage::event::Kind;
use crate::{
    identity::{Device, Digits, RequestId},
    proto::storage::{self, Event},
    store::Position,
    thingspace::StatusClass,
};

/// The version of the folding rules for new request logs. Version 2 was never written.
pub(crate) const RULES: u32 = 4;

/// Earlier versions. Since version 3, a missing ICCID is filled in. Since version 4, a callback
/// without a known identifier applies to the only device of a request.
pub(crate) const FIRST_RULES: u32 = 1;
pub(crate) const ICCID_RULES: u32 = 3;

/// The version of the folding rules for order logs.
pub(crate) const ORDER_RULES: u32 = 1;

/// The maximum number of devices in one `Observed`. At about 100 bytes each, the event stays below
/// [`crate::store::MAX_EVENT_BYTES`].
pub(crate) const MAX_OBSERVED_DEVICES: usize = 8_000;

/// An event that exists at most once per order.
#[derive(Debug, Clone, Copy)]
pub enum Once {
    /// The first event of the order's log.
    Ordered,
    /// `Refused` or `NotSent`, in the order's log. `AcceptedAs` overrides it.
    NotPlaced,
    /// ThingSpace's answer, in the order's log.
    AcceptedAs,
    /// The same answer, in the request's log.
    Accepted,
}

impl Once {
    /// Returns the id of the event.
    pub fn id(self, order_id: &str) -> Uuid {
        let name = match self {
            Self::Ordered => "ordered",
            Self::NotPlaced => "not-placed",
            Self::AcceptedAs => "accepted-as",
            Self::Accepted => "accepted",
        };
        name_id(&format!("{order_id}/{name}"))
    }
}

/// Returns the id of the event that assigns a request to an order. A settlement at `settled` has an
/// id of its own, because an earlier acceptance may have been withdrawn.
pub(crate) fn accepted_id(order_id: &str, settled: Option<Position>) -> Uuid {
    match settled {
        None => Once::Accepted.id(order_id),
        Some(at) => name_id(&format!("{order_id}/accepted/{}", at.sequence)),
    }
}

/// Returns the id of the event that settles an order by evidence.
pub(crate) fn evidence_id(order_id: &str, request: &RequestId) -> Uuid {
    name_id(&format!("{order_id}/evidence/{request}"))
}

/// Returns the id of the event that withdraws an acceptance. `settled` is the position of the
/// order's settlement, if it has one.
pub(crate) fn withdrawn_id(order_id: &str, request: &RequestId, settled: Option<Position>) -> Uuid {
    let settled = settled.map_or(0, |at| at.sequence);
    name_id(&format!("{order_id}/withdrawn/{request}/{settled}"))
}

/// Returns the id of the event that removes an order's devices from a request that another order
/// placed. The order's own log has an event with the id [`withdrawn_id`]. The ids differ, because a
/// store may keep an id only once in all logs.
pub(crate) fn given_back_id(
    order_id: &str,
    request: &RequestId,
    settled: Option<Position>,
) -> Uuid {
    let settled = settled.map_or(0, |at| at.sequence);
    name_id(&format!("{order_id}/given-back/{request}/{settled}"))
}

/// Returns the id of the event that ends the polls of a request.
pub(crate) fn abandoned_id(request: &RequestId) -> Uuid {
    name_id(&format!("{request}/abandoned"))
}

fn name_id(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

fn content_id(name: &str, content: &impl Message) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &[name.as_bytes(), &content.encode_to_vec()].concat())
}

/// Returns the id of a callback's event. Equal callbacks are one event.
pub(crate) fn called_back_id(request: &RequestId, called_back: &storage::CalledBack) -> Uuid {
    content_id(&format!("{request}/called-back/"), called_back)
}

/// Returns the id of an answer's event. Equal answers are one event if the request was folded up to
/// the same position.
pub(crate) fn observed_id(request: &RequestId, at: Position, observed: &storage::Observed) -> Uuid {
    content_id(&format!("{request}/observed/{}/{}/", at.epoch, at.sequence), observed)
}

/// Encodes an event. `first` is the first position of its log, if the writer knows it.
pub fn encode(kind: Kind, first: Option<Position>) -> Bytes {
    let rules = match kind {
        Kind::Ordered(_)
        | Kind::Refused(_)
        | Kind::NotSent(_)
        | Kind::AcceptedAs(_)
        | Kind::Settled(_) => ORDER_RULES,
        Kind::Accepted(_)
        | Kind::Observed(_)
        | Kind::CalledBack(_)
        | Kind::Abandoned(_)
        | Kind::Withdrawn(_) => RULES,
    };
    let first_sequence = first.map_or(0, |first| first.sequence);
    Event { rules, kind: Some(kind), first_sequence }.encode_to_vec().into()
}

/// Decodes an event. The event has no kind if only a newer version of the gateway knows its kind.
pub fn decode(bytes: &[u8]) -> Option<Event> {
    Event::decode(bytes).ok()
}

/// Converts the identifiers of a device to their stored form, with all digits.
pub fn to_stored(device: &Device) -> storage::Device {
    let text = |digits: &Digits| digits.as_str().to_owned();
    storage::Device {
        eid: text(&device.eid),
        iccid: text(&device.iccid),
        imei: text(&device.imei),
        mdn: text(&device.mdn),
    }
}

/// Converts the stored identifiers of a device.
pub fn from_stored(device: &storage::Device) -> Device {
    Device {
        eid: Digits::new(&device.eid),
        iccid: Digits::new(&device.iccid),
        imei: Digits::new(&device.imei),
        mdn: Digits::new(&device.mdn),
    }
}

pub(crate) fn class_to_stored(class: StatusClass) -> storage::StatusClass {
    match class {
        StatusClass::Pending => storage::StatusClass::Pending,
        StatusClass::Waiting => storage::StatusClass::Waiting,
        StatusClass::Succeeded => storage::StatusClass::Succeeded,
        StatusClass::Failed => storage::StatusClass::Failed,
        StatusClass::Unknown => storage::StatusClass::Unspecified,
    }
}

pub(crate) fn class_from_stored(class: i32) -> StatusClass {
    match storage::StatusClass::try_from(class) {
        Ok(storage::StatusClass::Pending) => StatusClass::Pending,
        Ok(storage::StatusClass::Waiting) => StatusClass::Waiting,
        Ok(storage::StatusClass::Succeeded) => StatusClass::Succeeded,
        Ok(storage::StatusClass::Failed) => StatusClass::Failed,
        Ok(storage::StatusClass::Unspecified) | Err(_) => StatusClass::Unknown,
    }
}
