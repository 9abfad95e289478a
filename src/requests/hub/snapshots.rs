//! The devices of snapshots that are sent in several messages.
//!
//! Between two messages a watch holds no devices. They are held here, shared by all watches that
//! send the same revision, and limited in size. A snapshot that is not read for a while is dropped,
//! and made again when its reader continues. If the request has changed by then, the watch ends.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use super::{Hub, READ_GRACE};
use crate::requests::{fold::state::DeviceStatus, lock};

/// The devices of a request at one revision.
pub(crate) type Devices = Arc<Vec<Arc<DeviceStatus>>>;

/// The maximum size of all unfinished snapshots, in bytes. Those that were read within
/// [`READ_GRACE`] are kept even beyond it.
const MAX_BYTES: usize = 32 << 20;

/// A snapshot that was not read for this long is dropped.
pub(super) const STALLED: Duration = Duration::from_secs(30);

/// The unfinished snapshots.
#[derive(Debug, Default)]
pub(super) struct Snapshots(Mutex<Vec<HeldSnapshot>>);

#[derive(Debug)]
struct HeldSnapshot {
    devices: Devices,
    bytes: usize,
    used: Instant,
}

impl Snapshots {
    /// Drops the snapshots that were not used for `idle`, and the oldest beyond [`MAX_BYTES`].
    pub(super) fn drop_unused(&self, idle: Duration) {
        let mut held = lock(&self.0);
        let mut dropped: Vec<_> = held.extract_if(.., |held| held.used.elapsed() >= idle).collect();
        let mut bytes: usize = held.iter().map(|held| held.bytes).sum();
        while bytes > MAX_BYTES
            && let Some((oldest, _)) = held.iter().enumerate().min_by_key(|(_, held)| held.used)
            && held[oldest].used.elapsed() >= READ_GRACE
        {
            let oldest = held.swap_remove(oldest);
            bytes -= oldest.bytes;
            dropped.push(oldest);
        }
        // Unlocked first, because dropping 10,000 devices takes a while.
        drop(held);
        drop(dropped);
    }
}

impl Hub {
    /// Keeps the devices of a partly sent snapshot in memory.
    pub(crate) fn hold_snapshot(&self, devices: &Devices) {
        let mut held = lock(&self.snapshots.0);
        let now = Instant::now();
        if let Some(known) = held.iter_mut().find(|held| Arc::ptr_eq(&held.devices, devices)) {
            known.used = now;
            return;
        }
        let bytes = devices.iter().map(|device| device.bytes()).sum();
        held.push(HeldSnapshot { devices: Arc::clone(devices), bytes, used: now });
        drop(held);
        self.snapshots.drop_unused(STALLED);
    }
}
