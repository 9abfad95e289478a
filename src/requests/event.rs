//! The events of a log: how they are named, encoded, and kept below the store's bound.
//!
//! An event's id is derived from what it says wherever it may be written twice (after a crash, by two replicas), so that
//! the store keeps it once.

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

pub use crate::proto::storage::event::Kind;
use crate::{
    identity::{Device, Digits, RequestId},
    proto::storage::{self, Event},
    thingspace::StatusClass,
};

/// The rules by which logs that begin now are folded.
pub const RULES: u32 = 1;

/// The most devices that one `Observed` names: with all their identifiers, about 100 bytes each, they stay below
/// [`crate::store::MAX_EVENT_BYTES`].
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
        Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{order_id}/{name}").as_bytes())
    }
}

/// The id of a callback's event: what was said twice is one event.
pub fn called_back_id(request: &RequestId, called_back: &storage::CalledBack) -> Uuid {
    let name = [format!("{request}/called-back/").into_bytes(), called_back.encode_to_vec()].concat();
    Uuid::new_v5(&Uuid::NAMESPACE_OID, &name)
}

pub fn encode(kind: Kind) -> Bytes {
    Event { rules: RULES, kind: Some(kind) }.encode_to_vec().into()
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
