//! The visible state of a request: states, counts, devices, and the transitions between them.

use std::sync::Arc;

use jiff::Timestamp;

use super::size;
use crate::{identity::Device, proto::storage, store::Position, thingspace::StatusClass};

/// The state of a device. It changes only to a later variant. A final state never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DeviceState {
    Pending,
    Waiting,
    Succeeded,
    Failed,
}

impl DeviceState {
    pub(crate) fn is_final(self) -> bool {
        self >= Self::Succeeded
    }

    pub(super) fn of(class: StatusClass) -> Option<Self> {
        match class {
            StatusClass::Pending => Some(Self::Pending),
            StatusClass::Waiting => Some(Self::Waiting),
            StatusClass::Succeeded => Some(Self::Succeeded),
            StatusClass::Failed => Some(Self::Failed),
            StatusClass::Unknown => None,
        }
    }

    /// Whether a device in this state moves to `next`.
    pub(super) fn moves_to(self, next: Self) -> bool {
        !self.is_final() && next > self
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestState {
    Pending,
    Succeeded,
    PartiallySucceeded,
    Failed,
}

impl RequestState {
    /// Returns the name of the state in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::PartiallySucceeded => "partially_succeeded",
            Self::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) total: usize,
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
}

impl Counts {
    pub(crate) fn pending(self) -> usize {
        self.total - self.succeeded - self.failed
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceStatus {
    pub(crate) device: Device,
    pub(crate) state: DeviceState,
    pub(crate) profile: Option<storage::Profile>,
    pub(crate) fault: Option<storage::Fault>,
    pub(crate) update_time: Timestamp,
}

impl DeviceStatus {
    pub(crate) fn bytes(&self) -> usize {
        size::STATUS_BYTES + size::of_texts(self.fault.as_ref(), self.profile.as_ref())
    }
}

/// The change that one event makes. Each has the next revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transition {
    pub(crate) revision: u64,
    pub(crate) position: Position,
    pub(crate) time: Timestamp,
    pub(crate) state: RequestState,
    pub(crate) counts: Counts,
    pub(crate) polling_stopped: bool,
    pub(crate) devices: Vec<Arc<DeviceStatus>>,
    /// Whether earlier devices were dropped, so that a watcher needs a snapshot.
    pub(crate) restart: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    pub(crate) transition: Option<Transition>,
    /// The number of devices with another final state than that of the event.
    pub(crate) contradictions: usize,
    /// The number of devices of the event that the request does not have.
    pub(crate) unmatched: usize,
}
