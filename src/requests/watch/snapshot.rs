//! A request at one revision, with all its devices or with those of a page.

use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    identity::{AccountName, RequestId},
    requests::{
        fold::state::{Counts, RequestState},
        hub::{Devices, Tracked, TrackedState},
    },
    store::Position,
};

/// A request at one revision.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) account: Option<AccountName>,
    pub(crate) id: RequestId,
    pub(crate) state: RequestState,
    pub(crate) counts: Counts,
    /// All devices, or the devices of a page.
    pub(crate) devices: Devices,
    pub(crate) revision: u64,
    pub(crate) position: Position,
    pub(crate) create_time: Timestamp,
    pub(crate) update_time: Timestamp,
    pub(crate) polling_stopped: bool,
}

impl Snapshot {
    /// Returns a snapshot with all devices, which all snapshots of the revision share.
    pub(crate) fn whole(tracked: &Tracked) -> Self {
        let mut folded = tracked.lock();
        let devices = folded.all_devices();
        Self::of(tracked, &folded, devices)
    }

    /// Returns a snapshot with the devices of one page.
    pub(crate) fn page(tracked: &Tracked, from: usize, size: usize) -> Self {
        let folded = tracked.lock();
        let page = folded.request.devices.iter().skip(from).take(size);
        let devices = Arc::new(page.map(Arc::clone).collect());
        Self::of(tracked, &folded, devices)
    }

    fn of(tracked: &Tracked, folded: &TrackedState, devices: Devices) -> Self {
        let request = &folded.request;
        Self {
            account: request.account.clone(),
            id: tracked.id.clone(),
            state: request.state(),
            counts: request.counts,
            devices,
            revision: request.revision,
            position: folded.position(),
            create_time: request.create_time,
            update_time: request.update_time,
            polling_stopped: request.polling_stopped,
        }
    }
}
