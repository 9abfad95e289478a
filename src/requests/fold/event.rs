//! The events of a log: how they are named, encoded, and kept below the store's bound.
//!
//! An event's id is derived from what it says wherever it may be written twice (after a crash, by
//! two replicas), so that the store keeps it once.

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

/// The rules of request logs that begin now. Number 2 was never written; a frozen fixture uses it
/// for unknown rules.
pub const RULES: u32 = 4;

/// The rules of earlier request logs. From number 3 on an ICCID that was missing is filled in, from
/// number 4 on a callback that names no device concerns the only one.
pub const FIRST_RULES: u32 = 1;
pub const ICCID_RULES: u32 = 3;

/// The rules of order logs.
pub const ORDER_RULES: u32 = 1;

/// The most devices that one `Observed` names: with all their identifiers, about 100 bytes each,
/// they stay below [`crate::store::MAX_EVENT_BYTES`].
pub const MAX_OBSERVED_DEVICES: usize = 8_000;

/// An event that exists once for an order, whoever writes it and however often.
#[derive(Debug, Clone, Copy)]
pub enum Once {
    Ordered,
    /// Refused, or never sent. Not the same event as `AcceptedAs`, which beats it.
    NotPlaced,
    AcceptedAs,
    Accepted,
}

impl Once {
    pub fn id(self, order_id: &str) -> Uuid {
        let name = match self {
            Self::Ordered => "ordered",
            Self::NotPlaced => "not-placed",
            Self::AcceptedAs => "accepted-as",
            Self::Accepted => "accepted",
        };
        named(&format!("{order_id}/{name}"))
    }
}

/// The id of the event that makes a request an order's. A settlement, at `settled`, may come after
/// an earlier acceptance was withdrawn, so its event is another one.
pub fn accepted_id(order_id: &str, settled: Option<Position>) -> Uuid {
    match settled {
        None => Once::Accepted.id(order_id),
        Some(at) => named(&format!("{order_id}/accepted/{}", at.sequence)),
    }
}

/// The id of the event that settles an order by evidence.
pub fn evidence_id(order_id: &str, request: &RequestId) -> Uuid {
    named(&format!("{order_id}/evidence/{request}"))
}

/// The id of the event that takes an acceptance back; `settled` is the position of the settlement
/// that corrects it.
pub fn withdrawn_id(order_id: &str, request: &RequestId, settled: Option<Position>) -> Uuid {
    let settled = settled.map_or(0, |at| at.sequence);
    named(&format!("{order_id}/withdrawn/{request}/{settled}"))
}

/// The id of the event that takes an order's devices out of a request that cannot be its own. Not
/// [`withdrawn_id`]: the order's log has that event, and a store may keep an id once for all logs.
pub fn given_back_id(order_id: &str, request: &RequestId, settled: Option<Position>) -> Uuid {
    let settled = settled.map_or(0, |at| at.sequence);
    named(&format!("{order_id}/given-back/{request}/{settled}"))
}

fn named(name: &str) -> Uuid {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes())
}

/// The id of a callback's event: what was said twice is one event.
pub fn called_back_id(request: &RequestId, called_back: &storage::CalledBack) -> Uuid {
    let name =
        [format!("{request}/called-back/").into_bytes(), called_back.encode_to_vec()].concat();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &name)
}

/// The id of an answer's event: what is heard twice while the request stands at the same position,
/// because this replica has not folded it yet, is one event.
pub fn observed_id(request: &RequestId, at: Position, observed: &storage::Observed) -> Uuid {
    let name = format!("{request}/observed/{}/{}/", at.epoch, at.sequence).into_bytes();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &[name, observed.encode_to_vec()].concat())
}

/// An event as it is stored. `first`: where its log begins, as far as the writer knows.
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

/// `None`: not an event. An event of a kind that a newer version writes decodes, with no kind.
pub fn decode(bytes: &[u8]) -> Option<Event> {
    Event::decode(bytes).ok()
}

pub fn to_stored(device: &Device) -> storage::Device {
    let text = |digits: &Digits| digits.as_str().to_owned();
    storage::Device {
        eid: text(&device.eid),
        iccid: text(&device.iccid),
        imei: text(&device.imei),
        mdn: text(&device.mdn),
    }
}

pub fn from_stored(device: &storage::Device) -> Device {
    Device {
        eid: Digits::new(&device.eid),
        iccid: Digits::new(&device.iccid),
        imei: Digits::new(&device.imei),
        mdn: Digits::new(&device.mdn),
    }
}

pub fn class_to_stored(class: StatusClass) -> storage::StatusClass {
    match class {
        StatusClass::Pending => storage::StatusClass::Pending,
        StatusClass::Waiting => storage::StatusClass::Waiting,
        StatusClass::Succeeded => storage::StatusClass::Succeeded,
        StatusClass::Failed => storage::StatusClass::Failed,
        StatusClass::Unknown => storage::StatusClass::Unspecified,
    }
}

pub fn class_from_stored(class: i32) -> StatusClass {
    match storage::StatusClass::try_from(class) {
        Ok(storage::StatusClass::Pending) => StatusClass::Pending,
        Ok(storage::StatusClass::Waiting) => StatusClass::Waiting,
        Ok(storage::StatusClass::Succeeded) => StatusClass::Succeeded,
        Ok(storage::StatusClass::Failed) => StatusClass::Failed,
        Ok(storage::StatusClass::Unspecified) | Err(_) => StatusClass::Unknown,
    }
}
