//! The approximate size of a request in memory. Each event updates it.

use prost::Message;

use super::Request;
use crate::proto::storage;

/// The size of a device with its identifiers and their index entries, in bytes.
const DEVICE_BYTES: usize = 700;

/// The size of a device's status without its texts, in bytes.
pub(super) const STATUS_BYTES: usize = 400;

/// The size of an early callback without its texts, in bytes.
const EARLY_BYTES: usize = 500;

impl Request {
    pub(crate) fn bytes(&self) -> usize {
        self.devices.len() * DEVICE_BYTES + self.text_bytes
    }
}

pub(super) fn of_texts(
    fault: Option<&storage::Fault>,
    profile: Option<&storage::Profile>,
) -> usize {
    fault.map_or(0, Message::encoded_len) + profile.map_or(0, Message::encoded_len)
}

pub(super) fn of_early(early: &[storage::CalledBack]) -> usize {
    early.iter().map(|called_back| called_back.encoded_len() + EARLY_BYTES).sum()
}
