//! About how much memory a request takes. Exact enough for a bound, and cheap: nothing is counted
//! twice.

use prost::Message;

use super::Request;
use crate::proto::storage;

/// A device with its identifiers, and what finds it by them, in bytes.
const DEVICE_BYTES: usize = 700;

/// A callback that waits for the device set, beside its texts, in bytes.
const EARLY_BYTES: usize = 500;

impl Request {
    /// About how many bytes it takes in memory.
    pub fn bytes(&self) -> usize {
        self.devices.len() * DEVICE_BYTES + self.text_bytes
    }
}

/// What is kept of a fault and a profile.
pub(super) fn of_texts(
    fault: Option<&storage::Fault>,
    profile: Option<&storage::Profile>,
) -> usize {
    fault.map_or(0, Message::encoded_len) + profile.map_or(0, Message::encoded_len)
}

pub(super) fn of_early(early: &[storage::CalledBack]) -> usize {
    early.iter().map(|called_back| called_back.encoded_len() + EARLY_BYTES).sum()
}
