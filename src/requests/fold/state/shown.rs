//! The visible state of a request: states, counts, devices, and the transitions between them.

use std::sync::Arc;

use jiff::Timestamp;

use super::size;
use crate::{identity::Device, proto::storage, store::Position, thingspace::StatusClass};

/// The state of a device. A device moves in the order of the variants. The two final states never
/// replace each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeviceState {
    Pending,
    Waiting,
    Succeeded,
    Failed,
}

impl DeviceState {
    pub fn is_final(self) -> bool {
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

/// The state of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestState {
    Pending,
    Succeeded,
    PartiallySucceeded,
    Failed,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub total: usize,
    pub succeeded: usize,
    pub failed: usize,
}

impl Counts {
    /// Pending and waiting devices.
    pub fn pending(self) -> usize {
        self.total - self.succeeded - self.failed
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceStatus {
    pub device: Device,
    pub state: DeviceState,
    pub profile: Option<storage::Profile>,
    pub fault: Option<storage::Fault>,
    pub update_time: Timestamp,
}

impl DeviceStatus {
    /// The approximate size of its fault and its profile, in bytes.
    pub fn text_bytes(&self) -> usize {
        size::of_texts(self.fault.as_ref(), self.profile.as_ref())
    }
}

/// The change by one event: one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    pub revision: u64,
    pub position: Position,
    pub time: Timestamp,
    pub state: RequestState,
    pub counts: Counts,
    pub polling_stopped: bool,
    /// The devices that changed, in their new state.
    pub devices: Vec<Arc<DeviceStatus>>,
    /// Earlier devices were dropped, so a watcher needs a snapshot.
    pub restart: bool,
}

/// The effect of an event.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    pub transition: Option<Transition>,
    /// The number of devices with another final state than that of the event.
    pub contradictions: usize,
    /// The number of devices of the event that the request does not have.
    pub unmatched: usize,
}
